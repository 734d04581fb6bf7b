"""How well each batch's cells are mixed with others, as distributions over cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellnorm.adata import representation
from cellnorm.errors import DataError
from cellnorm.labels import batch_labels
from cellnorm.metrics.mixing import entropy
from cellnorm.metrics.neighbors import nearest_neighbors
from cellnorm.pl._style import ACCENT, GREY, grid, levels_of, numeric_obsm, printable, quiet, sample_cells, shades
from cellnorm.tl._evaluate import uncorrected

__all__ = ["mixing"]

N_NEIGHBORS = 90  # as LISI takes
MOST_TABLES = 6
MAX_ROWS = 60  # batches; more could not be read on one page
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def mixing(
    adata: AnnData,
    batch_key: str | Sequence[str],
    *,
    use_rep: str | Sequence[str] | None = None,
    max_cells: int = 20_000,
    random_state: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Show how mixed the neighbourhoods of each batch's cells are, in one representation or several.

    Entropy of the batches among a cell's 90 nearest neighbours, adjusted for the sizes of the batches: 0 if all are of
    one batch, 1 if all batches are there in proportion (`cellnorm.metrics.mixing.entropy`). For all cells and for each
    batch: the median (dot), the middle half (thick) and the middle 90 % of the cells (thin). The batches are sorted by
    their medians, the worst mixed first; of more than 60 the 60 worst are shown.

    Parameters
    ----------
    adata
        Cells with representations in obsm.
    batch_key
        Column of obs, or several, which are crossed.
    use_rep
        Key of obsm, or several. None: all tables of numbers with more than three columns, at most six; if none of them
        is a PCA, also the uncorrected principal components (`cellnorm.pp.prepare`).
    max_cells
        A seeded sample of this many cells is looked at, each batch in proportion.
    random_state
        Seed of the sample.
    ax
        Axes to draw on. None: new ones.

    Returns
    -------
    Axes

    Raises
    ------
    DataError
        If column or representation cannot be used.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.ones((40, 2)), obsm={"X_pca": np.random.default_rng(0).normal(size=(40, 5))})
    >>> adata.obs["batch"] = ["a", "b"] * 20
    >>> [tick.get_text() for tick in cn.pl.mixing(adata, "batch").get_yticklabels()][0]
    'all cells'
    """
    labels = batch_labels(adata, batch_key)
    tables = _representations(adata, batch_key, use_rep)
    keys, levels = list(tables), levels_of(labels)
    cells = sample_cells(levels.codes, max_cells, random_state)
    codes = levels.codes[cells]
    values = {key: _entropy(x[cells], codes) for key, x in tables.items()}
    batches = _worst_first(values[keys[-1]], codes)[:MAX_ROWS]
    rows = [np.arange(len(codes)), *(np.flatnonzero(codes == batch) for batch in batches)]
    names = ["all cells", *(printable(levels.names[batch]) for batch in batches)]
    if ax is None:
        height = 1.2 + len(rows) * (0.1 + 0.06 * len(keys) + 0.08 * (len(rows) < 20))
        ax = grid(1, 1, (6.4, height))[0, 0]
    for place, (key, color) in enumerate(zip(keys, _colors(len(keys)), strict=True)):
        offset = (place - (len(keys) - 1) / 2) * 0.7 / len(keys)
        summary = np.array([np.quantile(values[key][row], QUANTILES) for row in rows])
        _intervals(ax, summary, np.arange(len(rows)) + offset, color, printable(key))
    _label(ax, names, shown=len(batches), there=len(levels.names))
    return ax


def _representations(
    adata: AnnData, batch_key: str | Sequence[str], use_rep: str | Sequence[str] | None
) -> dict[str, NDArray[np.float32]]:
    """Tables to show by name, the uncorrected one first where it is not asked for by name."""
    if use_rep is not None:
        keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
        return {key: representation(adata, key)[0] for key in keys}
    keys = numeric_obsm(adata, lambda width: width > 3)[:MOST_TABLES]
    tables = {key: representation(adata, key)[0] for key in keys}
    if any("pca" in key.lower() for key in keys):
        return tables
    try:
        return {"uncorrected": uncorrected(adata, batch_key), **tables}
    except DataError:
        if tables:
            return tables
        raise


def _colors(n: int) -> list[str]:
    """The last one, usually the corrected, in the accent; a single other in grey; more in hues."""
    return [ACCENT] if n == 1 else [GREY, ACCENT] if n == 2 else shades(n)


def _entropy(x: NDArray[np.float32], codes: NDArray[np.intp]) -> NDArray[np.float64]:
    present, compact = np.unique(codes, return_inverse=True)
    if len(present) < 2:
        return np.zeros(len(codes))
    neighbors = nearest_neighbors(x, min(N_NEIGHBORS, len(x)))
    return np.asarray(entropy(neighbors, compact, adjust=True), dtype=np.float64)


def _worst_first(values: NDArray[np.float64], codes: NDArray[np.intp]) -> list[int]:
    present = np.unique(codes)
    medians = [float(np.median(values[codes == batch])) for batch in present]
    return [int(present[i]) for i in np.argsort(medians, kind="stable")]


def _intervals(ax: Axes, summary: NDArray[Any], y: NDArray[Any], color: str, label: str) -> None:
    low, first, median, third, high = summary.T
    ax.hlines(y, low, high, color=color, linewidth=1.0)
    ax.hlines(y, first, third, color=color, linewidth=3.5, alpha=0.55)
    ax.plot(median, y, "o", color=color, markersize=4.5, markeredgewidth=0, label=label.lstrip("_") or " ")


def _label(ax: Axes, names: list[str], *, shown: int, there: int) -> None:
    quiet(ax, keep=("bottom",))
    ax.set_yticks(range(len(names)), names, fontsize="small" if len(names) > 20 else None, parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.axhline(0.5, color=GREY, linewidth=0.6)
    of_all = "" if shown == there else f"; the {shown} worst mixed of {there} batches"
    ax.set_xlabel(f"batch-mixing entropy of a cell's neighbours: 0 one batch, 1 mixed{of_all}", fontsize="small")
    box = ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize="small")
    for entry in box.get_texts():
        entry.set_parse_math(False)
