"""A matrix that its file keeps gene by gene, kept anew cell by cell: once, and never in memory as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp

from cellnorm.adata._lazy import Place, Stretch, opened, storage
from cellnorm.blocks import RowBlocks, write_blocks
from cellnorm.errors import DataError
from cellnorm.output import reason, replacing, shown

__all__ = ["by_cells"]

READ_VALUES = 2**22  # dealt at once: 16 MB of values and as much of places
DEAL_ROWS, MOST_PILES = 8192, 64  # cells of a pile: it is sorted in memory, and there are files of all at once


def by_cells(place: Place, file: Path) -> Place:
    """A matrix where rows of it can be read: as it lies, or if it is stored by genes in a copy that is stored by cells.

    Values are dealt gene by gene into piles of cells, and each pile is sorted. That takes room on the disk, at most
    20 bytes a value at once and 8 to 12 afterwards.

    Parameters
    ----------
    place
        Where the matrix lies.
    file
        Where its copy is kept, or is already from an earlier run.

    Raises
    ------
    DataError
        The matrix is damaged, or the disk is full.
    """
    with opened(place) as element:
        if storage(element) != "csc_matrix":
            return place
        copied = place._replace(copy=str(file.absolute()))
        if file.exists():
            return copied
        piles = file.with_name(f".{file.name}.tmp")
        shutil.rmtree(piles, ignore_errors=True)
        try:
            piles.mkdir()
            with replacing(file) as temporary, h5py.File(temporary, "w") as out:
                n_cells, n_genes = map(int, element.attrs["shape"])
                n_values = int(element["data"].shape[0])
                write_blocks(out, "X", RowBlocks((n_cells, n_genes), True, n_values, partial(_sorted, element, piles)))
        except OSError as error:
            text = f"{place.source} of {shown(place.path)} cannot be copied cell by cell: {reason(error)}."
            raise DataError(text) from error
        finally:
            shutil.rmtree(piles, ignore_errors=True)
    return copied


def _sorted(element: Any, piles: Path) -> Iterator[Any]:
    """The matrix as CSR, pile by pile."""
    n_cells, n_genes = map(int, element.attrs["shape"])
    size = max(DEAL_ROWS, -(-n_cells // MOST_PILES))
    kind = np.dtype([("cell", "i4"), ("gene", "i4"), ("value", _native(element["data"].dtype))])
    files = [piles / str(start) for start in range(0, n_cells, size)]
    _deal(element, files, size, kind)
    for i, file in enumerate(files):
        pile = np.fromfile(file, kind)
        file.unlink()
        rows = min(size, n_cells - i * size)
        cell = pile["cell"] - i * size
        order = np.argsort(cell, kind="stable")  # so that genes stay in order
        indptr = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=rows))])
        yield sp.csr_matrix((pile["value"][order], pile["gene"][order], indptr), shape=(rows, n_genes))


def _deal(element: Any, files: list[Path], size: int, kind: np.dtype[Any]) -> None:
    """Append the values of all genes to the piles of their cells."""
    indptr = np.asarray(element["indptr"][:], np.int64)
    if (np.diff(indptr) < 0).any():
        raise ValueError("the places of its genes are not in order")
    data, indices = (Stretch(element[name], int(indptr[-1])) for name in ("data", "indices"))
    n_cells, n_genes = map(int, element.attrs["shape"])
    handles = [file.open("wb") for file in files]
    try:
        first = 0
        while first < n_genes:
            last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + READ_VALUES, side="right")) - 1)
            start, stop = int(indptr[first]), int(indptr[last])
            dealt = np.empty(stop - start, kind)
            dealt["cell"], dealt["value"] = indices.take(start, stop), data.take(start, stop)
            dealt["gene"] = np.repeat(np.arange(first, last), np.diff(indptr[first : last + 1]))
            if len(dealt) and not 0 <= dealt["cell"].min() <= dealt["cell"].max() < n_cells:
                raise ValueError("a value lies beyond the last cell")
            pile = dealt["cell"] // size
            dealt = dealt[np.argsort(pile, kind="stable")]
            edges = np.concatenate([[0], np.cumsum(np.bincount(pile, minlength=len(files)))])
            for handle, one, other in zip(handles, edges, edges[1:], strict=False):
                dealt[one:other].tofile(handle)
            first = last
    finally:
        for handle in handles:
            handle.close()


def _native(dtype: Any) -> np.dtype[Any]:
    """A type that is computed with: scipy has no sparse matrix of float16, and none of another byte order."""
    return np.dtype(np.float32) if dtype == np.float16 else np.dtype(dtype).newbyteorder("=")
