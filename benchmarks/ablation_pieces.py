"""What `ablation_variants.py` puts in place of pieces of the method: norms, a network, losses, a search for anchors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cellnorm.anchors import Anchors
from cellnorm.autoencoder import Autoencoder, resize
from cellnorm.clusters import blocks, distances, mutual
from cellnorm.layers import MatchedBatchNorm, Pairs
from cellnorm.sampling import shares

Cells = NDArray[np.float32]
Codes = NDArray[np.int64]


# In place of MatchedBatchNorm ------------------------------------------------------------------------------------
# All have its scale and offset per feature, so that networks of one seed start with the same weights.


class NoNorm(MatchedBatchNorm):
    """A scale and an offset that are learnt; nothing is measured."""

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        return x * self.gamma + self.beta


class LayerNorm(MatchedBatchNorm):
    """Mean and variance of each cell over its features (Ba et al. 2016)."""

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        return functional.layer_norm(x, x.shape[1:], self.gamma, self.beta, self.eps)


class SharedNorm(MatchedBatchNorm):
    """Plain BatchNorm, the same map for all batches: what is left without pairs."""

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        nobody = batch[:0]
        return super().forward(x, batch, Pairs(nobody, nobody, x[:0, 0]))


class BatchwiseNorm(MatchedBatchNorm):
    """One BatchNorm for each batch, of all its cells in the minibatch (Chang et al. 2019); running averages later.

    A batch of which fewer than two cells are there keeps its running averages.
    """

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        shift, spread = self._measured(x, batch) if self.training else (self.shift, self.spread)
        return (x - shift[batch]) / spread[batch] * self.gamma + self.beta

    def start(self, x: Tensor) -> None:
        self.shift.copy_(x.mean(0).expand_as(self.shift))
        self.spread.copy_((x.var(0, correction=0) + self.eps).sqrt().expand_as(self.spread))

    def _measured(self, x: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        here = functional.one_hot(batch, self.n_batches).to(x.dtype).T
        count = here.sum(1, keepdim=True)
        mean = here @ x / count.clamp_min(1)
        spread = (here @ (x - mean[batch]).square() / count.clamp_min(1) + self.eps).sqrt()
        shift = torch.where(count > 1, mean, self.shift)
        spread = torch.where(count > 1, spread, self.spread)
        with torch.no_grad():
            self.shift.lerp_(shift.detach(), self.momentum)
            self.spread.lerp_(spread.detach(), self.momentum)
        return shift, spread


# In place of other pieces ----------------------------------------------------------------------------------------


class SkipEncoder(Autoencoder):
    """z = u + g(u): the encoder has a skip connection, too, and starts as the identity."""

    def start(self, x: Tensor, batch: Tensor) -> None:
        pass

    def encode(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        return resize(self.aligned(x, batch), self.config.n_latent) + super().encode(x, batch, pairs)


class NoSkip(Autoencoder):
    """x = h(z, batch) + shift: no skip connection, and both blocks' last layers start as linear layers do."""

    def start(self, x: Tensor, batch: Tensor) -> None:
        for block in (self.encoder, self.decoder):
            block.reduce.reset_parameters()

    def decode(self, z: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        return super().decode(z, batch, pairs) - resize(z, self.config.n_features)


def no_shift(x: Tensor, batch: Tensor, pairs: Pairs, n_batches: int) -> Tensor:
    return x.new_zeros(n_batches, x.shape[1])


def no_kinship(before: Tensor, after: Tensor, batch: Tensor, n_pairs: int) -> Tensor:
    return after[:0].sum()


def no_reconstruction(decoded: Tensor, x: Tensor) -> Tensor:
    """Zero; the decoder has no slope, so that it learns nothing."""
    return 0 * decoded.sum()


def no_axes(z: Cells, batch: Codes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.eye(z.shape[1]), np.eye(z.shape[1])


# Anchors inside the minibatch ------------------------------------------------------------------------------------


def drawn(batch: Codes, size: int, rng: np.random.Generator) -> Codes:
    """Random cells of all batches, each with its share, sorted by batch; no cell comes twice."""
    counts = shares(np.bincount(batch), size)
    parts = [rng.choice(np.flatnonzero(batch == b), n, replace=False) for b, n in enumerate(counts) if n]
    return np.concatenate(parts)


def found_among(cells: Codes, place: Cells, batch: Codes, n_neighbors: int) -> Anchors:
    """Mutual neighbours among some cells, from all their distances at once.

    As large a share of a batch counts as near as does in the search among all cells, at least one cell.
    """
    k = max(1, round(n_neighbors * len(cells) / len(batch)))
    left, right = torch.nonzero(torch.triu(mutual(distances(place), blocks(batch[cells]), k)), as_tuple=True)
    return Anchors(cells[left.numpy()], cells[right.numpy()])


def found_in_draws(x: Cells, levels: Codes, n_neighbors: int, size: int) -> Anchors:
    """Anchors of as many draws as hold all cells once: for the shift at the input and what is usual between batches."""
    batch, rng = levels.reshape(len(x), -1)[:, 0], np.random.default_rng(0)
    draws = [drawn(batch, size, rng) for _ in range(-(-len(x) // size))]
    found = [found_among(cells, x[cells], batch, n_neighbors) for cells in draws]
    return Anchors(np.concatenate([f.left for f in found]), np.concatenate([f.right for f in found]))
