"""The design of a study: how two columns of labels lie to each other, and which kinds of cells batches seem to lack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cellnorm.determinism import one_thread
from cellnorm.diagnosis import aligned, find_clusters

__all__ = ["cramers_v", "lacking", "matched_clusters", "relation"]

PURE = 0.99  # share of the cells that make a rule: a few mislabelled ones do not break it
FEW_EXPECTED, FEW_FOUND = 10, 0.05  # a batch lacks a cluster: at least ten cells expected, fewer than 5 % of them found

# Few clusters, in a few rounds: with more of them, what batches seem to lack is often a shade of a type, not a type.
MOST_CLUSTERS, ROUNDS = 8, 4
PRIOR, LEAST_PLACED = 10.0, 5  # cells that an offset must stand against; cells of a batch that have a say in a centre

Codes = NDArray[np.int64]


def cramers_v(a: Codes, b: Codes) -> float:
    """Association of two columns of labels, 0 to 1, corrected for bias (Bergsma 2013, doi 10.1016/j.jkss.2012.10.002).

    Examples
    --------
    >>> a = np.arange(100) % 2
    >>> cramers_v(a, a), cramers_v(a, np.arange(100) // 50)
    (1.0, 0.0)
    """
    table = _crossed(a, b)
    n = table.sum()
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / n
    phi = float((np.square(table - expected) / expected).sum() / n)
    rows, columns = (m - (m - 1) ** 2 / (n - 1) for m in table.shape)
    phi = max(0.0, phi - (table.shape[0] - 1) * (table.shape[1] - 1) / (n - 1))
    return float(min(1.0, np.sqrt(phi / max(min(rows, columns) - 1, 1e-12))))


def _crossed(a: Codes, b: Codes) -> NDArray[np.intp]:
    """Cells of each combination; levels that occur only."""
    a, b = (np.unique(codes, return_inverse=True)[1] for codes in (a, b))
    return np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(-1, b.max() + 1)


def relation(batch: Codes, other: Codes) -> str:
    """How batches lie to the levels of another column; one cell in a hundred may break the rule.

    Returns
    -------
    "same"
        Both part the cells alike.
    "nests"
        Every level of the other column is within one batch.
    "nested"
        Every batch is within one level of the other column, which has fewer.
    "crossed"
        Every batch has cells of every level.
    "partly"
        Some combinations do not occur.

    Examples
    --------
    >>> batch = np.array([0, 0, 1, 1, 2, 2])
    >>> relation(batch, np.array([0, 0, 0, 0, 1, 1])), relation(batch, np.array([0, 1, 0, 1, 0, 1]))
    ('nested', 'crossed')
    """
    table = _crossed(batch, other)
    in_one_level = table.max(axis=1).sum() >= PURE * table.sum()
    in_one_batch = table.max(axis=0).sum() >= PURE * table.sum()
    if in_one_level or in_one_batch:
        return ("same" if in_one_batch else "nested") if in_one_level else "nests"
    return "crossed" if table.all() else "partly"


def matched_clusters(x: NDArray[np.float64], batch: Codes, random_state: int) -> Codes:
    """Clusters that mean the same in all batches, shape (n_cells,): for a first look at what batches hold.

    The batches are laid upon each other as a whole (`cellnorm.diagnosis.aligned`), then cluster by cluster: the centres
    of the batches in a cluster are drawn together, less so where there are few cells, and clusters are found anew.

    Parameters
    ----------
    x
        Principal components, shape (n_cells, n_dims).
    batch
        Batch of each cell, shape (n_cells,).
    random_state
        Seed.
    """
    n_batches = int(batch.max()) + 1
    with one_thread():
        z = aligned(x, batch, random_state)
        for _ in range(ROUNDS):
            pairs = find_clusters(z, random_state, most=MOST_CLUSTERS) * n_batches + batch
            n = np.bincount(pairs, minlength=MOST_CLUSTERS * n_batches).reshape(-1, n_batches, 1)
            sums = np.zeros((n.size, z.shape[1]))
            np.add.at(sums, pairs, z)
            centres = sums.reshape(*n.shape[:2], -1) / np.maximum(n, 1)
            weight = np.where((n >= LEAST_PLACED).any(axis=1, keepdims=True), n >= LEAST_PLACED, n > 0)
            middle = (centres * weight).sum(axis=1, keepdims=True) / np.maximum(weight.sum(axis=1, keepdims=True), 1)
            offsets = (centres - middle) * n / (n + PRIOR)
            z = z - offsets.reshape(n.size, -1)[pairs]
    return find_clusters(z, random_state, most=MOST_CLUSTERS)


def lacking(clusters: Codes, batch: Codes) -> NDArray[np.bool_]:
    """Which batch seems to lack which cluster, shape (n_batches, n_clusters).

    Expected is the mean share of the cluster in the other batches that hold it, which must be two (or all others there
    are): what is found in one batch alone is special to that one. A batch lacks a cluster if at least ten cells were to
    be expected and fewer than a twentieth of them are there; chance makes that rarely (Poisson: below 5 in 100,000).

    Examples
    --------
    >>> clusters, batch = np.repeat([0, 1, 0], 50), np.repeat([0, 0, 1], 50)
    >>> lacking(clusters, batch).tolist()
    [[False, False], [False, True]]
    """
    counts = np.zeros((int(batch.max()) + 1, int(clusters.max()) + 1))
    np.add.at(counts, (batch, clusters), 1)
    n_cells = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(n_cells, 1)
    expected = np.zeros_like(counts)
    for row in range(len(counts)):
        others = np.delete(shares, row, axis=0)
        holders = (others > 0).sum(axis=0)
        mean = others.sum(axis=0) / np.maximum(holders, 1)
        expected[row] = n_cells[row] * np.where(holders >= min(2, len(others)), mean, 0.0)
    return np.asarray((expected >= FEW_EXPECTED) & (counts < FEW_FOUND * expected))
