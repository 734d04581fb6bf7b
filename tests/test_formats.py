"""Every format that labs have is read, whatever it is called; nothing damaged or hostile gets further."""

import contextlib
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.errors import DataError
from cellnorm.formats import file_format, read

N_CELLS, N_FEATURES = 7, 5
COUNTS = np.random.default_rng(1).poisson(1.0, (N_CELLS, N_FEATURES))
CELLS = [f"ACGT{i}-1" for i in range(N_CELLS)]
IDS = [f"ENSG{i:011d}" for i in range(N_FEATURES)]
SYMBOLS = [f"GENE{i}" for i in range(N_FEATURES)]
TYPES = ["Gene Expression"] * 4 + ["Antibody Capture"]


def _h5ad(path: Path) -> Path:
    adata = ad.AnnData(sp.csr_matrix(COUNTS.astype(np.float32)))
    adata.obs_names, adata.var_names = CELLS, SYMBOLS
    adata.write_h5ad(path)
    return path


def _zarr(path: Path) -> Path:
    adata = ad.AnnData(sp.csr_matrix(COUNTS.astype(np.float32)))
    adata.obs_names, adata.var_names = CELLS, SYMBOLS
    adata.write_zarr(path)
    return path


def _10x_h5(path: Path) -> Path:
    matrix = sp.csc_matrix(COUNTS.T)  # genes x cells, as 10x stores it
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, values in {
            "data": matrix.data.astype(np.int32),
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "shape": matrix.shape,
            "barcodes": np.array(CELLS, "S"),
        }.items():
            group[name] = values
        features = group.create_group("features")
        for name, texts in {"id": IDS, "name": SYMBOLS, "feature_type": TYPES, "genome": ["G"] * N_FEATURES}.items():
            features[name] = np.array(texts, "S")
    return path


def _old_10x_h5(path: Path) -> Path:
    matrix = sp.csc_matrix(COUNTS.T)
    with h5py.File(path, "w") as file:
        group = file.create_group("GRCh38")
        for name, values in {
            "data": matrix.data.astype(np.int32),
            "indices": matrix.indices,
            "indptr": matrix.indptr,
            "shape": matrix.shape,
            "barcodes": np.array(CELLS, "S"),
            "genes": np.array(IDS, "S"),
            "gene_names": np.array(SYMBOLS, "S"),
        }.items():
            group[name] = values
    return path


def _mtx(folder: Path, prefix: str = "") -> Path:
    folder.mkdir()
    rows = zip(IDS, SYMBOLS, TYPES, strict=True)
    with gzip.open(folder / f"{prefix}matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sp.coo_matrix(COUNTS.T))
    with gzip.open(folder / f"{prefix}features.tsv.gz", "wt") as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
    with gzip.open(folder / f"{prefix}barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{cell}\n" for cell in CELLS)
    return folder


def _old_mtx(folder: Path) -> Path:
    folder.mkdir()
    scipy.io.mmwrite(folder / "matrix.mtx", sp.coo_matrix(COUNTS.T))
    (folder / "genes.tsv").write_text("".join(f"{i}\t{s}\n" for i, s in zip(IDS, SYMBOLS, strict=True)))
    (folder / "barcodes.tsv").write_text("".join(f"{cell}\n" for cell in CELLS))
    return folder


WRITERS: dict[str, tuple[Callable[[Path], Path], str, str, int]] = {
    "h5ad": (_h5ad, "a.h5ad", "h5ad", 5),
    "h5ad called h5": (_h5ad, "a.h5", "h5ad", 5),
    "h5ad without a suffix": (_h5ad, "cells", "h5ad", 5),
    "zarr": (_zarr, "a.zarr", "zarr", 5),
    "zarr called otherwise": (_zarr, "store", "zarr", 5),
    "10x h5": (_10x_h5, "raw.h5", "10x file", 4),
    "10x h5 of Cell Ranger 2": (_old_10x_h5, "raw.h5", "10x file", 5),
    "10x folder": (_mtx, "filtered", "10x folder", 4),
    "10x folder with a prefix": (lambda path: _mtx(path, "GSM1_"), "filtered", "10x folder", 4),
    "10x folder of Cell Ranger 2": (_old_mtx, "filtered", "10x folder", 5),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_the_same_cells(tmp_path: Path, name: str) -> None:
    write, file_name, kind, n_genes = WRITERS[name]
    path = write(tmp_path / file_name)
    assert file_format(path) == kind
    adata = read(path)
    assert adata.obs_names.tolist() == CELLS
    assert adata.var_names.tolist() == SYMBOLS[:n_genes]  # antibodies are left out where the file tells them apart
    matrix = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
    np.testing.assert_array_equal(matrix, COUNTS[:, :n_genes])


def test_left_out_antibodies_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read(_10x_h5(tmp_path / "a.h5"))
    assert "1 features that are no genes" in caplog.text


def test_zarr_of_format_3_is_read(tmp_path: Path) -> None:
    with ad.settings.override(zarr_write_format=3):
        path = _zarr(tmp_path / "a.zarr")
    assert (path / "zarr.json").exists()
    assert read(path).shape == COUNTS.shape


def _plain_mtx(path: Path) -> None:
    _old_mtx(path)
    (path / "genes.tsv").rename(path / "features.tsv")


def _other_h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["mod/rna/x"] = 1


def _two_matrices(path: Path) -> None:
    _mtx(path, "a_")
    (path / "b_matrix.mtx.gz").write_bytes((path / "a_matrix.mtx.gz").read_bytes())


def _obs_without_index(path: Path) -> None:
    _h5ad(path)
    with h5py.File(path, "r+") as file:
        del file["obs"].attrs["_index"]


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing there": (lambda path: None, "no such file"),
    "a folder of other things": (lambda path: path.mkdir(), "without a zarr store or a 10x matrix"),
    "an empty file": (lambda path: path.touch(), "not an .h5ad file"),
    "a table": (lambda path: path.write_text("cell,gene\n1,2\n"), "not an .h5ad file"),
    "another HDF5 file": (_other_h5, "without cells .* 'mod'"),
    "an h5ad that lacks a part": (_obs_without_index, "damaged or incomplete"),
    "mtx neither old nor gzipped": (_plain_mtx, "gzip"),
    "a folder of two matrices": (_two_matrices, "2 matrices .*'a_matrix.mtx.gz', 'b_matrix.mtx.gz'"),
    "half a zarr": (lambda path: (path.mkdir(), (path / ".zgroup").write_text("{")), "damaged or incomplete"),
    "a name that is too long": (lambda path: None, "no such file|too long"),
    "no regular file": (lambda path: path.symlink_to("/dev/null"), "neither a file nor a folder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_file_of_cells_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    make, message = REFUSED[name]
    path = tmp_path / ("n" * 300 if "too long" in name else "a.h5ad")
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _h5ad(tmp_path_factory.mktemp("whole") / "a.h5ad").read_bytes()


@given(share=st.floats(0, 0.999), data=st.data())
def test_a_truncated_h5ad_is_refused(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, share: float, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.h5ad"
    path.write_bytes(whole[: data.draw(st.sampled_from([int(share * len(whole)), len(whole) - 1]))])
    with pytest.raises(DataError, match=r"truncated|not an \.h5ad"):
        read(path)


# not 0: HDF5 itself waits for ever on a heap that holds an object of no length
@given(place=st.floats(0, 0.999), value=st.integers(1, 255))
def test_a_damaged_h5ad_is_read_or_refused(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, place: float, value: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.h5ad"
    damaged = bytearray(whole)
    start = int(place * len(whole))
    damaged[start : start + 64] = bytes([value]) * len(damaged[start : start + 64])
    path.write_bytes(damaged)
    with contextlib.suppress(DataError):  # and nothing else is raised
        read(path)


def test_a_pickled_array_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A zarr array may be encoded with pickle, and unpickling runs what the sender wrote."""
    pickles = pytest.importorskip("numcodecs.pickles")
    # Newer versions refuse by themselves; older ones do not, and a user may have allowed it for files of his own.
    monkeypatch.setattr(pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True, raising=False)
    path, canary = _zarr(tmp_path / "a.zarr"), tmp_path / "canary"
    array = path / "uns" / "note"
    array.mkdir()
    meta = {
        "chunks": [1],
        "compressor": {"id": "pickle", "protocol": 0},
        "dtype": "|O",
        "fill_value": "",
        "filters": [{"id": "vlen-utf8"}],
        "order": "C",
        "shape": [1],
        "zarr_format": 2,
    }
    (array / ".zarray").write_text(json.dumps(meta))
    (array / ".zattrs").write_text(json.dumps({"encoding-type": "array", "encoding-version": "0.2.0"}))
    (array / "0").write_bytes(f"cos\nmkdir\n(V{canary}\ntR.".encode())
    (path / ".zmetadata").unlink()
    with pytest.raises(DataError, match=r"pickled array \('uns/note'\)"):
        read(path)
    assert not canary.exists()


def test_an_error_shows_no_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\n.h5ad"
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).isprintable()
