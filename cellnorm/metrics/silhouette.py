"""Silhouette widths: of cell types against each other, and of batches within a type.

All functions give one value per cell; `label_mean` makes a score of them, in which every type counts the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.metrics.neighbors import compact_codes

__all__ = ["batch_silhouette", "bras", "isolated_labels", "label_mean", "label_silhouette"]

CHUNK_VALUES = 1 << 21  # distances that are held at a time: 8 MB

Values = NDArray[np.float64]
Codes = NDArray[Any]


def label_silhouette(x: NDArray[Any], label: Codes, *, device: str = "cpu") -> Values:
    """Silhouette width of each cell with respect to the types (Rousseeuw 1987).

    (b - a) / max(a, b), with a the mean Euclidean distance to the other cells of the cell's type and b that to the
    cells of the nearest other type. A cell that is the only one of its type has width 0, as in scikit-learn. Exact; a
    chunk of the distances is held at a time, and each distance between two types is computed once.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, n_dims).
    label
        Type of each cell as an integer from 0 up, shape (n_cells,).
    device
        A torch device.

    Returns
    -------
    Shape (n_cells,), from -1 (among another type) to 1 (types far apart); NaN where there is one type only.

    Examples
    --------
    >>> import numpy as np
    >>> label_silhouette(np.array([[0.0], [1.0], [10.0], [11.0]]), np.array([0, 0, 1, 1])).round(3).tolist()
    [0.905, 0.895, 0.895, 0.905]
    """
    codes, sizes = _sized(label, len(x), "type")
    if len(sizes) < 2:
        return np.full(len(codes), np.nan)
    return _widths(x, codes, sizes, device)


def batch_silhouette(x: NDArray[Any], label: Codes, batch: Codes, *, device: str = "cpu") -> Values:
    """Silhouette of the batches within each type, turned round: 1 - |s| per cell, high where batches are mixed.

    The mean over types of their means (`label_mean`) is scIB's "ASW batch" (Luecken 2022). It can be high although
    batches are apart when one of several others is near (Rautenstrauch and Ohler 2025): see `bras`.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, n_dims).
    label, batch
        Type and batch of each cell as integers from 0 up, shape (n_cells,).
    device
        A torch device.

    Returns
    -------
    Shape (n_cells,), 0 to 1; NaN for cells of a type that is in one batch only, or of which no batch has two cells.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[0.0], [0.0], [9.0], [9.0]])
    >>> batch_silhouette(x, np.zeros(4, int), np.array([0, 0, 1, 1])).tolist()
    [0.0, 0.0, 0.0, 0.0]
    >>> batch_silhouette(x, np.zeros(4, int), np.array([0, 1, 0, 1])).tolist()  # its own batch is farther away
    [0.5, 0.5, 0.5, 0.5]
    """
    values = np.full(len(x), np.nan)
    for cells, codes, sizes in _comparable(label, batch, len(x)):
        values[cells] = 1 - np.abs(_widths(x[cells], codes, sizes, device))
    return values


def bras(x: NDArray[Any], label: Codes, batch: Codes) -> Values:
    """Batch-removal-adapted silhouette (BRAS) of each cell: high where the batches of a type are mixed.

    1 - |s| like `batch_silhouette`, but with cosine distances, and with b the mean distance to all cells of other
    batches instead of the nearest batch (Rautenstrauch and Ohler 2025). The mean cosine distance to a set of cells is
    linear in their unit vectors: no pair of cells is looked at, and the cost is linear in the cells.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, n_dims); directions are taken from its origin, as the definition has it.
    label, batch
        Type and batch of each cell as integers from 0 up, shape (n_cells,).

    Returns
    -------
    Shape (n_cells,), 0 to 1; NaN for cells of a type that is in one batch only, or of which no batch has two cells.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> bras(x, np.zeros(4, int), np.array([0, 0, 1, 1])).tolist()
    [0.0, 0.0, 0.0, 0.0]
    """
    values = np.full(len(x), np.nan)
    for cells, codes, sizes in _comparable(label, batch, len(x)):
        rows = np.asarray(x[cells], np.float64)
        length = np.linalg.norm(rows, axis=1, keepdims=True)
        unit = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
        of_batch = np.zeros((len(sizes), unit.shape[1]))
        np.add.at(of_batch, codes, unit)
        own_sum = sizes[codes] - np.einsum("ij,ij->i", unit, of_batch[codes])
        all_sum = len(codes) - unit @ of_batch.sum(axis=0)
        own_sum -= 1 - np.square(unit).sum(axis=1)  # a cell's distance to itself is 0, even at the origin
        values[cells] = 1 - np.abs(_width(own_sum, sizes[codes], (all_sum - own_sum) / (len(codes) - sizes[codes])))
    return values


def isolated_labels(label: Codes, batch: Codes) -> NDArray[np.bool_]:
    """Cells of the types that are found in the fewest batches: those that a correction loses most easily.

    The mean of (s + 1) / 2 over these types, with s from `label_silhouette`, is scIB's isolated-label score in the
    version of scib-metrics. If every type is in all batches, all are as isolated as each other, and all count.

    Parameters
    ----------
    label, batch
        Type and batch of each cell as integers from 0 up, shape (n_cells,).

    Returns
    -------
    Shape (n_cells,).

    Examples
    --------
    >>> import numpy as np
    >>> isolated_labels(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])).tolist()
    [False, False, True, True]
    """
    codes, sizes = _sized(label, len(label), "type")
    pairs = np.unique(np.stack([codes, batch]), axis=1)
    n_batches = np.bincount(pairs[0], minlength=len(sizes))
    return np.asarray((n_batches == n_batches.min())[codes])


def label_mean(values: NDArray[Any], label: Codes) -> float:
    """Mean over types of their cells' means, so that small types count as much as large ones.

    Parameters
    ----------
    values
        One per cell, shape (n_cells,); NaN is left out.
    label
        Type of each cell as an integer from 0 up, shape (n_cells,).

    Returns
    -------
    NaN where no cell has a value.

    Examples
    --------
    >>> import numpy as np
    >>> label_mean(np.array([1.0, 1.0, 1.0, 0.0]), np.array([0, 0, 0, 1]))
    0.5
    """
    known = ~np.isnan(values)
    n_cells = np.bincount(label[known])
    total = np.bincount(label[known], weights=values[known])
    return float((total[n_cells > 0] / n_cells[n_cells > 0]).mean()) if known.any() else float("nan")


def _sized(codes: Codes, n_cells: int, what: str) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Codes without gaps, and how many cells have each."""
    which, _ = compact_codes(codes, n_cells, what)
    return which, np.bincount(which)


def _comparable(
    label: Codes, batch: Codes, n_cells: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.intp]]]:
    """Of each type in which batches can be compared: its cells, their batches without gaps, cells per batch."""
    label, n_labels = compact_codes(label, n_cells, "type")
    batch, _ = compact_codes(batch, n_cells, "batch")
    for code in range(n_labels):
        cells = np.flatnonzero(label == code)
        codes, sizes = _sized(batch[cells], len(cells), "batch")
        if 1 < len(sizes) < len(cells):
            yield cells, codes, sizes


def _widths(x: NDArray[Any], codes: NDArray[np.int64], sizes: NDArray[np.intp], device: str) -> Values:
    sums = _distance_sums(x, codes, sizes, device)
    cells = np.arange(len(codes))
    own = sums[cells, codes]
    means = sums / sizes
    means[cells, codes] = np.inf
    return _width(own, sizes[codes], means.min(axis=1))


def _width(own_sum: Values, own_size: NDArray[np.intp], b: Values) -> Values:
    """Silhouette widths from sums of distances within, and mean distances b; 0 where a cell is alone or all is one."""
    a = own_sum / np.maximum(own_size - 1, 1)
    largest = np.maximum(a, b)
    width = np.divide(b - a, largest, out=np.zeros_like(a), where=(largest > 0) & (own_size > 1))
    return np.asarray(width)


@torch.inference_mode()
def _distance_sums(x: NDArray[Any], codes: NDArray[np.int64], sizes: NDArray[np.intp], device: str) -> Values:
    """Sum of the Euclidean distances of each cell to the cells of each group, shape (n_cells, n_groups).

    Cells are sorted by group, so that a group is a range of columns, and a pair of groups is computed once for both.
    Products lose digits where coordinates are much larger than distances: each group is put in the origin in turn.
    """
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(sizes)
    points = torch.as_tensor(np.asarray(x, np.float32)[order], device=device)
    sums = torch.zeros((len(codes), len(sizes)), dtype=torch.float64, device=device)
    for group, (size, end) in enumerate(zip(sizes.tolist(), ends.tolist(), strict=True)):
        first = end - size
        local = points[first:] - points[first:end].mean(dim=0)
        square = local.square().sum(dim=1)
        step = max(1, CHUNK_VALUES // len(local))
        for start in range(0, size, step):
            stop = min(start + step, size)
            distance = torch.addmm(square[None, :], local[start:stop], local.T, alpha=-2)
            distance.add_(square[start:stop, None]).clamp_(min=0).sqrt_()
            distance[:, start:stop].fill_diagonal_(0)
            parts = torch.split(distance, sizes[group:].tolist(), dim=1)
            sums[first + start : first + stop, group:] += torch.stack([part.sum(dim=1) for part in parts], dim=1)
            sums[end:, group] += distance[:, size:].sum(dim=0)
    result = np.empty(sums.shape)
    result[order] = sums.cpu().numpy()
    return result
