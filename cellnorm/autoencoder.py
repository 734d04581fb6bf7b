"""The autoencoder: a network on principal components whose encoder starts as near to the identity as it can."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional

from cellnorm.covariates import level_codes
from cellnorm.kinds import Kinds
from cellnorm.layers import Levels, MatchedBatchNorm, Pairs, matched_shift
from cellnorm.products import mixed_rows, with_rows

__all__ = ["Autoencoder", "AutoencoderConfig"]

# A kind that a batch has none of still has this share of it, so that no cell is without a kind.
LEAST_SHARE = 1e-6
START_RIDGE = 1e-3  # for each cell; a hidden unit has a variance of 1 before the ReLU
INVERSE_ROUNDS = 15  # in which the ways back settle


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that is needed to build an Autoencoder again.

    `n_levels`: of all covariates together. With one covariate each batch is a level, and it need not be given.
    """

    n_features: int
    n_batches: int
    n_latent: int
    n_hidden: int
    n_kinds: int
    dropout: float
    n_levels: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_levels", self.n_levels or self.n_batches)


class Block(nn.Module):
    """Linear, norm, ReLU, dropout, linear; the last layer starts at zero.

    The first linear layer has no bias: the norm that follows would cancel it.
    """

    def __init__(self, n_in: int, n_out: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.expand = nn.Linear(n_in, config.n_hidden, bias=False)
        self.norm = MatchedBatchNorm(config.n_hidden, config.n_batches)
        self.dropout = nn.Dropout(config.dropout)
        self.reduce = nn.Linear(config.n_hidden, n_out)
        nn.init.zeros_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, x: Tensor, batch: Tensor, pairs: Pairs | None) -> Tensor:
        """Map features, shape (n_cells, n_in), to (n_cells, n_out)."""
        return self.finish(self.norm(self.expand(x), batch, pairs))

    @torch.no_grad()
    def start(self, x: Tensor, batch: Tensor, goal: Tensor) -> None:
        """Start the norm at the statistics of all cells, and the last layer where the block comes nearest to a goal.

        It is the ridge solution for the goal, shape (n_cells, n_out), from the hidden units of features `x`, shape
        (n_cells, n_in). The block is left in evaluation mode.
        """
        self.eval()
        h = self.expand(x)
        self.norm.start(h)
        hidden, wanted = functional.relu(self.norm(h, batch)).cpu().double().numpy(), goal.cpu().double().numpy()
        found = Ridge(START_RIDGE * len(x)).fit(hidden, wanted)
        self.reduce.weight.copy_(torch.from_numpy(found.coef_))
        self.reduce.bias.copy_(torch.from_numpy(found.intercept_))

    def finish(self, h: Tensor) -> Tensor:
        """What follows the norm, shape (n_cells, n_out)."""
        out: Tensor = self.reduce(self.dropout(functional.relu(h)))
        return out


class Autoencoder(nn.Module):
    """Encoder z = g(u), decoder x = z + h(z, batch) + shift; u is the input less the matched shift of its batch.

    The skip connection of the decoder (He et al. 2016) keeps the embedding in the coordinates of the components, in
    which the encoder starts, see `start`. It has none itself: what tells no cell from another by its kind would pass.

    Parameters
    ----------
    config
        Widths of the network.

    Examples
    --------
    >>> import torch
    >>> from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
    >>> config = AutoencoderConfig(n_features=10, n_batches=2, n_latent=4, n_hidden=8, n_kinds=2, dropout=0.1)
    >>> net = Autoencoder(config).eval()
    >>> x, batch = torch.randn(6, 10), torch.arange(6) % 2
    >>> net.start(x, batch)
    >>> net.encode(x, batch).shape
    torch.Size([6, 4])
    """

    design: Tensor
    shift: Tensor
    centres: Tensor
    offsets: Tensor
    shares: Tensor
    variance: Tensor
    axes: Tensor
    axes_inverse: Tensor
    strength: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("design", torch.eye(config.n_batches, config.n_levels))
        self.register_buffer("shift", torch.zeros(config.n_batches, config.n_features))
        self.register_buffer("centres", torch.zeros(config.n_kinds, config.n_latent))
        self.register_buffer("offsets", torch.zeros(config.n_batches, config.n_kinds, config.n_latent))
        self.register_buffer("shares", torch.full((config.n_batches, config.n_kinds), 1 / config.n_kinds))
        self.register_buffer("variance", torch.ones(1))
        self.register_buffer("axes", torch.eye(config.n_latent))
        self.register_buffer("axes_inverse", torch.eye(config.n_latent))
        self.register_buffer("strength", torch.ones(1))
        self.encoder = Block(config.n_features, config.n_latent, config)
        self.decoder = Block(config.n_latent + config.n_levels, config.n_features, config)

    def set_design(self, design: NDArray[np.float32]) -> None:
        """Set which levels each batch is made of, shape (n_batches, n_levels); see `covariates.design_of`."""
        self.design.copy_(torch.from_numpy(design))

    def levels(self) -> Levels | None:
        """The levels that batches are made of, for the training; None where each batch is a level of its own."""
        codes = torch.from_numpy(level_codes(self.design.cpu().numpy())).to(self.design.device)
        return Levels(self.design, codes) if codes.shape[1] > 1 else None

    def aligned(self, x: Tensor, batch: Tensor) -> Tensor:
        """The input less the matched shift of its batch, shape (n_cells, n_features)."""
        return x - self.shift[batch]

    def encode(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Embedding of cells, shape (n_cells, n_latent), from features (n_cells, n_features)."""
        out: Tensor = self.encoder(self.aligned(x, batch), batch, pairs)
        return out

    def start(self, x: Tensor, batch: Tensor) -> None:
        """Start the encoder where its output is as near to the first features, aligned, as its hidden units allow."""
        u = self.aligned(x, batch)
        self.encoder.start(u, batch, resize(u, self.config.n_latent))

    def set_kinds(self, kinds: Kinds) -> None:
        """Set the kinds of cells and the offset of each batch in each, which the final frame takes away."""
        self.centres.copy_(torch.from_numpy(kinds.centres))
        self.offsets.copy_(torch.from_numpy(kinds.offsets))
        self.shares.copy_(torch.from_numpy(kinds.shares))
        self.variance.fill_(kinds.variance)

    def set_axes(self, axes: NDArray[np.float64], inverse: NDArray[np.float64]) -> None:
        """Set the axes of the final frame and their inverse, both (n_latent, n_latent)."""
        self.axes.copy_(torch.from_numpy(axes))
        self.axes_inverse.copy_(torch.from_numpy(inverse))

    def embed(self, x: Tensor, batch: Tensor, strength: float | None = None) -> Tensor:
        """The encoding in the final frame, at its strength, shape (n_cells, n_latent): what a user sees."""
        return self.mixed(x, self.place(self.encode(x, batch), batch), strength)

    def mixed(self, x: Tensor, placed: Tensor, strength: float | None = None) -> Tensor:
        """Between the features as they are (strength 0) and where the final frame has them (1); None: the network's."""
        share = self.strength if strength is None else torch.full_like(self.strength, strength)
        return placed if share == 1 else (1 - share) * resize(x, self.config.n_latent) + share * placed

    def place(self, z: Tensor, batch: Tensor) -> Tensor:
        """Put encodings into the final frame."""
        return (z - self.removed(z, batch)) @ self.axes

    def removed(self, z: Tensor, batch: Tensor) -> Tensor:
        """Offset of a cell's batch where the cell lies, shape (n_cells, n_latent): that of its kinds."""
        return self.mixed_offset(self.membership(z, batch), batch)

    def mixed_offset(self, member: Tensor, batch: Tensor) -> Tensor:
        """Mean offset of a batch's kinds by their shares in a cell, (n_cells, n_kinds); shape (n_cells, n_latent)."""
        return mixed_rows(member, self.offsets, batch)

    def membership(self, z: Tensor, batch: Tensor) -> Tensor:
        """Share of each kind in a cell, shape (n_cells, n_kinds); each a round Gaussian where the batch has it."""
        # The square of z is the same for all kinds and cancels: products are left, without a difference for each kind.
        centres = self.centres + self.offsets
        level = self.shares.clamp_min(LEAST_SHARE).log() - centres.square().sum(-1) / (2 * self.variance)
        return torch.softmax(level[batch] + with_rows(z, centres, batch) / self.variance, dim=1)

    def restored(self, z: Tensor, batch: Tensor) -> Tensor:
        """Features in the given batches of cells embedded at the network's strength, shape (n_cells, n_features).

        At full strength these are the decoder's. Below, a part of the embedding is the features themselves: they are
        found which would be embedded there, exactly but for features beyond n_latent, for which the decoder stands.
        """
        x = self.decode(self.unembed(z, batch), batch)
        if self.strength == 1:
            return x
        width = min(self.config.n_latent, self.config.n_features)
        first = (1 - self.strength) * z[:, :width] + self.strength * x[:, :width]
        for _ in range(INVERSE_ROUNDS):
            x = torch.cat([first, x[:, width:]], dim=1)
            encoded = self.encode(x, batch)
            first = first + (z - self.mixed(x, self.place(encoded, batch)))[:, :width]
            x = self.decode(encoded, batch)
        return torch.cat([first, x[:, width:]], dim=1)

    def unembed(self, z: Tensor, batch: Tensor) -> Tensor:
        """The encoding in the given batches that belongs to an embedding at full strength: `place` undone."""
        placed = z @ self.axes_inverse
        z = placed
        for _ in range(INVERSE_ROUNDS):
            z = placed + self.removed(z, batch)
        return z

    def unembed_evenly(self, z: Tensor, batch: Tensor) -> Tensor:
        """As `unembed` at full strength, with the mean offset of a batch in all its cells, whatever their kinds."""
        mean = (self.shares[:, :, None] * self.offsets).sum(1)
        return z @ self.axes_inverse + mean[batch]

    def encode_parts(self, x: Tensor, batch: Tensor, part: Tensor, pairs: Pairs) -> Tensor:
        """Embedding of cells whose batches are split further, with frozen weights and frozen statistics of the batches.

        Each part's offset and spread within its batch come from the pairs, found layer by layer.

        Parameters
        ----------
        x, batch
            As in `encode`.
        part
            Number of the part that a cell is in, from 0, shape (n_cells,).
        pairs
            Matched cells of different parts.
        """
        u = self.aligned(x, batch)
        u = u - matched_shift(u, part, pairs, int(part.max()) + 1)[part]
        h = self.encoder.expand(u)
        h = self.encoder.norm.forward_parts(h, batch, part, pairs)
        return self.encoder.finish(h)

    def decode(self, z: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Features of an embedding as the given batches would show them, shape (n_cells, n_features)."""
        told = torch.cat([z, self.design[batch]], dim=1)
        out: Tensor = resize(z, self.config.n_features) + self.decoder(told, batch, pairs) + self.shift[batch]
        return out


def resize(x: Tensor, width: int) -> Tensor:
    """The first `width` columns, with columns of zeros where there are fewer."""
    return x[:, :width] if x.shape[1] >= width else functional.pad(x, (0, width - x.shape[1]))
