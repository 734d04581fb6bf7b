"""Rows of a matrix that stays in its file are those of the matrix, and are read once."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.adata import Place, _lazy, choose_matrix, file_places, open_rows, read_genes, read_shell
from cellnorm.errors import DataError

N_CELLS, N_GENES = 60, 12
STORAGES: dict[str, Callable[[np.ndarray], Any]] = {
    "csr": sp.csr_matrix,
    "csr_array": sp.csr_array,
    "dense": np.asarray,
    "csr int64": lambda x: sp.csr_matrix(x.astype(np.int64)),
    "dense uint8": lambda x: x.astype(np.uint8),
    "dense float16": lambda x: x.astype(np.float16),
    "dense big-endian": lambda x: x.astype(">f8"),
}


def values() -> np.ndarray:
    return np.random.default_rng(0).poisson(0.8, (N_CELLS, N_GENES)).astype(np.float32)


def cells(matrix: Any) -> ad.AnnData:
    adata = ad.AnnData(matrix)
    adata.obs["batch"] = ["a", "b"] * (N_CELLS // 2)
    return adata


def write(adata: ad.AnnData, path: Path, **options: Any) -> Path:
    (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path, **options)
    return path


def dense(rows: Any) -> np.ndarray:
    return np.asarray(rows.toarray() if sp.issparse(rows) else rows)


@pytest.fixture(params=[".h5ad", ".zarr"])
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("storage", STORAGES)
def test_rows_are_those_of_the_matrix(tmp_path: Path, suffix: str, storage: str) -> None:
    path = write(cells(STORAGES[storage](values())), tmp_path / f"cells{suffix}")
    with open_rows(Place(str(path), "X")) as rows:
        assert rows.shape == (N_CELLS, N_GENES)
        found = rows[7:31]
        assert sp.issparse(found) == storage.startswith("csr")
        np.testing.assert_array_equal(dense(found), values()[7:31])
        np.testing.assert_array_equal(dense(rows[0:N_CELLS]), values())
        assert rows[5:5].shape == (0, N_GENES)
    with open_rows(Place(str(path), "X"), slice(20, 40)) as rows:
        np.testing.assert_array_equal(dense(rows[20:29]), values()[20:29])
        np.testing.assert_array_equal(dense(rows[29:40]), values()[29:40])


@given(
    chunk=st.integers(1, 70),
    ahead=st.integers(1, 300),
    cuts=st.lists(st.integers(0, N_CELLS), max_size=6),
    sparse=st.booleans(),
)
def test_any_pieces_of_any_chunks_make_the_matrix(
    tmp_path_factory: pytest.TempPathFactory, chunk: int, ahead: int, cuts: list[int], sparse: bool
) -> None:
    path = tmp_path_factory.mktemp("lazy") / "cells.h5ad"
    path.unlink(missing_ok=True)
    matrix = sp.csr_matrix(values()) if sparse else values()
    write(cells(matrix), path)
    with h5py.File(path, "r+") as file:
        for place in ("X/data", "X/indices") if sparse else ("X",):
            array, attrs = file[place][()], dict(file[place].attrs)
            del file[place]
            file.create_dataset(place, data=array, chunks=(chunk if sparse else min(chunk, N_CELLS), *array.shape[1:]))
            file[place].attrs.update(attrs)
    edges = sorted({0, N_CELLS, *cuts})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lazy, "READ_VALUES", ahead)
        with open_rows(Place(str(path), "X")) as rows:
            found = [dense(rows[slice(*edge)]) for edge in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(found), values())


class Watched:
    """An array on disk that tells what was read of it."""

    def __init__(self, n: int, chunk: int) -> None:
        self.values, self.chunks, self.shape = np.arange(n), (chunk,), (n,)
        self.times = np.zeros(-(-n // chunk), int)

    def __getitem__(self, key: slice) -> np.ndarray:
        if key.stop > key.start:
            self.times[key.start // self.chunks[0] : -(-key.stop // self.chunks[0])] += 1
        return self.values[key]


@given(chunk=st.integers(1, 40), ahead=st.integers(1, 60), step=st.integers(1, 50), start=st.integers(0, 100))
def test_no_chunk_is_read_twice(chunk: int, ahead: int, step: int, start: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_lazy, "READ_VALUES", ahead)
        array = Watched(200, chunk)
        stretch = _lazy.Stretch(array, 180)
        for first in range(start, 180, step):
            last = min(first + step, 180)
            assert stretch.take(first, last).tolist() == list(range(first, last))
    assert array.times.max() == 1
    assert array.times[: start // chunk].sum() == 0
    assert array.times[-(-180 // chunk) :].sum() == 0, "beyond the end"
    assert stretch.take(0, 3).tolist() == [0, 1, 2], "going back is allowed"


# -- where matrices lie ----------------------------------------------------------------------------------------------


def test_matrices_are_found_as_in_memory(tmp_path: Path, suffix: str) -> None:
    adata = cells(-values())
    adata.layers["counts"] = sp.csr_matrix(values())
    adata.layers["it's"] = values() + 1
    raw = ad.AnnData(values()[:, ::-1] + 2)
    raw.var_names = [f"raw{i}" for i in range(N_GENES)]
    adata.raw = raw
    path = write(adata, tmp_path / f"cells{suffix}")
    found = file_places(path)
    assert [place.source for place in found] == ["X", "layers['counts']", "raw.X"]
    with open_rows(found[2]) as rows:
        np.testing.assert_array_equal(rows[0:N_CELLS], values()[:, ::-1] + 2)
    assert read_genes(found[2]).tolist() == [f"raw{i}" for i in range(N_GENES)]
    assert read_genes(found[1]).tolist() == adata.var_names.tolist()
    (only,) = file_places(path, "it's")
    assert only.source == choose_matrix(adata, "it's")[2]
    with open_rows(only) as rows:
        np.testing.assert_array_equal(rows[0:N_CELLS], values() + 1)
    with pytest.raises(DataError, match="layer 'none' was asked for, but the layers are: 'counts', \"it's\""):
        file_places(path, "none")


def test_without_a_matrix(tmp_path: Path, suffix: str) -> None:
    path = write(ad.AnnData(obs=cells(values()).obs), tmp_path / f"cells{suffix}")
    with pytest.raises(DataError, match="are all empty"):
        file_places(path)
    assert read_shell(path).obs["batch"].tolist() == ["a", "b"] * 30


def test_the_shell_has_everything_but_matrices(tmp_path: Path, suffix: str) -> None:
    adata = cells(values())
    adata.var["use"] = np.arange(N_GENES) % 2 == 0
    adata.obsm["X_pca"] = values()
    shell = read_shell(write(adata, tmp_path / f"cells{suffix}"))
    assert shell.shape == adata.shape
    assert shell.X is None
    assert not shell.obsm
    assert shell.obs["batch"].tolist() == adata.obs["batch"].tolist()
    assert shell.var["use"].tolist() == adata.var["use"].tolist()
    assert shell.obs_names.tolist() == adata.obs_names.tolist()


# -- what cannot be read ---------------------------------------------------------------------------------------------


def test_a_matrix_stored_by_genes_has_no_rows(tmp_path: Path, suffix: str) -> None:
    path = write(cells(sp.csc_matrix(values())), tmp_path / f"cells{suffix}")
    with (
        pytest.raises(DataError, match=r"X of .* is stored as csc_matrix.*tocsr") as caught,
        open_rows(Place(str(path), "X")),
    ):
        pass
    assert "in memory" in str(caught.value)


@pytest.mark.parametrize("damage", ["short", "beyond", "backwards", "rows"])
def test_a_damaged_matrix_is_told(tmp_path: Path, damage: str) -> None:
    path = write(cells(sp.csr_matrix(values())), tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file:
        if damage == "short":
            kept = file["X/data"][:-3]
            del file["X/data"]
            file["X/data"] = kept
        elif damage == "beyond":
            file["X/indices"][5] = N_GENES
        elif damage == "backwards":
            file["X/indptr"][9] = 0
        else:
            kept = file["X/indptr"][:-3]
            del file["X/indptr"]
            file["X/indptr"] = kept
    with pytest.raises(DataError, match="is damaged or incomplete"), open_rows(Place(str(path), "X")) as rows:
        rows[0:N_CELLS]


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_shell(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("text")
    with pytest.raises(DataError, match=r"is not an \.h5ad file"):
        read_shell(tmp_path / "text.h5ad")
    (tmp_path / "matrix.mtx").write_text("%%MatrixMarket")
    with pytest.raises(DataError, match=r"is a 10x folder, which is read as a whole; only \.h5ad and \.zarr"):
        read_shell(tmp_path)


def test_a_pickled_array_is_never_read(tmp_path: Path) -> None:
    path = write(cells(sp.csr_matrix(values())), tmp_path / "cells.zarr")
    meta = json.loads((path / "X" / "data" / ".zarray").read_text())
    meta |= {"dtype": "|O", "fill_value": "", "filters": [{"id": "vlen-utf8"}]}
    meta["compressor"] = {"id": "pickle", "protocol": 0}
    (path / "X" / "data" / ".zarray").write_text(json.dumps(meta))
    (path / ".zmetadata").unlink()
    with pytest.raises(DataError, match=r"holds a pickled array \('X/data'\)"):
        read_shell(path)
    with pytest.raises(DataError, match="holds a pickled array"), open_rows(Place(str(path), "X")):
        pass
