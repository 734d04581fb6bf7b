"""Which columns of obs change the expression, and how strongly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes

from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.pl._style import GREY, HUES, grid, printable, quiet
from cellnorm.tl import diagnose

__all__ = ["diagnosis"]

# Verdicts by colour, marker and word: any one of them is enough.
VERDICTS = {"none": (GREY, "o"), "mild": (HUES[1], "s"), "strong": (HUES[5], "D")}
MAX_ROWS = 40


def diagnosis(
    adata: AnnData,
    batch_key: str | Sequence[str] | None = None,
    *,
    diagnosis: Mapping[str, Any] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Show how strongly each column of obs changes the expression, beside what chance would do.

    Parameters
    ----------
    adata
        Cells x genes.
    batch_key
        See `cellnorm.tl.diagnose`, which is asked if no `diagnosis` is given.
    diagnosis
        What `cellnorm.tl.diagnose` returned.
    ax
        Axes to draw on. None: new ones.

    Returns
    -------
    Axes
        One row for each column, at most 40: its strength (marker) and that of its permutations (grey line).

    Raises
    ------
    DataError
        If the diagnosis found no column that could be judged.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> found = {"columns": [{"name": "lab", "strength": 0.3, "null": 0.01, "verdict": "strong"}]}
    >>> axes = cn.pl.diagnosis(ad.AnnData(np.ones((3, 2))), diagnosis=found)
    >>> [tick.get_text() for tick in axes.get_yticklabels()]
    ['lab']
    """
    if diagnosis is None:
        diagnosis = diagnose(adata, batch_key)
    columns = list(diagnosis["columns"])[:MAX_ROWS]
    if not columns:
        raise DataError(f"No column of obs can be judged; obs has: {listed(adata.obs)}. Add one that names batches.")
    if ax is None:
        ax = grid(1, 1, (6.4, 1.1 + 0.26 * len(columns)))[0, 0]
    for y, column in enumerate(columns):
        color, marker = VERDICTS.get(column["verdict"], (GREY, "o"))
        strength, null = _number(column["strength"]), _number(column["null"])
        ax.hlines(y, min(null, strength), max(null, strength), color=color, linewidth=1.2)
        ax.plot([null, null], [y - 0.3, y + 0.3], color=GREY, linewidth=2)
        ax.plot(strength, y, marker, color=color, markersize=6.5, markeredgewidth=0)
        said = "as cell types" if column.get("follows_clusters") else column["verdict"]
        ax.text(max(strength, null), y, f"   {said}", va="center", fontsize="small", parse_math=False)
    quiet(ax, keep=("bottom",))
    ax.set_yticks(range(len(columns)), [printable(c["name"]) for c in columns], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(columns) - 0.4, -0.6)
    ax.set_xlim(left=min(0.0, ax.get_xlim()[0]), right=ax.get_xlim()[1] * 1.15)
    ax.set_xlabel("strength of the effect; grey bar: the same for permuted labels", fontsize="small")
    return ax


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
