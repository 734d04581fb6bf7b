"""The axes of the final frame: an embedding shrunk along its principal axes, each to its signal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

__all__ = ["signal_axes", "signal_share"]

# No axis vanishes altogether, so that the map can be inverted.
LEAST = 0.05
N_NEIGHBORS = 3
MAX_OWN = 2000  # cells of a batch in which noise is told from signal


def signal_share(z: NDArray[np.float32], batch: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of each column's variance within batches that is more than the difference between neighbours.

    Cells of one batch that are nearest neighbours are taken to differ by noise alone, so half of their mean squared
    difference estimates the variance of the noise, as a variogram's nugget does (Cressie 1993, Statistics for Spatial
    Data); the rest is signal.

    Parameters
    ----------
    z
        Embedding, shape (n_cells, n_latent).
    batch
        Batch of each cell, shape (n_cells,).

    Returns
    -------
    From 0 to 1, shape (n_latent,); 1 where no batch has cells to tell.
    """
    noise, total = np.zeros(z.shape[1]), np.zeros(z.shape[1])
    for b in np.unique(batch):
        own = z[batch == b][:MAX_OWN].astype(np.float64)
        k = min(N_NEIGHBORS, len(own) - 1)
        if k > 0:
            near = NearestNeighbors(n_neighbors=k, algorithm="brute", n_jobs=1).fit(own).kneighbors()[1]
            noise += np.square(own[:, None] - own[near]).mean((0, 1)) / 2 * len(own)
            total += own.var(0) * len(own)
    return np.asarray(np.clip(1 - np.divide(noise, total, out=np.zeros_like(noise), where=total > 0), 0, 1))


def signal_axes(z: NDArray[np.float32], batch: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shrink an embedding along its principal axes, each by its share of signal, as Wiener (1949) filters.

    The map is symmetric, R diag(share) R^T with the principal axes R: the embedding stays in the coordinates that it
    has, those of the principal components, and can be mixed with these.

    Returns
    -------
    axes, inverse
        Both of shape (n_latent, n_latent); `z @ axes` is the shrunk embedding, and `axes @ inverse` the identity.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.frame import signal_axes
    >>> rng = np.random.default_rng(0)
    >>> z = rng.normal(size=(400, 4)) + 9 * np.outer(np.arange(400) % 2, [1, 0, 0, 0])
    >>> (z @ signal_axes(z, np.zeros(400, int))[0]).std(0).round(1)
    array([4.5, 0.8, 0.9, 0.9])
    """
    centred = z.astype(np.float64) - z.mean(0, dtype=np.float64)
    _, rotation = np.linalg.eigh(centred.T @ centred)
    weight = np.maximum(signal_share((centred @ rotation).astype(np.float32), batch), LEAST)
    return (rotation * weight) @ rotation.T, (rotation / weight) @ rotation.T
