"""Mixing: hand-worked neighbourhoods, both ends of each range, scib-metrics and SCALEX as oracles."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors
from tables import as_scib, real, real_table, two_types

from cellnorm import DataError
from cellnorm.metrics import (
    Neighbors,
    cilisi,
    clisi,
    entropy,
    entropy_scalex,
    ilisi,
    lisi_within,
    nearest_neighbors,
)

SEEDS = st.integers(0, 10**6)


def everyone(n_cells: int) -> Neighbors:
    """A table in which all cells are neighbours of each, at distances 1, 2, ..."""
    indices = np.array([np.roll(np.arange(n_cells), -i) for i in range(n_cells)])
    return Neighbors(indices, np.tile(np.arange(n_cells, dtype=np.float32), (n_cells, 1)))


# -- entropy ---------------------------------------------------------------------------------------------------------


def test_a_neighborhood_worked_by_hand() -> None:
    batch = np.array([0, 0, 0, 0, 1, 2])  # cell 0 sees 3 cells of batch 0, one of 1, one of 2
    shares = np.array([3, 1, 1]) / 5
    assert entropy(everyone(6), batch)[0] == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    adjusted = shares / (np.array([4, 1, 1]) / 6)
    adjusted /= adjusted.sum()
    expected = -(adjusted * np.log(adjusted)).sum() / np.log(3)
    assert entropy(everyone(6), batch, adjust=True)[0] == pytest.approx(expected)


@given(seed=SEEDS, n_batches=st.integers(1, 4), n_types=st.integers(1, 3), adjust=st.booleans())
def test_entropy_is_that_of_a_loop(seed: int, n_batches: int, n_types: int, adjust: bool) -> None:
    rng = np.random.default_rng(seed)
    x, batch, kind = rng.normal(size=(40, 2)), rng.integers(n_batches, size=40), rng.integers(n_types, size=40)
    table = nearest_neighbors(x, 9)
    found = entropy(table, batch, within=kind, adjust=adjust)
    for cell in range(40):
        own = kind == kind[cell]
        there, of_type = np.unique(batch[own], return_counts=True)
        near = [i for i in table.indices[cell, 1:] if own[i]]
        counts = np.array([(batch[near] == b).sum() for b in there]) / (of_type if adjust else 1)
        if len(there) > 1 and near:
            assert found[cell] == pytest.approx(scipy.stats.entropy(counts) / np.log(len(there)), abs=1e-12)
        else:
            assert np.isnan(found[cell])


@pytest.mark.parametrize("options", [{}, {"adjust": True}, {"within": True}, {"within": True, "adjust": True}])
def test_both_ends_of_entropy(options: dict[str, Any]) -> None:
    for shift, low, high in ((0, 0.97, 1), (1000, 0, 0)):
        x, batch, label = two_types(1500, shift)
        given = options | ({"within": label} if "within" in options else {})
        found = entropy(nearest_neighbors(x, 60), batch, **given)
        assert low <= found.mean() <= high
        assert found.min() >= 0
        assert found.max() <= 1


def test_only_adjusted_entropy_forgives_unequal_batches() -> None:
    x, _, _ = two_types(3000, 0)
    batch = (np.arange(3000) % 10 == 0).astype(int)
    table = nearest_neighbors(x, 90)
    assert entropy(table, batch).mean() == pytest.approx(scipy.stats.entropy([0.9, 0.1]) / np.log(2), abs=0.05)
    assert entropy(table, batch, adjust=True).mean() > 0.9


def test_entropy_within_a_type_sees_no_other_type() -> None:
    """Batches hold the types in unequal shares: every type is mixed, the whole is not."""
    x, _, label = two_types(2000, 0)
    batch = np.where(np.random.default_rng(1).random(2000) < 0.1 + 0.8 * label, 1, 0)
    table = nearest_neighbors(x, 60)
    plain, within = entropy(table, batch, adjust=True), entropy(table, batch, within=label, adjust=True)
    assert plain.mean() < 0.6 < 0.9 < within.mean()


def test_entropy_without_meaning_is_nan() -> None:
    table = everyone(6)
    assert np.isnan(entropy(table, np.zeros(6, int))).all()
    within = entropy(table, np.array([0, 1, 0, 1, 0, 0]), within=np.array([0, 0, 0, 0, 1, 1]))
    assert np.isnan(within).tolist() == [False] * 4 + [True] * 2  # the second type is in one batch
    assert np.isnan(entropy(table.first(1), np.arange(6) % 2)).all()


def test_swapped_arguments_give_other_numbers() -> None:
    x, batch, label = two_types(800, 0)
    table = nearest_neighbors(x, 30)
    assert entropy(table, batch).mean() > 0.9 > 0.1 > entropy(table, label).mean()
    assert ilisi(table, batch) > 0.7 > 0.1 > ilisi(table, label)
    assert clisi(table, label) > 0.9 > 0.3 > clisi(table, batch)
    assert cilisi(x, batch, label) != pytest.approx(cilisi(x, label, batch), abs=0.1)
    assert np.nanmean(entropy(table, batch, within=label)) > 0.9 > np.nanmean(entropy(table, label, within=batch))


def test_a_batch_for_each_cell_is_needed() -> None:
    with pytest.raises(DataError, match="One batch is needed for each of 6 cells"):
        entropy(everyone(6), np.zeros(5, int))
    with pytest.raises(DataError, match="One type is needed for each of 6 cells"):
        entropy(everyone(6), np.zeros(6, int), within=np.zeros(5, int))


# -- SCALEX ----------------------------------------------------------------------------------------------------------


def scalex_by_hand(x: NDArray[Any], batch: NDArray[Any], drawn: NDArray[Any], k: int) -> float:
    """The formula cell by cell, with its natural and its binary logarithm."""
    near = NearestNeighbors(n_neighbors=k).fit(x).kneighbors(return_distance=False)
    everywhere = np.bincount(batch) / len(batch)
    score = 0.0
    for cell in drawn:
        shares = np.bincount(batch[near[cell]], minlength=len(everywhere)) / k
        adjusted = shares / everywhere
        adjusted /= adjusted.sum()
        score -= (adjusted * np.log(adjusted + 1e-8)).sum()
    return score / len(drawn) / np.log2(len(everywhere))


def test_the_score_of_scalex() -> None:
    x, _, _ = two_types(500, 0)
    batch = np.random.default_rng(3).choice(3, 500, p=[0.6, 0.3, 0.1])
    drawn = np.random.default_rng(5).integers(500, size=7 * 11)
    found = entropy_scalex(x, batch, n_pools=7, n_cells=11, k=20, random_state=5)
    assert found == pytest.approx(scalex_by_hand(x.astype(np.float64), batch, drawn, 20), abs=1e-6)
    assert found != entropy_scalex(x, batch, n_pools=7, n_cells=11, k=20, random_state=6)


def test_both_ends_of_the_score_of_scalex() -> None:
    x, batch, _ = two_types(2000, 0)
    assert entropy_scalex(x, batch) == pytest.approx(np.log(2), abs=0.01)
    x, batch, _ = two_types(2000, 1000)
    assert entropy_scalex(x, batch) == 0
    assert np.isnan(entropy_scalex(x, np.zeros(2000, int)))


# -- LISI ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pbmc_3tech_small", "mouse_lung_immune"])
def test_scores_of_lisi_are_those_of_scib_metrics(data_dir: Path, name: str) -> None:
    import scib_metrics

    path = data_dir / f"{name}.h5ad"
    table = real_table(path)
    _, batch, label = real(path)
    assert ilisi(table, batch) == pytest.approx(scib_metrics.ilisi_knn(as_scib(table), batch), abs=1e-4)
    assert clisi(table, label) == pytest.approx(scib_metrics.clisi_knn(as_scib(table), label), abs=1e-4)
    assert ilisi(table, batch, 10) == pytest.approx(scib_metrics.ilisi_knn(as_scib(table), batch, 10), abs=1e-4)


def test_both_ends_of_lisi() -> None:
    x, batch, label = two_types(1500, 0)
    table = nearest_neighbors(x, 90)
    assert ilisi(table, batch) > 0.9
    assert clisi(table, label) == pytest.approx(1, abs=1e-6)
    assert clisi(table, batch) < 0.1
    assert ilisi(table, label) == pytest.approx(0, abs=1e-6)


def test_one_batch_or_type_has_no_score() -> None:
    assert np.isnan(ilisi(everyone(6), np.zeros(6, int)))
    assert np.isnan(clisi(everyone(6), np.zeros(6, int)))


def test_cilisi_is_the_lisi_of_each_type_alone(data_dir: Path) -> None:
    from scib_metrics import lisi_knn

    x, batch, label = real(data_dir / "pbmc_3tech_small.h5ad")
    found = lisi_within(x, batch, label)
    for kind in np.argsort(np.bincount(label))[-2:]:  # theirs is compiled for each size anew
        cells = np.flatnonzero(label == kind)
        n_batches = len(np.unique(batch[cells]))
        assert n_batches > 1
        expected = lisi_knn(as_scib(nearest_neighbors(x[cells], 90)), batch[cells])
        np.testing.assert_allclose(found[cells], (expected - 1) / (n_batches - 1), atol=1e-3)
    assert cilisi(x, batch, label) == pytest.approx(np.nanmean(found))


def test_both_ends_of_cilisi() -> None:
    x, batch, label = two_types(1500, 0)
    assert cilisi(x, batch, label) > 0.85  # neighbours are a sample: some 30 of them weigh
    x, batch, label = two_types(1500, 1000)
    assert cilisi(x, batch, label) == pytest.approx(0, abs=1e-6)


def test_cilisi_counts_the_batches_that_hold_the_type() -> None:
    """The second type is in two of three batches, mixed: that is all it can be."""
    x, _, label = two_types(1200, 0)
    rng = np.random.default_rng(2)
    batch = np.where(label == 1, rng.integers(2, size=1200), rng.integers(3, size=1200))
    assert lisi_within(x, batch, label)[label == 1].mean() > 0.85


def test_types_too_small_or_in_one_batch_have_no_cilisi() -> None:
    x, batch, _ = two_types(60, 0)
    label = np.r_[np.zeros(9, int), np.ones(10, int), np.full(41, 2)]
    batch[label == 2] = 0
    batch[:19] = np.arange(19) % 2
    found = lisi_within(x, batch, label)
    assert np.isnan(found).tolist() == [True] * 9 + [False] * 10 + [True] * 41
    assert cilisi(x, batch, label) == pytest.approx(found[9:19].mean())
    assert np.isnan(cilisi(x[:9], batch[:9], label[:9]))
