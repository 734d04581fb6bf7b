"""Cells as points, coloured by columns of obs: one row for each column, one panel for each layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellnorm.adata import representation
from cellnorm.errors import DataError
from cellnorm.labels import listed, obs_column
from cellnorm.pl._style import categorical, grid, legend, levels_of, numeric_obsm, printable, title

__all__ = ["draw_points", "embedding_grid", "point_size"]


def embedding_grid(
    adata: AnnData,
    color: str | Sequence[str],
    *,
    use_rep: str | Sequence[str] | None = None,
    size: float | None = None,
    random_state: int = 0,
) -> NDArray[Any]:
    """Show layouts beside each other, coloured by columns of obs.

    Cells are drawn in random order, so that no batch covers another. Up to 18 levels get colours that colour-blind
    eyes tell apart, and a legend. More levels are coded by a ramp without a legend: where they are mixed it looks like
    noise, where they are apart like patches. Columns of numbers get a colour bar.

    Parameters
    ----------
    adata
        Cells with layouts of two dimensions in obsm.
    color
        Column of obs, or several: one row each.
    use_rep
        Key of obsm with two columns, or several: one panel each. None: all there are.
    size
        Area of a point in square points; None: the more cells, the smaller.
    random_state
        Seed of the order in which the cells are drawn.

    Returns
    -------
    ndarray of Axes
        Shape (n_columns, n_layouts).

    Raises
    ------
    DataError
        If a column or layout is missing, or a layout has not two dimensions.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.ones((4, 2)), obsm={"X_umap": np.eye(4)[:, :2]})
    >>> adata.obs["batch"] = ["a", "b"] * 2
    >>> cn.pl.embedding_grid(adata, "batch").shape
    (1, 1)
    """
    columns = [color] if isinstance(color, str) else list(color)
    if not columns:
        raise DataError(f"color names no column; the columns of obs are: {listed(adata.obs)}.")
    layouts = _layouts(adata, use_rep)
    order = np.random.default_rng(random_state).permutation(adata.n_obs)
    axes = grid(len(columns), len(layouts), (3.2, 3.4), aside=1.4)
    for row, column in enumerate(columns):
        values = obs_column(adata, column)
        for ax, (name, xy) in zip(axes[row], layouts.items(), strict=True):
            ax.set_box_aspect(1)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            title(ax, f"{printable(name.removeprefix('X_'))}: {printable(column)}")
            _color(ax, xy[order], values.iloc[order], size, last=ax is axes[row, -1])
    return axes


def draw_points(ax: Axes, xy: NDArray[Any], colors: NDArray[Any], size: float) -> None:
    """Draw cells as points without outlines; `colors` has shape (n_cells, 3)."""
    ax.scatter(xy[:, 0], xy[:, 1], s=size, c=colors, linewidths=0, alpha=0.85, rasterized=True)


def point_size(n_cells: int) -> float:
    """Area of a point in square points: a hundred times the cells together cover ten times the area.

    Examples
    --------
    >>> point_size(100), point_size(10_000)
    (30.0, 3.0)
    """
    return float(np.clip(300 / np.sqrt(max(1, n_cells)), 0.5, 30.0))


def _layouts(adata: AnnData, use_rep: str | Sequence[str] | None) -> dict[str, NDArray[np.float32]]:
    if use_rep is None:
        keys = numeric_obsm(adata, lambda width: width == 2)
        if not keys:
            raise DataError(
                f"A layout with two dimensions is needed, but obsm holds: {listed(adata.obsm)}. "
                "Run cellnorm.tl.umap or scanpy.tl.umap first."
            )
    else:
        keys = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    found = {key: representation(adata, key)[0] for key in keys}
    for key, xy in found.items():
        if xy.shape[1] != 2:
            raise DataError(
                f"use_rep {key!r} was asked for, but it has {xy.shape[1]} dimensions. "
                f"Name a layout with two: {listed(numeric_obsm(adata, lambda width: width == 2))}."
            )
    return found


def _color(ax: Axes, xy: NDArray[Any], values: pd.Series[Any], size: float | None, *, last: bool) -> None:
    size = point_size(len(xy)) if size is None else size
    if not categorical(values):
        points = ax.scatter(
            xy[:, 0], xy[:, 1], s=size, c=values.to_numpy(float), cmap="viridis", linewidths=0, rasterized=True,
            plotnonfinite=False,
        )  # fmt: skip
        if last:
            ax.figure.colorbar(points, ax=ax, shrink=0.6, aspect=30).outline.set_visible(False)
        return
    levels = levels_of(values)
    draw_points(ax, xy, levels.of_cells(), size)
    if last and levels.distinct:
        legend(ax, levels)
    elif not levels.distinct:
        ax.set_xlabel(f"{len(levels.names)} levels, coloured in their order", fontsize="small")
