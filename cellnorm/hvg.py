"""Genes that vary within batches: scanpy's batch-aware rule, from moments alone.

`scanpy.pp.highly_variable_genes(flavor="seurat", batch_key=...)` copies the matrix batch by batch and fails on batches
of a few cells. Here the matrix is read once, and each batch gives two numbers per gene; the choice is the same, but for
ties, which are settled by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.survey import Survey

__all__ = ["N_TOP_GENES", "choose_genes", "highly_variable"]

N_TOP_GENES = 2000
MIN_CELLS = 3  # a gene found in fewer cells says nothing about them
MIN_BATCH = 10  # from fewer cells no variance can be told (scanpy issue 1504): such a batch has no say
N_BINS = 20
# The larger dispersion of two genes in a bin is always 1 / sqrt(2): ties are common. Rounded, they are ties
# whatever the order in which cells were summed; scanpy leaves them to the last bit.
DECIMALS = 8


def choose_genes(
    found: Survey,
    names: NDArray[np.object_],
    levels: NDArray[Any],
    source: str,
    *,
    n_top_genes: int = N_TOP_GENES,
    wanted: NDArray[np.intp] | None = None,
) -> NDArray[np.intp]:
    """Places of the genes to use, ascending.

    Parameters
    ----------
    found
        What was found in the matrix.
    names
        Names of its genes, shape (n_genes,).
    levels
        Names of the batches, shape (n_batches,).
    source
        Where the matrix lies, for messages.
    n_top_genes
        How many of the most variable to choose.
    wanted
        Use exactly these.

    Raises
    ------
    DataError
        If no gene is in three or more cells, or a batch has no gene that others express too.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from cellnorm.survey import survey
    >>> counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (40, 30)))
    >>> found = survey(counts, slice(0, 40), np.repeat([0, 1], 20), 2)
    >>> choose_genes(found, np.arange(30).astype(object), np.array(["a", "b"]), "X", n_top_genes=12).shape
    (12,)
    """
    usable = found.n_found >= MIN_CELLS
    if not usable.any():
        raise DataError(
            f"{source} has no gene with a value above zero in {MIN_CELLS} or more of its {found.n_cells.sum()} cells. "
            "Check that it holds the expression."
        )
    if wanted is not None:
        positions = wanted
    elif usable.sum() <= n_top_genes:
        positions = np.flatnonzero(usable)
    else:
        positions = highly_variable(found, names, usable, n_top_genes=n_top_genes)
    _check_shared(found.total[:, positions] > 0, levels)
    return positions


def highly_variable(
    found: Survey, names: NDArray[np.object_], usable: NDArray[np.bool_], *, n_top_genes: int
) -> NDArray[np.intp]:
    """Places of the genes that are highly variable within the most batches, ascending.

    Ties go to the larger mean normalised dispersion, then to the first in the alphabet: the order of the genes has no
    say. Batches of fewer than ten cells have none either; if all are that small, they are taken as one.

    Parameters
    ----------
    found
        Moments of each gene in each batch.
    names
        Names of the genes, shape (n_genes,); they may repeat.
    usable
        Genes to choose from, shape (n_genes,).
    n_top_genes
        How many to choose; all usable ones if there are fewer.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> from cellnorm.survey import survey
    >>> counts = np.random.default_rng(0).poisson(2.0, (40, 30))
    >>> counts[::2, 7] *= 5
    >>> names = np.array([f"gene{i}" for i in range(30)], dtype=object)
    >>> found = survey(sp.csr_matrix(counts), slice(0, 40), np.repeat([0, 1], 20), 2)
    >>> highly_variable(found, names, np.full(30, True), n_top_genes=30).shape
    (30,)
    """
    candidates = np.flatnonzero(usable)
    votes, total, counted = (np.zeros(len(candidates)) for _ in range(3))
    for mean, variance in _moments(found):
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


def _moments(found: Survey) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Mean and variance of each gene in each batch that has a say, of normalised counts (not of their logarithms).

    The variance is not corrected for n - 1: a common factor cancels when dispersions are standardised.
    """
    voters: list[Any] = list(np.flatnonzero(found.n_cells >= MIN_BATCH)) or [slice(None)]
    for voter in voters:
        n_cells = found.n_cells[voter].sum()
        sums = (np.atleast_2d(moment[voter]).sum(axis=0) for moment in (found.total, found.squares))
        mean, squares = (moment / n_cells for moment in sums)
        variance = squares - mean**2
        variance[variance <= 1e-12 * squares * n_cells] = 0  # what rounding leaves of a constant gene
        yield mean, variance


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


def _check_shared(expressed: NDArray[np.bool_], levels: NDArray[Any]) -> None:
    """Refuse a batch with expressed genes of which no other batch expresses any: nothing could be compared."""
    common = expressed.sum(axis=0) > 1
    if len(apart := levels[expressed.any(axis=1) & ~(expressed & common).any(axis=1)]):
        raise DataError(
            f"No gene is expressed both in batch {listed(apart)} and in another batch. "
            "Check that all batches name their genes alike (symbols or Ensembl ids, one species)."
        )
