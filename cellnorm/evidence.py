"""What one correction did to each cluster of each batch: laid onto another kind, left apart from its own, or well.

Before, the clusters of each batch are found in that batch alone, and the anchors say which clusters of two batches are
of one kind. After, clusters of one kind should lie in each other, and clusters of two kinds should not.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cellnorm.clusters import aligned, blocks, distances, near, numbered, own_clusters, side_by_side
from cellnorm.counterparts import LEAST, K, against, close_partners

__all__ = ["APART", "GRADES", "Finding", "View", "finding", "look", "worst"]

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
# Thresholds, calibrated by benchmarks/alarm_calibration.py on simulated and real data.
MERGED_BEFORE, MERGED_AFTER = 0.25, 0.4  # neighbours in the other cluster, relative to chance: told apart, mixed
MIXED, NEARER = 0.5, 0.25  # clusters of two batches that lie less apart, and came nearer by this, are taken for one
AGAINST, DOUBTFUL = 0.8, 0.55  # evidence that such clusters are of two kinds, see `counterparts.against`
TRUSTED = 0.2  # share of a cluster's cells that have partners, from which on its match is relied on
APART = 0.75  # clusters of one kind that lie further apart were not corrected
THIN = 0.3  # share of own neighbours kept by a cluster, below which it deserves a look
GRADES = ("good", "look", "under-corrected", "over-corrected")


class View(NamedTuple):
    """Cells looked at, sorted by batch, and what was found about them.

    Attributes
    ----------
    batch, cluster
        Of each cell; clusters are numbered through all batches.
    parts
        Where each batch lies.
    of_batch, cells
        Batch and indices of the cells of each cluster.
    before, after, aligned
        Distances between all cells; `aligned`: before, without the offset that each batch shares.
    seen_before, seen_after
        Share of each cluster (column) among the neighbours in their own batch of each cluster's cells (row).
    partner
        Mutual near neighbours of different batches once the common offset is off, shape (n_cells, n_cells).
    against
        Evidence that two clusters are not of one kind, shape (n_clusters, n_clusters).
    kept
        Share of its own neighbours that each cell kept.
    gaps
        How far two clusters lie apart, by (before, after or aligned, one, other), as far as it was asked for.
    """

    batch: IntArray
    cluster: IntArray
    parts: list[slice]
    of_batch: IntArray
    cells: list[IntArray]
    before: Tensor
    after: Tensor
    aligned: Tensor
    seen_before: Floats
    seen_after: Floats
    partner: NDArray[np.bool_]
    against: Floats
    kept: Floats
    gaps: dict[tuple[str, int, int], float]


class Finding(NamedTuple):
    """What became of one cluster; `merged_with` is another cluster or -1, `apart` NaN where no match is relied on."""

    cluster: int
    verdict: str
    merged_with: int
    apart: float
    apart_before: float


def worst(*verdicts: str) -> str:
    """The gravest of verdicts.

    Examples
    --------
    >>> worst("look", "over-corrected", "good")
    'over-corrected'
    """
    return max(verdicts, key=GRADES.index)


def look(before: NDArray[np.float32], after: NDArray[np.float32], batch: IntArray, n_neighbors: int) -> View:
    """Gather what is to be known of cells that are sorted by batch."""
    parts = blocks(batch)
    old, new = distances(before), distances(after)
    x, without_offset = aligned(before, batch, n_neighbors)
    partner = close_partners(without_offset, parts, n_neighbors)
    cluster, of_batch = numbered([own_clusters(old[part, part], K) for part in parts])
    kept, tables = np.empty(len(batch)), []
    for part in parts:
        tables.append([near(d[part, part], K, own=True).numpy() for d in (old, new)])
        kept[part] = [np.isin(a, b).mean() for a, b in zip(*tables[-1], strict=True)]
    cells = [np.flatnonzero(cluster == c) for c in range(len(of_batch))]
    seen = np.zeros((2, len(cells), len(cells)))
    for part, of_part in zip(parts, tables, strict=True):
        for when, table in enumerate(of_part):
            rows = np.repeat(cluster[part], table.shape[1])
            np.add.at(seen[when], (rows, cluster[part][table.ravel()]), 1)
    seen /= seen.sum(2, keepdims=True)
    apart = old, new, without_offset
    told = partner.numpy(), against(x, partner, cluster, of_batch)
    return View(batch, cluster, parts, of_batch, cells, *apart, seen[0], seen[1], *told, kept, {})


def finding(view: View, c: int) -> Finding:
    """Look at a cluster: merged with another kind, left apart from its own, or neither."""
    merged_with = next((r for r in _rivals(view, c) if _merged_within(view, c, r)), -1)
    thin = view.kept[view.cells[c]].mean() < THIN
    verdict = "over-corrected" if merged_with >= 0 else "look" if thin else "good"
    gaps: list[tuple[float, float]] = []
    for b, part in enumerate(view.parts):
        if b == view.of_batch[c]:
            continue
        seen = near(view.after[view.cells[c], part], 5).numpy() + part.start
        onto = int(np.bincount(view.cluster[seen.ravel()]).argmax())
        doubt = view.against[c, onto]
        if doubt > DOUBTFUL and _merged_across(view, c, onto):
            merged_with = onto if merged_with < 0 else merged_with
            verdict = worst(verdict, "over-corrected" if doubt > AGAINST else "look")
        if (kin := _kin(view, c, part)) >= 0:
            gaps.append((_gap(view, "after", c, kin), _gap(view, "before", c, kin)))
    apart, apart_before = np.mean(gaps, axis=0) if gaps else (np.nan, np.nan)
    verdict = worst(verdict, "under-corrected" if apart > APART else "good")
    return Finding(c, verdict, merged_with, float(apart), float(apart_before))


def _rivals(view: View, c: int) -> list[int]:
    """The other clusters of a cluster's batch."""
    own = np.flatnonzero(view.of_batch == view.of_batch[c])
    return [int(r) for r in own if r != c and len(view.cells[r]) >= LEAST]


def _gap(view: View, when: str, a: int, b: int) -> float:
    """How far two clusters lie apart, worked out once: many batches have many pairs of clusters."""
    key = when, min(a, b), max(a, b)
    if key not in view.gaps:
        view.gaps[key] = side_by_side(getattr(view, when), view.cells[key[1]], view.cells[key[2]])
    return view.gaps[key]


def _merged_within(view: View, c: int, rival: int) -> bool:
    """Whether two clusters of one batch were told apart before and are mixed after."""
    both = len(view.cells[c]) + len(view.cells[rival])

    def share(seen: Floats) -> float:
        """What the clusters see of each other, relative to what chance gives in the two together."""
        return max(float(seen[a, b]) * both / len(view.cells[b]) for a, b in ((c, rival), (rival, c)))

    return share(view.seen_before) < MERGED_BEFORE and share(view.seen_after) > MERGED_AFTER


def _merged_across(view: View, a: int, b: int) -> bool:
    """Whether the correction laid two clusters of two batches into each other, and not the common offset alone."""
    after = _gap(view, "after", a, b)
    return after < MIXED and min(_gap(view, when, a, b) for when in ("before", "aligned")) - after > NEARER


def _kin(view: View, c: int, part: slice) -> int:
    """The cluster of another batch that most partners of a cluster are in; -1 if too few of its cells have one."""
    partner = view.partner[view.cells[c], part]
    if partner.any(1).mean() < TRUSTED:
        return -1
    kin = int(np.bincount(view.cluster[part], partner.sum(0)).argmax())
    return kin if len(view.cells[kin]) >= LEAST else -1
