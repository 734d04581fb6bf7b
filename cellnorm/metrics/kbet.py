"""kBET: whether the batches of a neighbourhood are a random draw from all batches, overall and within each type."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh
from scipy.special import chdtrc

from cellnorm.metrics.graph import connectivities
from cellnorm.metrics.neighbors import Neighbors, compact_codes, count_codes, nearest_neighbors, row_chunks

__all__ = ["Kbet", "accepted_within", "kbet", "kbet_per_label"]

FloatArray = NDArray[np.float64]
# Types of fewer cells are left out; neighbourhoods hold a quarter of the mean batch within these limits; a type counts
# if this share of its cells lies in components of at least three neighbourhoods (Luecken et al. 2022).
MIN_CELLS, MIN_K, MAX_K, USABLE = 10, 10, 70, 0.75
# Up to so many cells all eigenvectors are as quick as a few.
DENSE = 500


class Kbet(NamedTuple):
    """Chi-squared test of the batches in each cell's neighbourhood.

    Attributes
    ----------
    accepted
        Whether the batches may be a random draw: p >= alpha; bool, shape (n_cells,).
    statistic
        Pearson's chi-squared, shape (n_cells,).
    p
        Its probability if they are a random draw, shape (n_cells,); NaN if there is one batch.
    """

    accepted: NDArray[np.bool_]
    statistic: FloatArray
    p: FloatArray


def kbet(neighbors: Neighbors, batch: Any, alpha: float = 0.05) -> Kbet:
    """Test for each cell whether the batches of its neighbours, itself included, have their shares of all cells.

    Pearson's chi-squared with one degree of freedom less than there are batches (Büttner et al. 2019), as
    ``scib_metrics.kbet`` 0.5.10 computes it. The mean of ``accepted`` is the acceptance rate: 1 is a perfect mixture.

    Parameters
    ----------
    neighbors
        Table of n_cells rows.
    batch
        Batch of each cell, integer codes, shape (n_cells,).
    alpha
        Level of significance.

    Returns
    -------
    test
        ``accepted``, ``statistic`` and ``p`` of each cell.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import kbet, nearest_neighbors
    >>> table = nearest_neighbors(np.arange(40.0)[:, None], k=10)
    >>> float(kbet(table, np.arange(40) % 2).accepted.mean()), float(kbet(table, np.arange(40) // 20).accepted.mean())
    (1.0, 0.175)
    """
    batch, n_batches = compact_codes(batch, len(neighbors), "batch")
    expected = np.bincount(batch) / len(batch) * neighbors.k
    statistic = np.empty(len(batch))
    for part in row_chunks(len(batch), neighbors.k + n_batches):
        counts = count_codes(batch[neighbors.indices[part]], n_batches)
        statistic[part] = (np.square(counts - expected) / expected).sum(axis=1)
    p = chdtrc(n_batches - 1, statistic) if n_batches > 1 else np.full(len(batch), np.nan)
    return Kbet(p >= alpha, statistic, p)


def kbet_per_label(neighbors: Neighbors, batch: Any, label: Any, alpha: float = 0.05) -> tuple[float, FloatArray]:
    """Mean over types of the acceptance rate of kBET within the type: 1 if the batches mix in every type.

    scIB (Luecken et al. 2022), as ``scib_metrics.kbet_per_label`` 0.5.10 computes it, but with exact neighbours.

    Parameters
    ----------
    neighbors, batch, label, alpha
        As in :func:`accepted_within`.

    Returns
    -------
    score
        From 0 to 1; NaN if no type could be tested.
    per_label
        Acceptance rate of each type in the order of the codes, shape (n_labels,); NaN for a type that was left out.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import kbet_per_label, nearest_neighbors
    >>> table = nearest_neighbors(np.random.default_rng(0).normal(size=(300, 2)), k=30)
    >>> score, per_label = kbet_per_label(table, np.arange(300) % 2, np.arange(300) // 295)
    >>> score > 0.8, np.isnan(per_label).tolist()
    (True, [False, True])
    """
    label, n_labels = compact_codes(label, len(neighbors), "type")
    accepted = accepted_within(neighbors, batch, label, alpha=alpha)
    counted = ~np.isnan(accepted)
    tested = np.bincount(label[counted], minlength=n_labels)
    with np.errstate(invalid="ignore"):
        per_label = np.bincount(label[counted], accepted[counted], minlength=n_labels) / tested
    return (float(per_label[tested > 0].mean()) if tested.any() else float("nan")), per_label


def accepted_within(
    neighbors: Neighbors, batch: Any, label: Any, *, alpha: float = 0.05, n_components: int = 100
) -> FloatArray:
    """Whether kBET accepts each cell within its type.

    Of the graph of all cells (:func:`~cellnorm.metrics.graph.connectivities`) the part within a type is taken, and its
    diffusion map gives each cell the same number of neighbours there: a quarter of the mean number of cells per batch,
    from 10 to 70. Small components are left out; if they hold more than a quarter of the type, all its cells are
    rejected. A type that is smaller than `n_components` lowers the number of components for all types after it, in
    the order of the codes: that is how ``scib_metrics.kbet_per_label`` 0.5.10 does it, whose scores this is to match.

    Parameters
    ----------
    neighbors
        Table of n_cells rows; scib-metrics takes k = 50.
    batch, label
        Batch and type of each cell, integer codes, shape (n_cells,).
    alpha
        Level of significance.
    n_components
        Components of the diffusion maps.

    Returns
    -------
    accepted
        1 or 0, shape (n_cells,). NaN for types of fewer than 10 cells or in one batch, and for cells in small
        components.

    Notes
    -----
    scib-metrics makes the diffusion maps in single precision. Where rounding takes the leading eigenvalue off 1, which
    happens in few types, its component outweighs all others, and neighbours are cells of like density. For the sake of
    comparison this is kept, but the iteration has a fixed start: scib-metrics' own score of such a type may change
    from run to run.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import accepted_within, nearest_neighbors
    >>> table = nearest_neighbors(np.random.default_rng(0).normal(size=(300, 2)), k=30)
    >>> accepted_within(table, np.arange(300) % 2, np.zeros(300, int)).mean() > 0.8
    np.True_
    """
    batch, _ = compact_codes(batch, len(neighbors), "batch")
    label, n_labels = compact_codes(label, len(neighbors), "type")
    graph = connectivities(neighbors)
    accepted = np.full(len(label), np.nan)
    for kind in range(n_labels):
        cells = np.flatnonzero(label == kind)
        batches = np.bincount(batch[cells])
        if len(cells) < MIN_CELLS or np.count_nonzero(batches) < 2:
            continue
        k = int(np.clip(batches[batches > 0].mean() / 4, MIN_K, MAX_K))
        own = graph[cells][:, cells]
        usable = _usable(own, 3 * k)
        if len(usable) < USABLE * len(cells):
            accepted[cells] = 0
            continue
        n_components = min(n_components, len(usable) - 1)
        table = nearest_neighbors(_diffusion_map(own[usable][:, usable], n_components), k + 1)
        accepted[cells[usable]] = kbet(table, batch[cells[usable]], alpha).accepted
    return accepted


def _usable(graph: sp.csr_matrix, least: int) -> NDArray[np.intp]:
    """Vertices in components of at least so many; all of them if the graph is connected."""
    n_found, component = connected_components(graph, directed=False)
    sizes = np.bincount(component)
    return np.flatnonzero((sizes[component] >= least) | (n_found == 1))


def _diffusion_map(graph: sp.csr_matrix, n_components: int) -> NDArray[np.float32]:
    """Coordinates between which the Euclidean distance is the diffusion distance summed over all times.

    Coifman et al. 2005 for the density, Haghverdi et al. 2016 for the sum over times: eigenvectors of the symmetric
    transition matrix, each scaled by e / (1 - e), those of the eigenvalue 1 by 1. The matrix is made in single
    precision, and 1 is told from other eigenvalues in single precision, as scib-metrics does.
    """
    n = graph.shape[0]
    density = np.asarray(graph.sum(axis=0))
    even = sp.spdiags(1 / density, 0, n, n)
    kernel = even @ graph @ even
    scale = sp.spdiags(1 / np.sqrt(np.asarray(kernel.sum(axis=0))), 0, n, n)
    transitions = (scale @ kernel @ scale).astype(np.float64)
    if n <= DENSE:
        values, vectors = eigh(transitions.toarray())
    else:
        # with a start of its own, where ARPACK's would be random
        values, vectors = eigsh(transitions, k=n_components, v0=np.ones(n))
    largest = np.argsort(-np.abs(values), kind="stable")[:n_components]
    values, vectors = values[largest].astype(np.float32), vectors[:, largest].astype(np.float32)
    apart = values != 1
    return np.asarray(vectors * np.divide(values, 1 - values, out=np.ones_like(values), where=apart))
