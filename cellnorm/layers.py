"""Matched batch normalisation: the idea of the package, alone in one file.

Plain BatchNorm applies one affine map to every cell and cannot subtract an offset that differs between batches. One set
of statistics per batch can, but the mean of a batch that holds only T cells says "T cell", not "batch". Here the
statistics that differ between batches are taken from *pairs*: cells of the same kind in different batches. The two
sides of a set of pairs have the same composition whatever the composition of their batches, so what differs between
them is the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Levels", "MatchedBatchNorm", "Pairs", "matched_shift", "matched_spread"]

# Pairs that a batch needs before its statistics count for half: n / (n + PRIOR).
PRIOR = 10.0
# Pairs whose differences are held at once: hundreds of batches have tens of millions of anchors.
CHUNK_PAIRS = 2**20


class Levels(NamedTuple):
    """What batches are made of where several covariates tell them apart, as donor and protocol.

    Attributes
    ----------
    design
        Zeros and ones, shape (n_batches, n_levels).
    codes
        Number of each batch's level of each covariate, shape (n_batches, n_covariates).
    """

    design: Tensor
    codes: Tensor


class Pairs(NamedTuple):
    """Matched cells, as positions in the minibatch: `left[p]` and `right[p]` are of one kind and of two batches.

    With `levels`, statistics are estimated for these, and a batch has what its levels add up to.
    """

    left: Tensor
    right: Tensor
    weight: Tensor
    levels: Levels | None = None


def matched_shift(x: Tensor, batch: Tensor, pairs: Pairs, n_batches: int, prior: float = PRIOR) -> Tensor:
    """Offset of each batch from the common frame, from matched pairs alone.

    The offsets m are the ridge solution of m[batch of left] - m[batch of right] = x[left] - x[right] over all pairs:
    (L + 2 prior I) m = D, with L the graph Laplacian of the batches weighted by their pairs, D the summed differences.
    For two batches it is the difference of the matched means times n / (n + prior); a batch without pairs gets 0.
    With levels, P being their design, the offsets are P m with (P'LP + 2 prior I) m = P'D: the ridge makes it
    well-posed where levels are nested or bound to each other.

    Parameters
    ----------
    x
        Features, shape (n_cells, n_features).
    batch
        Batch of each cell, shape (n_cells,), integers below n_batches.
    pairs
        Matched cells, positions in x.
    n_batches
        Number of batches.
    prior
        Pairs at which a batch's offset counts for half.

    Returns
    -------
    Offsets, shape (n_batches, n_features), in the units of x.
    """
    summed, adjacency = x.new_zeros(n_batches, x.shape[1]), x.new_zeros(n_batches * n_batches)
    for left, right, weight in zip(*(torch.split(part, CHUNK_PAIRS) for part in pairs[:3]), strict=True):
        a, b = batch[left], batch[right]
        difference = (x[left] - x[right]) * weight[:, None]
        summed = summed.index_add(0, a, difference).index_add(0, b, -difference)
        adjacency = adjacency.index_add(0, a * n_batches + b, weight)
    adjacency = adjacency.view(n_batches, n_batches)
    adjacency = adjacency + adjacency.T
    if pairs.levels is not None:
        design = pairs.levels.design
        laplacian = torch.diag(adjacency.sum(1)) - adjacency
        ridge = 2 * prior * torch.eye(design.shape[1], dtype=x.dtype, device=x.device)
        return design @ _solved(design.T @ laplacian @ design + ridge, design.T @ summed)
    return _solved(torch.diag(adjacency.sum(1) + 2 * prior) - adjacency, summed)


def _solved(system: Tensor, right: Tensor) -> Tensor:
    """Solution for a system that is positive definite by construction: no check, no device synchronisation."""
    factor, _ = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve(right, factor)


def matched_spread(x: Tensor, batch: Tensor, pairs: Pairs, n_batches: int, prior: float = PRIOR) -> Tensor:
    """Spread of each batch relative to the common frame, from matched pairs of centred features.

    The square is the mean square of a batch's matched cells over the mean square of its pairs' two sides, both with
    `prior` pairs of the common spread added; a batch without pairs gets 1. With levels the same is done for one
    covariate after the other, from the pairs that differ in it, on what those before it leave; factors are multiplied.

    Returns
    -------
    Factors around 1, shape (n_batches, n_features).
    """
    if pairs.levels is not None:
        factor = x.new_ones(n_batches, x.shape[1])
        for code in pairs.levels.codes.T:
            level = code[batch]
            told = pairs.weight * (level[pairs.left] != level[pairs.right])
            of_levels = Pairs(pairs.left, pairs.right, told)
            found = matched_spread(x / factor[batch], level, of_levels, pairs.levels.design.shape[1], prior)
            factor = factor * found[code]
        return factor
    a, b = batch[pairs.left], batch[pairs.right]
    weight = pairs.weight[:, None]
    left, right = x[pairs.left].square() * weight, x[pairs.right].square() * weight
    both = (left + right) / 2
    common = prior * both.sum(0) / pairs.weight.sum().clamp_min(1e-6) + 1e-6
    zeros = x.new_zeros(n_batches, x.shape[1])
    own = zeros.index_add(0, a, left).index_add(0, b, right) + common
    pooled = zeros.index_add(0, a, both).index_add(0, b, both) + common
    return (own / pooled).sqrt()


class MatchedBatchNorm(nn.Module):
    """BatchNorm whose statistics per batch come from matched cells.

    In training: offsets and spreads per batch from the pairs of the minibatch, then mean and variance of all its cells,
    shared. In evaluation: their running averages, frozen: a cell's output depends on the cell and its batch alone.

    Parameters
    ----------
    n_features
        Width of the input.
    n_batches
        Number of batches.
    affine
        Learn a scale (gamma) and an offset (beta) per feature.
    momentum
        Weight of a new minibatch in the running averages.

    Notes
    -----
    Ioffe and Szegedy 2015 (BatchNorm); Chang et al. 2019 (one set of statistics per domain). Taking the statistics from
    matched cells is this package's own.

    Examples
    --------
    >>> import torch
    >>> from cellnorm.layers import MatchedBatchNorm, Pairs
    >>> norm = MatchedBatchNorm(3, n_batches=2)
    >>> x, batch = torch.randn(8, 3), torch.arange(8) % 2
    >>> pairs = Pairs(torch.tensor([0, 2]), torch.tensor([1, 3]), torch.ones(2))
    >>> norm(x, batch, pairs).shape
    torch.Size([8, 3])
    """

    shift: Tensor
    spread: Tensor
    mean: Tensor
    var: Tensor

    def __init__(
        self, n_features: int, n_batches: int, *, affine: bool = True, momentum: float = 0.05, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.n_batches, self.momentum, self.eps = n_batches, momentum, eps
        self.gamma = nn.Parameter(torch.ones(n_features)) if affine else None
        self.beta = nn.Parameter(torch.zeros(n_features)) if affine else None
        self.register_buffer("shift", torch.zeros(n_batches, n_features))
        self.register_buffer("spread", torch.ones(n_batches, n_features))
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("var", torch.ones(n_features))

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Normalise features, shape (n_cells, n_features); `pairs` are needed in training alone."""
        shift, spread, mean, var = self._statistics(x, batch, pairs) if self.training else self.frozen()
        x = (x - (mean + shift)[batch]) / (spread * (var + self.eps).sqrt())[batch]
        return x if self.gamma is None or self.beta is None else x * self.gamma + self.beta

    def start(self, x: Tensor) -> None:
        """Start the running averages that all batches share at mean and variance of cells, shape (n_cells, n_features).

        Those of the batches start at none.
        """
        self.mean.copy_(x.mean(0))
        self.var.copy_(x.var(0, correction=0))

    def forward_parts(self, x: Tensor, batch: Tensor, part: Tensor, pairs: Pairs) -> Tensor:
        """Normalise features of batches that are split further: each part gets an offset and a spread from the pairs.

        The frozen statistics of the batches stay; `part` numbers the parts from 0, shape (n_cells,).
        """
        shift, spread, mean, _ = self.frozen()
        n_parts = int(part.max()) + 1
        further = matched_shift(x, part, pairs, n_parts)[part]
        centred = x - (mean + shift)[batch] - further
        factor = matched_spread(centred / spread[batch], part, pairs, n_parts)[part]
        out: Tensor = self(centred / factor + (mean + shift)[batch], batch)
        return out

    def frozen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The statistics used in evaluation: shift, spread (per batch), mean, var (shared)."""
        return self.shift, self.spread, self.mean, self.var

    def _statistics(self, x: Tensor, batch: Tensor, pairs: Pairs | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if pairs is None:
            raise TypeError("MatchedBatchNorm needs the pairs of the minibatch in training mode")
        shift = matched_shift(x, batch, pairs, self.n_batches)
        centred = x - shift[batch]
        mean = centred.mean(0)
        centred = centred - mean
        spread = matched_spread(centred, batch, pairs, self.n_batches)
        found = shift, spread, mean, (centred / spread[batch]).square().mean(0)
        with torch.no_grad():
            for old, new in zip(self.frozen(), found, strict=True):
                old.lerp_(new.detach(), self.momentum)
        return found
