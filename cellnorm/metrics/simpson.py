"""The local inverse Simpson index (LISI): how many batches, or types, a neighbourhood effectively holds."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.metrics.neighbors import Neighbors, compact_codes, count_codes, row_chunks

__all__ = ["lisi"]

FloatArray = NDArray[np.float64]
# The search for a cell's bandwidth ends within this of the entropy wanted, or after so many steps, as in scib-metrics.
TOLERANCE, MAX_STEPS = 1e-5, 50


def lisi(neighbors: Neighbors, codes: Any, perplexity: float | None = None) -> FloatArray:
    """Local inverse Simpson index: how many batches, or types, each cell's neighbourhood effectively holds.

    Neighbours are weighted by exp(-beta * distance), with the beta at which the entropy of the weights is the logarithm
    of the perplexity; the index is 1 over the sum of the squared shares of weight (Korsunsky et al. 2019). The cell
    itself does not count. Equal to ``scib_metrics.lisi_knn`` 0.5.10, with two exceptions: where a cell has one
    neighbour that gives -1, this 1; and where all of its weights vanish in single precision, as they can if the
    perplexity is small, it ends its search for beta in the wrong place.

    Parameters
    ----------
    neighbors
        Table of n_cells rows.
    codes
        Batch or type of each cell, integer codes, shape (n_cells,).
    perplexity
        Effective number of neighbours. None: a third of the table's k, rounded down.

    Returns
    -------
    lisi
        From 1 to the number of batches or types, shape (n_cells,). NaN if the table holds no other cell.

    Raises
    ------
    DataError
        If the perplexity is less than 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import lisi, nearest_neighbors
    >>> table = nearest_neighbors(np.array([[0.0], [1.0], [-1.0]]), k=3)
    >>> lisi(table, np.array([0, 0, 1]), perplexity=2).round(3).tolist()
    [2.0, 2.0, 1.0]
    """
    n_cells = len(neighbors)
    codes, n_codes = compact_codes(codes, n_cells, "batch or type")
    if perplexity is None:
        perplexity = max(neighbors.k // 3, 1)
    if perplexity < 1:
        raise DataError(f"A perplexity of {perplexity} was asked for. It is a number of neighbours: give 1 or more.")
    if neighbors.k < 2:
        return np.full(n_cells, np.nan)
    found = np.empty(n_cells)
    for part in row_chunks(n_cells, 4 * neighbors.k + n_codes):
        weights = _weights(neighbors.distances[part, 1:].astype(np.float64), float(np.log(perplexity)))
        shares = count_codes(codes[neighbors.indices[part, 1:]], n_codes, weights)
        found[part] = 1 / np.einsum("ij,ij->i", shares, shares)
    return found


def _weights(distances: FloatArray, target: float) -> FloatArray:
    """Weights exp(-beta * distance), of sum 1, whose entropy is `target` in each row, or as near to it as can be.

    Newton's method for the logarithm of beta; halving wherever that would leave the bracket found so far.
    """
    gap = distances - distances[:, :1]  # weights stay the same, and the largest is 1 whatever beta is
    typical = gap.mean(axis=1)
    log_beta = -np.log(np.where(typical > 0, typical, 1))
    low, high = np.full_like(log_beta, -np.inf), np.full_like(log_beta, np.inf)
    rows = np.arange(len(gap))
    for _ in range(MAX_STEPS):
        near, beta = gap[rows], np.exp(log_beta[rows])
        weight = np.exp(-beta[:, None] * near)
        total = weight.sum(axis=1)
        mean = np.einsum("ij,ij->i", weight, near) / total
        excess = np.log(total) + beta * mean - target
        open_ = np.abs(excess) >= TOLERANCE
        if not open_.any():
            break
        variance = np.einsum("ij,ij,ij->i", weight, near, near) / total - mean**2
        rows, excess, slope = rows[open_], excess[open_], (beta**2 * variance)[open_]
        now = log_beta[rows]
        low[rows] = np.where(excess > 0, now, low[rows])
        high[rows] = np.where(excess > 0, high[rows], now)
        # Far from the root the curve is flat: no step is longer than a factor of e**2.
        step = np.clip(excess / np.maximum(slope, np.finfo(float).tiny), -2, 2)
        outside = (now + step <= low[rows]) | (now + step >= high[rows])
        log_beta[rows] = np.where(outside, (low[rows] + high[rows]) / 2, now + step)
    weights = np.exp(-np.exp(log_beta)[:, None] * gap)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))
