"""Clusters of each batch by itself, and how clusters of two batches lie to each other; for a few thousand cells."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellnorm.anchors import cosine, n_near
from cellnorm.layers import Pairs, matched_shift
from cellnorm.metrics.graph import connectivities, leiden
from cellnorm.metrics.neighbors import Neighbors

__all__ = ["aligned", "blocks", "distances", "mutual", "near", "numbered", "own_clusters", "side_by_side"]

IntArray = NDArray[np.int64]
RESOLUTION = 0.5  # of Leiden: main types, since fine clusters of one type would count as different
ROUNDS, STILL = 12, 0.01  # of matching and shifting, until no move is over this share of the cells' spread
FEWER = 6  # rounds of a resistant offset, from each start: more brought nothing
# A resistant offset: neighbours among which its pairs are found, and how fast a pair's weight falls with its distance.
CLOSE, FALL = 3, 4.0


def blocks(batch: IntArray) -> list[slice]:
    """Where each batch lies in cells that are sorted by batch."""
    ends = np.flatnonzero(np.diff(batch)) + 1
    return [slice(int(a), int(b)) for a, b in zip([0, *ends], [*ends, len(batch)], strict=True)]


def distances(x: NDArray[np.float32]) -> Tensor:
    """Euclidean distances between all cells, shape (n_cells, n_cells)."""
    centred = torch.from_numpy(np.ascontiguousarray(x - x.mean(0), np.float32))
    return torch.cdist(centred, centred)


def near(apart: Tensor, k: int, *, own: bool = False) -> Tensor:
    """Columns of the k nearest cells of every row, nearest first; with `own`, without the cell itself."""
    if own:
        apart = apart.clone().fill_diagonal_(torch.inf)
    return apart.topk(max(1, min(k, apart.shape[1] - own)), dim=1, largest=False).indices


def mutual(apart: Tensor, parts: list[slice], n_neighbors: int) -> Tensor:
    """Which cells are mutual nearest neighbours of two batches (see `anchors.find_anchors`), boolean, symmetric."""
    found = torch.zeros(apart.shape, dtype=torch.bool)
    left, right = _partners(apart, parts, n_neighbors)
    found[left, right] = found[right, left] = True
    return found


def _partners(apart: Tensor, parts: list[slice], n_neighbors: int) -> tuple[Tensor, Tensor]:
    """The same as pairs, each once and in order: a search for them is most of what an offset costs."""
    n, found = len(apart), [torch.empty(0, dtype=torch.int64)]
    for a, b in combinations(parts, 2):
        k = n_near(n_neighbors, a.stop - a.start, b.stop - b.start)
        of_a = torch.arange(a.start, a.stop)[:, None] * n + near(apart[a, b], k) + b.start
        of_b = (near(apart[b, a], k) + a.start) * n + torch.arange(b.start, b.stop)[:, None]
        found.append(of_a[torch.isin(of_a, of_b)])
    places = torch.cat(found).sort().values
    return places // n, places % n


def aligned(
    x: NDArray[np.float32], batch: IntArray, n_neighbors: int, *, resistant: bool = False
) -> tuple[NDArray[np.float32], Tensor]:
    """Cells less the offset that their batch shares, and their distances.

    What is left between matched clusters is what a common offset does not explain.

    Parameters
    ----------
    x
        Coordinates, shape (n_cells, n_dims), cells sorted by batch.
    batch
        Batch of each cell, 0 to n_batches - 1.
    n_neighbors
        For the anchors.
    resistant
        Take the offset of the nearest pairs, found among few neighbours, not of all pairs: types that one batch alone
        has also find partners, far ones. Which pairs are near depends on where one starts, so that of three starts
        (where the cells lie, where nearest pairs alone and where all pairs have them) that is taken from which most
        cells come to have partners.
    """
    if not resistant:
        return _settled(x, distances(cosine(x)), batch, n_neighbors, _alike, ROUNDS)
    here, parts = (x, distances(x)), blocks(batch)
    starts = here, _settled(*here, batch, 1, _nearness, FEWER), aligned(x, batch, n_neighbors)
    ends = [_settled(*start, batch, CLOSE, _nearness, FEWER) for start in starts]
    return max(ends, key=lambda end: len(np.unique(torch.cat(_partners(end[1], parts, CLOSE)).numpy())))


def _settled(
    x: NDArray[np.float32],
    apart: Tensor,
    batch: IntArray,
    n_neighbors: int,
    weigh: Callable[[Tensor], Tensor],
    rounds: int,
) -> tuple[NDArray[np.float32], Tensor]:
    """Match and shift until nothing moves; `apart` tells the first matches, `weigh` pairs by their squared lengths."""
    parts, codes = blocks(batch), torch.from_numpy(batch)
    for _ in range(rounds):
        left, right = _partners(apart, parts, n_neighbors)
        cells = torch.from_numpy(x)
        weight = weigh((cells[left] - cells[right]).square().sum(1))
        shift = matched_shift(cells, codes, Pairs(left, right, weight), len(parts)).numpy()
        x = x - shift[batch]
        apart = distances(x)
        if np.abs(shift).max() <= STILL * x.std():
            break
    return x, apart


def _alike(far: Tensor) -> Tensor:
    """All pairs count as one."""
    return torch.ones(len(far))


def _nearness(far: Tensor) -> Tensor:
    """Pairs count by Welsch's function of their length (Holland and Welsch 1977), 1 in the mean."""
    if not len(far):
        return far
    weight = torch.exp(-FALL * (far - far.min()) / far.median().clamp_min(1e-12))
    return weight / weight.mean()


def own_clusters(apart: Tensor, k: int) -> IntArray:
    """Leiden clusters of one batch from the distances of its cells, shape (n_cells,)."""
    if len(apart) <= k:
        return np.zeros(len(apart), np.int64)
    found = near(apart, k, own=True)
    itself = torch.arange(len(apart))[:, None]
    table = Neighbors(
        torch.cat([itself, found], 1).numpy(), torch.cat([itself * 0.0, apart.gather(1, found)], 1).numpy()
    )
    return leiden(connectivities(table), RESOLUTION)


def numbered(found: list[IntArray]) -> tuple[IntArray, IntArray]:
    """Clusters of each batch, all from 0, numbered through all batches; and the batch of each cluster.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.clusters import numbered
    >>> numbered([np.array([0, 1]), np.array([0, 0])])
    (array([0, 1, 2, 2]), array([0, 0, 1]))
    """
    counts = [int(own.max()) + 1 for own in found]
    first = np.cumsum([0, *counts[:-1]])
    return np.concatenate([own + n for own, n in zip(found, first, strict=True)]), np.repeat(range(len(counts)), counts)


def side_by_side(apart: Tensor, a: IntArray, b: IntArray) -> float:
    """How far two groups of cells lie apart: 0 if they lie in each other, 1 if no cell has a neighbour of the other.

    The share of own neighbours, averaged in each group, and the two added: where groups lie in each other they sum to
    one whatever the sizes of the groups, since a cell of either sees the same neighbourhood. Above it, by that much.

    Parameters
    ----------
    apart
        Distances of all cells.
    a, b
        Indices of the cells of the groups, at least two each.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.clusters import distances, side_by_side
    >>> line = distances(np.array([[0.0], [1.0], [2.0], [9.0], [10.0], [11.0]], dtype="float32"))
    >>> side_by_side(line, np.array([0, 1, 2]), np.array([3, 4, 5]))
    1.0
    """
    cells = np.concatenate([a, b])
    k = int(np.clip(min(len(a), len(b)) // 2, 1, 15))
    found = near(apart[cells][:, cells], k, own=True).numpy()
    first = np.arange(len(cells)) < len(a)
    own = (first[found] == first[:, None]).mean(1)
    return float(np.clip(own[first].mean() + own[~first].mean() - 1, 0, 1))
