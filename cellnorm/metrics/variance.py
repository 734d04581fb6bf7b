"""How much of an embedding's variance the batches explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellnorm.metrics.neighbors import compact_codes

__all__ = ["pcr", "pcr_comparison"]


def pcr(x: NDArray[Any], batch: NDArray[Any], *, cells: NDArray[Any] | None = None) -> float:
    """Principal-component regression: share of the variance of an embedding that lies between the batches.

    scIB (Büttner 2019, Luecken 2022) regresses every principal component on the batch and averages the R² with the
    components' variances as weights. Written out, that is the sum of squares between batches over the total sum of
    squares, which no rotation changes: no components have to be found.

    Parameters
    ----------
    x
        Embedding, shape (n_cells, n_dims).
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    cells
        Cells to use, one of them as often as it is named. None: all, once.

    Returns
    -------
    0 (batches have the same mean) to 1 (every batch is a point); 0 if no cell differs from another.

    Examples
    --------
    >>> import numpy as np
    >>> pcr(np.array([[0.0], [2.0], [2.0], [4.0]]), np.array([0, 0, 1, 1]))
    0.5
    """
    batch, _ = compact_codes(batch, len(x), "batch")
    centred = np.asarray(x, np.float64)
    centred = centred - centred.mean(axis=0)  # small numbers have small squares: less is lost
    n_cells = len(centred)
    weight = np.ones(n_cells) if cells is None else np.bincount(cells, minlength=n_cells).astype(np.float64)
    member = sp.csr_matrix((weight, (batch, np.arange(n_cells))))
    size = np.asarray(member.sum(axis=1)).ravel()
    sums = np.asarray(member @ centred)[size > 0]
    of_all = np.square(sums.sum(axis=0)).sum() / size.sum()
    total = weight @ np.einsum("ij,ij->i", centred, centred) - of_all
    between = (np.square(sums).sum(axis=1) / size[size > 0]).sum() - of_all
    return float(np.clip(between / total, 0, 1)) if total > 0 else 0.0


def pcr_comparison(
    before: NDArray[Any], after: NDArray[Any], batch: NDArray[Any], *, cells: NDArray[Any] | None = None
) -> float:
    """Share of the batch's variance that a correction removed: (before - after) / before, never below 0.

    Parameters
    ----------
    before, after
        The uncorrected and the corrected embedding, shapes (n_cells, any) each.
    batch
        Batch of each cell as an integer from 0 up, shape (n_cells,).
    cells
        See `pcr`.

    Returns
    -------
    0 (as much as before, or more) to 1 (none is left); NaN if there was none before.

    Examples
    --------
    >>> import numpy as np
    >>> before, batch = np.array([[0.0], [2.0], [2.0], [4.0]]), np.array([0, 0, 1, 1])
    >>> pcr_comparison(before, np.array([[0.0], [2.0], [0.0], [2.0]]), batch)
    1.0
    """
    was = pcr(before, batch, cells=cells)
    return max(0.0, 1 - pcr(after, batch, cells=cells) / was) if was > 0 else float("nan")
