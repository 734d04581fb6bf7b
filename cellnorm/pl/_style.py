"""What the figures have in common: colours that colour-blind eyes tell apart, levels of a column, quiet axes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

__all__ = ["ACCENT", "GREY", "HUES", "MAX_LEGEND", "Levels", "categorical", "grid", "legend", "levels_of"]
__all__ += ["natural", "numeric_obsm", "printable", "quiet", "sample_cells", "shades", "title"]

# Okabe and Ito 2008 (Color Universal Design) without black and yellow, which vanish on a black or a white page; then
# colours of medium lightness, each the farthest from those before it to the eyes that tell it apart worst.
HUES = (
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#9D00FF", "#D8C476", "#EB004E"),
    *("#764ED8", "#764E76", "#B1C4B1", "#4E6227", "#8989FF", "#B1149D", "#89C489", "#62D83B", "#9D9D3B"),
)
MAX_LEGEND = len(HUES)  # more levels than that have no legend
GREY = "#8A8F98"
ACCENT = HUES[0]
LONGEST_NAME = 32  # characters of a name in a figure


@dataclass(frozen=True)
class Levels:
    """The levels of a column and their colours.

    Attributes
    ----------
    names
        Level names, in natural order.
    codes
        Level of each cell, shape (n_cells,); -1 where it is missing.
    colors
        One hex colour for each level.
    distinct
        Whether the colours can be told apart, so that a legend makes sense; else they are a ramp over the levels:
        mixed levels look like noise, separate ones like patches.
    """

    names: list[str]
    codes: NDArray[np.intp]
    colors: list[str]
    distinct: bool

    def of_cells(self) -> NDArray[np.float64]:
        """Colour of each cell as RGB, shape (n_cells, 3); grey where the level is missing."""
        table = np.array([to_rgb(c) for c in [*self.colors, GREY]])
        return np.asarray(table[self.codes])


def shades(n_levels: int) -> list[str]:
    """Colours for levels that have an order of names only.

    Parameters
    ----------
    n_levels
        Up to `MAX_LEGEND` get colours that can be told apart, more get steps of a ramp (viridis, without its ends).

    Returns
    -------
    list of str
        Hex colours, `n_levels` of them.

    Examples
    --------
    >>> shades(2)
    ['#0072B2', '#E69F00']
    """
    if n_levels > MAX_LEGEND:
        return [to_hex(c) for c in mpl.colormaps["viridis"](np.linspace(0.05, 0.95, n_levels))]
    return list(HUES[:n_levels])


def natural(name: str) -> list[tuple[int, int, str]]:
    """Key that sorts "batch 2" before "batch 10"."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in parts]


def levels_of(labels: Sequence[Any] | NDArray[Any] | pd.Series[Any]) -> Levels:
    """Levels of labels, missing values apart.

    Examples
    --------
    >>> levels_of(["s10", "s2", None]).names
    ['s2', 's10']
    """
    column = pd.Series(labels)
    missing = column.isna().to_numpy()
    texts = column.astype(object).where(~missing, "").astype(str).to_numpy()
    names = sorted({str(t) for t in texts[~missing]}, key=lambda name: (natural(name), name))
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([-1 if gone else place[t] for t, gone in zip(texts, missing, strict=True)], dtype=np.intp)
    return Levels(names, codes, shades(len(names)), len(names) <= MAX_LEGEND)


def categorical(column: pd.Series[Any]) -> bool:
    """Whether a column is shown as levels: anything but numbers, and whole numbers of few values."""
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return True
    return pd.api.types.is_integer_dtype(column) and column.nunique() <= MAX_LEGEND


def printable(name: str, longest: int = LONGEST_NAME) -> str:
    """A name for a figure: one line, control characters spelled out, its middle left out where it is too long.

    Examples
    --------
    >>> printable("a" * 40, 9)
    'aaaa…aaaa'
    """
    line = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in str(name))
    half = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[:half]}…{line[-half:]}"


def title(ax: Axes, content: str) -> None:
    """Put a title above the axes, at the left; a dollar sign in a name stays one."""
    ax.set_title(content, loc="left", fontsize="medium", parse_math=False)


def quiet(ax: Axes, *, keep: Sequence[str] = ("left", "bottom")) -> Axes:
    """Take away the lines that show no data."""
    for side, spine in ax.spines.items():
        spine.set_visible(side in keep)
        spine.set_color(GREY)
        spine.set_linewidth(0.8)
    ax.tick_params(length=3, width=0.8, color=GREY)
    ax.set_axisbelow(True)
    return ax


def grid(n_rows: int, n_columns: int, size: tuple[float, float], *, aside: float = 0, **options: Any) -> NDArray[Any]:
    """Axes of a new figure, shape (n_rows, n_columns), each of the given size in inches; room for a legend aside."""
    width, height = size
    figure = plt.figure(figsize=(width * n_columns + aside, height * n_rows), layout="constrained")
    return np.asarray(figure.subplots(n_rows, n_columns, squeeze=False, **options))


def legend(ax: Axes, levels: Levels) -> None:
    """List the levels beside the axes."""
    for name, color in zip(levels.names, levels.colors, strict=True):
        ax.scatter([], [], s=28, color=color, label=printable(name).lstrip("_") or " ", linewidths=0)
    if (levels.codes < 0).any():
        ax.scatter([], [], s=28, color=GREY, label="missing", linewidths=0)
    columns = math.ceil((len(levels.names) + 1) / 12)
    box = ax.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns, frameon=False, fontsize="small",
        handletextpad=0.3, borderaxespad=0.2,
    )  # fmt: skip
    for entry in box.get_texts():
        entry.set_parse_math(False)


def sample_cells(codes: NDArray[np.intp], most: int, random_state: int) -> NDArray[np.intp]:
    """Choose at most `most` cells, each batch in proportion; in random order, so that no batch covers another.

    Parameters
    ----------
    codes
        Batch of each cell, shape (n_cells,).
    most
        Number of cells; a batch keeps one at least.
    random_state
        Seed.

    Returns
    -------
    ndarray of int
        Indices of the chosen cells.
    """
    rng = np.random.default_rng(random_state)
    share = min(1.0, most / max(1, len(codes)))
    parts = [np.flatnonzero(codes == code) for code in np.unique(codes)]
    chosen = [rng.choice(part, max(1, int(len(part) * share)), replace=False) for part in parts]
    return np.asarray(rng.permutation(np.concatenate(chosen)), dtype=np.intp)


def numeric_obsm(adata: AnnData, fits: Callable[[int], bool]) -> list[str]:
    """Keys of obsm that hold tables of numbers whose number of columns fits."""
    found = []
    for key, values in adata.obsm.items():
        width = values.shape[1] if getattr(values, "ndim", 0) == 2 else 0
        if getattr(getattr(values, "dtype", None), "kind", "O") in "biuf" and fits(width):
            found.append(str(key))
    return found
