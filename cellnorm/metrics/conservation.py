"""What a correction kept of each batch's own structure, without labels: its neighbours and its distances.

Within one batch there is no batch effect to remove: whatever changes there was done by the correction.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from cellnorm.metrics.neighbors import nearest_neighbors

__all__ = ["distance_correlation", "distance_moments", "moments_correlation", "neighbor_overlap"]

N_PARTNERS = 10  # random cells of its batch to which each cell's distance is looked at
LEAST = 3  # cells of a batch; two have one distance, which says nothing

Values = NDArray[np.float64]


def neighbor_overlap(
    before: NDArray[Any], after: NDArray[Any], batch: NDArray[Any], *, k: int = 15, device: str = "cpu"
) -> Values:
    """Share of each cell's nearest neighbours within its own batch that are still among its nearest after correction.

    Parameters
    ----------
    before, after
        The uncorrected and the corrected embedding, shapes (n_cells, any) each.
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    k
        Neighbours looked at; in a small batch half of the other cells, or all would always be kept.
    device
        A torch device.

    Returns
    -------
    Shape (n_cells,), 0 to 1; NaN for cells of batches with fewer than three cells. Without any relation between the two
    embeddings about k / (cells of the batch) is kept by chance.

    Examples
    --------
    >>> import numpy as np
    >>> x, batch = np.random.default_rng(0).normal(size=(100, 5)), np.repeat([0, 1], 50)
    >>> neighbor_overlap(x, 3 * x + 10 * batch[:, None], batch).mean()  # batches moved as they are
    np.float64(1.0)
    """
    shares = np.full(len(batch), np.nan)
    for cells in _batches(batch):
        wanted = min(k, (len(cells) - 1) // 2)
        was, now = (nearest_neighbors(x[cells], wanted + 1, device=device).indices[:, 1:] for x in (before, after))
        together = np.sort(np.concatenate([was, now], axis=1), axis=1)  # who is in both stands beside himself
        shares[cells] = (together[:, 1:] == together[:, :-1]).sum(axis=1) / wanted
    return shares


def distance_correlation(
    before: NDArray[Any], after: NDArray[Any], batch: NDArray[Any], *, random_state: int = 0
) -> float:
    """Spearman correlation of the distances within batches before and after, mean of the batches weighted by cells.

    Each cell's distances to ten random cells of its batch are looked at. Where `neighbor_overlap` sees the nearest
    cells, this sees the large picture: whether types that were far apart still are.

    Parameters
    ----------
    before, after
        The uncorrected and the corrected embedding, shapes (n_cells, any) each.
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    random_state
        Seed of the choice of pairs.

    Returns
    -------
    -1 to 1 (the order of all distances kept); about 0 without any relation; NaN if no batch has three cells.

    Examples
    --------
    >>> import numpy as np
    >>> x, batch = np.random.default_rng(0).normal(size=(100, 5)), np.repeat([0, 1], 50)
    >>> round(distance_correlation(x, 3 * x + 10 * batch[:, None], batch), 6)
    1.0
    """
    return moments_correlation(distance_moments(before, after, batch, random_state=random_state), batch)


def distance_moments(
    before: NDArray[Any], after: NDArray[Any], batch: NDArray[Any], *, random_state: int = 0
) -> Values:
    """Each cell's part in the correlation of ranked distances: means of a, b, a², b² and ab over its ten pairs.

    Parameters
    ----------
    before, after, batch, random_state
        See `distance_correlation`.

    Returns
    -------
    Shape (n_cells, 5), of ranks from 0 to 1 within the batch (a before, b after); NaN in batches of under three cells.
    """
    rng = np.random.default_rng(random_state)
    moments = np.full((len(batch), 5), np.nan)
    for cells in _batches(batch):
        n = len(cells)
        partner = (np.arange(n)[:, None] + rng.integers(1, n, (n, N_PARTNERS))) % n  # anyone but the cell itself
        a, b = (rankdata(_distances(x[cells], partner)).reshape(partner.shape) / partner.size for x in (before, after))
        moments[cells] = np.stack([v.mean(axis=1) for v in (a, b, a * a, b * b, a * b)], axis=1)
    return moments


def moments_correlation(moments: Values, batch: NDArray[Any], *, cells: NDArray[Any] | None = None) -> float:
    """Correlation of ranked distances per batch, mean weighted by cells, from `distance_moments`.

    Parameters
    ----------
    moments
        Shape (n_cells, 5).
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    cells
        Cells to use, one of them as often as it is named. None: all, once.

    Returns
    -------
    -1 to 1; NaN if no batch has distances that differ.
    """
    moments, batch = (moments, batch) if cells is None else (moments[cells], batch[cells])
    known = ~np.isnan(moments[:, 0])
    size = np.bincount(batch[known])
    sums = [np.bincount(batch[known], weights=column) for column in moments[known].T]
    a, b, aa, bb, ab = np.stack(sums) / np.maximum(size, 1) if size.size else np.zeros((5, 0))
    spread = np.sqrt(np.maximum(aa - a * a, 0) * np.maximum(bb - b * b, 0))
    usable = (size > 0) & (spread > 1e-12)
    if not usable.any():
        return float("nan")
    correlation = np.clip((ab - a * b)[usable] / spread[usable], -1, 1)
    return float(np.average(correlation, weights=size[usable]))


def _batches(batch: NDArray[Any]) -> list[NDArray[np.intp]]:
    """Cells of each batch that has enough of them."""
    members = [np.flatnonzero(batch == code) for code in np.unique(batch)]
    return [cells for cells in members if len(cells) >= LEAST]


def _distances(x: NDArray[Any], partner: NDArray[Any]) -> Values:
    """Euclidean distance of each row to its partners, of the shape of `partner`."""
    rows = np.asarray(x, np.float64)
    return np.stack([np.linalg.norm(rows - rows[column], axis=1) for column in partner.T], axis=1)
