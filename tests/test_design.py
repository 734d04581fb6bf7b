"""How two columns lie to each other, and which kinds of cells batches seem to lack."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats.contingency import association

from cellnorm.design import cramers_v, lacking, matched_clusters, relation


def test_cramers_v_by_hand() -> None:
    a = np.repeat([0, 0, 1, 1], [30, 10, 10, 30])
    b = np.repeat([0, 1, 0, 1], [30, 10, 10, 30])
    phi = 0.25 - 1 / 79  # (30 * 30 - 10 * 10)² / 40⁴, less its bias
    assert cramers_v(a, b) == pytest.approx(np.sqrt(phi / (2 - 1 / 79 - 1)))


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(2, 6))
def test_cramers_v_is_symmetric_bounded_and_near_scipys(seed: int, n_a: int, n_b: int) -> None:
    rng = np.random.default_rng(seed)
    a = rng.integers(0, n_a, 2000)
    b = np.where(rng.random(2000) < 0.5, a % n_b, rng.integers(0, n_b, 2000))
    v = cramers_v(a, b)
    assert 0 <= v <= 1
    assert v == pytest.approx(cramers_v(b, a))
    table = np.histogram2d(a, b, [n_a, n_b])[0].astype(int)
    assert v == pytest.approx(association(table, method="cramer"), abs=0.03)


def test_cramers_v_of_noise_is_near_zero_whatever_the_levels() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 40, (2, 500))
    assert association(np.histogram2d(a, b, [40, 40])[0].astype(int), method="cramer") > 0.25  # without the correction
    assert cramers_v(a, b) < 0.1
    assert cramers_v(a, np.zeros(500, int)) == 0


BATCH = np.repeat([0, 1, 2, 3], 25)


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (3 - BATCH, "same"),
        (BATCH // 2, "nested"),
        (np.arange(100) // 5, "nests"),
        (np.arange(100) % 5, "crossed"),
        (np.where(BATCH < 2, 0, np.arange(100) % 2), "partly"),
    ],
)
def test_relations(other: np.ndarray, found: str) -> None:
    assert relation(BATCH, other) == found
    stray = np.tile(BATCH, 10), np.tile(other, 10)
    stray[1][0] = other.max()  # one cell in a thousand breaks no rule
    assert relation(*stray) == found


def test_swapping_the_columns_swaps_nested_and_nests() -> None:
    assert relation(BATCH, BATCH // 2) == "nested"
    assert relation(BATCH // 2, BATCH) == "nests"


def test_a_batch_that_lacks_a_cluster_is_named() -> None:
    clusters = np.tile(np.repeat([0, 1, 2], [60, 30, 10]), 3)
    batch = np.repeat([0, 1, 2], 100)
    kept = ~((clusters == 1) & (batch == 2))
    assert np.argwhere(lacking(clusters[kept], batch[kept])).tolist() == [[2, 1]]


def test_nothing_is_lacking_where_few_cells_are_expected_or_one_batch_is_special() -> None:
    clusters, batch = np.tile(np.repeat([0, 1], [92, 8]), 3), np.repeat([0, 1, 2], 100)
    kept = ~((clusters == 1) & (batch == 2))
    assert not lacking(clusters[kept], batch[kept]).any()  # eight cells expected
    special = np.where((batch == 0) & (np.arange(300) % 2 == 0), 2, clusters)
    assert not lacking(special, batch)[1:, 2].any()  # cluster 2 is in batch 0 alone


@given(st.integers(0, 1000))
def test_chance_makes_no_batch_lack_anything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    assert not lacking(rng.choice(5, 600, p=[0.4, 0.3, 0.2, 0.05, 0.05]), rng.integers(0, 4, 600)).any()


def test_clusters_mean_the_same_in_shifted_batches() -> None:
    rng = np.random.default_rng(0)
    kinds, batch = rng.integers(0, 4, 800), rng.integers(0, 2, 800)
    x = rng.normal(0, 5, (4, 8))[kinds] + rng.normal(size=(800, 8)) + np.array([[0.0], [4.0]])[batch]
    present = ~((kinds == 3) & (batch == 1))
    x, kinds, batch = x[present], kinds[present], batch[present]
    clusters = matched_clusters(x, batch, 0)
    lacks = lacking(clusters, batch)
    assert not lacks[0].any()
    assert lacks[1].any()
    for cluster in np.flatnonzero(lacks[1]):
        assert (kinds[clusters == cluster] == 3).mean() > 0.9
    np.testing.assert_array_equal(clusters, matched_clusters(x, batch, 0))
