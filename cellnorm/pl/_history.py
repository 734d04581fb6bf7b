"""Training curves: one panel for each loss term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from numpy.typing import NDArray

from cellnorm.adata import result_keys
from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.pl._style import ACCENT, GREY, grid, quiet, title
from cellnorm.training import TERMS

__all__ = ["draw_curve", "history", "smooth", "terms_of"]

WINDOW = 25  # steps of the running mean


def history(adata: AnnData, *, key_added: str | None = None) -> NDArray[Any]:
    """Show what the loss terms did while the network was trained.

    Each minibatch's value (grey) and their running mean over 25 steps. At the dotted line, at half time, anchors were
    looked for again, so that a step there is no fault.

    Parameters
    ----------
    adata
        After `cellnorm.tl.correct`.
    key_added
        As given to `cellnorm.tl.correct`.

    Returns
    -------
    ndarray of Axes
        Shape (n_terms,): the whole loss first.

    Raises
    ------
    DataError
        If there was no correction, or it kept no history.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> curves = {"loss": np.geomspace(5, 1, 60), "n_anchors": np.array([900, 1100])}
    >>> adata = ad.AnnData(np.ones((3, 2)), uns={"cellnorm": {"history": curves}})
    >>> cn.pl.history(adata).shape
    (1,)
    """
    _, key = result_keys(key_added)
    terms = terms_of(adata.uns.get(key, {}))
    if not terms:
        raise DataError(
            f"The training history is needed in uns[{key!r}]['history'], but uns holds: {listed(adata.uns)}. "
            "Run cellnorm.tl.correct first, with the same key_added."
        )
    axes: NDArray[Any] = grid(1, len(terms), (2.6, 2.4), sharex=True)[0]
    for ax, (name, values) in zip(axes, terms.items(), strict=True):
        quiet(draw_curve(ax, values))
        title(ax, name)
        ax.tick_params(labelsize="small")
        ax.set_xlabel("step", fontsize="small")
    return axes


def terms_of(info: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """Loss terms of a correction by name, each (n_steps,); nothing if there are none.

    Examples
    --------
    >>> terms_of({"history": {"loss": [2, 1], "n_anchors": [5, 6]}})
    {'loss': array([2., 1.])}
    """
    found = info.get("history", {}) if isinstance(info, Mapping) else {}
    curves = found.items() if isinstance(found, Mapping) else ()
    terms = {str(name): np.asarray(values, float).ravel() for name, values in curves if name != "n_anchors"}
    rank = {name: place for place, name in enumerate(TERMS)}  # files sort names
    order = sorted(terms, key=lambda name: rank.get(name, len(rank)))
    return {name: terms[name] for name in order if len(terms[name])}


def smooth(values: NDArray[np.float64], window: int = WINDOW) -> NDArray[np.float64]:
    """Running mean around each value, over fewer values at both ends; shape as given.

    Examples
    --------
    >>> smooth(np.array([0.0, 3.0, 0.0]), 3)
    array([1.5, 1. , 1.5])
    """
    if not len(values):
        return values
    kernel = np.ones(min(window, len(values)))
    return np.asarray(np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same"))


def draw_curve(ax: Axes, values: NDArray[np.float64]) -> Axes:
    """Draw one term: each step, the running mean, and half time."""
    steps = np.arange(1, len(values) + 1)
    ax.plot(steps, values, color=GREY, linewidth=0.7, alpha=0.5)
    ax.plot(steps, smooth(values), color=ACCENT, linewidth=1.8)
    ax.axvline(len(values) // 2 + 1, color=GREY, linewidth=0.9, linestyle=":")
    finite = values[np.isfinite(values)]
    if len(finite):  # single wild minibatches at the start must not flatten the rest
        low, high = np.quantile(finite, [0.0, 0.995])
        margin = 0.06 * (high - low) or 0.5
        ax.set_ylim(low - margin, high + margin)
    return ax
