"""How well the reference supports a cell: a number from 0 to 1 that needs no labels.

A cell of a type that the reference lacks has nearest cells there all the same. Three things give it away. It lies
farther from them, by angle, than they lie from their own kin in other batches. It is displaced from them in one
direction together with its companions, the cells of its batch that are most like it: noise averages out among these, a
difference of type does not. And the bulk of its batch is not displaced as much. How much is much is learnt from the
reference, each of whose batches is judged by the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cellnorm.anchors import cosine, different
from cellnorm.transfer._nearby import log_ratio, nearest, other_batches

__all__ = ["Companions", "Support", "Yardstick"]

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]
K = 15  # reference cells that a cell is compared with, and companions that it is seen with
# Of distance and of displacement, which tells more; benchmarks/transfer.py measures what they find.
WEIGHTS = np.array([0.3, 1.0])
RIDGE = 0.2  # share of its mean variance that the covariance of displacements is shrunk towards
BULK = 0.4  # quantile of a batch that stands for its well supported cells
PRIOR = 10.0  # cells of a batch at which its bulk counts for half
CAP = 0.5  # robust standard deviations by which the bulk of a batch may lie farther off than any of the reference
MAX_COMPANIONS = 3000  # of a new batch, as many as its statistics are taken from
ROBUST = 1.4826  # median absolute deviation to standard deviation, of a normal distribution
TINY = 1e-9


class Yardstick(NamedTuple):
    """What is usual in the reference, when a cell is seen together with a number of companions.

    Attributes
    ----------
    whiten
        Makes displacements alike in all directions, shape (n_comps, n_comps).
    length
        Length of each reference cell's whitened displacement, shape (n_reference,).
    middle, spread
        Median and robust standard deviation of the logarithms of distance and of relative length, shape (2,).
    furthest
        Bulk of the batch that lies farthest off.
    ranked
        How far off each reference cell lies, less the bulk of its batch, sorted, shape (n_reference,).
    """

    whiten: Floats
    length: Floats
    middle: Floats
    spread: Floats
    furthest: float
    ranked: Floats


class Companions(NamedTuple):
    """Cells of one batch, as its other cells look at them.

    Attributes
    ----------
    x
        Aligned components, shape (n_cells, n_comps).
    displacement
        From the nearest reference cells, shape (n_cells, n_comps).
    distance
        Logarithm of the distance to the nearest reference cells relative to what is usual there, shape (n_cells,).
    yard
        What is usual for cells seen with as many companions.
    bulk
        How far off the bulk of the batch lies.
    """

    x: Singles
    displacement: Floats
    distance: Floats
    yard: Yardstick
    bulk: float


@dataclass(frozen=True)
class Support:
    """The reference as a yardstick for new cells.

    Attributes
    ----------
    x, z
        Aligned components and embedding of the reference, shapes (n_reference, n_comps) and (n_reference, n_latent).
    batch
        Batch of each cell, shape (n_reference,).
    near
        Each cell's nearest cells of other batches in the embedding, shape (n_reference, k).
    companions
        Each cell's most similar cells of its own batch, itself first, shape (n_reference, k).
    displacement
        Of each cell from its nearest cells of other batches, shape (n_reference, n_comps).
    usual
        Mean distance by angle of each cell to its nearest cells of other batches, shape (n_reference,).
    distance
        Logarithm of that distance relative to what is usual for these nearest cells, shape (n_reference,).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.transfer import Support
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(600, 8)).astype("float32")
    >>> x[:, 0] += 6 * (np.arange(600) % 3)  # three types
    >>> support = Support.fit(x[:400], x[:400, :4], np.arange(400) // 200)
    >>> x[400:430, 5] += 8  # and thirty cells of a fourth
    >>> match = support.score(x[400:], x[400:, :4])
    >>> bool(np.median(match[:30]) < 0.05), bool(np.median(match[30:]) > 0.3)
    (True, True)
    """

    x: Singles
    z: Singles
    batch: IntArray
    near: IntArray
    companions: IntArray
    displacement: Floats
    usual: Floats
    distance: Floats

    @classmethod
    def fit(cls, x: Singles, z: Singles, batch: IntArray) -> Support:
        """Judge each batch of the reference by the others.

        Parameters
        ----------
        x
            Components of the reference less the shift of their batch (`Autoencoder.aligned`), (n_reference, n_comps).
        z
            Embedding of the reference, shape (n_reference, n_latent).
        batch
            Batch of each cell, at least two batches, shape (n_reference,).
        """
        x, z, batch = np.asarray(x, np.float32), np.asarray(z, np.float32), np.asarray(batch, np.int64)
        near, _ = other_batches(z, batch, K)
        by_angle, apart = other_batches(cosine(x - x.mean(0)), batch, K)
        usual = apart.mean(1)
        companions = np.empty((len(x), K), np.int64)
        for b in np.unique(batch):
            cells = np.flatnonzero(batch == b)
            found, _ = nearest(x[cells], x[cells], K)
            companions[cells] = cells[found[:, np.arange(K) % found.shape[1]]]  # where there are few they come again
        displacement = x - x[near].mean(1, dtype=np.float64)
        return cls(x, z, batch, near, companions, displacement, usual, log_ratio(usual, usual[by_angle].mean(1)))

    def score(
        self, x: Singles, z: Singles, batch: IntArray | None = None, known: Mapping[int, Companions] | None = None
    ) -> Floats:
        """How well cells are supported: 0 to 1, about even for cells of known types, low for others; (n_cells,).

        A cell's score is the share of reference cells that lie at least as far off, each compared with its batch: a
        p-value as in conformal prediction (Vovk et al. 2005).

        Parameters
        ----------
        x
            Components of the cells less the shift of their batch, shape (n_cells, n_comps).
        z
            Their embedding, shape (n_cells, n_latent).
        batch
            Batch of each cell, numbered as those of the reference and on from there, shape (n_cells,). None: all are of
            one new batch.
        known
            Companions in these batches, from `meet`: a cell's score depends on these and not on the cells beside it.
            For other batches: those of the reference, or the given cells if the batch is new.
        """
        x, z = np.asarray(x, np.float32), np.asarray(z, np.float32)
        codes = np.full(len(x), -1) if batch is None else np.asarray(batch)
        out = np.empty(len(x))
        for b in np.unique(codes):
            own, cells = codes == b, np.flatnonzero(self.batch == b)
            apart, met = self._apart(x[own], z[own]), (known or {}).get(int(b))
            if met is None and len(cells):
                met = self.meet(self.x[cells], self.z[cells], cells=cells)
            elif met is None:
                met = self._met(x[own], apart, _different(x[own]))
            ranked, far = met.yard.ranked, _far(x[own], apart, met)
            out[own] = (len(ranked) - np.searchsorted(ranked, far) + 1) / (len(ranked) + 1)
        return out

    def meet(self, x: Singles, z: Singles, *, cells: IntArray | None = None) -> Companions:
        """Cells of a batch as companions for others of it: at most 3000 different ones, whatever their order.

        Parameters
        ----------
        x, z
            As for `score`.
        cells
            Their positions in the reference, if they are part of it.
        """
        x, z = np.asarray(x, np.float32), np.asarray(z, np.float32)
        chosen = _different(x)
        x, cells = x[chosen], None if cells is None else cells[chosen]
        return self._met(x, self._apart(x, z[chosen], cells), np.arange(len(x)))

    def _met(self, x: Singles, apart: Apart, chosen: IntArray) -> Companions:
        """Some of the cells as companions."""
        x, apart = x[chosen], Apart(apart.near[chosen], apart.displacement[chosen], apart.distance[chosen])
        met = Companions(x, apart.displacement, apart.distance, self.yardstick(len(x)), 0.0)
        bulk = np.quantile(_far(x, apart, met), BULK) * len(x) / (len(x) + PRIOR)
        return met._replace(bulk=float(min(bulk, met.yard.furthest + CAP)))

    def yardstick(self, n_companions: int) -> Yardstick:
        """What is usual for cells of the reference when each is seen with so many companions, at most K."""
        moved, distance = _together(self, self.companions[:, :n_companions], self)
        whiten = _whitening(moved)
        length = np.linalg.norm(moved @ whiten, axis=1)
        both = np.column_stack([distance, log_ratio(length, length[self.near].mean(1))])
        middle = np.median(both, axis=0)
        spread = np.maximum(ROBUST * np.median(np.abs(both - middle), axis=0), TINY)
        far = (both - middle) / spread @ WEIGHTS
        names, codes = np.unique(self.batch, return_inverse=True)
        bulk = np.array([np.quantile(far[codes == b], BULK) for b in range(len(names))])
        return Yardstick(whiten, length, middle, spread, float(bulk.max()), np.sort(far - bulk[codes]))

    def _apart(self, x: Singles, z: Singles, cells: IntArray | None = None) -> Apart:
        """Cells against the reference; `cells`: their positions there, since a cell is no neighbour of itself."""
        middle = self.x.mean(0)
        near, _ = _others(*nearest(self.z, z, K + 1), cells)
        by_angle, apart = _others(*nearest(cosine(self.x - middle), cosine(x - middle), K + 1), cells)
        distance = log_ratio(apart.mean(1), self.usual[by_angle].mean(1))
        return Apart(near, x - self.x[near].mean(1, dtype=np.float64), distance)


class Apart(NamedTuple):
    """Cells against the reference: nearest cells (n, k), displacement from them (n, n_comps), distance (n,)."""

    near: IntArray
    displacement: Floats
    distance: Floats


def _different(x: Singles) -> IntArray:
    """Positions of at most MAX_COMPANIONS different cells, in an order that is theirs."""
    return different(x, MAX_COMPANIONS, np.random.default_rng(0))


def _far(x: Singles, apart: Apart, met: Companions) -> Floats:
    """How much farther off cells lie with their companions than the bulk, in robust standard deviations, (n_cells,)."""
    yard = met.yard
    moved, distance = _together(apart, nearest(met.x, x, K)[0], met)
    length = np.linalg.norm(moved @ yard.whiten, axis=1)
    both = np.column_stack([distance, log_ratio(length, yard.length[apart.near].mean(1))])
    return np.asarray((both - yard.middle) / yard.spread @ WEIGHTS - met.bulk)


def _together(own: Apart | Support, seen: IntArray, others: Companions | Support) -> tuple[Floats, Floats]:
    """Mean displacement and distance of each cell and its companions."""
    moved, distance = own.displacement.copy(), own.distance.copy()
    for column in seen.T:
        moved += others.displacement[column]
        distance += others.distance[column]
    return moved / (seen.shape[1] + 1), distance / (seen.shape[1] + 1)


def _whitening(moved: Floats) -> Floats:
    """Inverse square root of the covariance, with a share of its mean variance in all directions."""
    covariance = np.atleast_2d(np.cov(moved.T))
    even = np.trace(covariance) / len(covariance)
    values, vectors = np.linalg.eigh((1 - RIDGE) * covariance + RIDGE * even * np.eye(len(covariance)))
    return np.asarray(vectors / np.sqrt(np.maximum(values, TINY)))


def _others(found: IntArray, apart: Floats, cells: IntArray | None) -> tuple[IntArray, Floats]:
    """The first K neighbours, without the cell itself."""
    itself = np.zeros(found.shape, bool) if cells is None else found == cells[:, None]
    order = np.argsort(itself, axis=1, kind="stable")[:, :K]
    return np.take_along_axis(found, order, 1), np.take_along_axis(apart, order, 1)
