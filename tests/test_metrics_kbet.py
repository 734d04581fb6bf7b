"""kBET: SciPy's test cell by cell, scib-metrics' scores per type, both ends, types that cannot be tested."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tables import as_scib, real, real_table, two_types

from cellnorm import DataError
from cellnorm.metrics import accepted_within, connectivities, kbet, kbet_per_label, nearest_neighbors
from cellnorm.metrics.kbet import _diffusion_map

SEEDS = st.integers(0, 10**6)


# -- overall ---------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n_batches=st.integers(2, 5), k=st.integers(2, 30))
def test_each_cell_is_tested_as_scipy_tests_it(seed: int, n_batches: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    table, batch = nearest_neighbors(rng.normal(size=(60, 2)), k), rng.integers(n_batches, size=60)
    found = kbet(table, batch, alpha=0.2)
    everywhere = np.unique(batch, return_counts=True)[1] / 60
    for cell in range(0, 60, 7):
        counts = [(batch[table.indices[cell]] == b).sum() for b in np.unique(batch)]
        expected = scipy.stats.chisquare(counts, everywhere * k)
        assert found.statistic[cell] == pytest.approx(expected.statistic)
        assert found.p[cell] == pytest.approx(expected.pvalue)
        assert found.accepted[cell] == (expected.pvalue >= 0.2)


def test_the_rate_is_that_of_scib_metrics(data_dir: Path) -> None:
    import scib_metrics

    path = data_dir / "pbmc_3tech_small.h5ad"
    table, (_, batch, label) = real_table(path).first(50), real(path)
    for codes in (batch, label):
        rate, statistic, p = scib_metrics.kbet(as_scib(table), codes)
        found = kbet(table, codes)
        assert found.accepted.mean() == pytest.approx(float(rate), abs=1e-3)
        np.testing.assert_allclose(found.statistic, statistic, rtol=1e-4)
        np.testing.assert_allclose(found.p, p, atol=1e-5)


def test_both_ends_of_the_rate() -> None:
    x, batch, _ = two_types(1000, 0)
    # Neighbours overlap, but each test alone holds its level: one in twenty is rejected by chance.
    assert kbet(nearest_neighbors(x, 50), batch).accepted.mean() == pytest.approx(0.95, abs=0.05)
    even = nearest_neighbors(np.arange(400.0)[:, None], 20)
    assert kbet(even, np.arange(400) % 2).accepted.all()
    x, batch, _ = two_types(1000, 1000)
    assert not kbet(nearest_neighbors(x, 50), batch).accepted.any()


def test_one_batch_cannot_be_tested() -> None:
    found = kbet(nearest_neighbors(np.arange(20.0)[:, None], 5), np.zeros(20, int))
    assert np.isnan(found.p).all()
    assert not found.accepted.any()


# -- per type --------------------------------------------------------------------------------------------------------


def at_a_border(weights: Any) -> bool:
    """Whether their score hangs by a hair: the leading eigenvalue, in single precision, may be 1 or not.

    Their iteration starts at random, and finds it to nine digits or so.
    """
    from scib_metrics.utils._diffusion_nn import _compute_transitions

    weights = weights[weights.getnnz(axis=1) > 0][:, weights.getnnz(axis=0) > 0]
    leading = np.linalg.eigvalsh(_compute_transitions(weights).toarray().astype(np.float64))[-1]
    half = np.spacing(np.float32(1)) / np.array([4, 2])  # half the steps below and above 1
    return bool((np.abs(np.array([1 - leading, leading - 1]) - half) < 5e-9).any())


@pytest.mark.parametrize("name", ["pbmc_3tech_small", "mouse_lung_immune"])
def test_scores_per_type_are_those_of_scib_metrics(data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs gets exact neighbours in the diffusion map: the library that it uses compiles for half a minute."""
    import scib_metrics
    from scib_metrics import nearest_neighbors as theirs

    monkeypatch.setattr(theirs, "pynndescent", lambda x, n_neighbors: as_scib(nearest_neighbors(x, n_neighbors)))
    path = data_dir / f"{name}.h5ad"
    table, (_, batch, label) = real_table(path).first(50), real(path)
    expected, frame = scib_metrics.kbet_per_label(as_scib(table), batch, label, return_df=True)
    score, per_label = kbet_per_label(table, batch, label)
    weights = as_scib(table).knn_graph_connectivities
    clear = np.array([not at_a_border(weights[label == kind][:, label == kind]) for kind in np.unique(label)])
    tested = ~np.isnan(per_label)
    assert (clear & tested).sum() >= 3
    np.testing.assert_array_equal(tested, ~frame["kBET"].isna())
    np.testing.assert_allclose(per_label[clear], frame["kBET"][clear], atol=1e-3)
    assert score == pytest.approx(np.nanmean(per_label))
    if clear[tested].all():
        assert score == pytest.approx(expected, abs=1e-3)
    assert score != pytest.approx(kbet_per_label(table, label, batch)[0], abs=1e-2)


def test_both_ends_per_type() -> None:
    x, batch, label = two_types(600, 0)
    assert kbet_per_label(nearest_neighbors(x, 50), batch, label)[0] > 0.85
    x, batch, label = two_types(600, 1000)
    assert kbet_per_label(nearest_neighbors(x, 50), batch, label)[0] < 0.05


def line(n_cells: int, start: float = 0) -> NDArray[np.float64]:
    return (start + np.arange(n_cells))[:, None]


def test_small_types_and_types_in_one_batch_are_left_out() -> None:
    x = np.vstack([line(9), line(30, 1e3), line(40, 2e3)])
    label = np.repeat([0, 1, 2], [9, 30, 40])
    batch = np.where(label == 1, 0, np.arange(79) % 2)
    table = nearest_neighbors(x, 8)
    score, per_label = kbet_per_label(table, batch, label)
    assert np.isnan(per_label).tolist() == [True, True, False]
    assert score == per_label[2]
    np.testing.assert_array_equal(np.isnan(accepted_within(table, batch, label)), label != 2)
    assert np.isnan(kbet_per_label(table, np.zeros(79, int), label)[0])


def test_small_components_are_left_out_up_to_a_quarter() -> None:
    """Neighbourhoods hold 10 cells here, so that a component needs 30."""
    for stray, rejected in ((10, False), (20, True)):
        x = np.vstack([line(40), line(stray, 1e3)])
        accepted = accepted_within(nearest_neighbors(x, 6), np.arange(40 + stray) % 2, np.zeros(40 + stray, int))
        if rejected:
            np.testing.assert_array_equal(accepted, 0)
        else:
            np.testing.assert_array_equal(np.isnan(accepted), np.arange(50) >= 40)
            assert accepted[:40].mean() > 0.9


def test_a_small_type_lowers_the_components_of_those_after_it() -> None:
    """As in scib-metrics, whose scores these are to match: the order of the codes matters."""
    x, batch, label = two_types(400, 0.7, seed=3)
    label = np.where(np.arange(400) < 12, 1, 2 * label)
    x[:12, 1] = -1000
    table = nearest_neighbors(x, 40)
    later = kbet_per_label(table, batch, label)[1]  # types 0, 1 (small), 2
    sooner = kbet_per_label(table, batch, np.array([1, 0, 2])[label])[1]  # the small one first
    assert later[0] != sooner[1]
    assert later[2] == sooner[2]
    few = accepted_within(table, batch, np.array([1, 0, 2])[label], n_components=11)
    assert few[label == 0].mean() == sooner[1]


def test_scores_are_repeatable_and_draw_no_global_number() -> None:
    x, batch, _ = two_types(900, 0.5)
    table, label = nearest_neighbors(x, 50), np.zeros(900, int)  # more cells than are done by dense matrices
    weights, state = connectivities(table), np.random.get_state()[1].tolist()  # noqa: NPY002
    np.testing.assert_array_equal(_diffusion_map(weights, 50), _diffusion_map(weights, 50))
    np.testing.assert_array_equal(accepted_within(table, batch, label), accepted_within(table, batch, label))
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


def test_dense_and_iterated_eigenvectors_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    x, batch, label = two_types(300, 0.5)
    table = nearest_neighbors(x, 50)
    dense = kbet_per_label(table, batch, label)[1]
    monkeypatch.setattr(sys.modules["cellnorm.metrics.kbet"], "DENSE", 0)
    np.testing.assert_allclose(kbet_per_label(table, batch, label)[1], dense, atol=1e-2)


def test_a_batch_and_a_type_for_each_cell_are_needed() -> None:
    table = nearest_neighbors(line(20), 5)
    with pytest.raises(DataError, match="One batch is needed for each of 20 cells"):
        kbet(table, np.zeros(19, int))
    with pytest.raises(DataError, match="One type is needed for each of 20 cells"):
        kbet_per_label(table, np.zeros(20, int), np.zeros(19, int))
