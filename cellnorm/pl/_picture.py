"""Pictures for a page: PNG without text, as data: URIs, and in numbers what they show. The words stay in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scanpy as sc
from anndata import AnnData
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.ndimage import label
from scipy.spatial import cKDTree

from cellnorm.pl._embedding import draw_points, point_size
from cellnorm.pl._history import draw_curve
from cellnorm.pl._style import Levels

__all__ = ["Badge", "badges", "curve_image", "layout", "point_image", "same_level"]

SIDE, DPI = 4.6, 180  # inches and pixels per inch: sharp at 460 CSS pixels on a fine screen
LEAST_CELLS = 15  # fewer have no neighbourhoods to lay out
MARGIN = 0.04
MAX_BADGES = 40
# Islands of a level on a map of so many tiles a side; the largest get a number of their own, if not too small.
TILES, LEAST_PART, MAX_PARTS = 24, 0.1, 4
BADGE = 4.5  # per cent of the picture between numbers that can be read, even if their edges meet on a phone


@dataclass(frozen=True)
class Badge:
    """A level's number in the legend, and where in the picture it belongs, in per cent from the left and the top."""

    number: int
    left: float
    top: float


def layout(x: NDArray[Any], random_state: int) -> tuple[NDArray[np.float32], str]:
    """Lay cells out in two dimensions for a look (scanpy's neighbors and UMAP; McInnes et al. 2018).

    Parameters
    ----------
    x
        Representation, shape (n_cells, n_dims).
    random_state
        Seed.

    Returns
    -------
    layout
        Shape (n_cells, 2).
    name
        "UMAP", or for fewer than 15 cells "first two dimensions".
    """
    x = np.asarray(x, np.float32)
    if len(x) < LEAST_CELLS:
        return np.pad(x[:, :2], ((0, 0), (0, max(0, 2 - x.shape[1])))), "first two dimensions"
    cells = AnnData(obsm={"x": x})
    k = min(15, len(x) - 1)
    # exact, and it does not depend on pynndescent, whose sparse arrays (0.7) scanpy 1.11 cannot read
    sc.pp.neighbors(cells, use_rep="x", n_neighbors=k, transformer="sklearn", random_state=random_state)
    sc.tl.umap(cells, random_state=random_state, key_added="layout")
    return np.asarray(cells.obsm["layout"], np.float32), "UMAP"


def point_image(xy: NDArray[Any], levels: Levels) -> str:
    """Draw cells as points on a transparent square; a data: URI of a PNG."""
    figure = Figure(figsize=(SIDE, SIDE), dpi=DPI)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    ax.set_axis_off()
    low, size = _frame(xy)
    ax.set(xlim=(low[0], low[0] + size), ylim=(low[1], low[1] + size))
    draw_points(ax, xy, levels.of_cells(), point_size(len(xy)))
    return _uri(figure)


def curve_image(values: NDArray[np.float64]) -> str:
    """Draw one training curve without axes; a data: URI of a PNG."""
    figure = Figure(figsize=(2.4, 1.0), dpi=DPI)
    ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    draw_curve(ax, values)
    ax.set_axis_off()
    ax.margins(x=0.01)
    return _uri(figure)


def badges(xy: NDArray[Any], levels: Levels) -> list[Badge]:
    """Where the number of each level goes: on each larger island of its cells, at the cell nearest to their median.

    There are none if there are more than 40 levels.

    Examples
    --------
    >>> from cellnorm.pl._style import levels_of
    >>> badges(np.array([[0.0, 0.0], [1.0, 1.0]]), levels_of(["a", "b"]))
    [Badge(number=1, left=3.7, top=96.3), Badge(number=2, left=96.3, top=3.7)]
    """
    if len(levels.names) > MAX_BADGES:
        return []
    low, size = _frame(xy)
    places = (np.asarray(xy, float) - low) / size
    found: list[Badge] = []
    for code in np.unique(levels.codes[levels.codes >= 0]):
        cells = places[levels.codes == code]
        part = _parts(cells)
        n_cells = np.bincount(part)
        for rank, which in enumerate(np.argsort(-n_cells, kind="stable")[:MAX_PARTS]):
            own = cells[part == which]
            left, bottom = 100 * own[np.square(own - np.median(own, axis=0)).sum(axis=1).argmin()]
            badge = Badge(int(code) + 1, round(float(left), 1), round(float(100 - bottom), 1))
            if rank == 0:  # every level has one, a little higher if the place is taken
                while _covers(badge, found) and badge.top > BADGE:
                    badge = replace(badge, top=round(badge.top - BADGE, 1))
                found.append(badge)
            elif len(own) >= LEAST_PART * len(cells) and not _covers(badge, found):
                found.append(badge)
    return found


def _covers(badge: Badge, others: list[Badge]) -> bool:
    return any(abs(badge.left - b.left) < BADGE and abs(badge.top - b.top) < BADGE for b in others)


def _parts(places: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which of the islands that a level's cells form each of them is on, shape (n_cells,); `places` lie in 0 to 1."""
    tiles = np.minimum((places * TILES).astype(int), TILES - 1)
    taken = np.zeros((TILES, TILES), bool)
    taken[tuple(tiles.T)] = True
    islands, _ = label(taken, structure=np.ones((3, 3)))
    return np.asarray(islands[tuple(tiles.T)] - 1, dtype=np.intp)


def same_level(xy: NDArray[Any], levels: Levels, k: int = 15) -> tuple[float, float]:
    """How much a picture parts the levels: the share of a cell's k nearest points that have its own level.

    Cells without a level do not count.

    Parameters
    ----------
    xy
        The picture, shape (n_cells, 2).
    levels
        Levels of the same cells.

    Returns
    -------
    share, expected
        Mean over cells, 0 to 1, and what it would be if the levels lay at random. NaN for fewer than two cells.

    Examples
    --------
    >>> from cellnorm.pl._style import levels_of
    >>> share, expected = same_level(np.array([[0, 0], [0, 1], [9, 9], [9, 8]]), levels_of([*"aabb"]), k=1)
    >>> round(share, 2), round(expected, 2)
    (1.0, 0.33)
    """
    known = levels.codes >= 0
    codes, points = levels.codes[known], np.asarray(xy, float)[known]
    n = len(codes)
    if n < 2:
        return np.nan, np.nan
    k = min(k, n - 1)
    _, near = cKDTree(points).query(points, k=k + 1)
    others = near != np.arange(n)[:, None]
    others[others.all(axis=1), -1] = False  # among duplicates the cell itself may be missing: drop the farthest
    share = float((codes[near] == codes[:, None])[others].mean())
    sizes = np.bincount(codes).astype(float)
    return share, float((sizes * (sizes - 1)).sum() / (n * (n - 1)))


def _frame(xy: NDArray[Any]) -> tuple[NDArray[np.float64], float]:
    """Lower left corner and side of the square that shows all cells: a unit is as long in both directions."""
    points = np.asarray(xy, float)
    low, high = points.min(axis=0), points.max(axis=0)
    size = float((high - low).max()) * (1 + 2 * MARGIN) or 1.0
    return (low + high - size) / 2, size


def _uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
