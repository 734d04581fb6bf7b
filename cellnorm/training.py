"""The training loop, in the order in which things happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellnorm import devices, losses
from cellnorm.anchors import Anchors, level_anchors
from cellnorm.autoencoder import Autoencoder, resize
from cellnorm.counterparts import Counterparts
from cellnorm.covariates import level_codes
from cellnorm.layers import Levels, Pairs, matched_shift
from cellnorm.optimizer import AdamW, one_cycle
from cellnorm.sampling import minibatches

__all__ = ["History", "Progress", "TrainingConfig", "all_pairs", "at_full_strength", "decode", "encode", "stage"]
__all__ += ["train"]

Progress = Callable[[str, int, int, float | None], None]
TERMS = ("loss", "contrast", "kinship", "reconstruction", "geometry")
# Where progress is asked for, a device is waited for once in so many steps. Nothing else in the loop waits for it, but
# the search for anchors at half time.
REPORT_EVERY = 25


@dataclass(frozen=True)
class TrainingConfig:
    """What the loop needs to know besides the network and the data."""

    n_steps: int
    n_pairs: int
    n_others: int
    n_neighbors: int
    learning_rate: float
    weight_decay: float
    contrast: float
    geometry: float


@dataclass(frozen=True)
class History:
    """What happened in training.

    Attributes
    ----------
    terms
        Loss terms of every step, each (n_steps,): the sum first.
    n_anchors
        Number of anchors found each time: on the components, and again on the embedding at half time.
    """

    terms: dict[str, NDArray[np.float32]]
    n_anchors: NDArray[np.int64]

    def to_dict(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """The history as arrays by name."""
        return {**self.terms, "n_anchors": self.n_anchors}


@contextmanager
def stage(name: str, seconds: dict[str, float], progress: Progress | None = None) -> Iterator[None]:
    """Time a stage that cannot tell how far it is, and say when it begins and ends."""
    start = time.perf_counter()
    if progress:
        progress(name, 0, 1, None)
    yield
    seconds[name] = time.perf_counter() - start
    if progress:
        progress(name, 1, 1, None)


def train(
    net: Autoencoder,
    x: NDArray[np.float32],
    batch: NDArray[np.int64],
    anchors: Anchors,
    config: TrainingConfig,
    rng: np.random.Generator,
    progress: Progress | None = None,
    counterparts: Counterparts | None = None,
) -> tuple[Anchors, History]:
    """Train a network in place on a sketch of cells.

    Parameters
    ----------
    net
        The network, on its device; left in evaluation mode.
    x
        Features of the sketch, shape (n_cells, n_features), in units of the typical distance to a neighbour.
    batch
        Batch of each cell, shape (n_cells,).
    anchors
        Pairs on the features; found again on the embedding at half time.
    counterparts
        Which anchors are kept of those found at half time; None: all.

    Returns
    -------
    The anchors found last, and the history.
    """
    device = net.shift.device
    data, labels = torch.from_numpy(x).to(device), torch.from_numpy(batch).to(device)
    levels, codes = net.levels(), level_codes(net.design.cpu().numpy())[batch]
    pairs = all_pairs(anchors, device)._replace(levels=levels)
    net.shift.copy_(matched_shift(data, labels, pairs, net.config.n_batches))
    net.start(data, labels)
    optimizer = AdamW(net, config.weight_decay)
    terms = torch.zeros(config.n_steps, len(TERMS), device=device)
    found = [len(anchors)]
    half = config.n_steps // 2
    stream = _stream(batch, anchors, config, rng, half or config.n_steps, device)
    net.train()
    for step in range(config.n_steps):
        if step == half > 0:
            anchors = level_anchors(encode(net, x, batch), codes, config.n_neighbors, device)
            anchors = anchors if counterparts is None else counterparts.keep(anchors)
            found.append(len(anchors))
            stream = _stream(batch, anchors, config, rng, config.n_steps - half, device)
            net.train()
        values = loss_terms(net, data, labels, next(stream), levels)
        contrast, kinship, reconstruction, geometry = values
        loss = config.contrast * contrast + kinship + reconstruction + config.geometry * geometry
        optimizer.step(loss, one_cycle(step, config.n_steps, config.learning_rate))
        terms[step] = torch.stack([loss, *values]).detach()
        if progress and ((step + 1) % REPORT_EVERY == 0 or step + 1 == config.n_steps):
            progress("train", step + 1, config.n_steps, float(terms[step, 0]))
    net.eval()
    steps = terms.cpu().numpy()
    return anchors, History({t: steps[:, i] for i, t in enumerate(TERMS)}, np.array(found))


class OnDevice(NamedTuple):
    """A `sampling.Minibatch` on the device."""

    cells: Tensor
    n_pairs: int


def loss_terms(
    net: Autoencoder, data: Tensor, labels: Tensor, mini: OnDevice, levels: Levels | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contrast, kinship, reconstruction and geometry of one minibatch, without waiting for the device."""
    n = mini.n_pairs
    x, batch = data[mini.cells], labels[mini.cells]
    position = torch.arange(2 * n, device=data.device)
    pairs = Pairs(position[:n], position[n:], torch.ones(n, device=data.device), levels)
    z = net.encode(x, batch, pairs)
    start = resize(net.aligned(x, batch), net.config.n_latent)
    before, after = losses.squared_distances(start, start), losses.squared_distances(z, z)
    return (
        losses.contrast(z[:n], z[n : 2 * n]),
        losses.kinship(before, after, batch, n),
        losses.reconstruction(net.decode(z, batch, pairs), x),
        losses.geometry(before, after, batch),
    )


def encode(
    net: Autoencoder, x: NDArray[np.float32], batch: NDArray[np.int64], *, strength: float | None = None
) -> NDArray[np.float32]:
    """Embed cells with frozen statistics, in chunks; shape (n_cells, n_latent). `strength`: None for the network's."""
    return _apply(net, lambda x, b: net.embed(x, b, strength), x, batch, net.config.n_latent)


def at_full_strength(net: Autoencoder, z: NDArray[np.float32], batch: NDArray[np.int64]) -> NDArray[np.float32]:
    """Where cells embedded at the network's strength would be at full strength, in chunks; as they are if it is 1."""
    if net.strength == 1:
        return z
    return _apply(net, lambda z, b: net.embed(net.restored(z, b), b, 1.0), z, batch, net.config.n_latent)


def decode(
    net: Autoencoder, z: NDArray[np.float32], batch: NDArray[np.int64], *, evenly: bool = False
) -> NDArray[np.float32]:
    """Features of embedded cells as the given batches would show them, in chunks; shape (n_cells, n_features).

    `evenly`: with the mean offset of each batch, whatever the kind of a cell, and `z` at full strength.
    """

    def evenly_decoded(z: Tensor, batch: Tensor) -> Tensor:
        return net.decode(net.unembed_evenly(z, batch), batch)

    return _apply(net, evenly_decoded if evenly else net.restored, z, batch, net.config.n_features)


def _apply(
    net: Autoencoder,
    function: Callable[[Tensor, Tensor], Tensor],
    x: NDArray[np.float32],
    batch: NDArray[np.int64],
    width: int,
) -> NDArray[np.float32]:
    """In chunks that are always of one length, filled up with zeros: a cell has the same bits in any company."""
    net.eval()
    size = devices.manner_of(net.shift.device).chunk_cells
    out = np.empty((len(x), width), np.float32)
    filled, codes = np.zeros((size, x.shape[1]), np.float32), np.zeros(size, np.int64)
    with torch.inference_mode():
        for start in range(0, len(x), size):
            n = min(size, len(x) - start)
            filled[:n], codes[:n] = x[start : start + n], batch[start : start + n]
            on_device = [torch.from_numpy(a).to(net.shift.device) for a in (filled, codes)]
            out[start : start + n] = function(*on_device)[:n].cpu().numpy()
    return out


def _stream(
    batch: NDArray[np.int64],
    anchors: Anchors,
    config: TrainingConfig,
    rng: np.random.Generator,
    n_steps: int,
    device: torch.device,
) -> Iterator[OnDevice]:
    """Minibatches of the next steps, drawn by the CPU whatever the device, which takes .2 ms a step."""
    stream = minibatches(batch, anchors, rng, n_pairs=config.n_pairs, n_others=config.n_others)
    ahead = devices.manner_of(device).steps_ahead
    for start in range(0, n_steps, ahead):
        drawn = list(islice(stream, min(ahead, n_steps - start)))
        cells = devices.moved(np.concatenate([mini.cells for mini in drawn]), device)
        sizes = [len(mini.cells) for mini in drawn]
        yield from map(OnDevice, torch.split(cells, sizes), [mini.n_pairs for mini in drawn])


def all_pairs(anchors: Anchors, device: torch.device) -> Pairs:
    """All anchors as pairs of one weight, on the device."""
    left, right = torch.from_numpy(anchors.left).to(device), torch.from_numpy(anchors.right).to(device)
    return Pairs(left, right, torch.ones(len(left), device=device))
