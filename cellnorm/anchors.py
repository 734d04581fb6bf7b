"""Anchors: pairs of cells of the same kind in different batches, found as mutual nearest neighbours on a sketch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cellnorm import devices

__all__ = ["Anchors", "cosine", "different", "find_anchors", "level_anchors", "n_near", "sketch"]
__all__ += ["within_batch_distance"]

IntArray = NDArray[np.int64]
# Positions of mutual nearest neighbours in two batches, from the numbers of the batches and that of neighbours.
Mutual = Callable[[int, int, int], tuple[NDArray[np.integer], NDArray[np.integer]]]
# No more than one cell in ten of the smaller batch counts as near, however many neighbours are asked for.
LARGEST_SHARE = 0.1
# From so many batches on, each of a few hundred cells at most, what scikit-learn does around a search takes longer than
# the search itself.
MANY = 50
CHUNK = 2**24  # distances held at once on a device


@dataclass(frozen=True)
class Anchors:
    """Pairs of cells that are mutual nearest neighbours across batches.

    Attributes
    ----------
    left, right
        Indices of the two cells of each pair, shape (n_pairs,). From `find_anchors`: the batch of `left` comes before
        that of `right`.
    """

    left: IntArray
    right: IntArray

    def __len__(self) -> int:
        return len(self.left)

    def matched(self, n_cells: int) -> NDArray[np.bool_]:
        """Which of n_cells cells have a partner, shape (n_cells,)."""
        has = np.zeros(n_cells, bool)
        has[self.left] = has[self.right] = True
        return has


def sketch(batch: IntArray, size: int, rng: np.random.Generator) -> IntArray:
    """Choose at most `size` cells of every batch, uniformly and without replacement; sorted indices."""
    chosen = []
    for b in np.unique(batch):
        cells = np.flatnonzero(batch == b)
        chosen.append(cells if len(cells) <= size else rng.choice(cells, size, replace=False))
    return np.sort(np.concatenate(chosen))


def different(x: NDArray[np.float32], size: int, rng: np.random.Generator) -> IntArray:
    """Positions of at most `size` different rows, in the order of their values, so that the order given has no say."""
    first = np.unique(x, axis=0, return_index=True)[1]
    return np.asarray(first[np.sort(rng.permutation(len(first))[:size])])


def cosine(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to unit length, so that Euclidean neighbours are neighbours by angle; a row of zeros stays."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(length > 0, length, 1), np.float32)


def n_near(n_neighbors: int, size_a: int, size_b: int) -> int:
    """How many cells count as near between two batches of these sizes."""
    return max(1, min(n_neighbors, int(np.ceil(LARGEST_SHARE * min(size_a, size_b)))))


def find_anchors(
    x: NDArray[np.float32], batch: IntArray, n_neighbors: int, device: str | torch.device = "cpu"
) -> Anchors:
    """Mutual nearest neighbours between all batches, by exact Euclidean search.

    Haghverdi et al. 2018: a pair of cells of two batches is kept if each is among the k nearest cells of the other's
    batch; k is `n_neighbors`, or a tenth of the smaller batch where that is less (at least 1).

    Parameters
    ----------
    x
        Coordinates, shape (n_cells, n_dims).
    batch
        Batch of each cell, shape (n_cells,).
    n_neighbors
        Neighbours looked at in each direction.
    device
        Where to search. The pairs are the same, except that of neighbours at the same distance others may be taken;
        their order within two batches is not.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.anchors import find_anchors
    >>> x = np.array([[0.0], [5.0], [0.1], [5.1]], dtype="float32")
    >>> pairs = find_anchors(x, np.array([0, 0, 1, 1]), n_neighbors=1)
    >>> list(zip(pairs.left.tolist(), pairs.right.tolist()))
    [(0, 2), (1, 3)]
    """
    cells = [np.flatnonzero(batch == b) for b in np.unique(batch)]
    parts = [x[c] for c in cells]
    by_products = devices.manner_of(device).products or len(cells) > MANY
    mutual = _by_products(parts, torch.device(device)) if by_products else _by_index(parts)
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for a, b in combinations(range(len(cells)), 2):
        of_a, of_b = mutual(a, b, n_near(n_neighbors, len(cells[a]), len(cells[b])))
        left.append(cells[a][of_a])
        right.append(cells[b][of_b])
    return Anchors(np.concatenate(left), np.concatenate(right))


def _by_index(parts: list[NDArray[np.float32]]) -> Mutual:
    index = [NearestNeighbors(algorithm="brute", n_jobs=1).fit(part) for part in parts]

    def mutual(a: int, b: int, k: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        to_b = _graph(index[b].kneighbors(parts[a], k, return_distance=False), len(parts[b]))
        to_a = _graph(index[a].kneighbors(parts[b], k, return_distance=False), len(parts[a]))
        both = to_b.multiply(to_a.T).tocoo()
        return both.row, both.col

    return mutual


def _by_products(parts: list[NDArray[np.float32]], device: torch.device) -> Mutual:
    """In double precision, as scikit-learn multiplies too: in single, neighbours change places."""
    points = [devices.moved(part, device).double() for part in parts]
    squares = [p.square().sum(1) for p in points]

    def near(a: int, b: int, k: int) -> Tensor:
        """Which cells of b are the k nearest of each cell of a."""
        found = torch.zeros(len(points[a]), len(points[b]), dtype=torch.bool, device=device)
        step = max(1, CHUNK // len(points[b]))
        for own, out in zip(torch.split(points[a], step), torch.split(found, step), strict=True):
            apart = torch.addmm(squares[b], own, points[b].T, alpha=-2)
            out.scatter_(1, apart.topk(k, dim=1, largest=False, sorted=False).indices, True)
        return found

    def mutual(a: int, b: int, k: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        both = torch.nonzero(near(a, b, k) & near(b, a, k).T).cpu().numpy()
        return both[:, 0], both[:, 1]

    return mutual


def level_anchors(
    x: NDArray[np.float32], levels: IntArray, n_neighbors: int, device: str | torch.device = "cpu"
) -> Anchors:
    """Mutual nearest neighbours between the levels of each covariate in turn, those of all covariates together.

    Two cells of different levels are of different batches. Batches that are small because covariates were crossed are
    never searched one by one: the cost is that of the pairs of levels, added over the covariates.

    Parameters
    ----------
    x, n_neighbors, device
        As for `find_anchors`.
    levels
        Level of each cell in each covariate, shape (n_cells, n_covariates). With one covariate that is its batch, and
        the answer that of `find_anchors`.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.anchors import level_anchors
    >>> x = np.array([[0.0], [5.0], [0.1], [5.1]], dtype="float32")
    >>> pairs = level_anchors(x, np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), n_neighbors=1)
    >>> list(zip(pairs.left.tolist(), pairs.right.tolist()))
    [(0, 2), (1, 2), (1, 3)]
    """
    found = [find_anchors(x, column, n_neighbors, device) for column in levels.T]
    if len(found) == 1:
        return found[0]
    pairs = np.concatenate([np.sort(np.column_stack([f.left, f.right]), axis=1) for f in found])
    left, right = np.unique(pairs, axis=0).T
    return Anchors(left, right)


def _graph(neighbors: IntArray, n_columns: int) -> sp.csr_matrix:
    n, k = neighbors.shape
    return sp.csr_matrix((np.ones(n * k, bool), neighbors.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n_columns))


def within_batch_distance(x: NDArray[np.float32], batch: IntArray, n_neighbors: int = 10) -> float:
    """Median over cells of the mean squared distance to the nearest cells of their batch: the unit of squared length.

    Batches of a single cell do not count; 1 if no batch has two different cells.
    """
    found = []
    for b in np.unique(batch):
        own = x[batch == b]
        k = min(n_neighbors, len(own) - 1)
        if k > 0:
            distance, _ = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=1).fit(own).kneighbors()
            found.append(np.square(distance).mean(axis=1))
    typical = float(np.median(np.concatenate(found))) if found else 0.0
    return typical if typical > 0 else 1.0
