"""Kinds of cells that all batches share, and how far each batch lies from the others in each kind.

Soft clusters by angle, and a ridge regression on the batch in each (Korsunsky et al. 2019, Nature Methods 16: Harmony).
Unlike there, clusters need not hold the batches in equal shares, which would make composition count as a batch effect;
and the answer is a function of a cell's coordinates and its batch alone, so that it holds for cells that come later.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

__all__ = ["Kinds", "find_kinds", "n_kinds"]

Floats = NDArray[np.float64]

CELLS_PER_KIND, MOST_KINDS = 30, 100
# As Harmony has them: width of a cluster in squared distance of unit vectors, cells without an offset that are added to
# each batch, rounds in all and of clustering in each.
WIDTH, RIDGE, ROUNDS, INNER = 0.1, 1.0, 10, 4
# How far the offset of a kind may be from that of its batch, over how far it is in half of the batch's cells: a kind
# in which batches hold different types asks for more.
FURTHEST = 1.25
SETTLED = 0.01  # mean change of a round, relative to the mean coordinate
# Variance with which a cell is given its kinds, over that within kinds: wider, so that the offset changes slowly from
# kind to kind; twice to eight times scored alike.
SMOOTH = 4.0


@dataclass(frozen=True)
class Kinds:
    """Soft clusters of cells and the offset of each batch in each.

    Attributes
    ----------
    centres
        Centre of each kind in the common frame, shape (n_kinds, n_dims).
    offsets
        Offset of each batch from the common frame in each kind, shape (n_batches, n_kinds, n_dims).
    shares
        Share of each kind among the cells of each batch, shape (n_batches, n_kinds).
    variance
        Of a coordinate, with which a cell is given its kinds.
    """

    centres: Floats
    offsets: Floats
    shares: Floats
    variance: float


def n_kinds(n_cells: int) -> int:
    """How many kinds are looked for among so many cells."""
    return int(np.clip(round(n_cells / CELLS_PER_KIND), 2, MOST_KINDS))


def find_kinds(
    z: NDArray[np.float32],
    batch: NDArray[np.int64],
    n_kinds: int,
    rng: np.random.Generator,
    design: NDArray[np.float32] | None = None,
) -> Kinds:
    """Find kinds and offsets, in turn, until the cells stay where they are.

    Parameters
    ----------
    z
        Coordinates, shape (n_cells, n_dims).
    batch
        Batch of each cell, 0 to n_batches - 1, shape (n_cells,).
    n_kinds
        Number of clusters.
    rng
        Starts the clustering and orders the cells.
    design
        Which levels each batch is made of, shape (n_batches, n_levels): offsets are estimated for the levels, and a
        batch has what its levels add up to. None: each batch is a level of its own.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.kinds import find_kinds
    >>> rng = np.random.default_rng(0)
    >>> batch, kind = np.arange(600) % 2, np.arange(600) // 300
    >>> z = rng.normal(size=(600, 2)) + 20 * np.eye(2)[kind] + np.outer(batch, [0, 3])
    >>> kinds = find_kinds(z.astype("float32"), batch, 2, rng)
    >>> np.abs(kinds.offsets[1] - kinds.offsets[0]).round()
    array([[0., 3.],
           [0., 3.]])
    """
    wide = z.astype(np.float64)
    here = np.eye(int(batch.max()) + 1)[batch]
    unit = _unit(wide - wide.mean(0))
    means = KMeans(n_kinds, n_init=1, max_iter=25, random_state=int(rng.integers(2**31)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fewer places than clusters
        member = _members(unit, means.fit(unit).cluster_centers_)
    placed = wide
    for _ in range(ROUNDS):
        unit = _unit(placed - placed.mean(0))
        for _ in range(INNER):
            member = _members(unit, member.T @ unit)
        if design is None or len(design) == design.sum():
            centres, offsets, shares = _offsets(wide, member, here)
        else:
            centres, offsets, shares = _offsets_of_levels(wide, member, batch, design.astype(np.float64))
        offsets = _within_reason(offsets, shares)
        before, placed = placed, wide - _removed(member, offsets, batch)
        if np.abs(placed - before).mean() < SETTLED * np.abs(wide).mean():
            break
    variance = SMOOTH * _within(wide, member, centres + offsets, batch)
    return Kinds(centres, offsets, shares, max(variance, 1e-30))


def _unit(x: Floats) -> Floats:
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))


def _members(unit: Floats, centres: Floats) -> Floats:
    """Share of each kind in each cell, by the angle to its centre."""
    distance = 2 * (1 - unit @ _unit(centres).T)
    close = np.exp(-(distance - distance.min(1, keepdims=True)) / WIDTH)
    return np.asarray(close / close.sum(1, keepdims=True))


def _offsets(z: Floats, member: Floats, here: Floats) -> tuple[Floats, Floats, Floats]:
    """Ridge regression of the coordinates on the batch in each kind, the level of the kind free, in closed form."""
    n = here.T @ member
    total = np.stack([(member * own[:, None]).T @ z for own in here.T])
    weight = RIDGE / (n + RIDGE)
    centres = (weight[:, :, None] * total).sum(0) / np.maximum((weight * n).sum(0), 1e-12)[:, None]
    offsets = (total - n[:, :, None] * centres) / (n + RIDGE)[:, :, None]
    return centres, offsets, n / np.maximum(n.sum(1, keepdims=True), 1e-12)


def _offsets_of_levels(
    z: Floats, member: Floats, batch: NDArray[np.int64], design: Floats
) -> tuple[Floats, Floats, Floats]:
    """As `_offsets`, the regression being on the levels that the batches are made of."""
    cells = [np.flatnonzero(batch == b) for b in range(len(design))]
    n = np.stack([member[own].sum(0) for own in cells])
    total = np.stack([member[own].T @ z[own] for own in cells])
    told = np.hstack([np.ones((len(design), 1)), design])
    penalty = np.diag([1e-12, *[RIDGE] * design.shape[1]])
    system = np.stack([(told * of_kind[:, None]).T @ told for of_kind in n.T]) + penalty
    found = np.linalg.solve(system, np.einsum("bl,bkd->kld", told, total))
    offsets = np.einsum("bl,kld->bkd", design, found[:, 1:])
    return found[:, 0], offsets, n / np.maximum(n.sum(1, keepdims=True), 1e-12)


def _within_reason(offsets: Floats, shares: Floats) -> Floats:
    """Offsets no further from the mean of their batch than FURTHEST times the median of its cells."""
    usual = (shares[:, :, None] * offsets).sum(1, keepdims=True)
    further = offsets - usual
    length = np.linalg.norm(further, axis=2)
    order = np.argsort(length, axis=1)
    reached = np.cumsum(np.take_along_axis(shares, order, 1), axis=1)
    half = (reached < reached[:, -1:] / 2).sum(1, keepdims=True)
    most = FURTHEST * np.take_along_axis(np.take_along_axis(length, order, 1), half, 1)
    return np.asarray(usual + further * np.minimum(1, most / np.maximum(length, 1e-12))[:, :, None])


def _removed(member: Floats, offsets: Floats, batch: NDArray[np.int64]) -> Floats:
    out = np.empty((len(member), offsets.shape[2]))
    for b in np.unique(batch):
        out[batch == b] = member[batch == b] @ offsets[b]
    return out


def _within(z: Floats, member: Floats, centres: Floats, batch: NDArray[np.int64]) -> float:
    """Mean variance of a coordinate around the centres of a cell's batch."""
    total = 0.0
    for b in np.unique(batch):
        own, m, c = z[batch == b], member[batch == b], centres[b]
        squared = (own**2).sum(1)[:, None] + (c**2).sum(1) - 2 * own @ c.T
        total += float((m * np.maximum(squared, 0)).sum())
    return total / z.size
