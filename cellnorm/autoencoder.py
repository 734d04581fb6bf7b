"""The autoencoder: a residual network on principal components that starts as the identity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cellnorm.layers import MatchedBatchNorm, Pairs, matched_shift

__all__ = ["Autoencoder", "AutoencoderConfig"]


@dataclass(frozen=True)
class AutoencoderConfig:
    """All that is needed to build an Autoencoder again."""

    n_features: int
    n_batches: int
    n_latent: int
    n_hidden: int
    dropout: float


class Block(nn.Module):
    """Linear, norm, ReLU, dropout, linear; the last layer starts at zero, so that a skip connection is the identity.

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

    def finish(self, h: Tensor) -> Tensor:
        """What follows the norm, shape (n_cells, n_out)."""
        out: Tensor = self.reduce(self.dropout(functional.relu(h)))
        return out


class Autoencoder(nn.Module):
    """Encoder z = u + g(u), decoder x = z + h(z, batch) + shift; u is the input less the matched shift of its batch.

    The skip connections (He et al. 2016) keep the geometry of the principal components unless the anchors ask for a
    change: with its last layers at zero the network is the input less the shift of each batch.

    Parameters
    ----------
    config
        Widths of the network.

    Examples
    --------
    >>> import torch
    >>> from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
    >>> net = Autoencoder(AutoencoderConfig(n_features=10, n_batches=2, n_latent=4, n_hidden=8, dropout=0.1)).eval()
    >>> x, batch = torch.randn(6, 10), torch.arange(6) % 2
    >>> bool((net.encode(x, batch) == x[:, :4]).all())
    True
    """

    shift: Tensor
    offset: Tensor
    axes: Tensor
    axes_inverse: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("shift", torch.zeros(config.n_batches, config.n_features))
        self.register_buffer("offset", torch.zeros(config.n_batches, config.n_latent))
        self.register_buffer("axes", torch.eye(config.n_latent))
        self.register_buffer("axes_inverse", torch.eye(config.n_latent))
        self.encoder = Block(config.n_features, config.n_latent, config)
        self.decoder = Block(config.n_latent + config.n_batches, config.n_features, config)

    def aligned(self, x: Tensor, batch: Tensor) -> Tensor:
        """The input less the matched shift of its batch, shape (n_cells, n_features)."""
        return x - self.shift[batch]

    def encode(self, x: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Embedding of cells, shape (n_cells, n_latent), from features (n_cells, n_features)."""
        u = self.aligned(x, batch)
        out: Tensor = resize(u, self.config.n_latent) + self.encoder(u, batch, pairs)
        return out

    def set_frame(self, offset: NDArray[np.float32], axes: NDArray[np.float64], inverse: NDArray[np.float64]) -> None:
        """Set the final frame: offsets (n_batches, n_latent), axes and their inverse (n_latent, n_latent)."""
        for buffer, values in ((self.offset, offset), (self.axes, axes), (self.axes_inverse, inverse)):
            buffer.copy_(torch.from_numpy(values))

    def embed(self, x: Tensor, batch: Tensor) -> Tensor:
        """The encoding in the final frame, shape (n_cells, n_latent): what a user sees."""
        return self.place(self.encode(x, batch), batch)

    def place(self, z: Tensor, batch: Tensor) -> Tensor:
        """Put encodings into the final frame."""
        return (z - self.offset[batch]) @ self.axes

    def unembed(self, z: Tensor, batch: Tensor) -> Tensor:
        """The encoding in the given batches that belongs to an embedding."""
        return z @ self.axes_inverse + self.offset[batch]

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
        return resize(u, self.config.n_latent) + self.encoder.finish(h)

    def decode(self, z: Tensor, batch: Tensor, pairs: Pairs | None = None) -> Tensor:
        """Features of an embedding as the given batches would show them, shape (n_cells, n_features)."""
        told = torch.cat([z, functional.one_hot(batch, self.config.n_batches).to(z.dtype)], dim=1)
        out: Tensor = resize(z, self.config.n_features) + self.decoder(told, batch, pairs) + self.shift[batch]
        return out


def resize(x: Tensor, width: int) -> Tensor:
    """The first `width` columns, with columns of zeros where there are fewer."""
    return x[:, :width] if x.shape[1] >= width else functional.pad(x, (0, width - x.shape[1]))
