"""LISI: as scib-metrics has it, as SciPy's root finder has it, and where neighbours tie."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import entropy
from tables import as_scib, real, real_table

from cellnorm import DataError
from cellnorm.metrics import Neighbors, lisi, nearest_neighbors

SEEDS = st.integers(0, 10**6)


@pytest.mark.parametrize("perplexity", [None, 10, 55.5])
def test_lisi_is_that_of_scib_metrics(data_dir: Path, perplexity: float | None) -> None:
    from scib_metrics import lisi_knn

    path = data_dir / "pbmc_3tech_small.h5ad"
    table = real_table(path)
    # With a small perplexity their weights vanish in single precision. Distances beyond that to the nearest neighbour
    # have the same weights, up to a factor.
    beyond = np.maximum(table.distances - (table.distances[:, 1:2] if perplexity == 10 else 0), 0)
    theirs = as_scib(Neighbors(table.indices, beyond))
    _, batch, label = real(path)
    for codes in (batch, label):
        np.testing.assert_allclose(lisi(table, codes, perplexity), lisi_knn(theirs, codes, perplexity), rtol=1e-4)


def with_a_root_finder(distances: np.ndarray, codes: np.ndarray, perplexity: float) -> float:
    """LISI of one cell from the distances and codes of its neighbours, the bandwidth by Brent's method."""

    def weights(log_beta: float) -> np.ndarray:
        weight = np.exp(-np.exp(log_beta) * (distances - distances.min()))
        return weight / weight.sum()

    root = brentq(lambda s: entropy(weights(s)) - np.log(perplexity), -30, 30, xtol=1e-12)
    return 1 / np.square(np.bincount(codes, weights(root))).sum()


@given(seed=SEEDS, k=st.integers(5, 40), share=st.floats(0.1, 0.9), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_weights_have_the_perplexity_asked_for(seed: int, k: int, share: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    table = nearest_neighbors(rng.normal(size=(60, 3)) * scale, k)
    codes = rng.integers(3, size=60)
    perplexity = 1 + share * (k - 2)
    found = lisi(table, codes, perplexity)
    distances = table.distances.astype(np.float64) / scale
    for cell in range(5):
        expected = with_a_root_finder(distances[cell, 1:], codes[table.indices[cell, 1:]], perplexity)
        assert found[cell] == pytest.approx(expected, rel=1e-3)


def test_weights_of_a_steep_neighborhood() -> None:
    """Twenty cells close by, seventy far off: the entropy hardly changes over a wide range of bandwidths."""
    distances = np.concatenate([[0], np.linspace(1e-4, 2e-4, 20), np.linspace(1e3, 1.001e3, 69)]).astype(np.float32)
    table = Neighbors(np.tile(np.arange(90), (90, 1)), np.tile(distances, (90, 1)))
    codes = np.arange(90) % 2
    expected = with_a_root_finder(distances[1:].astype(np.float64), codes[1:], 30)
    np.testing.assert_allclose(lisi(table, codes, 30), expected, rtol=1e-4)


def test_cells_in_one_place_weigh_alike() -> None:
    table = nearest_neighbors(np.zeros((12, 2)), 12)
    codes = np.array([0] * 6 + [1] * 6)
    np.testing.assert_allclose(lisi(table, codes), 121 / (25 + 36))


def test_ties_at_the_nearest_place_take_all_weight() -> None:
    """Where more neighbours tie than the perplexity asks for, they alone count."""
    x = np.r_[np.zeros(11), np.full(9, 5.0)][:, None]
    table = nearest_neighbors(x, 20)
    codes = np.r_[np.arange(11) % 2, np.full(9, 2)]
    assert lisi(table, codes, 3)[0] == pytest.approx(100 / (25 + 25), rel=1e-6)


def test_more_than_all_neighbors_weigh_alike() -> None:
    table = nearest_neighbors(np.arange(11.0)[:, None], 11)
    codes = np.array([0] * 5 + [1] * 6)
    assert lisi(table, codes, 50)[0] == pytest.approx(100 / (16 + 36), rel=1e-6)


def test_one_neighbor_and_none() -> None:
    table = nearest_neighbors(np.arange(6.0)[:, None], 2)
    np.testing.assert_array_equal(lisi(table, np.arange(6) % 2), 1)
    assert np.isnan(lisi(table.first(1), np.arange(6) % 2)).all()


def test_both_ends() -> None:
    x = np.arange(200.0)[:, None]
    table = nearest_neighbors(x, 41)
    np.testing.assert_allclose(lisi(table, np.arange(200) // 200), 1)
    middle = lisi(table, np.arange(200) % 2, 39.5)[30:-30]  # nearly even weights, every other cell
    assert (middle > 1.98).all()
    assert (middle <= 2).all()


def test_a_third_of_the_neighbors_weigh_by_default() -> None:
    table = nearest_neighbors(np.random.default_rng(0).normal(size=(100, 3)), 32)
    codes = np.arange(100) % 3
    np.testing.assert_array_equal(lisi(table, codes), lisi(table, codes, 10))
    assert (lisi(table, codes) != lisi(table, codes, 11)).any()


def test_a_perplexity_below_one_is_refused() -> None:
    table = nearest_neighbors(np.arange(6.0)[:, None], 4)
    with pytest.raises(DataError, match=r"perplexity of 0\.5 was asked for"):
        lisi(table, np.zeros(6, int), 0.5)
