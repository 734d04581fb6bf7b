"""The null check: one batch split at random and mapped as if it were two; nothing should separate or move."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.anchors import cosine, find_anchors, within_batch_distance
from cellnorm.autoencoder import Autoencoder
from cellnorm.clusters import distances, side_by_side
from cellnorm.training import all_pairs

__all__ = ["null_check"]

MAX_CELLS = 1500
LEAST = 40  # cells of a batch that is worth splitting


def null_check(
    net: Autoencoder, x: NDArray[np.float32], batch: int, n_neighbors: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Split the cells of a batch at random, give each half statistics of its own, and compare.

    The halves are matched with each other as batches are, and each gets its offsets and spreads from these matches.

    Parameters
    ----------
    net
        A trained network.
    x
        Features of the cells of the batch, shape (n_cells, n_features), in the units of the training.
    batch
        Number of the batch in the network.
    n_neighbors
        For the anchors between the halves.
    rng
        Splits the batch.

    Returns
    -------
    moved
        Median distance between where a cell lies as one of its batch and as one of its half, in units of the typical
        distance to its neighbours.
    separated
        How far the halves lie apart (`clusters.side_by_side`): 0 in each other, 1 side by side.

    Both are NaN for a batch of fewer than 40 cells.
    """
    if len(x) < LEAST:
        return np.nan, np.nan
    x = x[rng.permutation(len(x))[:MAX_CELLS]]
    half = np.arange(len(x)) % 2
    device = net.shift.device
    anchors = find_anchors(cosine(x), half, n_neighbors, device)
    cells, codes = torch.from_numpy(x).to(device), torch.full((len(x),), batch, device=device)
    net.eval()
    with torch.inference_mode():
        as_one = net.embed(cells, codes).cpu().numpy()
        pairs = all_pairs(anchors, device)
        as_parts = net.encode_parts(cells, codes, torch.from_numpy(half).to(device), pairs)
        as_two = net.mixed(cells, net.place(as_parts, codes)).cpu().numpy()
    moved = np.median(np.linalg.norm(as_two - as_one, axis=1))
    unit = np.sqrt(within_batch_distance(as_one, np.zeros(len(x), np.int64)))
    first = np.flatnonzero(half == 0), np.flatnonzero(half == 1)
    return float(moved / unit), side_by_side(distances(as_two), *first)
