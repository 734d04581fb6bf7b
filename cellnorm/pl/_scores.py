"""Metrics of several representations beside each other, with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from cellnorm.errors import DataError
from cellnorm.metrics.table import METRICS
from cellnorm.pl._style import GREY, grid, printable, quiet, shades
from cellnorm.tl import evaluate

__all__ = ["ScoreFrames", "direction", "scores", "split_scores"]

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")  # beside the colours, for eyes that do not tell them apart


@dataclass(frozen=True)
class ScoreFrames:
    """Scores by metric (rows) and representation (columns): values, and the ends of their intervals (NaN if none)."""

    value: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame


def scores(
    adata: AnnData,
    batch_key: str | Sequence[str] | None = None,
    label_key: str | None = None,
    *,
    scores: pd.DataFrame | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show the metrics of all representations, one row each, with intervals where they are known.

    Parameters
    ----------
    adata
        Cells with representations in obsm.
    batch_key, label_key
        See `cellnorm.tl.evaluate`, which is asked if no `scores` are given.
    scores
        What `cellnorm.tl.evaluate` returned, with intervals or without.
    ax
        Axes to draw on. None: new ones.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If there are neither scores nor a batch_key, or the scores are not numbers by metric.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, cellnorm as cn
    >>> table = pd.DataFrame({"X_pca": [0.1, 0.6], "X_cellnorm": [0.5, 0.7]}, index=["iLISI", "cLISI"])
    >>> axes = cn.pl.scores(ad.AnnData(np.ones((3, 2))), scores=table)
    >>> [tick.get_text() for tick in axes.get_yticklabels()]
    ['iLISI', 'cLISI']
    """
    if scores is None:
        if batch_key is None:
            raise DataError("Scores need a batch_key, found None. Name the column of obs, or give scores.")
        scores = evaluate(adata, batch_key, label_key)
    frames = split_scores(scores)
    names = [str(name) for name in frames.value.index]
    columns = list(frames.value.columns)
    if ax is None:
        ax = grid(1, 1, (6.4, 1.2 + len(names) * (0.16 + 0.08 * len(columns))))[0, 0]
    for place, (column, color) in enumerate(zip(columns, shades(len(columns)), strict=True)):
        y = np.arange(len(names)) + (place - (len(columns) - 1) / 2) * 0.6 / len(columns)
        ax.hlines(y, frames.low[column], frames.high[column], color=color, linewidth=2.0, alpha=0.6)
        label = printable(str(column)).lstrip("_") or " "
        ax.plot(
            frames.value[column], y, MARKERS[place % len(MARKERS)], color=color, markersize=5, markeredgewidth=0,
            label=label,
        )  # fmt: skip
    _rows(ax, names)
    return ax


def split_scores(scores: pd.DataFrame) -> ScoreFrames:
    """Values and intervals of a table of scores, whether it holds intervals or not.

    Parameters
    ----------
    scores
        Rows are metrics; columns are representations, or pairs (representation, "value", "low" or "high").

    Returns
    -------
    ScoreFrames

    Raises
    ------
    DataError
        If it is no such table.

    Examples
    --------
    >>> split_scores(pd.DataFrame({"X_pca": [0.5]}, index=["iLISI"])).low["X_pca"].tolist()
    [nan]
    """
    try:
        table = scores.astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"Scores must be numbers ({error}). Give what cellnorm.tl.evaluate returns.") from error
    if table.columns.nlevels == 1:
        nothing = pd.DataFrame(np.nan, index=table.index, columns=table.columns)
        return ScoreFrames(table, nothing, nothing.copy())
    parts = set(table.columns.get_level_values(-1))
    if table.columns.nlevels != 2 or not {"value", "low", "high"} <= parts:
        raise DataError(
            f"Scores with intervals need columns (representation, 'value', 'low' or 'high'), found {sorted(parts)}. "
            "Give the table that cellnorm.tl.evaluate returns."
        )
    order = list(dict.fromkeys(table.columns.get_level_values(0)))
    value, low, high = (
        pd.DataFrame({name: table[(name, part)] for name in order}, index=table.index)
        for part in ("value", "low", "high")
    )
    return ScoreFrames(value, low, high)


def direction(metric: str) -> int:
    """1 if a higher value of a metric is better, -1 if a lower one is.

    Examples
    --------
    >>> direction("Total")
    1
    """
    found = {known.name: known.higher_is_better for known in METRICS}
    return 1 if found.get(metric, True) else -1


def _rows(ax: Axes, names: list[str]) -> None:
    quiet(ax, keep=("bottom",))
    arrows = [f"{name} (lower is better)" if direction(name) < 0 else name for name in names]
    ax.set_yticks(range(len(names)), arrows, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.5, -0.5)
    for y in range(1, len(names)):
        ax.axhline(y - 0.5, color=GREY, linewidth=0.4, alpha=0.4)
    low, high = ax.get_xlim()
    ax.set_xlim(min(-0.02, low), max(1.02, high))
    box: Any = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small")
    for entry in box.get_texts() if box else ():
        entry.set_parse_math(False)
