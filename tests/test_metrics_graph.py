"""The graph: weights as umap-learn has them, components counted by hand, clusters as scib-metrics finds them."""

import random
from pathlib import Path

import igraph
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from tables import as_scib, real, real_table, two_types

from cellnorm import DataError
from cellnorm.metrics import (
    Neighbors,
    best_leiden,
    connectivities,
    graph_connectivity,
    in_largest_component,
    leiden,
    nearest_neighbors,
)

SEEDS = st.integers(0, 10**6)


# -- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [15, 50])
def test_weights_are_those_of_umap(data_dir: Path, k: int) -> None:
    table = real_table(data_dir / "pbmc_3tech_small.h5ad").first(k)
    ours, theirs = connectivities(table), as_scib(table).knn_graph_connectivities.tocsr()
    np.testing.assert_array_equal(ours.indptr, theirs.indptr)
    assert abs(ours - theirs).max() < 1e-6
    assert abs(ours - ours.T).max() == 0
    assert ours.dtype == np.float32


@given(seed=SEEDS, n_cells=st.integers(4, 60), k=st.integers(2, 12), scale=st.sampled_from([1e-5, 1.0, 1e5]))
def test_weights_are_those_of_umap_where_cells_share_places(seed: int, n_cells: int, k: int, scale: float) -> None:
    x = np.random.default_rng(seed).integers(4, size=(n_cells, 2)) * scale
    table = nearest_neighbors(x, k)
    ours, theirs = connectivities(table), as_scib(table).knn_graph_connectivities
    assert abs(ours - theirs).max() < 1e-6


def test_weights_of_cells_in_one_place_or_alone() -> None:
    one_place = connectivities(nearest_neighbors(np.zeros((5, 2)), 5))
    np.testing.assert_array_equal(one_place.toarray(), 1 - np.eye(5))
    assert connectivities(nearest_neighbors(np.arange(5.0)[:, None], 1)).nnz == 0


# -- components ------------------------------------------------------------------------------------------------------


def test_components_by_hand() -> None:
    """Each cell points to its nearest: 0 <-> 1 <- 2 in one type, 3 <-> 4 in the other, 5 -> 4."""
    x = np.array([[0.0], [1.0], [2.5], [10.0], [10.5], [11.5]])
    table, label = nearest_neighbors(x, 2), np.array([0, 0, 0, 1, 1, 1])
    assert in_largest_component(table, label).tolist() == [True, True, False, True, True, False]
    assert graph_connectivity(table, label) == pytest.approx(2 / 3)
    label = np.array([0, 0, 1, 1, 0, 0])  # 1, 4 and 5 lose their edges to the other type
    assert in_largest_component(table, label).tolist() == [True, True, True, False, False, False]
    assert graph_connectivity(table, label) == pytest.approx((1 / 2 + 1 / 2) / 2)


@pytest.mark.parametrize("name", ["pbmc_3tech_small", "mouse_lung_immune"])
def test_connectivity_is_that_of_scib_metrics(data_dir: Path, name: str) -> None:
    import scib_metrics

    path = data_dir / f"{name}.h5ad"
    _, batch, label = real(path)
    for k in (5, 15):
        table = real_table(path).first(k)
        found = graph_connectivity(table, label)
        assert found == pytest.approx(scib_metrics.graph_connectivity(as_scib(table), label), abs=1e-12)
        assert found != pytest.approx(graph_connectivity(table, batch), abs=0.01)


@given(seed=SEEDS, n_cells=st.integers(1, 40), n_types=st.integers(1, 4), k=st.integers(1, 6))
def test_cells_of_the_largest_component(seed: int, n_cells: int, n_types: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    table, label = nearest_neighbors(rng.normal(size=(n_cells, 2)), k), rng.integers(n_types, size=n_cells)
    inside = in_largest_component(table, label)
    for kind in np.unique(label):
        cells = np.flatnonzero(label == kind)
        edges = [(i, j) for i in cells for j in table.indices[i] if label[j] == kind]
        graph = igraph.Graph(n=n_cells, edges=edges, directed=True)
        component = np.array(graph.connected_components(mode="strong").membership)
        sizes = np.bincount(component[cells])
        own = np.unique(component[cells[inside[cells]]])
        assert len(own) == 1
        assert sizes[own[0]] == sizes.max() == inside[cells].sum()
        assert inside[cells[sizes[component[cells]] == sizes.max()][0]]  # of equal ones that with the first cell


def test_both_ends_of_connectivity() -> None:
    x, _, label = two_types(400, 0)
    assert graph_connectivity(nearest_neighbors(x, 40), label) == 1
    pairs = np.arange(20) // 2 * 10 + np.arange(20) % 2  # every cell's one neighbour is of the other type
    assert graph_connectivity(nearest_neighbors(pairs[:, None], 2), np.arange(20) % 2) == pytest.approx(1 / 10)


def test_a_type_for_each_cell_is_needed() -> None:
    table = nearest_neighbors(np.arange(5.0)[:, None], 3)
    for measure in (graph_connectivity, in_largest_component, best_leiden):
        with pytest.raises(DataError, match="One type is needed for each of 5 cells"):
            measure(table, np.zeros(4, int))


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resolution", [0.4, 2.0])
def test_clusters_are_those_of_scib_metrics(data_dir: Path, resolution: float) -> None:
    from scib_metrics.metrics._nmi_ari import _compute_clustering_leiden

    weights = connectivities(real_table(data_dir / "pbmc_3tech_small.h5ad").first(15))
    for seed in (42, 7):
        expected = _compute_clustering_leiden(weights, resolution, seed)
        np.testing.assert_array_equal(leiden(weights, resolution, seed), expected)


@pytest.mark.parametrize("name", ["pbmc_3tech_small", "mouse_lung_immune"])
def test_the_best_agreement_is_that_of_scib_metrics(data_dir: Path, name: str) -> None:
    import scib_metrics

    path = data_dir / f"{name}.h5ad"
    table, (_, batch, label) = real_table(path).first(15), real(path)
    best, theirs = best_leiden(table, label), scib_metrics.nmi_ari_cluster_labels_leiden(as_scib(table), label)
    assert best.nmi == pytest.approx(theirs["nmi"], abs=1e-3)
    assert best.ari == pytest.approx(theirs["ari"], abs=1e-3)
    assert best.nmi == pytest.approx(normalized_mutual_info_score(label, best.clusters))
    assert best.ari == pytest.approx(adjusted_rand_score(label, best.clusters))
    assert best.nmi > best_leiden(table, batch).nmi + 0.1


def test_no_other_resolution_agrees_better() -> None:
    label = np.arange(300) // 15
    table = nearest_neighbors(np.arange(300.0)[:, None], 15)
    best = best_leiden(table, label, n=5)
    weights = connectivities(table)
    tried = [normalized_mutual_info_score(label, leiden(weights, r)) for r in (0.4, 0.8, 1.2, 1.6, 2.0)]
    assert best.nmi == max(tried) > tried[0]


def test_both_ends_of_agreement() -> None:
    x = np.r_[np.arange(10.0), np.arange(100.0, 110.0)][:, None]
    table = nearest_neighbors(x, 6)
    best = best_leiden(table, np.arange(20) // 10)
    assert (best.nmi, best.ari) == (1, 1)
    best = best_leiden(table, np.arange(20) % 2)
    assert best.nmi < 0.2
    assert best.ari < 0.1


def edges_drawn() -> list[tuple[int, int]]:
    """A random graph of igraph's, from Python's generator seeded with 1."""
    random.seed(1)
    drawn: list[tuple[int, int]] = igraph.Graph.Erdos_Renyi(30, 0.2).get_edgelist()
    return drawn


def test_global_generators_stay_as_they_were() -> None:
    x, _, _ = two_types(200, 0)
    weights = connectivities(nearest_neighbors(x, 15))
    igraph.set_random_number_generator(random)
    before = edges_drawn()
    state = random.getstate()
    clusters = leiden(weights)
    assert random.getstate() == state
    assert edges_drawn() == before
    np.testing.assert_array_equal(leiden(weights), clusters)
    with pytest.raises(TypeError):
        leiden(weights, resolution="high")
    assert edges_drawn() == before  # also after an error


def test_two_cells_have_a_graph() -> None:
    table = Neighbors(np.array([[0, 1], [1, 0]]), np.array([[0, 1], [0, 1]], np.float32))
    np.testing.assert_array_equal(connectivities(table).toarray(), [[0, 1], [1, 0]])
    assert set(leiden(connectivities(table)).tolist()) == {0}
