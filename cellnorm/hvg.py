"""Genes that vary within batches: scanpy's batch-aware rule, from moments alone.

`scanpy.pp.highly_variable_genes(flavor="seurat", batch_key=...)` copies the matrix batch by batch and fails on batches
of a few cells. Here each batch is read once, in blocks, and gives two numbers per gene; the choice is the same, but for
ties, which are settled by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["blocks", "highly_variable", "stored_values"]

MIN_BATCH = 10  # from fewer cells no variance can be told (scanpy issue 1504): such a batch has no say
N_BINS = 20
# The larger dispersion of two genes in a bin is always 1 / sqrt(2): ties are common. Rounded, they are ties
# whatever the order in which cells were summed; scanpy leaves them to the last bit.
DECIMALS = 8
BLOCK_ROWS = 1024  # fixed, so that sums are made in the same order however the matrix is stored


def highly_variable(
    matrix: Any,
    names: NDArray[np.object_],
    usable: NDArray[np.bool_],
    members: list[NDArray[np.intp]],
    *,
    n_top_genes: int,
    scale: NDArray[np.float64] | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> NDArray[np.intp]:
    """Places of the genes that are highly variable within the most batches, ascending.

    Ties go to the larger mean normalised dispersion, then to the first in the alphabet: the order of the genes has no
    say. Batches of fewer than ten cells have none either; if all are that small, they are taken as one.

    Parameters
    ----------
    matrix
        CSR in canonical format, shape (n_cells, n_genes): counts if `scale` is given, else logarithms (base e).
    names
        Names of the genes, shape (n_genes,); they may repeat.
    usable
        Genes to choose from, shape (n_genes,).
    members
        For each batch the rows of its cells.
    n_top_genes
        How many to choose; all usable ones if there are fewer.
    scale
        What each cell's counts are multiplied by, shape (n_cells,).
    tick
        Called with the number of batches done.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> counts = np.random.default_rng(0).poisson(2.0, (40, 30))
    >>> counts[::2, 7] *= 5
    >>> names = np.array([f"gene{i}" for i in range(30)], dtype=object)
    >>> halves = [np.arange(20), np.arange(20, 40)]
    >>> highly_variable(sp.csr_matrix(np.log1p(counts)), names, np.full(30, True), halves, n_top_genes=30).shape
    (30,)
    """
    voters = [rows for rows in members if len(rows) >= MIN_BATCH] or [np.arange(matrix.shape[0])]
    candidates = np.flatnonzero(usable)
    votes, total, counted = (np.zeros(len(candidates)) for _ in range(3))
    for done, rows in enumerate(voters):
        tick(done)
        mean, variance = _moments(matrix, rows, scale)
        dispersion = np.round(_normalised_dispersion(mean[candidates], variance[candidates]), DECIMALS)
        known = ~np.isnan(dispersion)
        total[known] += dispersion[known]
        counted += known
        running = known & (mean[candidates] > 0)
        if running.any():
            votes += running & (dispersion >= np.sort(dispersion[running])[-min(n_top_genes, running.sum())])
    average = np.divide(total, counted, out=np.full(len(candidates), -np.inf), where=counted > 0)
    by_name = np.empty(len(candidates), np.intp)
    by_name[np.argsort(names[candidates], kind="stable")] = np.arange(len(candidates))
    best = np.lexsort((by_name, -np.round(average, DECIMALS), -votes))[:n_top_genes]
    return np.sort(candidates[best])


def _moments(
    matrix: Any, rows: NDArray[np.intp], scale: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of each gene in some cells, of normalised counts (not of their logarithms).

    The variance is not corrected for n - 1: a common factor cancels when dispersions are standardised.
    """
    n_cells, n_genes = len(rows), matrix.shape[1]
    total, squares = np.zeros(n_genes), np.zeros(n_genes)
    for part, block in blocks(matrix, rows):
        values = np.expm1(stored_values(block, None)) if scale is None else stored_values(block, scale[part])
        total += np.bincount(block.indices, values, n_genes)
        squares += np.bincount(block.indices, values * values, n_genes)
    mean = total / n_cells
    variance = squares / n_cells - mean**2
    variance[variance <= 1e-12 * squares] = 0  # what rounding leaves of a constant gene
    return mean, variance


def _normalised_dispersion(mean: NDArray[np.float64], variance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log dispersion of each gene, standardised among the genes of similar mean (Satija et al. 2015).

    0 for a gene that is not expressed, NaN for one that does not vary; 1 for one that is alone in its bin.
    """
    normalised = np.zeros(len(mean))
    expressed = mean > 0
    if not expressed.any():
        return normalised
    varies = variance[expressed] > 0
    ratio = variance[expressed] / mean[expressed]
    dispersion = np.log(ratio, out=np.full(len(ratio), np.nan), where=varies)
    bins = pd.cut(np.log1p(mean[expressed]), N_BINS, labels=False)
    statistics = pd.Series(dispersion).groupby(bins).agg(["mean", "std"])
    centre, spread = (statistics[column].reindex(bins).to_numpy() for column in ("mean", "std"))
    alone = np.isnan(spread)
    with np.errstate(divide="ignore", invalid="ignore"):  # genes of one bin with the same dispersion: 0 / 0 is NaN
        normalised[expressed] = np.where(alone, dispersion / centre, (dispersion - centre) / spread)
    return normalised


def blocks(matrix: Any, rows: NDArray[np.intp] | None = None) -> Iterator[tuple[Any, Any]]:
    """Pieces of a CSR matrix: which rows (a slice, or some of `rows`), and these rows."""
    n_rows = matrix.shape[0] if rows is None else len(rows)
    for start in range(0, n_rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, n_rows)
        part = slice(start, stop) if rows is None else rows[start:stop]
        yield part, matrix[part]


def stored_values(block: Any, scale: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The stored values of a block as float64, times the scale of their cells."""
    values: NDArray[np.float64] = block.data.astype(np.float64)
    return values if scale is None else values * np.repeat(scale, np.diff(block.indptr))
