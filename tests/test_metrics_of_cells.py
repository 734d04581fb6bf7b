"""Scores as functions of cells: on all cells they are the scores themselves, on some those of these cells."""

import numpy as np
import pytest

from cellnorm.errors import DataError
from cellnorm.metrics.conservation import distance_correlation
from cellnorm.metrics.graph import best_leiden, graph_connectivity
from cellnorm.metrics.kbet import kbet, kbet_per_label
from cellnorm.metrics.mixing import cilisi, clisi, ilisi
from cellnorm.metrics.neighbors import nearest_neighbors
from cellnorm.metrics.of_cells import of_batches, of_change, of_types
from cellnorm.metrics.variance import pcr_comparison

RNG = np.random.default_rng(0)
N = 240
LABEL, BATCH = RNG.integers(3, size=N), RNG.integers(2, size=N)
BEFORE = (RNG.normal(size=(N, 5)) + RNG.normal(size=(3, 5))[LABEL] + 2 * BATCH[:, None]).astype(np.float32)
X = (BEFORE - 1.5 * BATCH[:, None] + 0.5 * RNG.normal(size=(N, 5))).astype(np.float32)
EVERYONE = np.arange(N)
NEIGHBORS = nearest_neighbors(X, 90)


def test_on_all_cells_they_are_the_scores() -> None:
    found = {name: of(EVERYONE) for name, of in of_batches(NEIGHBORS, BATCH).items()}
    assert found["iLISI"] == pytest.approx(ilisi(NEIGHBORS, BATCH))
    assert found["KBET overall"] == kbet(NEIGHBORS.first(50), BATCH).accepted.mean()
    found = {name: of(EVERYONE) for name, of in of_change(X, BEFORE, BATCH, 0, "cpu").items()}
    assert found["PCR comparison"] == pcr_comparison(BEFORE, X, BATCH)
    assert found["Distances kept"] == distance_correlation(BEFORE, X, BATCH)
    found = {name: of(EVERYONE) for name, of in of_types(X, BATCH, LABEL, NEIGHBORS, "cpu").items()}
    best = best_leiden(NEIGHBORS.first(15), LABEL)
    assert (found["Leiden NMI"], found["Leiden ARI"]) == pytest.approx((best.nmi, best.ari))
    assert found["cLISI"] == pytest.approx(clisi(NEIGHBORS, LABEL))
    assert found["CiLISI"] == pytest.approx(cilisi(X, BATCH, LABEL))
    assert found["KBET"] == pytest.approx(kbet_per_label(NEIGHBORS.first(50), BATCH, LABEL)[0])
    assert found["Graph connectivity"] == pytest.approx(graph_connectivity(NEIGHBORS.first(15), LABEL))


def test_on_some_cells_they_are_scores_of_these() -> None:
    some = np.flatnonzero(LABEL == 1)
    metrics = of_batches(NEIGHBORS, BATCH) | of_change(X, BEFORE, BATCH, 0, "cpu")
    metrics |= of_types(X, BATCH, LABEL, NEIGHBORS, "cpu")
    for name, metric in metrics.items():
        if name not in ("Graph connectivity", "Isolated labels", "Neighbors kept"):  # some are the same everywhere
            assert metric(some) != metric(EVERYONE), name
        assert metric(np.tile(some, 3)) == pytest.approx(metric(some)), name
    assert np.isnan(metrics["BRAS"](np.empty(0, int)))
    assert np.isnan(metrics["cLISI"](np.empty(0, int)))


def test_cells_of_unknown_type_are_as_if_they_were_not_there() -> None:
    known = RNG.random(N) < 0.7
    label = np.where(known, LABEL, -1)
    found = of_types(X, BATCH, label, NEIGHBORS, "cpu")
    alone = of_types(X[known], BATCH[known], LABEL[known], nearest_neighbors(X[known], 90), "cpu")
    for name, metric in alone.items():
        assert found[name](EVERYONE) == pytest.approx(metric(np.arange(known.sum()))), name
        assert found[name](np.r_[EVERYONE, np.flatnonzero(~known)]) == pytest.approx(found[name](EVERYONE)), name


def test_one_type_has_no_scores_of_types_apart() -> None:
    found = of_types(X, BATCH, np.zeros(N, int), NEIGHBORS, "cpu")
    assert set(found) == {
        "BRAS",
        "KBET",
        "Graph connectivity",
        "CiLISI",
        "Batch entropy within types",
        "Silhouette batch",
    }


def test_what_is_no_label_is_refused() -> None:
    with pytest.raises(DataError, match="the type of none of the 240 cells is known"):
        of_types(X, BATCH, np.full(N, -1), NEIGHBORS, "cpu")
    with pytest.raises(DataError, match="One type is needed for each of 240 cells"):
        of_types(X, BATCH, LABEL[:-1], NEIGHBORS, "cpu")
    with pytest.raises(DataError, match="integer codes"):
        of_types(X, BATCH, LABEL.astype(str), NEIGHBORS, "cpu")
