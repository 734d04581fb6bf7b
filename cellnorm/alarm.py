"""The over-correction alarm: did a correction remove the batches, and not the biology? It needs no cell types.

A few thousand cells are looked at, before and after; `evidence` looks at each cluster, here it is summed up.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellnorm.counterparts import LEAST
from cellnorm.determinism import one_thread
from cellnorm.evidence import APART, Finding, View, finding, look, worst

__all__ = ["Alarm", "judge"]

MAX_CELLS = 3000  # distances between all of them: 36 MB each time
# Thresholds, calibrated by benchmarks/alarm_calibration.py on simulated and real data.
LOST, THIN = 0.2, 0.35  # share of own neighbours kept: neighbourhoods destroyed, hardly recognised
MOVED, SEPARATED = 0.5, 0.3  # in the null check: half a neighbour's distance, and halves that can be told apart
FEW = 0.1  # share of cells with a partner: too few to say which match can be trusted


@dataclass(frozen=True)
class Alarm:
    """What a correction did, in numbers and in a word.

    Attributes
    ----------
    verdict
        "good", "look" (something deserves a look), "under-corrected" or "over-corrected".
    reason
        One or two sentences.
    kept
        Share of a cell's 15 nearest cells of its own batch that are the same after, mean over cells, 0 to 1.
    matched
        Share of cells with a partner among the five nearest cells of another batch, mutually, 0 to 1.
    apart
        How far clusters of one kind lie apart after: 0 in each other, 1 side by side; NaN if none could be matched.
    apart_before
        The same before.
    merged
        Number of clusters that were laid onto one of another kind.
    null_moved, null_separated
        The largest batch split at random and mapped: median move of a cell in units of the distance to its neighbours,
        and how far the halves lie apart. NaN if not looked at.
    batches
        By batch: name, n_cells (looked at), kept, matched, apart, verdict.
    clusters
        By cluster: batch, cluster (its number in the batch), n_cells, kept, matched, merged_with, verdict.
    """

    verdict: str
    reason: str
    kept: float
    matched: float
    apart: float
    apart_before: float
    merged: int
    null_moved: float
    null_separated: float
    batches: dict[str, NDArray[Any]]
    clusters: dict[str, NDArray[Any]]

    def with_null(self, moved: float, separated: float) -> Alarm:
        """The same with the outcome of the null check; what moved or separated for no reason deserves a look."""
        verdict, reason = self.verdict, self.reason
        if moved > MOVED or separated > SEPARATED:
            found = f"a batch split at random moved by {moved:.2f} neighbour distances and lies {separated:.2f} apart"
            verdict, reason = worst(verdict, "look"), found if verdict == "good" else f"{reason}; {found}"
        return replace(self, verdict=verdict, reason=reason, null_moved=moved, null_separated=separated)

    def unchanged(self, why: str) -> Alarm:
        """The same where nothing was corrected, which is said first."""
        return replace(self, reason=f"{why}, and nothing was changed; {self.reason}")

    def to_dict(self) -> dict[str, Any]:
        """Everything by name."""
        return asdict(self)


def judge(
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    batch: NDArray[Any],
    *,
    n_neighbors: int = 20,
    random_state: int = 0,
) -> Alarm:
    """Judge a correction from the cells before and after, without cell types.

    Parameters
    ----------
    before, after
        Coordinates of the same cells, shapes (n_cells, n_dims) and (n_cells, n_latent).
    batch
        Batch of each cell, shape (n_cells,), of any type that sorts.
    n_neighbors
        For the anchors that say where batches lie to each other.
    random_state
        Seed of the sample and of the clusters.

    Returns
    -------
    Alarm
        Without the null check.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.alarm import judge
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(400, 10)).astype("float32")
    >>> x[:200] += 8 * rng.normal(size=10)
    >>> judge(x, x, np.repeat(["a", "b"], 200)).verdict
    'under-corrected'
    """
    names, codes = np.unique(batch, return_inverse=True)
    rng = np.random.default_rng(random_state)
    size = max(30, MAX_CELLS // len(names))
    chosen = np.concatenate([np.sort(rng.permutation(np.flatnonzero(codes == b))[:size]) for b in range(len(names))])
    with one_thread():
        view = look(before[chosen], after[chosen], codes[chosen], n_neighbors)
        found = [finding(view, c) for c in range(len(view.cells)) if len(view.cells[c]) >= LEAST]
    return _summary(view, found, names)


def _summary(view: View, found: list[Finding], names: NDArray[Any]) -> Alarm:
    """All findings in a word and a sentence."""
    matched = np.asarray(view.partner.any(1))
    kept, share = float(view.kept.mean()), float(matched.mean())
    apart, apart_before = (_mean(view, found, field) for field in ("apart", "apart_before"))
    merged = [f for f in found if f.verdict == "over-corrected"]
    batches = _batches(view, found, matched, names)
    few = [f"only {share:.0%} of the cells have a partner in another batch, too few to rely on"]
    unmatched = ["no cluster could be matched with one of another batch, so that little could be judged"]
    alone = [f"batch {str(names[b])!r:.60} was hardly corrected" for b in np.flatnonzero(batches["apart"] > APART)]
    reasons = {
        "over-corrected": [_merge(view, f, names) for f in merged] + _neighbours(kept, LOST),
        "under-corrected": [f"batches lie apart still: {_gaps(apart, apart_before)}"] if apart > APART else [],
        "look": _neighbours(kept, THIN)
        + (few if share < FEW else [])
        + (unmatched if np.isnan(apart) else [])
        + alone
        + [_merge(view, f, names) for f in found if f.verdict == "look" and f.merged_with >= 0],
        "good": [
            f"{_gaps(apart, apart_before)}; {kept:.0%} of a cell's own neighbours kept; "
            "no cluster laid onto one of another kind"
        ],
    }
    verdict = worst(*(grade for grade, why in reasons.items() if why))
    why = reasons[verdict]
    reason = "; ".join(why[:3]) + (f"; and {len(why) - 3} more" if len(why) > 3 else "")
    clusters = _clusters(view, found, matched, names)
    return Alarm(verdict, reason, kept, share, apart, apart_before, len(merged), np.nan, np.nan, batches, clusters)


def _mean(view: View, found: list[Finding], field: str) -> float:
    """Mean over clusters, weighted by their cells, of those that have a value; NaN without any."""
    values = np.array([getattr(f, field) for f in found], float)
    sizes = np.array([len(view.cells[f.cluster]) for f in found], float)
    there = np.isfinite(values)
    return float(np.average(values[there], weights=sizes[there])) if there.any() else np.nan


def _gaps(apart: float, before: float) -> str:
    return f"clusters of one kind lie {apart:.2f} apart, {before:.2f} before (0: in each other, 1: side by side)"


def _neighbours(kept: float, threshold: float) -> list[str]:
    return [f"only {kept:.0%} of a cell's own neighbours were kept"] if kept < threshold else []


def _name(view: View, c: int, names: NDArray[Any]) -> str:
    """A cluster by its number in its batch."""
    b = view.of_batch[c]
    return f"cluster {c - int(np.searchsorted(view.of_batch, b))} of batch {str(names[b])!r:.60}"


def _merge(view: View, f: Finding, names: NDArray[Any]) -> str:
    size, onto = len(view.cells[f.cluster]), _name(view, f.merged_with, names)
    why = "apart before" if view.of_batch[f.cluster] == view.of_batch[f.merged_with] else "against its anchors"
    return f"{_name(view, f.cluster, names)} ({size} cells looked at) lies in {onto}, {why}"


def _batches(
    view: View, found: list[Finding], matched: NDArray[np.bool_], names: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The findings by batch."""
    of = [[f for f in found if view.of_batch[f.cluster] == b] for b in range(len(view.parts))]
    apart = np.array([_mean(view, findings, "apart") for findings in of])
    grades = [
        worst("under-corrected" if gap > APART else "good", *(f.verdict for f in findings if f.merged_with >= 0))
        for gap, findings in zip(apart, of, strict=True)
    ]
    return {
        "name": names.astype(str).astype(object),
        "n_cells": np.array([part.stop - part.start for part in view.parts]),
        "kept": np.array([view.kept[part].mean() for part in view.parts]),
        "matched": np.array([matched[part].mean() for part in view.parts]),
        "apart": apart,
        "verdict": np.array(grades, dtype=object),
    }


def _clusters(
    view: View, found: list[Finding], matched: NDArray[np.bool_], names: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """The findings by cluster."""
    cells = [view.cells[f.cluster] for f in found]
    first = np.searchsorted(view.of_batch, view.of_batch)
    return {
        "batch": np.array([str(names[view.of_batch[f.cluster]]) for f in found], dtype=object),
        "cluster": np.array([f.cluster - first[f.cluster] for f in found], np.int64),
        "n_cells": np.array([len(c) for c in cells], np.int64),
        "kept": np.array([view.kept[c].mean() for c in cells], float),
        "matched": np.array([matched[c].mean() for c in cells], float),
        "apart": np.array([f.apart for f in found], float),
        "merged_with": np.array(
            [_name(view, f.merged_with, names) if f.merged_with >= 0 else "" for f in found], dtype=object
        ),
        "verdict": np.array([f.verdict for f in found], dtype=object),
    }
