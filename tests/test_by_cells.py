"""A matrix stored by genes, kept anew by cells: the same values, whatever the size of what is dealt at once."""

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.adata import Place, _by_cells, by_cells, open_rows
from cellnorm.errors import DataError

N_CELLS, N_GENES = 60, 12


def values() -> sp.csc_matrix:
    return sp.csc_matrix(np.random.default_rng(0).poisson(0.8, (N_CELLS, N_GENES)).astype(np.float32))


def write(matrix: Any, path: Path) -> Place:
    adata = ad.AnnData(matrix)
    (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path)
    return Place(str(path), "X")


def rows_of(place: Place) -> Any:
    with open_rows(place) as rows:
        return rows[0:N_CELLS]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint16])
def test_the_copy_has_the_same_values(tmp_path: Path, suffix: str, dtype: type) -> None:
    place = write(values().astype(dtype), tmp_path / f"cells{suffix}")
    (tmp_path / "work").mkdir()
    copy = by_cells(place, tmp_path / "work" / "x.h5")
    found = rows_of(copy)
    assert (found != values().tocsr()).nnz == 0
    assert found.dtype == dtype
    assert found.has_canonical_format
    assert (copy.path, copy.source) == (place.path, place.source)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["x.h5"]
    with open_rows(copy, slice(20, 31)) as rows:
        assert (rows[22:31] != values().tocsr()[22:31]).nnz == 0


@given(ahead=st.integers(1, 900), rows=st.integers(1, 70), piles=st.integers(1, 70))
def test_the_size_of_the_piles_has_no_say(
    tmp_path_factory: pytest.TempPathFactory, ahead: int, rows: int, piles: int
) -> None:
    folder = tmp_path_factory.mktemp("by_cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_by_cells, "READ_VALUES", ahead)
        patch.setattr(_by_cells, "DEAL_ROWS", rows)
        patch.setattr(_by_cells, "MOST_PILES", piles)
        found = rows_of(by_cells(write(values(), folder / "cells.h5ad"), folder / "x.h5"))
    assert (found != values().tocsr()).nnz == 0


def test_a_copy_that_is_there_is_taken(tmp_path: Path) -> None:
    place = write(values(), tmp_path / "cells.h5ad")
    by_cells(place, tmp_path / "x.h5")
    before = (tmp_path / "x.h5").stat().st_mtime_ns
    by_cells(place, tmp_path / "x.h5")
    assert (tmp_path / "x.h5").stat().st_mtime_ns == before


@pytest.mark.parametrize("storage", [sp.csr_matrix, np.asarray])
def test_a_matrix_stored_by_cells_is_taken_as_it_is(tmp_path: Path, storage: Any) -> None:
    place = write(storage(values().toarray()), tmp_path / "cells.h5ad")
    assert by_cells(place, tmp_path / "x.h5") == place
    assert not (tmp_path / "x.h5").exists()


@pytest.mark.parametrize("damage", ["beyond", "backwards", "short"])
def test_a_damaged_matrix_leaves_nothing_behind(tmp_path: Path, damage: str) -> None:
    place = write(values(), tmp_path / "cells.h5ad")
    with h5py.File(place.path, "r+") as file:
        if damage == "beyond":
            file["X/indices"][5] = N_CELLS
        elif damage == "backwards":
            file["X/indptr"][3] = 0
        else:
            kept = file["X/data"][:-3]
            del file["X/data"]
            file["X/data"] = kept
    (tmp_path / "work").mkdir()
    with pytest.raises(DataError, match="is damaged or incomplete"):
        by_cells(place, tmp_path / "work" / "x.h5")
    assert list((tmp_path / "work").iterdir()) == []
