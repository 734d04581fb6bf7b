"""What a file says of itself is what is found when it is read."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellnorm.contents import STRING_BYTES, file_contents
from cellnorm.errors import DataError
from cellnorm.memory import Matrix


def written(adata: ad.AnnData, path: Path) -> Path:
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix])
def test_it_counts_cells_genes_and_stored_values(
    small_adata: ad.AnnData, tmp_path: Path, name: str, kind: type[sp.csr_matrix]
) -> None:
    small_adata.X = kind(small_adata.X)
    found = file_contents(written(small_adata, tmp_path / name), ["batch"])
    assert found is not None
    assert (found.n_cells, found.n_genes, found.n_batches) == (300, 200, 3)
    assert found.matrices == (Matrix(small_adata.X.nnz, 4, 4, kind is sp.csr_matrix),)


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_it_sees_every_matrix_and_its_types(small_adata: ad.AnnData, tmp_path: Path, name: str) -> None:
    counts = small_adata.X.copy()
    small_adata.raw = small_adata.copy()
    small_adata.layers["counts"] = counts.astype(np.int64)
    small_adata.X = counts.toarray().astype(np.float64)
    found = file_contents(written(small_adata, tmp_path / name))
    assert found is not None
    dense, layer, raw = found.matrices
    assert layer == Matrix(counts.nnz, 8, 4, True)
    assert raw == Matrix(counts.nnz, 4, 4, True)
    assert (dense.value_bytes, dense.index_bytes, dense.by_rows) == (8, 0, True)
    assert dense.n_stored == pytest.approx(counts.nnz, rel=0.1)  # of a sample of the rows
    assert found.n_bytes > 8 * 300 * 200 + 12 * counts.nnz + 8 * counts.nnz + 500 * STRING_BYTES


@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_its_bytes_are_those_of_the_cells_in_memory(small_adata: ad.AnnData, tmp_path: Path, name: str) -> None:
    small_adata.obsm["X_other"] = np.ones((300, 1000))
    found = file_contents(written(small_adata, tmp_path / name))
    assert found is not None
    assert found.n_bytes == pytest.approx(small_adata.__sizeof__(), rel=0.05)


def test_columns_that_are_crossed_multiply(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.obs["day"] = np.arange(300)  # no categories: not counted without being read
    found = file_contents(written(small_adata, tmp_path / "a.h5ad"), ["batch", "cell_type", "day", "unknown"])
    assert found is not None
    assert found.n_batches == 12


def test_a_file_without_a_matrix_has_none(tmp_path: Path) -> None:
    found = file_contents(written(ad.AnnData(obs=pd.DataFrame(index=["a", "b"])), tmp_path / "a.h5ad"))
    assert found is not None
    assert (found.n_cells, found.n_genes, found.matrices) == (2, 0, ())


def test_formats_that_do_not_say_give_nothing(tmp_path: Path) -> None:
    (tmp_path / "matrix.mtx").touch()
    assert file_contents(tmp_path) is None


def test_a_damaged_file_is_refused_in_one_line(small_adata: ad.AnnData, tmp_path: Path) -> None:
    path = written(small_adata, tmp_path / "a.zarr")
    (path / ".zmetadata").unlink()
    (path / "obs" / ".zattrs").write_text("{}")
    with pytest.raises(DataError, match=r"'.*a\.zarr' is damaged or incomplete"):
        file_contents(path)


def test_a_pickled_array_is_refused(small_adata: ad.AnnData, tmp_path: Path) -> None:
    path = written(small_adata, tmp_path / "a.zarr")
    file = path / "X" / "data" / ".zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": "pickle", "protocol": 0}}))
    (path / ".zmetadata").unlink()
    with pytest.raises(DataError, match="pickle"):
        file_contents(path)
