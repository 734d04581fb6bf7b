"""What batches add to genes beyond their components: sums in one pass, and offsets shrunk by how sure they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

__all__ = ["Sums", "shrunk_offsets"]

LEAST_CELLS = 3.0  # cells of a kind that a batch needs to be compared with others in it
SWEEPS = 10  # alternations between means of batches and of kinds; they settle within a few
RIDGE = 1e-3  # of the mean variance of a component: keeps the regression finite where a component is constant


class Sums:
    """What one pass over the cells adds up; of x (genes), p (decoded components) and s (shares of the kinds).

    The residual x - p @ loadings.T is linear in x and p, so its sums follow from these once the loadings are known.
    """

    def __init__(self, n_batches: int, n_kinds: int, n_genes: int, n_features: int) -> None:
        self.n = np.zeros((n_batches, n_kinds))
        self.x = np.zeros((n_batches, n_kinds, n_genes))
        self.p = np.zeros((n_batches, n_kinds, n_features))
        self.xx, self.xp = np.zeros(n_genes), np.zeros((n_genes, n_features))
        self.pp = np.zeros((n_features, n_features))

    def add(self, x: Any, p: NDArray[np.float32], share: NDArray[np.float32], row: NDArray[np.intp]) -> None:
        """Add cells; `row` is the place of each cell's batch."""
        x = sp.csr_matrix(x)
        for b in np.unique(row):
            own = row == b
            self.n[b] += share[own].sum(0, dtype=np.float64)
            self.x[b] += (x[own].T @ share[own].astype(np.float64)).T
            self.p[b] += share[own].T.astype(np.float64) @ p[own]
        wide = p.astype(np.float64)
        self.xx += np.bincount(x.indices, np.square(x.data, dtype=np.float64), len(self.xx))
        self.xp += x.T @ wide
        self.pp += wide.T @ wide

    def loadings(self) -> NDArray[np.float64]:
        """Regression of the genes on the components within batches, shape (n_genes, n_features).

        Within: what sets batches apart as a whole must not pass for a loading.
        """
        n = np.maximum(self.n.sum(1), 1e-12)[:, None]
        x, p = self.x.sum(1), self.p.sum(1)
        pp = self.pp - (p / n).T @ p
        xp = self.xp - x.T @ (p / n)
        pp[np.diag_indices_from(pp)] += RIDGE * max(np.trace(pp) / len(pp), 1e-12)
        return np.asarray(np.linalg.solve(pp, xp.T).T)


def shrunk_offsets(
    total: NDArray[np.float64], squares: NDArray[np.float64], n: NDArray[np.float64], frame: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Level of each gene in the common frame, and the shrunk offset of each batch and kind.

    Parameters
    ----------
    total, squares
        Sums of residuals, shape (n_batches, n_kinds, n_genes), and of their squares, shape (n_genes,).
    n
        Cells of each batch and kind, shape (n_batches, n_kinds).
    frame
        Batches whose mean is the common frame, shape (n_batches,).
    """
    in_kind = np.maximum(n.sum(0), 1e-9)
    mean = total / np.maximum(n, 1e-9)[..., None]
    noise = np.maximum(squares - (total * mean).sum((0, 1)), 0) / max(1.0, n.sum() - (n >= 1).sum())
    weight = (
        n * (in_kind - n) / in_kind
    )  # cells of a kind say something about a batch if another batch has the kind too
    known = weight.sum(1)[:, None]
    of_batch = np.zeros((len(n), total.shape[2]))
    of_kind = np.zeros(total.shape[1:])
    for _ in range(SWEEPS):
        of_kind = np.einsum("bk,bkg->kg", n, mean - of_batch[:, None]) / in_kind[:, None]
        of_batch = np.einsum("bk,bkg->bg", weight, mean - of_kind) / np.maximum(known, 1e-9)
        of_batch -= of_batch[frame].mean(0)
    rest = mean - of_kind - of_batch[:, None]
    offset = of_batch * _share(of_batch[:, None], known, noise, len(n) - 1)[:, 0]
    compared = (n >= LEAST_CELLS) & ((n >= LEAST_CELLS).sum(0) > 1)
    kinds = np.where(compared, n, 0)
    degrees = int(compared.sum() - compared.any(0).sum() - compared.any(1).sum() + 1)
    return in_kind @ of_kind / in_kind.sum(), offset[:, None] + rest * _share(rest, kinds, noise, degrees)


def _share(
    effect: NDArray[np.float64], n: NDArray[np.float64], noise: NDArray[np.float64], degrees: int
) -> NDArray[np.float64]:
    """Share of signal in effects, shape (n_batches, n_kinds, n_genes): 0 where none can be told from noise.

    Their variance comes by the method of moments: the sum of n x effect squared has the expectation
    degrees x noise + variance x degrees / (number of effects) x sum of n.
    """
    counted = np.count_nonzero(n)
    if degrees < 1 or counted == 0:
        return np.zeros(effect.shape)
    found = np.einsum("bk,bkg->g", n, np.square(effect)) - degrees * noise
    variance = np.maximum(found, 0) / (degrees / counted * n.sum())
    signal = n[..., None] * variance
    return np.asarray(signal / np.maximum(signal + noise, 1e-12))
