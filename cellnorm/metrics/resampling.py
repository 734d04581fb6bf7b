"""How far a score depends on which cells happen to be in the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

__all__ = ["interval", "resample"]

Metric = Callable[[NDArray[np.intp]], float]


def resample(
    metrics: Mapping[str, Metric], n_cells: int, *, n_bootstrap: int = 100, random_state: int = 0
) -> dict[str, NDArray[np.float64]]:
    """Values of scores on cells drawn with replacement (Efron 1979); all scores see the same draws.

    The embedding, its neighbours, the clusters and the number of batches stay as they are: what varies is which cells
    are averaged over. So an interval of these values says how exactly a score is known for an embedding with these
    batches. It does not say how much another run of the correction, another donor or another laboratory would change
    it, which is usually more: one set has few batches, and no resampling of cells makes them more.

    Parameters
    ----------
    metrics
        Name to a function of cell indices, shape (n_cells,), some of them repeated.
    n_cells
        Number of cells.
    n_bootstrap
        Number of draws.
    random_state
        Seed of the draws.

    Returns
    -------
    Name to values, shape (n_bootstrap,) each.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.arange(100.0)
    >>> low, high = interval(resample({"mean": lambda cells: x[cells].mean()}, 100)["mean"], x.mean())
    >>> bool(low < x.mean() < high)
    True
    """
    rng = np.random.default_rng(random_state)
    values = {name: np.full(n_bootstrap, np.nan) for name in metrics}
    for draw in range(n_bootstrap):
        cells = rng.integers(n_cells, size=n_cells)
        for name, metric in metrics.items():
            values[name][draw] = metric(cells)
    return values


def interval(draws: NDArray[np.float64], value: float, level: float = 0.95) -> tuple[float, float]:
    """Interval around a value: the middle 95 % (`level`) of the draws, moved so that their mean lies on the value.

    Without moving them, scores that repeated cells raise (mutual information, variance explained) would have intervals
    that do not hold their value: the draws' bias is not the score's.

    Parameters
    ----------
    draws
        Values on resamples, shape (n_bootstrap,); NaN is left out.
    value
        The value on all cells.
    level
        Share of the draws inside.

    Returns
    -------
    Lower and upper end; NaN if there are no draws.

    Examples
    --------
    >>> import numpy as np
    >>> interval(np.arange(101.0), 10.0)
    (-37.5, 57.5)
    """
    known = draws[~np.isnan(draws)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known - known.mean(), [(1 - level) / 2, (1 + level) / 2])
    return value + min(float(low), 0.0), value + max(float(high), 0.0)
