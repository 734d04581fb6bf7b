"""Nearest cells of a reference, exactly and for each cell by itself."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.determinism import one_thread

__all__ = ["log_ratio", "nearest", "other_batches"]

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
# Rows looked at together: always as many, filled up with zeros, so that a cell's answer does not depend on the others.
CHUNK = 256
TINY = 1e-9
SPARE = 8  # candidates beyond the k nearest by single-precision products, before distances are taken exactly


def nearest(reference: Singles, points: Singles, k: int) -> tuple[IntArray, Floats]:
    """The k nearest reference cells of each point, nearest first, ties in the order of the reference.

    Parameters
    ----------
    reference
        Coordinates, shape (n_reference, n_dims).
    points
        Coordinates in the same units, shape (n_points, n_dims).
    k
        Neighbours wanted; all of the reference where it has fewer.

    Returns
    -------
    indices, distances
        Both of shape (n_points, k); a point's row does not depend on the other points.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.transfer._nearby import nearest
    >>> found, apart = nearest(np.array([[0.0], [3.0], [4.0]], "float32"), np.array([[3.5]], "float32"), k=2)
    >>> found.tolist(), apart.tolist()
    ([[1, 2]], [[0.5, 0.5]])
    """
    k = min(k, len(reference))
    count = min(k + SPARE, len(reference))
    middle = reference.mean(0, dtype=np.float64)
    centred = torch.from_numpy((reference - middle).astype(np.float32))
    squares = centred.square().sum(1)
    indices, distances = np.empty((len(points), k), np.int64), np.empty((len(points), k))
    filled = np.zeros((CHUNK, reference.shape[1]), np.float32)
    with one_thread(), torch.inference_mode():
        for start in range(0, len(points), CHUNK):
            rows = points[start : start + CHUNK]
            filled[: len(rows)] = rows - middle
            apart = torch.addmm(squares, torch.from_numpy(filled), centred.T, alpha=-2)
            found = np.sort(apart.topk(count, dim=1, largest=False).indices.numpy()[: len(rows)], axis=1)
            exact = np.sqrt(np.square(np.subtract(rows[:, None], reference[found], dtype=np.float64)).sum(2))
            order = np.argsort(exact, axis=1, kind="stable")[:, :k]
            indices[start : start + CHUNK] = np.take_along_axis(found, order, 1)
            distances[start : start + CHUNK] = np.take_along_axis(exact, order, 1)
    return indices, distances


def other_batches(x: Singles, batch: IntArray, k: int) -> tuple[IntArray, Floats]:
    """The k nearest cells of other batches of each cell; fewer where the others of some batch are fewer.

    Parameters
    ----------
    x
        Coordinates, shape (n_cells, n_dims).
    batch
        Batch of each cell, at least two of them, shape (n_cells,).
    k
        Neighbours wanted.

    Returns
    -------
    indices, distances
        Both of shape (n_cells, k).
    """
    k = min(k, len(x) - int(np.unique(batch, return_counts=True)[1].max()))
    indices, distances = np.empty((len(x), k), np.int64), np.empty((len(x), k))
    for b in np.unique(batch):
        others = np.flatnonzero(batch != b)
        found, distances[batch == b] = nearest(x[others], x[batch == b], k)
        indices[batch == b] = others[found]
    return indices, distances


def log_ratio(a: Floats, b: Floats) -> Floats:
    """Logarithm of a / b, finite where either is zero."""
    return np.asarray(np.log(np.maximum(a, TINY)) - np.log(np.maximum(b, TINY)))
