"""How far a change of a cell can move its embedding at most, for each batch.

With frozen statistics every norm is a fixed affine map and ReLU a factor between 0 and 1 per hidden unit. The encodings
of two cells of one batch whose components differ by d therefore differ by C diag(m) E d for some m in [0, 1]^h: C the
last layer, E the first with the norm after it; the axes of the final frame multiply C. At a strength below 1 this
counts for that share and the components for the rest: (B + C diag(m) E) d, B being what passes unchanged. The largest
stretch over all m is bounded, not estimated: no pair of cells whatsoever is stretched by more. The offset that the
final frame takes away varies from kind to kind of cell, which adds what `steepest_offset` bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.spatial.distance import pdist

from cellnorm.autoencoder import Autoencoder
from cellnorm.determinism import one_thread

__all__ = ["SAFETY", "Bound", "encoding_bounds", "lipschitz", "offsets_of", "steepest_offset", "stretch"]

Floats = NDArray[np.float64]
# What rounding in 64 bits could take from a bound, many times over.
SAFETY = 1 + 1e-6
# Hidden units that stretch by less than this share of the one that stretches most are bounded one by one.
NEGLIGIBLE = 1e-9
# No bound is smaller, so that what is divided by it is a number, be it that a network maps all cells to one point.
LEAST = 1e-12
# Exponent of the smooth stand-in for the largest eigenvalue; steps for the first batch, and for those that start there.
SMOOTH, FIRST_STEPS, NEXT_STEPS = 60, 150, 50
INFEASIBLE = 1e3
WEIGHTS = np.geomspace(0.1, 10, 41)  # of distances between offsets against those between centres


@dataclass(frozen=True)
class Bound:
    """Largest change of the embedding per unit change of the principal components, for cells of each batch.

    This is the worst case anywhere, at the border between two kinds whose offsets differ most; cells seldom lie there.
    `cellnorm.stability` takes what holds where a cell lies, which is less.

    Attributes
    ----------
    batches
        Names, shape (n_batches,).
    lipschitz
        Both changes as Euclidean lengths in the units of the components, shape (n_batches,).
    """

    batches: NDArray[np.object_]
    lipschitz: Floats


def lipschitz(net: Autoencoder, batches: Sequence[int] | None = None) -> Floats:
    """Bound the Lipschitz constant of the embedding in evaluation mode, for each batch.

    The embedding is the encoding through the axes, less the offset where the encoding lies: the bound is that of the
    one, plus that of the encoding times the slope of the offset.

    Parameters
    ----------
    net
        A trained network.
    batches
        Numbers of the batches that are wanted; None: all.

    Returns
    -------
    Bounds, shape (n_batches,), without a unit: the scale of the components cancels.

    Notes
    -----
    It holds for exact arithmetic with the weights as they are, a factor of 1 + 1e-6 covering the rounding of the bound
    itself; the embedding is computed in 32 bits, which adds about 1e-6 of its length.

    Examples
    --------
    >>> from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
    >>> from cellnorm.stability import lipschitz
    >>> net = Autoencoder(AutoencoderConfig(n_features=10, n_batches=2, n_latent=4, n_hidden=8, n_kinds=2, dropout=0.1))
    >>> lipschitz(net).round(3)  # before any training the encoder maps all cells to one point
    array([0., 0.])
    """
    wanted = list(range(net.config.n_batches) if batches is None else batches)
    raw, framed = encoding_bounds(net, wanted)
    steepest = np.array([steepest_offset(*offsets_of(net, b), float(net.variance)) for b in wanted])
    return np.asarray(framed + raw * steepest)


def encoding_bounds(net: Autoencoder, batches: Sequence[int]) -> tuple[Floats, Floats]:
    """Bound the stretch of the encoding as it is, and that of the embedding were the offset constant.

    The second is the encoding through the axes of the final frame, mixed with the components by the strength.

    Let C' = C / 2, B' = B + C E / 2 and m = (1 + s) / 2 with s in [-1, 1]^h. For every diagonal Λ for which
    K = I - C' Λ^-1 C'^T is positive definite, |(B' + C' diag(s) E) d|^2 <= d^T (E^T Λ E + B'^T K^-1 B') d. The largest
    eigenvalue of this matrix bounds the squared stretch, and Λ is chosen to make it small. This is what Fazlyab et al.
    2019 (LipSDP) find by semidefinite programming, written out for one hidden layer and what passes beside it. Any such
    Λ gives a bound: nothing rests on how well the search for it went.

    Parameters
    ----------
    net
        A trained network.
    batches
        Numbers of the batches that are wanted.

    Returns
    -------
    raw, framed
        Both of shape (n_batches,), without a unit.
    """
    norm, width = net.encoder.norm, net.config.n_latent
    axes, first, last = map(_array, (net.axes, net.encoder.expand.weight, net.encoder.reduce.weight))
    strength = float(net.strength)
    frames = [(np.eye(width), 0.0), (strength * axes.T, 1 - strength)]
    if 0 < strength < 1:  # no more than the two parts of the mixture, each by itself
        frames.append((axes.T, 0.0))
    _, spread, _, var = map(_array, norm.frozen())
    gamma = np.ones(len(var)) if norm.gamma is None else _array(norm.gamma)
    found = np.empty((len(frames), len(batches)))
    with one_thread():
        for bounds, (frame, passing) in zip(found, frames, strict=True):
            beside = passing * np.eye(width, net.config.n_features)
            after, start = frame @ last, None
            for i, b in enumerate(batches):
                before = (gamma / (spread[b] * np.sqrt(var + norm.eps)))[:, None] * first
                bound, start = _largest_stretch(beside, after, before, start)
                bounds[i] = bound * SAFETY
    found = np.maximum(found, LEAST)
    framed = found[1] if len(found) == 2 else np.minimum(found[1], 1 - strength + strength * found[2])
    return found[0], framed


def offsets_of(net: Autoencoder, batch: int) -> tuple[Floats, Floats]:
    """What a batch loses in each kind, through the axes, and where its kinds lie: both (n_kinds, n_latent)."""
    axes, centres, offsets = map(_array, (net.axes, net.centres, net.offsets))
    return float(net.strength) * (offsets[batch] @ axes), centres + offsets[batch]


def steepest_offset(offsets: Floats, centres: Floats, variance: float) -> float:
    """Bound the change of the offset per unit change of the encoding, wherever it lies.

    The offset is the mean of `offsets`, a, with the shares R of the kinds, and the logarithms of these shares have
    slopes (c - mean of c) / variance: the slope of the offset is the covariance of a and `centres`, c, over the
    variance. For unit vectors u, v and any w > 0, 4 Cov(u.a, v.c) <= Var(w u.a + v.c / w), which is at most a quarter
    of the squared range (Popoviciu 1935), and no two kinds differ by more than w |a - a'| + |c - c'| / w.

    Parameters
    ----------
    offsets, centres
        Of one batch, see `offsets_of`.
    variance
        With which a cell is given its kinds.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.stability._bound import steepest_offset
    >>> round(steepest_offset(np.array([[0.0], [1.0]]), np.array([[0.0], [4.0]]), 2.0), 3)  # half way between them
    0.5
    """
    moved, apart = pdist(offsets), pdist(centres)
    if not (moved.any() and apart.any()):
        return 0.0
    even = np.sqrt(apart.max() / moved.max())
    ranges = np.array([(w * even * moved + apart / (w * even)).max() for w in WEIGHTS])
    return float(np.square(ranges).min() / 16 / variance * SAFETY)


def stretch(matrix: NDArray[np.floating]) -> float:
    """Largest factor by which a linear map lengthens a vector: its largest singular value, 1 for orthonormal loadings.

    Parameters
    ----------
    matrix
        Any, as the loadings of a front, shape (n_genes, n_comps).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.stability import stretch
    >>> round(stretch(np.diag([1.0, 3.0])), 3)
    3.0
    """
    values = np.asarray(matrix, np.float64)
    small = values.T @ values if values.shape[0] > values.shape[1] else values @ values.T
    return float(np.sqrt(np.linalg.eigvalsh(small)[-1]) * SAFETY)


def _largest_stretch(beside: Floats, after: Floats, before: Floats, start: Floats | None) -> tuple[float, Floats]:
    """Bound |beside + after diag(m) before| over all m in [0, 1]^h; and the logarithm of the Λ that gave it."""
    out, into = np.linalg.norm(after, axis=0), np.linalg.norm(before, axis=1)
    kept = out * into > NEGLIGIBLE * (out * into).max()
    rest = float((out * into)[~kept].sum())
    if not kept.any():
        return stretch(beside) + rest, np.zeros(len(kept))
    half, before, balanced = after[:, kept] / 2, before[kept], np.log(out[kept] / into[kept])
    centred = beside + half @ before
    # the same factor for all units: far enough from where K is singular
    log_weight = balanced if start is None else start[kept]
    log_weight = log_weight + np.log(2 * np.linalg.eigvalsh((half / np.exp(log_weight)) @ half.T)[-1])
    n_steps = FIRST_STEPS if start is None else NEXT_STEPS
    problem = centred, half, before
    found = minimize(_smooth, log_weight, problem, "L-BFGS-B", jac=True, options={"maxiter": n_steps})
    best = min((_squared(w, *problem)[0], i, w) for i, w in enumerate((log_weight, found.x)))
    kept_weight = np.zeros(len(kept))
    kept_weight[kept] = best[2]
    return float(np.sqrt(best[0])) + rest, kept_weight


def _squared(log_weight: Floats, centred: Floats, half: Floats, before: Floats) -> tuple[float, Floats, Floats, Floats]:
    """The squared bound for one Λ, infinite if K is not positive; the eigenvalues and vectors of it; C'^T K^-1 B'."""
    weight = np.exp(log_weight)
    inner = np.eye(len(half)) - (half / weight) @ half.T
    if not np.linalg.eigvalsh(inner)[0] > 1e-6:
        return np.inf, np.empty(0), np.empty(0), np.empty(0)
    solved = cho_solve(cho_factor(inner), centred)
    values, vectors = np.linalg.eigh((before.T * weight) @ before + centred.T @ solved)
    return float(values[-1]), values, vectors, half.T @ solved


def _smooth(log_weight: Floats, centred: Floats, half: Floats, before: Floats) -> tuple[float, Floats]:
    """Logarithm of the squared bound, and its gradient; smoothed, since it has none where eigenvalues meet."""
    bound, values, vectors, pulled = _squared(log_weight, centred, half, before)
    if not np.isfinite(bound):
        return INFEASIBLE, -np.ones_like(log_weight)
    share = np.maximum(values / bound, 0) ** SMOOTH
    weight = np.exp(log_weight)
    rising = np.square(before @ vectors) @ share * weight
    falling = np.square(pulled @ vectors) @ share / weight
    smooth = np.log(bound) + np.log(share.sum()) / SMOOTH
    return float(smooth), np.asarray((rising - falling) / (bound * share.sum()))


def _array(values: torch.Tensor) -> Floats:
    return np.asarray(values.detach().cpu().numpy(), np.float64)
