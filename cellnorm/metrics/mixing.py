"""How well batches mix in the neighbourhood of each cell: entropy, and scores made of LISI."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr

from cellnorm.metrics.neighbors import Neighbors, compact_codes, count_codes, nearest_neighbors, row_chunks
from cellnorm.metrics.simpson import lisi

__all__ = ["cilisi", "clisi", "entropy", "entropy_scalex", "ilisi", "lisi_within"]

FloatArray = NDArray[np.float64]
# Types with fewer cells have no LISI of their own (Andreatta et al. 2024).
MIN_CELLS = 10


def entropy(neighbors: Neighbors, batch: Any, *, within: Any = None, adjust: bool = False) -> FloatArray:
    """Batch-mixing entropy of each cell: 0 if all its neighbours are of one batch, 1 if all batches are alike there.

    The entropy of the shares of the batches among the neighbours, the cell itself left out, over the logarithm of the
    number of batches (Haghverdi et al. 2018, here scaled).

    Parameters
    ----------
    neighbors
        Table of n_cells rows.
    batch
        Batch of each cell, integer codes, shape (n_cells,).
    within
        Type of each cell, integer codes, shape (n_cells,). If given, only neighbours of the cell's own type count, and
        only the batches that hold this type.
    adjust
        Divide each batch's share by its share of all cells (of the cell's type, if `within` is given) and scale the
        shares to a sum of 1, so that a perfect mixture of batches of unequal size gives 1 too.

    Returns
    -------
    entropy
        From 0 to 1, shape (n_cells,). NaN where it has no meaning: there is one batch only (that holds the type), or
        no neighbour counts.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import entropy, nearest_neighbors
    >>> table = nearest_neighbors(np.array([[0.0], [1.0], [2.0], [9.0]]), k=3)
    >>> entropy(table, np.array([0, 0, 1, 0])).tolist()
    [1.0, 1.0, 0.0, 1.0]
    """
    n_cells = len(neighbors)
    batch, n_batches = compact_codes(batch, n_cells, "batch")
    kind, n_kinds = compact_codes(np.zeros(n_cells, int) if within is None else within, n_cells, "type")
    there = np.bincount(kind * n_batches + batch, minlength=n_kinds * n_batches).reshape(n_kinds, n_batches)
    highest = np.log(np.count_nonzero(there, axis=1))
    found = np.empty(n_cells)
    for part in row_chunks(n_cells, neighbors.k + n_batches):
        near, own = neighbors.indices[part, 1:], kind[part]
        counts = count_codes(batch[near], n_batches, kind[near] == own[:, None])
        found[part] = _entropy(counts / np.maximum(there[own], 1) if adjust else counts)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.clip(found / highest[kind], 0, 1))


def _entropy(amounts: NDArray[Any]) -> FloatArray:
    """Natural entropy of each row's shares; NaN for a row of zeros."""
    with np.errstate(invalid="ignore"):
        return np.asarray(entr(amounts / amounts.sum(axis=1, keepdims=True)).sum(axis=1))


def entropy_scalex(
    x: Any,
    batch: Any,
    *,
    n_pools: int = 100,
    n_cells: int = 100,
    k: int = 100,
    random_state: int = 0,
    device: str = "cpu",
) -> float:
    """Batch entropy mixing score as SCALEX computes it, for comparison only; its highest value is ln 2 = .693.

    The mean of the composition-adjusted entropy over the cells of random pools. SCALEX (Xiong et al. 2022) takes a
    natural logarithm of the shares and divides by log2 of the number of batches, so that a perfect mixture gives ln 2
    and not 1. :func:`entropy` with ``adjust=True`` keeps to one base.

    Parameters
    ----------
    x
        Coordinates, shape (n_all_cells, n_dims).
    batch
        Batch of each cell, integer codes, shape (n_all_cells,).
    n_pools
        Pools of cells.
    n_cells
        Cells of a pool, drawn with replacement.
    k
        Neighbours of each of them, the cell itself not counted.
    random_state
        Seed of the draw.
    device
        Where neighbours are looked for.

    Returns
    -------
    score
        From 0 to ln 2; NaN if there is one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import entropy_scalex
    >>> x = np.random.default_rng(0).normal(size=(400, 2))
    >>> round(entropy_scalex(x, np.arange(400) % 2), 2)
    0.69
    """
    x = np.asarray(x)
    batch, n_batches = compact_codes(batch, len(x), "batch")
    if n_batches < 2:
        return float("nan")
    drawn = np.random.default_rng(random_state).integers(len(batch), size=n_pools * n_cells)
    cells, place = np.unique(drawn, return_inverse=True)
    near = nearest_neighbors(x, k + 1, cells=cells, device=device).indices[:, 1:]
    counts = count_codes(batch[near], n_batches) / np.bincount(batch)
    return float(_entropy(counts)[place].mean() / np.log2(n_batches))


def ilisi(neighbors: Neighbors, batch: Any, perplexity: float | None = None) -> float:
    """Integration LISI: 0 if the batches lie apart, 1 if every neighbourhood holds all batches alike.

    (median LISI of the batches - 1) / (number of batches - 1), as in scIB (Luecken et al. 2022) and scib-metrics.

    Parameters
    ----------
    neighbors
        Table of n_cells rows; scib-metrics takes k = 90.
    batch
        Batch of each cell, integer codes, shape (n_cells,).
    perplexity
        As in :func:`~cellnorm.metrics.simpson.lisi`.

    Returns
    -------
    ilisi
        NaN if there is one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import ilisi, nearest_neighbors
    >>> table = nearest_neighbors(np.arange(40.0)[:, None], k=12)
    >>> ilisi(table, np.arange(40) // 20)
    0.0
    """
    return _scaled(lisi(neighbors, batch, perplexity), batch)


def clisi(neighbors: Neighbors, label: Any, perplexity: float | None = None) -> float:
    """Cell-type LISI: 1 if every neighbourhood holds one type, 0 if it holds all types alike.

    (number of types - median LISI of the types) / (number of types - 1), as in scIB and scib-metrics.

    Parameters
    ----------
    neighbors
        Table of n_cells rows; scib-metrics takes k = 90.
    label
        Type of each cell, integer codes, shape (n_cells,).
    perplexity
        As in :func:`~cellnorm.metrics.simpson.lisi`.

    Returns
    -------
    clisi
        NaN if there is one type.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import clisi, nearest_neighbors
    >>> table = nearest_neighbors(np.arange(40.0)[:, None], k=12)
    >>> clisi(table, np.arange(40) // 20)
    1.0
    """
    return 1 - _scaled(lisi(neighbors, label, perplexity), label)


def _scaled(values: FloatArray, codes: Any) -> float:
    """The median, scaled from the range 1..number of codes to 0..1."""
    highest = len(np.unique(codes)) - 1
    return float((np.median(values) - 1) / highest) if highest else float("nan")


def lisi_within(x: Any, batch: Any, label: Any, *, k: int = 90, device: str = "cpu") -> FloatArray:
    """LISI of the batches within each cell's type, scaled to 0..1 by the number of batches that hold the type.

    Neighbours are looked for among the cells of the type alone, so that neither other types nor batches without the
    type count (CiLISI, Andreatta et al. 2024). They are weighted as in
    :func:`~cellnorm.metrics.simpson.lisi`; the authors' code takes 30 neighbours with a perplexity of 30, so that all
    weigh alike.

    Parameters
    ----------
    x
        Coordinates, shape (n_cells, n_dims).
    batch, label
        Batch and type of each cell, integer codes, shape (n_cells,).
    k
        Neighbours of each cell, itself included; fewer where the type has fewer cells.
    device
        Where neighbours are looked for.

    Returns
    -------
    lisi
        From 0 to 1, shape (n_cells,). NaN for types of fewer than 10 cells or in one batch.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import lisi_within
    >>> x = np.r_[np.zeros(20), np.ones(5)][:, None]
    >>> found = lisi_within(x, np.arange(25) % 2, np.arange(25) // 20)
    >>> np.isnan(found).sum()
    np.int64(5)
    """
    x = np.asarray(x)
    batch, _ = compact_codes(batch, len(x), "batch")
    label, n_labels = compact_codes(label, len(x), "type")
    found = np.full(len(x), np.nan)
    for kind in range(n_labels):
        cells = np.flatnonzero(label == kind)
        n_batches = len(np.unique(batch[cells]))
        if len(cells) >= MIN_CELLS and n_batches > 1:
            table = nearest_neighbors(x[cells], k, device=device)
            found[cells] = (lisi(table, batch[cells]) - 1) / (n_batches - 1)
    return found


def cilisi(x: Any, batch: Any, label: Any, *, k: int = 90, device: str = "cpu") -> float:
    """Mean over cells of :func:`lisi_within`: 0 if the batches lie apart within every type, 1 if they mix.

    Parameters
    ----------
    x, batch, label, k, device
        As in :func:`lisi_within`.

    Returns
    -------
    cilisi
        NaN if no type has 10 cells in two batches.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import cilisi
    >>> cilisi(np.arange(40.0)[:, None], np.arange(40) // 10 % 2, np.arange(40) // 20, k=6) < 0.2
    True
    """
    values = lisi_within(x, batch, label, k=k, device=device)
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if len(counted) else float("nan")
