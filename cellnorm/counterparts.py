"""Which clusters of two batches may be of one kind: asked before anything is corrected, so that anchors can be refused.

Mutual nearest neighbours exist between any two batches. A type that the one lacks and a type that the other lacks find
each other for want of anything better, and a network that is told to bring anchors together merges them. Here each
batch is clustered by itself, the batches are laid upon each other by one offset each, and clusters that still lie as
far from each other as from other clusters of their own batch, with few cells that match, are refused as counterparts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cellnorm.anchors import Anchors, sketch
from cellnorm.clusters import aligned, blocks, distances, mutual, numbered, own_clusters

__all__ = ["LEAST", "Counterparts", "against", "close_partners", "find_counterparts"]

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
LEAST = 10  # cells of a cluster that is judged
# Cells looked at, of all batches and of each; batches so many that each has fewer than the least are not judged.
LOOK_ALL, LOOK_BATCH, LOOK_LEAST = 3000, 1500, 30
K = 15  # neighbours of a cell in its own batch
# Clusters are refused from this evidence on. It is a distance over a distance less a share, see `against`: two types
# of one batch have 1 and more, and 0.1 to 0.5 where a type has many look-alikes.
REFUSED = 0.7
# Where batches lie close, less is needed, where they lie far apart, more: what is usual of two batches, and so much.
# Usual is the evidence against a third of their anchors or, if less, what is usual on a way through other batches.
# So a third is never refused where there is no better way, or batches that differ much would have no anchors left.
USUAL, LESS, MORE = 0.35, 0.7, 0.4


@dataclass(frozen=True)
class Counterparts:
    """Clusters of each batch and which of them may be of one kind.

    Attributes
    ----------
    cluster
        Cluster of each cell, numbered through all batches, shape (n_cells,).
    allowed
        Whether cells of two clusters may be partners, shape (n_clusters, n_clusters).
    """

    cluster: IntArray
    allowed: NDArray[np.bool_]

    def keep(self, anchors: Anchors) -> Anchors:
        """The anchors whose two cells are of clusters that may be of one kind."""
        may = self.allowed[self.cluster[anchors.left], self.cluster[anchors.right]]
        return Anchors(anchors.left[may], anchors.right[may])


def find_counterparts(
    x: NDArray[np.float32], batch: IntArray, anchors: Anchors, n_neighbors: int, rng: np.random.Generator
) -> Counterparts:
    """Cluster each batch and judge all pairs of clusters of different batches.

    Parameters
    ----------
    x
        Principal components, shape (n_cells, n_comps).
    batch
        Batch of each cell, 0 to n_batches - 1, shape (n_cells,).
    anchors
        Pairs found on the components: they tell what evidence is usual between two batches.
    n_neighbors
        With which the anchors were found.
    rng
        Chooses the cells that are looked at.

    Examples
    --------
    Two batches that share a type, and each has one that the other lacks:

    >>> import numpy as np
    >>> from cellnorm.anchors import find_anchors
    >>> from cellnorm.counterparts import find_counterparts
    >>> rng = np.random.default_rng(0)
    >>> batch, kind = np.repeat([0, 1], 120), np.repeat([0, 1, 0, 2], 60)
    >>> places = np.array([[0, 0, 0], [9, 9, 0], [9, 0, 9]])
    >>> x = (rng.normal(size=(240, 3)) + places[kind]).astype("float32")
    >>> anchors = find_anchors(x, batch, 20)
    >>> kept = find_counterparts(x, batch, anchors, 20, rng).keep(anchors)
    >>> bool((kind[anchors.left] == kind[anchors.right]).all()), bool((kind[kept.left] == kind[kept.right]).all())
    (False, True)
    """
    n_batches = int(batch.max()) + 1
    if LOOK_ALL // n_batches < LOOK_LEAST:
        return Counterparts(batch, np.ones((n_batches, n_batches), bool))
    cells = sketch(batch, min(_share(np.bincount(batch), LOOK_ALL), LOOK_BATCH), rng)
    cells = cells[np.argsort(batch[cells], kind="stable")]
    near, codes = x[cells], batch[cells]
    parts = blocks(codes)
    cluster, of_batch = numbered([own_clusters(distances(near[part]), K) for part in parts])
    moved, apart = aligned(near, codes, n_neighbors, resistant=True)
    evidence = against(moved, close_partners(apart, parts, n_neighbors), cluster, of_batch)
    everywhere = _nearest_cluster(x, batch, cells, cluster)
    limit = _limits(evidence[everywhere[anchors.left], everywhere[anchors.right]], batch, anchors)
    return Counterparts(everywhere, evidence <= limit[np.ix_(of_batch, of_batch)])


def _share(sizes: IntArray, total: int) -> int:
    """How many cells of each batch can be looked at, so that what small batches leave goes to large ones."""
    for i, size in enumerate(np.sort(sizes)):
        if (share := total // (len(sizes) - i)) < size:
            return int(share)
        total -= int(size)
    return int(sizes.max())


def close_partners(apart: Tensor, parts: list[slice], n_neighbors: int) -> Tensor:
    """Mutual neighbours of different batches among the nearest quarter of those that anchors are chosen from."""
    return mutual(apart, parts, max(1, n_neighbors // 4))


def against(x: NDArray[np.float32], partner: Tensor, cluster: IntArray, of_batch: IntArray) -> Floats:
    """Evidence that two clusters are not of one kind.

    The distance between their centres, in units of the distance to the nearest other cluster of their own batch (the
    larger of the two), less the share of cells that have a partner in the other (the mean of the two).

    Parameters
    ----------
    x
        Cells less the offset that their batch shares, shape (n_cells, n_dims).
    partner
        Whether two cells are partners, boolean, shape (n_cells, n_cells).
    cluster
        Cluster of each cell, shape (n_cells,).
    of_batch
        Batch of each cluster, shape (n_clusters,).

    Returns
    -------
    Shape (n_clusters, n_clusters), symmetric. No evidence (0) where a batch has one cluster alone, none that counts
    (minus infinity) for clusters of fewer than ten cells.
    """
    size = np.bincount(cluster, minlength=len(of_batch))
    which = np.eye(len(of_batch), dtype=np.float32)[cluster]
    centre = (which.T @ x).astype(np.float64) / size[:, None]
    left = np.linalg.norm(centre[:, None] - centre[None], axis=2)
    judged = size >= LEAST
    rival = (of_batch[:, None] == of_batch) & judged & ~np.eye(len(of_batch), dtype=bool)
    nearest = np.where(rival, left, np.inf).min(1)
    nearest[np.isinf(nearest)] = 0
    unit = np.maximum(nearest[:, None], nearest)
    matched = which.T @ ((partner.float() @ torch.from_numpy(which)) > 0).numpy() / size[:, None]
    evidence = np.divide(left, unit, out=np.zeros_like(left), where=unit > 0) - (unit > 0) * (matched + matched.T) / 2
    return np.where(judged[:, None] & judged, evidence, -np.inf)


def _nearest_cluster(x: NDArray[np.float32], batch: IntArray, cells: IntArray, cluster: IntArray) -> IntArray:
    """Every cell is given the cluster of the nearest cell of its batch that was looked at."""
    out = np.empty(len(x), np.int64)
    for b in np.unique(batch):
        own, seen = np.flatnonzero(batch == b), batch[cells] == b
        index = NearestNeighbors(n_neighbors=1, algorithm="brute", n_jobs=1).fit(x[cells[seen]])
        out[own] = cluster[seen][index.kneighbors(x[own], return_distance=False)[:, 0]]
    return out


def _limits(evidence: Floats, batch: IntArray, anchors: Anchors) -> Floats:
    """Evidence from which on clusters of two batches are refused, shape (n_batches, n_batches).

    Two batches without a common type have wrong anchors alone, so what is usual between the two says nothing. But if
    steps through other batches lead from one to the other, of which even the worst has less evidence against it, they
    need no anchors of their own. So what counts is the worst step of the best way (single linkage), and batches that
    anchors connect stay connected.
    """
    n = int(batch.max()) + 1
    a, b = batch[anchors.left], batch[anchors.right]
    key = np.minimum(a, b) * n + np.maximum(a, b)
    order = np.argsort(key, kind="stable")
    found, start = np.unique(key[order], return_index=True)
    usual = np.full((n, n), np.inf)
    counted = np.where(np.isfinite(evidence), evidence, 0)[order]  # a cluster too small to be judged says nothing
    for pair, values in zip(found, np.split(counted, start[1:]), strict=True):
        usual[pair // n, pair % n] = usual[pair % n, pair // n] = np.quantile(values, USUAL)
    for step in range(n):
        usual = np.minimum(usual, np.maximum(usual[:, step, None], usual[step]))
    usual[np.isinf(usual)] = 0
    return np.asarray(np.clip(REFUSED, usual + MORE, usual + LESS), np.float64)
