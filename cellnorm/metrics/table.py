"""All scores of one embedding at once: which there are, what they mean, and how they are summed up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.metrics.mixing import entropy_scalex
from cellnorm.metrics.neighbors import compact_codes, nearest_neighbors
from cellnorm.metrics.of_cells import K_LISI, of_batches, of_change, of_types
from cellnorm.metrics.resampling import interval, resample
from cellnorm.validation import choose_device

__all__ = ["METRICS", "Metric", "Score", "score"]

BIO_WEIGHT = 0.6  # of the total, as in scIB (Luecken 2022)

NAN = float("nan")
SCALEX = "Batch entropy SCALEX"
AGGREGATES = ("Batch correction", "Bio conservation", "Total")


@dataclass(frozen=True)
class Metric:
    """What is known of a score.

    Attributes
    ----------
    name
        That of scib-metrics where it has the score.
    kind
        "batch" (are batches mixed), "bio" (are types kept), "kept" (is each batch's own structure kept, without labels)
        or "total" (a mean of others).
    about
        What it says, in a few words.
    undefined
        When it cannot be computed.
    low, high
        Its range.
    higher_is_better
        Its direction.
    needs_labels, needs_before
        Whether it needs cell types, or the uncorrected embedding.
    in_total
        Whether it counts in the mean of its kind, and so in the total.
    """

    name: str
    kind: str
    about: str
    undefined: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True
    needs_labels: bool = True
    needs_before: bool = False
    in_total: bool = False


@dataclass(frozen=True)
class Score:
    """Value of a score, NaN if it cannot be computed, and its 95 % interval, NaN if that was not asked for."""

    value: float
    low: float = NAN
    high: float = NAN


_ONE_TYPE = "there are not two cell types"
_APART = "no cell type is in two batches"
_NO_BEFORE = "there is no uncorrected embedding in which the batches differ"
_SMALL = "there is no uncorrected embedding, or no batch with three cells"
_NONE = "none of its parts can be computed"

METRICS = (
    Metric("BRAS", "batch", "batches of a type overlap", _APART, in_total=True),
    Metric("iLISI", "batch", "batches near each cell", "", needs_labels=False, in_total=True),
    Metric("KBET", "batch", "cells of a type whose neighbours show its batch shares", _APART, in_total=True),
    Metric("Graph connectivity", "batch", "each type hangs together", "", in_total=True),
    Metric(
        "PCR comparison", "batch", "variance between batches removed", _NO_BEFORE,
        needs_labels=False, needs_before=True, in_total=True,
    ),
    Metric("CiLISI", "batch", "batches near each cell, within its type", f"{_APART} with ten cells"),
    Metric("KBET overall", "batch", "cells whose neighbours show all batch shares", "", needs_labels=False),
    Metric("Batch entropy", "batch", "evenness of batches near each cell", "", needs_labels=False),
    Metric("Batch entropy adjusted", "batch", "the same, relative to batch sizes", "", needs_labels=False),
    Metric("Batch entropy within types", "batch", "the same, within the cell's type", _APART),
    Metric(
        SCALEX, "batch", "as SCALEX computes it: at most 0.693", "",
        high=float(np.log(2)), needs_labels=False,
    ),
    Metric("Silhouette batch", "batch", "no batch of a type stands out (prefer BRAS)", _APART),
    Metric("Isolated labels", "bio", "types of the fewest batches stand out", _ONE_TYPE, in_total=True),
    Metric("Leiden NMI", "bio", "clusters agree with types", _ONE_TYPE, in_total=True),
    Metric("Leiden ARI", "bio", "clusters agree with types, pair by pair", _ONE_TYPE, low=-0.5, in_total=True),
    Metric("Silhouette label", "bio", "types stand apart", _ONE_TYPE, in_total=True),
    Metric("cLISI", "bio", "one type near each cell", _ONE_TYPE, in_total=True),
    Metric(
        "Neighbors kept", "kept", "own-batch neighbours as before correction", _SMALL,
        needs_labels=False, needs_before=True,
    ),
    Metric(
        "Distances kept", "kept", "own-batch distances ranked as before", _SMALL,
        low=-1.0, needs_labels=False, needs_before=True,
    ),
    Metric("Batch correction", "total", "mean of BRAS to PCR comparison", _NONE),
    Metric("Bio conservation", "total", "mean of isolated labels to cLISI", _NONE),
    Metric("Total", "total", "0.4 batch correction + 0.6 bio conservation", _NONE),
)  # fmt: skip


def score(
    x: Any,
    batch: Any,
    label: Any = None,
    *,
    before: Any = None,
    n_bootstrap: int = 0,
    random_state: int = 0,
    device: str = "auto",
) -> dict[str, Score]:
    """All scores of an embedding that its labels allow.

    Values equal those of scib-metrics 0.5.10 where it has the score, its aggregates included: the mean of five scores
    of batch correction, that of five of bio conservation, and 0.4 of the one plus 0.6 of the other; a score that cannot
    be computed is left out of its mean. Neighbours are exact. One score may differ, and the means with it: KBET of a
    type hangs, in scib-metrics, on whether an eigenvalue of 1 is rounded to 1 in single precision.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, n_dims); not a two-dimensional layout, whose distances mean little.
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    label
        Type of each cell as an integer from 0 up, shape (n_cells,), negative where it is not known: scores that need
        types are then those of the other cells alone, with their neighbours among themselves. None: no such scores.
    before
        Uncorrected embedding of the same cells, shape (n_cells, any). None: scores that need it are NaN.
    n_bootstrap
        Number of resamples of the cells for 95 % intervals (see `cellnorm.metrics.resampling.resample` for what these
        cover). 0: no intervals. "Batch entropy SCALEX", itself a random sample, never has one.
    random_state
        Seed of all that is random.
    device
        "auto", "cpu", "cuda" or "mps".

    Returns
    -------
    Name to score, in the order of `METRICS`.

    Raises
    ------
    DataError
        Fewer than two batches, fewer than three cells, arrays of different lengths, values that are not finite.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> x, batch = rng.normal(size=(200, 5)), np.arange(200) % 2
    >>> scores = score(x, batch, device="cpu")
    >>> round(scores["Batch entropy"].value, 2)
    1.0
    """
    device = choose_device(device)
    x, batch, before = _checked(x, batch, before)
    neighbors = nearest_neighbors(x, K_LISI, device=device)
    metrics = of_batches(neighbors, batch)
    if before is not None:
        metrics |= of_change(x, before, batch, random_state, device)
    if label is not None:
        metrics |= of_types(x, batch, label, neighbors, device)
    values = {name: metric(np.arange(len(x))) for name, metric in metrics.items()}
    values[SCALEX] = entropy_scalex(x, batch, random_state=random_state, device=device)
    draws = resample(metrics, len(x), n_bootstrap=n_bootstrap, random_state=random_state)
    if label is not None:
        values |= {name: float(value) for name, value in _aggregates(values).items()}
        draws |= _aggregates(draws)
    return {
        metric.name: _score(metric, values.get(metric.name, NAN), draws.get(metric.name, np.empty(0)))
        for metric in METRICS
        if label is not None or not metric.needs_labels
    }


def _score(metric: Metric, value: float, draws: NDArray[np.float64]) -> Score:
    """The value and its interval; rounding and symmetry take neither out of its range."""
    inside = np.clip((value, *interval(draws, value)), metric.low, metric.high)
    return Score(*inside.tolist())


def _checked(x: Any, batch: Any, before: Any) -> tuple[NDArray[np.float32], NDArray[np.int64], Any]:
    x = np.asarray(x, np.float32)
    codes, n_batches = compact_codes(batch, len(x), "batch")
    if n_batches < 2 or len(x) < 3:
        raise DataError(
            f"Scores compare batches: at least 2 batches and 3 cells are needed, found {n_batches} and {len(x)}. "
            "Check the batch labels."
        )
    if before is None:
        return x, codes, None
    before = np.asarray(before, np.float32)
    if before.ndim != 2 or len(before) != len(x) or not np.isfinite(before).all():
        raise DataError(
            f"The uncorrected embedding must hold finite values for each of the {len(x)} cells, "
            f"found shape {before.shape}, {int((~np.isfinite(before)).sum())} values not finite."
        )
    return x, codes, before


def _aggregates(values: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Means of the scores that count, without those that are NaN, and the total; of one value each, or of draws."""
    means = []
    for kind in ("batch", "bio"):
        names = [metric.name for metric in METRICS if metric.kind == kind and metric.in_total]
        rows = np.stack([values[name] for name in names if name in values] or [NAN])
        known = ~np.isnan(rows)
        n_known = known.sum(axis=0)
        means.append(np.where(n_known, np.where(known, rows, 0).sum(axis=0) / np.maximum(n_known, 1), NAN))
    batch, bio = means
    return dict(zip(AGGREGATES, (batch, bio, (1 - BIO_WEIGHT) * batch + BIO_WEIGHT * bio), strict=True))
