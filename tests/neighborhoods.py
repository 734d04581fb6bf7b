"""What the neighbourhoods of an embedding say: how well batches mix, and how pure the types stay."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors


def neighbors(z: NDArray[Any], k: int) -> NDArray[np.int64]:
    """The k nearest other cells of each cell, shape (n_cells, k)."""
    found: NDArray[np.int64] = NearestNeighbors(n_neighbors=k).fit(z).kneighbors(return_distance=False)
    return found


def mixing(z: NDArray[Any], batch: NDArray[Any], k: int = 15) -> float:
    """Share of neighbours from other batches, over that expected by chance: 0 for batches apart, 1 for mixed ones."""
    _, codes, counts = np.unique(batch, return_inverse=True, return_counts=True)
    other = (codes[neighbors(z, k)] != codes[:, None]).mean(axis=1)
    expected = 1 - (counts[codes] - 1) / (len(codes) - 1)
    return float(np.mean(other / expected))


def purity(z: NDArray[Any], types: NDArray[Any], k: int = 15) -> float:
    """Share of neighbours of a cell's own type."""
    codes = np.unique(types, return_inverse=True)[1]
    return float((codes[neighbors(z, k)] == codes[:, None]).mean())
