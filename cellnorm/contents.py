"""What a file says of itself before it is read: shape, matrices, bytes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cellnorm.formats import file_format, open_root
from cellnorm.memory import Contents, Matrix

__all__ = ["file_contents"]

STRING_BYTES = 80  # a short string as an object of Python's, and the pointer to it
SAMPLES, SAMPLE_ROWS = 8, 16  # rows of a dense matrix that are looked at: it does not say what of it is zero
PLACES = ("X", "layers", "raw/X")


def file_contents(path: str | os.PathLike[str], batch_key: Sequence[str] = ()) -> Contents | None:
    """What a file holds, told without reading it; None for formats that do not say.

    Parameters
    ----------
    path
        A file of cells, see `cellnorm.formats.read`.
    batch_key
        Columns of obs that tell batches apart; categories alone are counted.

    Returns
    -------
    Contents
        Of an .h5ad file or a .zarr folder. Of dense matrices a few rows are read.

    Raises
    ------
    DataError
        There is no such file, or it is of another kind, truncated or damaged.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "cells.h5ad")
    ...     ad.AnnData(np.eye(30, 20, dtype="float32")).write_h5ad(file)
    ...     found = file_contents(file)
    >>> found.n_cells, found.n_genes, found.matrices
    (30, 20, (Matrix(n_stored=20, value_bytes=4, index_bytes=0, by_rows=True),))
    """
    path = Path(path)
    if file_format(path) not in ("h5ad", "zarr"):
        return None
    with open_root(path) as root:
        return _of_root(root, batch_key)


def _of_root(root: Any, batch_key: Sequence[str]) -> Contents:
    matrices = [root[place] for place in PLACES if place in root]
    found = [node for place in matrices for node in ([place] if _is_matrix(place) else _children(place))]
    batches = [root["obs"][key] for key in batch_key if key in root["obs"]]
    n_batches = [column["categories"].shape[0] for column in batches if not hasattr(column, "shape")]
    return Contents(
        n_cells=_length(root["obs"]),
        n_genes=_length(root["var"]),
        n_bytes=sum(_bytes(array) for array in _arrays(root)),
        matrices=tuple(_matrix(node) for node in found if _is_matrix(node)),
        n_batches=int(np.prod(n_batches)) if n_batches else 1,
    )


def _is_matrix(node: Any) -> bool:
    return hasattr(node, "shape") or node.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix")


def _length(table: Any) -> int:
    """Rows of a table; the oldest format keeps a table as one array of records."""
    if hasattr(table, "shape"):
        return int(table.shape[0])
    return int(table[table.attrs["_index"]].shape[0])


def _matrix(node: Any) -> Matrix:
    if hasattr(node, "shape"):
        all_rows, last = np.arange(0, node.shape[0], SAMPLE_ROWS), max(0, node.shape[0] - SAMPLE_ROWS)
        starts = all_rows if len(all_rows) <= SAMPLES else np.linspace(0, last, SAMPLES).astype(int)
        rows = np.concatenate([np.asarray(node[start : start + SAMPLE_ROWS]) for start in starts] or [np.empty(0)])
        share = np.count_nonzero(rows) / max(1, rows.size)
        return Matrix(round(share * node.shape[0] * node.shape[1]), node.dtype.itemsize, 0, True)
    data, indices = node["data"], node["indices"]
    by_rows = node.attrs["encoding-type"] == "csr_matrix"
    return Matrix(data.shape[0], data.dtype.itemsize, indices.dtype.itemsize, by_rows)


def _children(group: Any) -> list[Any]:
    return [group[name] for name in group]


def _arrays(group: Any) -> Iterator[Any]:
    """All arrays of a file, those that are linked to twice twice, as they are read."""
    for node in _children(group):
        if hasattr(node, "shape"):
            yield node
        else:
            yield from _arrays(node)


def _bytes(array: Any) -> int:
    """What an array takes in memory."""
    numeric = array.dtype.kind in "biufcSV"
    return int(np.prod(array.shape, dtype=np.int64)) * (array.dtype.itemsize if numeric else STRING_BYTES)
