"""From principal components to a trained network: the sketch on which it learns, its training and its final frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.anchors import Anchors, sketch, within_batch_distance
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.counterparts import Counterparts
from cellnorm.frame import signal_axes
from cellnorm.kinds import find_kinds
from cellnorm.training import History, Progress, TrainingConfig, encode, train

__all__ = ["SKETCH_ALL", "SKETCH_BATCH", "choose_sketch", "fit_network"]

# Anchors are found on at most this many cells of a batch, and of all batches together.
SKETCH_BATCH, SKETCH_ALL, SKETCH_LEAST = 3000, 15_000, 100


def choose_sketch(
    pcs: NDArray[np.float32], batch: NDArray[np.int64], rng: np.random.Generator, n_levels: int | None = None
) -> tuple[NDArray[np.int64], np.float32]:
    """Choose the cells to learn from, and the unit of length among them.

    Parameters
    ----------
    pcs
        Principal components, shape (n_cells, n_comps).
    batch
        Batch of each cell, 0 to n_batches - 1, shape (n_cells,).
    rng
        Chooses the cells.
    n_levels
        Levels of all covariates together: each has a least number of cells, and a batch its share of these. None:
        batches are levels.

    Returns
    -------
    cells
        Sorted rows, shape (n_sketch,).
    scale
        The typical distance from a cell to those next to it in its batch, in the units of `pcs`.
    """
    n_batches = int(batch.max()) + 1
    least = min(SKETCH_LEAST, -(-SKETCH_LEAST * (n_levels or n_batches) // n_batches))
    per_batch = int(np.clip(SKETCH_ALL // n_batches, least, SKETCH_BATCH))
    cells = sketch(batch, per_batch, rng)
    return cells, np.float32(np.sqrt(within_batch_distance(pcs[cells], batch[cells])))


def fit_network(
    x: NDArray[np.float32],
    batch: NDArray[np.int64],
    anchors: Anchors,
    architecture: AutoencoderConfig,
    settings: TrainingConfig,
    device: str,
    rng: np.random.Generator,
    progress: Progress | None = None,
    design: NDArray[np.float32] | None = None,
    counterparts: Counterparts | None = None,
) -> tuple[Autoencoder, Anchors, History]:
    """Train a network on a sketch and set its final frame.

    Parameters
    ----------
    x, batch, anchors, settings, progress, counterparts
        As in `training.train`.
    architecture
        Widths of the network.
    device
        Where to compute: "cpu", "cuda" or "mps".
    rng
        Seeds the weights and draws the minibatches; torch's own state stays as it was.
    design
        Which levels each batch is made of, shape (n_batches, n_levels). None: each is a level of its own.

    Returns
    -------
    The network in evaluation mode, the anchors found last, and the history.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(int(rng.integers(2**31)))
        net = Autoencoder(architecture).to(device)
        if design is not None:
            net.set_design(design)
        anchors, history = train(net, x, batch, anchors, settings, rng, progress, counterparts)
    net.set_kinds(find_kinds(encode(net, x, batch), batch, architecture.n_kinds, rng, design))
    net.set_axes(*signal_axes(encode(net, x, batch), batch))
    return net, anchors, history
