"""The neighbourhood graph: UMAP's weights, whether types hang together in it, and clusters found on it."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cellnorm.metrics.neighbors import Neighbors, compact_codes, row_chunks

__all__ = ["BestLeiden", "best_leiden", "connectivities", "graph_connectivity", "in_largest_component", "leiden"]

# As in umap-learn: the search for a bandwidth ends here, and no bandwidth is less than this share of the mean distance.
TOLERANCE, MAX_STEPS, LEAST_SHARE = 1e-5, 64, 1e-3


class BestLeiden(NamedTuple):
    """Leiden clusters at the resolution that agrees best with the types.

    Attributes
    ----------
    nmi
        Normalised mutual information of clusters and types, 0 to 1.
    ari
        Adjusted Rand index of clusters and types, at most 1; 0 is chance.
    clusters
        Cluster of each cell, shape (n_cells,).
    """

    nmi: float
    ari: float
    clusters: NDArray[np.int64]


def connectivities(neighbors: Neighbors) -> sp.csr_matrix:
    """Weights of UMAP's neighbourhood graph, as scanpy and scib-metrics use them.

    The fuzzy simplicial set of McInnes et al. 2018: from cell i, neighbour j has the weight
    exp(-max(d_ij - rho_i, 0) / sigma_i), where rho_i is the distance to the nearest cell that lies apart, and sigma_i
    makes the weights sum to log2(k). Both directions are joined by a + b - ab.

    Parameters
    ----------
    neighbors
        Table of n_cells rows.

    Returns
    -------
    weights
        Symmetric, float32, from 0 to 1, shape (n_cells, n_cells); the diagonal is empty.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import connectivities, nearest_neighbors
    >>> table = nearest_neighbors(np.array([[0.0], [1.0], [3.0]]), k=2)
    >>> connectivities(table).toarray().tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    n_cells, k = neighbors.indices.shape
    weights = np.empty((n_cells, k - 1), np.float32)
    everywhere = float(neighbors.distances.mean(dtype=np.float64))
    for part in row_chunks(n_cells, 4 * k):
        distances = neighbors.distances[part]
        apart = distances > 0
        nearest = distances[np.arange(len(distances)), apart.argmax(axis=1)]  # 0 if no cell lies apart
        beyond = np.maximum(distances[:, 1:] - nearest[:, None], 0)
        typical = np.where(nearest > 0, distances.mean(axis=1, dtype=np.float64), everywhere)
        width = np.maximum(_bandwidths(beyond.astype(np.float64), np.log2(k)), LEAST_SHARE * typical)
        with np.errstate(invalid="ignore"):  # 0 / 0 where all cells are in one place
            steps = beyond / width.astype(np.float32)[:, None]
            weights[part] = np.where(beyond > 0, np.exp(-steps, dtype=np.float64), 1)
    graph = _matrix(neighbors.indices[:, 1:], weights.ravel())
    graph.eliminate_zeros()
    both = graph.T.tocsr()
    joined = sp.csr_matrix(graph + both - graph.multiply(both))
    joined.sort_indices()
    return joined


def _bandwidths(beyond: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """Bandwidth at which exp(-beyond / bandwidth) sums to the target in each row: umap-learn's bisection, step by step.

    The same steps give the same bits nearly everywhere, and so the same clusters on the graph.
    """
    width = np.ones(len(beyond))
    low, high = np.zeros_like(width), np.full_like(width, np.inf)
    rows = np.arange(len(beyond))
    for _ in range(MAX_STEPS):
        excess = np.exp(-beyond[rows] / width[rows, None]).sum(axis=1) - target
        open_ = np.abs(excess) >= TOLERANCE
        rows, excess = rows[open_], excess[open_]
        if not len(rows):
            break
        high[rows] = np.where(excess > 0, width[rows], high[rows])
        low[rows] = np.where(excess > 0, low[rows], width[rows])
        width[rows] = np.where(np.isinf(high[rows]), 2 * width[rows], (low[rows] + high[rows]) / 2)
    return width


def _matrix(indices: NDArray[Any], values: NDArray[Any]) -> sp.csr_matrix:
    """A sparse matrix with the same number of values in each row."""
    n, k = indices.shape
    return sp.csr_matrix((values, indices.ravel(), np.arange(n + 1) * k), shape=(n, n))


def in_largest_component(neighbors: Neighbors, label: Any) -> NDArray[np.bool_]:
    """Which cells belong to the largest component of their type.

    Components are strongly connected parts of the graph of neighbours in which only edges between cells of one type
    are kept, as in ``scib_metrics.graph_connectivity`` 0.5.10 (scIB's own code joins both directions first).

    Parameters
    ----------
    neighbors
        Table of n_cells rows.
    label
        Type of each cell, integer codes, shape (n_cells,).

    Returns
    -------
    inside
        Shape (n_cells,). Of components of the same size it is the one with the first cell.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import in_largest_component, nearest_neighbors
    >>> table = nearest_neighbors(np.array([[0.0], [1.0], [2.0], [8.0], [9.0]]), k=2)
    >>> in_largest_component(table, np.zeros(5, int)).tolist()
    [True, True, False, False, False]
    """
    label, n_labels = compact_codes(label, len(neighbors), "type")
    same = label[neighbors.indices] == label[:, None]
    starts = np.concatenate([[0], np.cumsum(same.sum(axis=1))])
    graph = sp.csr_matrix(
        (np.ones(starts[-1], np.int8), neighbors.indices[same], starts), shape=(len(label), len(label))
    )
    _, component = connected_components(graph, directed=True, connection="strong")
    sizes = np.bincount(component)
    backwards = np.arange(len(label))[::-1]
    by_size = backwards[np.argsort(sizes[component[backwards]], kind="stable")]
    largest = np.empty(n_labels, np.int64)
    largest[label[by_size]] = component[by_size]  # the last one written stays
    return np.asarray(component == largest[label])


def graph_connectivity(neighbors: Neighbors, label: Any) -> float:
    """Mean over types of the share of cells in the largest component of the type's graph: 1 if every type is connected.

    scIB (Luecken et al. 2022), as ``scib_metrics.graph_connectivity`` 0.5.10 computes it.

    Parameters
    ----------
    neighbors
        Table of n_cells rows; scib-metrics takes k = 15.
    label
        Type of each cell, integer codes, shape (n_cells,).

    Returns
    -------
    connectivity
        Above 0, at most 1.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import graph_connectivity, nearest_neighbors
    >>> table = nearest_neighbors(np.array([[0.0], [1.0], [8.0], [9.0]]), k=2)
    >>> graph_connectivity(table, np.zeros(4, int)), graph_connectivity(table, np.array([0, 0, 1, 1]))
    (0.5, 1.0)
    """
    label, _ = compact_codes(label, len(neighbors), "type")
    inside = in_largest_component(neighbors, label)
    return float(np.mean(np.bincount(label, inside) / np.bincount(label)))


def leiden(weights: Any, resolution: float = 1.0, seed: int = 42) -> NDArray[np.int64]:
    """Clusters of a weighted graph by the Leiden algorithm (Traag et al. 2019), with modularity.

    As scib-metrics 0.5.10 calls igraph: every edge in both directions, two iterations. igraph's generator of random
    numbers, which is one for the whole process, is Python's own again afterwards.

    Parameters
    ----------
    weights
        Symmetric sparse matrix, shape (n_cells, n_cells), as :func:`connectivities` gives it.
    resolution
        Above 0; more gives more clusters.
    seed
        Of igraph's random choices.

    Returns
    -------
    clusters
        Cluster of each cell, shape (n_cells,).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import connectivities, leiden, nearest_neighbors
    >>> x = np.r_[np.arange(10.0), np.arange(100.0, 110.0)][:, None]
    >>> leiden(connectivities(nearest_neighbors(x, k=6)), resolution=0.2).tolist()
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    """
    return _partition(_igraph(weights), resolution, seed)


def _igraph(weights: Any) -> Any:
    import igraph

    entries = sp.coo_matrix(weights)
    edges = np.column_stack([entries.row, entries.col])
    return igraph.Graph(n=entries.shape[0], edges=edges, directed=False, edge_attrs={"weight": entries.data.tolist()})


def _partition(graph: Any, resolution: float, seed: int) -> NDArray[np.int64]:
    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(objective_function="modularity", weights="weight", resolution=resolution)
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, np.int64)


def best_leiden(neighbors: Neighbors, label: Any, n: int = 10) -> BestLeiden:
    """Leiden clusters at the one of n resolutions, 2/n to 2, whose mutual information with the types is highest.

    As ``scib_metrics.nmi_ari_cluster_labels_leiden`` 0.5.10.

    Parameters
    ----------
    neighbors
        Table of n_cells rows; scib-metrics takes k = 15.
    label
        Type of each cell, integer codes, shape (n_cells,).
    n
        Resolutions tried.

    Returns
    -------
    best
        ``nmi``, ``ari`` and ``clusters``; the first of equally good resolutions.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import best_leiden, nearest_neighbors
    >>> x = np.r_[np.arange(10.0), np.arange(100.0, 110.0)][:, None]
    >>> best = best_leiden(nearest_neighbors(x, k=6), np.arange(20) // 10)
    >>> best.nmi, best.ari
    (1.0, 1.0)
    """
    label, _ = compact_codes(label, len(neighbors), "type")
    graph = _igraph(connectivities(neighbors))
    tried = [_partition(graph, 2 * i / n, seed=42) for i in range(1, n + 1)]
    nmi = [float(normalized_mutual_info_score(label, clusters)) for clusters in tried]
    best = int(np.argmax(nmi))
    return BestLeiden(nmi[best], float(adjusted_rand_score(label, tried[best])), tried[best])
