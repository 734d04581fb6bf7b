"""How far a change of a cell can move its embedding, where the cell lies.

The offset that the final frame takes away is nearly constant inside a kind of cells and changes at its borders.
`stability.lipschitz` counts with the steepest border between any two kinds; here it counts what the shares of the kinds
in a cell, and all those that a change can lead to, allow.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import expit, log_softmax

from cellnorm.autoencoder import LEAST_SHARE, Autoencoder
from cellnorm.determinism import one_thread
from cellnorm.stability._bound import SAFETY, encoding_bounds, offsets_of, steepest_offset

__all__ = ["Reach", "reach_of"]

Floats = NDArray[np.float64]
# Cells that are looked at together, always as many: the same bits for a cell alone and among others.
CHUNK_CELLS = 64
# Outer radii, as shares of how far the encoding could go if the offset were constant. With 64 of them the radius would
# be one or two per cent longer.
SHELLS = 0.06, 0.15, 0.3, 0.5, 0.7, 0.85, 1.0
SQUARINGS = 3  # of a matrix, so that its largest eigenvalue outweighs the others
LOST = 1e-12  # share of a sum of squares that rounding could take from what is left without its mean
NEVER = 1e-300


@dataclass(frozen=True)
class Reach:
    """Cells, and all that decides how far a change of their components can move their embedding.

    Attributes
    ----------
    net
        The network, in 64 bits.
    x
        Components of the cells over `scale`, shape (n_cells, n_features).
    batch
        Number of the batch of each, shape (n_cells,).
    scale
        Unit of length of the network, in the units of the components.
    raw, framed
        Bounds of `stability.encoding_bounds` for the batches of these cells, by number; NaN for others; (n_batches,).
    """

    net: Autoencoder
    x: NDArray[np.floating]
    batch: NDArray[np.int64]
    scale: float
    raw: Floats
    framed: Floats

    def within(self, step: NDArray[np.floating]) -> Floats:
        """How far the components of each cell can change while its embedding moves no further than a given step.

        A change of length r moves the encoding by at most ρ = raw r, the encoding through the axes by framed r, and the
        offset by g(ρ): any r with framed r + g(ρ) <= step is safe. Let R be the shares of the kinds in the cell, c
        their centres, a their offsets through the axes, and s2 the variance. Shares at a distance of at most t obey
        logit R_k' <= logit R_k + t |c_k - mean of c| / ((1 - R_k) s2), by Jensen's inequality for all kinds but k.
        With u the shares so bounded, g is bounded in two ways, both in shells around the cell:

        - by the slope of the offset, Cov(a, c) / s2, which is at most the root of the product of the largest
          eigenvalues of the two covariances, and these of sums with weights u, whatever the centre of the sums;
          moved from shell to shell the offset adds up (and no slope exceeds `stability.steepest_offset`);
        - by the most that shares of no more than u, one in sum, can be worth if a share of k brings |a_k - mean of a|.

        Parameters
        ----------
        step
            Length in the units of the embedding, shape (n_cells,).

        Returns
        -------
        Length in the units of the components, shape (n_cells,); infinite where the step is.
        """
        step = np.asarray(step, np.float64) / self.scale
        radius, finite = np.zeros(len(step)), np.isfinite(step)
        with one_thread():
            for b in np.unique(self.batch):
                kinds = _Kinds.of(self.net, int(b))
                cells = np.flatnonzero((self.batch == b) & finite)
                for start in range(0, len(cells), CHUNK_CELLS):
                    some = cells[start : start + CHUNK_CELLS]
                    x, room = np.zeros((CHUNK_CELLS, self.x.shape[1])), np.zeros(CHUNK_CELLS)
                    x[: len(some)], room[: len(some)] = self.x[some], step[some]
                    found = kinds.radius(_encoded(self.net, x, int(b)), room, self.raw[b], self.framed[b])
                    radius[some] = found[: len(some)]
        return np.where(finite, radius * self.scale, np.inf)


def reach_of(net: Autoencoder, x: NDArray[np.floating], batch: NDArray[np.int64], scale: float) -> Reach:
    """Bound how far changes of the given cells go.

    Parameters
    ----------
    net
        A trained network that knows their batches.
    x
        Components of the cells over `scale`, as the network sees them, shape (n_cells, n_features).
    batch
        Number of the batch of each, shape (n_cells,); it is taken as given.
    scale
        `CellNorm.scale_`.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
    >>> from cellnorm.stability import reach_of
    >>> net = Autoencoder(AutoencoderConfig(n_features=3, n_batches=2, n_latent=2, n_hidden=8, n_kinds=2, dropout=0.1))
    >>> _ = net.strength.fill_(0)  # the embedding is the features
    >>> reach_of(net, np.zeros((2, 3)), np.array([0, 1]), 10.0).within(np.array([4.0, 5.0])).round(3)
    array([4., 5.])
    """
    seen = np.unique(batch)
    raw, framed = np.full(net.config.n_batches, np.nan), np.full(net.config.n_batches, np.nan)
    raw[seen], framed[seen] = encoding_bounds(net, seen.tolist())
    wide = copy.deepcopy(net).cpu().double().eval()
    return Reach(wide, x, np.asarray(batch, np.int64), float(scale), raw, framed)


class _Kinds(NamedTuple):
    """The kinds of one batch: offsets through the axes and centres, both (n_kinds, n_latent) and centred, shares."""

    offsets: Floats
    centres: Floats
    mean: Floats
    log_shares: Floats
    variance: float
    steepest: float

    @classmethod
    def of(cls, net: Autoencoder, batch: int) -> _Kinds:
        offsets, centres = offsets_of(net, batch)
        shares = np.maximum(net.shares[batch].detach().cpu().numpy().astype(np.float64), LEAST_SHARE)
        mean, variance = centres.mean(0), float(net.variance)
        steepest = steepest_offset(offsets, centres, variance)
        return cls(offsets - offsets.mean(0), centres - mean, mean, np.log(shares), variance, steepest)

    def log_member(self, z: Floats) -> Floats:
        """Logarithm of `Autoencoder.membership`, also where that is 0 in any number of bits."""
        squared = cdist(z - self.mean, self.centres, "sqeuclidean")
        return np.asarray(log_softmax(self.log_shares - squared / (2 * self.variance), axis=1))

    def radius(self, z: Floats, room: Floats, raw: float, framed: float) -> Floats:
        """The longest change found whose step is at most `room`, (n_cells,), for encodings z; see `Reach.within`."""
        log_odds, rate, worth = self._local(z)
        order = np.argsort(-worth, axis=1, kind="stable")
        best = (room - worth.max(1) * SAFETY) / framed  # wherever it may lead
        inner, moved = np.zeros(len(z)), np.zeros(len(z))
        for share in SHELLS:
            outer = share * raw * room / framed
            with np.errstate(invalid="ignore", over="ignore"):
                most = np.nan_to_num(expit(log_odds + outer[:, None] * rate), nan=1.0)
            slope = self._slope(most)
            found = (room - moved + slope * inner) / (framed + slope * raw)
            found = np.where(raw * found >= inner, np.minimum(found, outer / raw), 0)
            most, price = (np.take_along_axis(values, order, axis=1) for values in (most, worth))
            left = 1 - (np.cumsum(most, axis=1) - most)
            jump = (np.clip(left, 0, most) * price).sum(1) * SAFETY
            best = np.max([best, found, np.minimum((room - jump) / framed, outer / raw)], axis=0)
            moved, inner = np.minimum(moved + slope * (outer - inner), jump), outer
        return np.asarray(np.maximum(best, 0))

    def _local(self, z: Floats) -> tuple[Floats, Floats, Floats]:
        """Of each kind, all (n_cells, n_kinds): log-odds of its share, the most they rise per unit, and its worth."""
        log_member = self.log_member(z)
        member, row = np.exp(log_member), np.arange(len(z))
        first = member.argmax(1)
        others = member.copy()
        others[row, first] = 0
        rest = 1 - member
        rest[row, first] = others.sum(1)  # which may be too little for 1 - member to show
        rest = np.maximum(rest, NEVER)
        with np.errstate(over="ignore"):
            rate = cdist(member @ self.centres, self.centres) / rest / self.variance
        return log_member - np.log(rest), rate, cdist(member @ self.offsets, self.offsets)

    def _slope(self, most: Floats) -> Floats:
        """Bound the slope of the offset where no share exceeds `most`, shape (n_cells,)."""
        values = _largest_eigenvalue(most, self.offsets) * _largest_eigenvalue(most, self.centres)
        return np.asarray(np.minimum(np.sqrt(values) / self.variance * SAFETY, self.steepest))


def _largest_eigenvalue(weight: Floats, points: Floats) -> Floats:
    """Bound that of the sum of weighted squares around the weighted mean, for each row of weights, (n_cells,)."""
    n_points, width = points.shape
    products = (points[:, :, None] * points[:, None]).reshape(n_points, width * width)
    total = weight @ points
    square = (weight @ products).reshape(len(weight), width, width)
    square -= total[:, :, None] * (total / weight.sum(1, keepdims=True))[:, None]
    lost = LOST * (weight @ np.square(points).sum(1))
    trace = np.maximum(np.trace(square, axis1=1, axis2=2), lost) + NEVER
    power = square / trace[:, None, None]
    for _ in range(SQUARINGS):
        power = power @ power
    return np.asarray(trace * np.linalg.norm(power, axis=(1, 2)) ** 0.5**SQUARINGS + lost)


def _encoded(net: Autoencoder, x: Floats, batch: int) -> Floats:
    with torch.inference_mode():
        return np.asarray(net.encode(torch.from_numpy(x), torch.full((len(x),), batch)).numpy(), np.float64)
