"""A matrix of cells that is never held as a whole: made, and written into a file, block of rows by block of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

__all__ = ["RowBlocks", "write_blocks"]

CHUNK_VALUES = 2**18  # of a dense chunk of zarr's: 1 MB


@dataclass(frozen=True)
class RowBlocks:
    """A matrix, cells x columns, of which a file may be made without holding it: float32, block of rows by block.

    Attributes
    ----------
    shape
        Cells and columns.
    sparse
        The blocks are CSR; else dense arrays.
    n_stored
        How many values it stores at most.
    make
        Gives the blocks from the first row to the last, each time from the start.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = RowBlocks((3, 2), False, 6, lambda: iter([np.zeros((2, 2)), np.ones((1, 2))]))
    >>> blocks.n_bytes, blocks.whole().tolist()
    (24, [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]])
    """

    shape: tuple[int, int]
    sparse: bool
    n_stored: int
    make: Callable[[], Iterator[Any]]

    @property
    def n_bytes(self) -> int:
        """Room that it takes, at most."""
        return 4 * self.n_stored + (4 * self.n_stored + 8 * (self.shape[0] + 1) if self.sparse else 0)

    def whole(self) -> Any:
        """All of it in memory: CSR or an array, shape (n_cells, n_columns)."""
        if self.sparse:
            return sp.vstack(list(self.make()), format="csr", dtype=np.float32)
        out = np.empty(self.shape, np.float32)
        _fill(out, self)
        return out


def write_blocks(group: Any, name: str, blocks: RowBlocks) -> None:
    """Write a matrix as anndata would, in its on-disk format; what had the name is replaced."""
    if name in group:
        del group[name]
    if blocks.sparse:
        for i, block in enumerate(blocks.make()):
            if i:
                sparse_dataset(group[name]).append(block)
            else:  # with room for more than 2**31 values in all
                write_elem(group, name, block, dataset_kwargs={"indptr_dtype": np.int64})
        return
    if isinstance(group, h5py.Group):
        array = group.create_dataset(name, blocks.shape, "float32")
    else:
        chunks = max(1, min(blocks.shape[0], CHUNK_VALUES // max(1, blocks.shape[1]))), blocks.shape[1]
        array = group.create_array(name, shape=blocks.shape, dtype="float32", chunks=chunks)
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _fill(array, blocks)


def _fill(array: Any, blocks: RowBlocks) -> None:
    start = 0
    for block in blocks.make():
        array[start : start + len(block)] = block
        start += len(block)
