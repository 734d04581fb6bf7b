"""Networks as no training leaves them, with kinds of cells anywhere, and attacks on their bounds."""

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from clouds import clouds
from numpy.typing import NDArray
from torch import Tensor

from cellnorm import CellNorm
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.kinds import Kinds

Floats = NDArray[np.float64]


def some_net(
    seed: int,
    *,
    n_features: int = 6,
    n_latent: int = 4,
    n_hidden: int = 7,
    n_batches: int = 2,
    n_kinds: int = 3,
    apart: float = 1.0,
    width: float = 1.0,
    strength: float = 1.0,
) -> Autoencoder:
    """A network with random weights and statistics, in 64 bits; its kinds have that distance and that variance."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(n_features, n_batches, n_latent, n_hidden, n_kinds, 0.1)
    net = Autoencoder(config).double().eval()
    with torch.no_grad():
        for name, values in net.state_dict().items():
            if name not in ("design", "strength"):
                values.copy_(torch.randn_like(values))
        net.encoder.norm.spread.copy_(0.3 + torch.rand_like(net.encoder.norm.spread))
        net.encoder.norm.var.copy_(0.3 + torch.rand_like(net.encoder.norm.var))
        net.strength.fill_(strength)
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(n_kinds, n_latent))
    offsets = rng.normal(size=(n_batches, n_kinds, n_latent))
    net.set_kinds(Kinds(centres, offsets, rng.dirichlet(np.ones(n_kinds), n_batches), width))
    return net


def steepest(net: Autoencoder, batch: int, seed: int, n_cells: int = 50, n_steps: int = 60) -> float:
    """Largest stretch found by gradient ascent on pairs of cells: both of them are moved."""
    torch.manual_seed(seed)
    cell = (3 * torch.randn(n_cells, net.config.n_features)).to(net.shift.dtype).requires_grad_()
    step = torch.randn_like(cell).requires_grad_()
    codes = torch.full((n_cells,), batch)
    optimizer = torch.optim.Adam([cell, step], 0.1)
    largest = 0.0
    for _ in range(n_steps):
        moved = net.embed(cell + step, codes) - net.embed(cell, codes)
        ratio = moved.norm(dim=1) / step.norm(dim=1)
        largest = max(largest, float(ratio.detach().max()))
        optimizer.zero_grad()
        (-ratio.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return largest


def furthest(net: Autoencoder, x: Tensor, batch: Tensor, radius: Floats, n_steps: int = 60) -> Floats:
    """How far embeddings are moved by projected gradient ascent within a radius around each cell, (n_cells,)."""
    limit = torch.from_numpy(radius).to(x.dtype)[:, None]
    start, step = net.embed(x, batch).detach(), torch.randn_like(x)
    step = (limit * step / step.norm(dim=1, keepdim=True)).requires_grad_()
    largest = np.zeros(len(x))
    for _ in range(n_steps):
        moved = (net.embed(x + step, batch) - start).norm(dim=1)
        largest = np.maximum(largest, moved.detach().numpy())
        (slope,) = torch.autograd.grad(moved.sum(), step)
        there = step.detach() + 0.3 * limit * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        step = (there * (limit / there.norm(dim=1, keepdim=True).clamp_min(1e-300)).clamp_max(1)).requires_grad_()
    return largest


class Trained(NamedTuple):
    """A model of two batches of three types that lie near each other, its cells, and their batches and types."""

    model: CellNorm
    x: NDArray[np.float32]
    batch: NDArray[np.object_]
    types: NDArray[np.object_]


@cache
def trained() -> Trained:
    cells = clouds([[60, 60, 60], [60, 60, 60]], offset=2.0)
    batch = np.array([f"lab{b}" for b in cells.batch], object)
    model = CellNorm(n_comps=None, n_latent=6, n_steps=60, n_pairs=64, n_hidden=32, device="cpu")
    x = cells.measured / 6
    return Trained(model.fit(x, batch), x, batch, np.array([f"type{k}" for k in cells.kind], object))
