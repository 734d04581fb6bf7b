"""Figures of `peers.py`: totals on each set, and quality against seconds."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from peers_methods import METHODS
from peers_table import OURS, in_common, means

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # the backend has to be chosen first

# Okabe and Ito: eight colours that colour-blind readers tell apart; markers differ too.
PALETTE = ["#000000", "#999999", "#0072B2", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#999999"]
MARKERS = ["o", "|", "s", "D", "^", "v", "P", "X", "x"]
STYLE: dict[str, dict[str, Any]] = {
    m: {"color": c, "marker": k} for m, c, k in zip(METHODS, PALETTE, MARKERS, strict=True)
}


def totals(table: pd.DataFrame, path: Path) -> None:
    """A line for each set, a mark for each method, 95 % intervals over seeds."""
    sets = list(dict.fromkeys(table["set"]))[::-1]
    shown = [m for m in METHODS if table.loc[table["method"] == m, "Total"].notna().any()]
    fig, ax = plt.subplots(figsize=(8, 1.2 + 0.45 * len(sets)), layout="constrained")
    for i, method in enumerate(shown):
        block = table[table["method"] == method].set_index("set").reindex(sets)
        height = np.arange(len(sets)) + 0.5 * (0.5 - i / max(len(shown) - 1, 1))
        half = block["Total, half of 95 % interval"].fillna(0)
        size = 9 if method == OURS else 6
        ax.errorbar(block["Total"], height, xerr=half, ls="", ms=size, lw=1, label=method, **STYLE[method])
    ax.set_yticks(range(len(sets)), sets)
    ax.set(xlabel="total (.6 biology + .4 mixing); higher is better", ylim=(-0.6, len(sets) - 0.4))
    ax.hlines(np.arange(len(sets) - 1) + 0.5, *ax.get_xlim(), color="0.9", lw=0.8, zorder=0)
    finish(fig, ax, path)


def speed(table: pd.DataFrame, path: Path) -> None:
    """Mean total against mean seconds, see `in_common`."""
    common = in_common(table)
    mean = common[common["Total"].notna()].groupby("method", sort=False)[["Total", "seconds"]].mean()
    mean = mean[mean.index != "unintegrated"]
    fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for method, row in mean.iterrows():
        size = 11 if method == OURS else 8
        ax.plot(row["seconds"], row["Total"], ls="", ms=size, label=method, **STYLE[str(method)])
        ax.annotate(str(method), (row["seconds"], row["Total"]), (7, 3), textcoords="offset points", fontsize=8)
    ax.set(xscale="log", xlabel="seconds of the method (mean over sets)", ylabel="total (mean over sets)")
    ax.margins(0.15)
    finish(fig, ax, path, legend=False)


def finish(fig: Any, ax: Any, path: Path, *, legend: bool = True) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    if legend:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw(runs: pd.DataFrame, folder: Path) -> None:
    """Write `peers_totals.png` and `peers_speed.png` into the folder."""
    table = means(runs)
    totals(table, folder / "peers_totals.png")
    speed(table, folder / "peers_speed.png")
