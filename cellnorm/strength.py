"""How strongly to correct: from the data, without cell types. Where batches differ by no more than chance, not at all.

A correction always moves cells, and where there is no batch effect every move is harm. So the question of
`cellnorm diagnose` is asked of the batches before the embedding is given out.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cellnorm.determinism import one_thread
from cellnorm.diagnosis import ALPHA, LEAST_ALIGNED, MILD, effects

__all__ = ["Strength", "choose_strength"]

MAX_CELLS = 2000  # as many of each batch as there are: half a second at most, and a small batch counts
# Share of the variance among like cells up to which nothing is corrected. Batches that differ in the usual way in their
# composition, and in nothing else, explain .2 % (20 simulations), very unequal ones up to MILD and seldom more.
LITTLE = 0.005


@dataclass(frozen=True)
class Strength:
    """How strongly to correct, and why.

    Attributes
    ----------
    value
        From 0, the principal components as they are, to 1, the full correction.
    within
        Share of the variance among like cells that batches explain beyond chance; None if the strength was given.
    p
        How often shuffled batches explain as much, see `diagnosis.Effect`; None if the strength was given.
    """

    value: float
    within: float | None = None
    p: float | None = None

    @property
    def why(self) -> str:
        """The strength and its reason, as one line.

        Examples
        --------
        >>> from cellnorm.strength import Strength
        >>> Strength(1.0, 0.051, 0.007).why
        'strength 1.00: batches explain 5.1% of the variance among like cells (p = 0.007)'
        """
        if self.within is None or self.p is None:
            return f"strength {self.value:.2f}, as asked for"
        if self.p > ALPHA:
            return f"strength 0, the components as they are: batches explain no more than chance (p = {self.p:.2f})"
        share = f"batches explain {self.within:.1%} of the variance among like cells (p = {self.p:.3f})"
        if self.value == 0:
            return f"strength 0, the components as they are: {share}, no more than composition does"
        beyond = "" if self.value == 1 else ", little more than composition does"
        return f"strength {self.value:.2f}: {share}{beyond}"


def choose_strength(x: NDArray[np.float32], batch: NDArray[np.int64], random_state: int) -> Strength:
    """Choose the strength by what the batches explain among like cells.

    0 where shuffled batches explain as much (p > ALPHA of `diagnosis`), or where they explain no more than LITTLE of
    the variance; 1 from MILD on, below which differences in composition alone can lie; by degrees in between, so that
    no cell more or less makes all the difference.

    Parameters
    ----------
    x
        Principal components of the sketch in any unit, shape (n_cells, n_comps).
    batch
        Batch of each cell, shape (n_cells,).
    random_state
        Seed of the sample and the shuffles; no other generator is touched.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.strength import choose_strength
    >>> rng = np.random.default_rng(0)
    >>> batch, x = np.arange(300) % 2, rng.normal(size=(300, 5)).astype("float32")
    >>> choose_strength(x, batch, 0).value, choose_strength(x + batch[:, None], batch, 0).value
    (0.0, 1.0)
    """
    rng, present = np.random.default_rng(random_state), np.unique(batch)
    size = max(LEAST_ALIGNED, MAX_CELLS // len(present))
    cells = np.concatenate([np.sort(rng.permutation(np.flatnonzero(batch == b))[:size]) for b in present])
    codes = np.searchsorted(present, batch[cells])
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about fewer places than clusters
        effect = effects(x[cells].astype(np.float64), [codes], random_state)[0]
    within = max(0.0, float(effect.within))
    value = min(1.0, max(0.0, (within - LITTLE) / (MILD - LITTLE)))
    return Strength(0.0 if effect.p > ALPHA else value, min(within, 1.0), effect.p)
