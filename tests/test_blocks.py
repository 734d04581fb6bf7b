"""A matrix is made and written block by block, in anndata's own format, and replaces what had its name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from anndata.io import read_elem, write_elem
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.blocks import RowBlocks, write_blocks


def of(values: np.ndarray, sparse: bool, step: int = 3) -> RowBlocks:
    """Blocks of `step` rows, CSR or dense."""

    def make() -> Iterator[Any]:
        for start in range(0, len(values), step):
            block = values[start : start + step]
            yield sp.csr_matrix(block) if sparse else block

    return RowBlocks(values.shape, sparse, int((values != 0).sum()) if sparse else values.size, make)


def dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)


@given(n_rows=st.integers(1, 12), n_columns=st.integers(1, 6), step=st.integers(1, 13), sparse=st.booleans())
def test_the_whole_is_its_blocks(n_rows: int, n_columns: int, step: int, sparse: bool) -> None:
    values = np.random.default_rng(0).poisson(0.7, (n_rows, n_columns)).astype(np.float32)
    whole = of(values, sparse, step).whole()
    assert sp.issparse(whole) == sparse
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(dense(whole), values)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["h5", "zarr2", "zarr3"])
def test_what_is_written_is_what_anndata_writes(tmp_path: Path, kind: str, sparse: bool) -> None:
    values = np.random.default_rng(0).poisson(0.7, (10, 7)).astype(np.float32)
    group: Any = (
        h5py.File(tmp_path / "a.h5", "w") if kind == "h5" else zarr.open_group(tmp_path / "a", zarr_format=int(kind[4]))
    )
    write_blocks(group, "made", of(values, sparse))
    write_elem(group, "kept", sp.csr_matrix(values) if sparse else values)
    made, kept = group["made"], group["kept"]
    assert dict(made.attrs)["encoding-type"] == dict(kept.attrs)["encoding-type"]
    assert dict(made.attrs)["encoding-version"] == dict(kept.attrs)["encoding-version"]
    read = read_elem(made)
    assert sp.issparse(read) == sparse
    np.testing.assert_array_equal(dense(read), values)
    if sparse:
        assert made["indptr"].dtype == np.int64
        assert made["data"].dtype == np.float32
    else:
        assert made.dtype == np.float32


@pytest.mark.parametrize("sparse", [False, True])
def test_what_had_the_name_is_replaced(tmp_path: Path, sparse: bool) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_elem(file, "x", np.zeros((2, 2)))
        write_blocks(file, "x", of(np.eye(4, dtype=np.float32), sparse))
        np.testing.assert_array_equal(dense(read_elem(file["x"])), np.eye(4))


def test_a_block_is_all_that_is_held() -> None:
    alive: list[int] = []
    most = 0

    def make() -> Iterator[np.ndarray]:
        nonlocal most
        for _ in range(5):
            alive.append(1)
            most = max(most, len(alive))
            yield np.zeros((2, 3), np.float32)
            alive.pop()

    with h5py.File("x.h5", "w", driver="core", backing_store=False) as file:
        write_blocks(file, "x", RowBlocks((10, 3), False, 30, make))
        assert file["x"].shape == (10, 3)
    assert most == 1


@pytest.mark.parametrize("sparse", [False, True])
def test_the_room_asked_for_is_enough(tmp_path: Path, sparse: bool) -> None:
    values = np.random.default_rng(0).poisson(0.7, (300, 200)).astype(np.float32)
    blocks = of(values, sparse, step=40)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_blocks(file, "x", blocks)
    assert 0 <= (tmp_path / "a.h5").stat().st_size - blocks.n_bytes < 2**20


def test_a_layer_on_the_disk_can_be_opened_without_loading_it(tmp_path: Path) -> None:
    adata = ad.AnnData(np.ones((4, 3), np.float32))
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        write_blocks(file["layers"], "new", of(np.arange(12, dtype=np.float32).reshape(4, 3), sparse=False))
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read.layers["new"], np.arange(12).reshape(4, 3))
    np.testing.assert_array_equal(read.X, adata.X)
