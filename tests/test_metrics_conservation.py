"""What is kept within batches: against brute force and SciPy, and at both ends."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from neighborhoods import neighbors
from scipy.stats import spearmanr

from cellnorm.metrics.conservation import (
    distance_correlation,
    distance_moments,
    moments_correlation,
    neighbor_overlap,
)


def cells(seed: int = 0, n: int = 150) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 5)).astype(np.float32), rng.integers(2, size=n)


@given(st.integers(0, 1000), st.integers(1, 12))
def test_overlap_is_what_brute_force_finds(seed: int, k: int) -> None:
    before, batch = cells(seed, 80)
    after = before + np.random.default_rng(seed).normal(size=before.shape)
    ours = neighbor_overlap(before, after, batch, k=k)
    for code in (0, 1):
        rows = np.flatnonzero(batch == code)
        was, now = neighbors(before[rows], k), neighbors(after[rows].astype(np.float32), k)
        shared = [len(set(a) & set(b)) / k for a, b in zip(was, now, strict=True)]
        np.testing.assert_allclose(ours[rows], shared)


def test_batches_moved_as_they_are_keep_everything() -> None:
    x, batch = cells()
    moved = -2 * x[:, ::-1] + np.array([[0.0], [50.0]])[batch]
    assert (neighbor_overlap(x, moved, batch) == 1).all()
    assert distance_correlation(x, moved, batch) == pytest.approx(1)
    assert (neighbor_overlap(x, moved, np.zeros_like(batch)) < 1).any()  # of all cells they do not


def test_without_relation_little_is_kept() -> None:
    x, batch = cells(0, 1000)
    other, _ = cells(1, 1000)
    assert neighbor_overlap(x, other, batch).mean() == pytest.approx(15 / 499, abs=0.01)
    assert abs(distance_correlation(x, other, batch)) < 0.05


def test_both_ends_of_the_correlation() -> None:
    line = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    turned = np.array([[0.0, 0.0], [0.5, 3.75**0.5], [1.0, 0.0]])  # the two far ones are near, the near ones far
    one = np.zeros(3, int)
    assert distance_correlation(line, turned, one) == pytest.approx(-1)
    assert distance_correlation(line, 2 * line, one) == pytest.approx(1)
    assert np.isnan(distance_correlation(line, np.ones((3, 2)), one))  # all cells in one place


def test_the_correlation_is_spearmans() -> None:
    before, _ = cells(3, 60)
    after = before + 0.5 * np.random.default_rng(0).normal(size=before.shape)
    pairs = [np.linalg.norm(x[:, None] - x[None], axis=2)[np.triu_indices(60, 1)] for x in (before, after)]
    ours = distance_correlation(before, after, np.zeros(60, int))
    assert ours == pytest.approx(spearmanr(*pairs).statistic, abs=0.05)


def test_batches_weigh_as_many_cells_as_they_have() -> None:
    before, _ = cells(0, 120)
    other, _ = cells(1, 120)
    batch = np.repeat([0, 1], [90, 30])
    half = np.where(batch[:, None] == 0, before, other)  # the large one is kept, the small one is not
    assert distance_correlation(before, half, batch) == pytest.approx(0.75, abs=0.06)


def test_small_batches() -> None:
    x, _ = cells(0, 20)
    batch = np.repeat([0, 1, 2], [15, 3, 2])
    kept = neighbor_overlap(x, x, batch)
    assert (kept[:18] == 1).all()
    assert np.isnan(kept[18:]).all()
    assert distance_correlation(x, x, batch) == pytest.approx(1)
    assert np.isnan(distance_correlation(x[:4], x[:4], np.array([0, 0, 1, 1])))


def test_a_seed_gives_the_same_pairs_and_resamples_the_same_ranks() -> None:
    before, batch = cells()
    after = before + np.random.default_rng(7).normal(size=before.shape)
    moments = distance_moments(before, after, batch, random_state=1)
    np.testing.assert_array_equal(moments, distance_moments(before, after, batch, random_state=1))
    assert not np.array_equal(moments, distance_moments(before, after, batch, random_state=2))
    everyone = np.arange(len(batch))
    whole = distance_correlation(before, after, batch, random_state=1)
    assert moments_correlation(moments, batch, cells=everyone) == whole
    assert moments_correlation(moments, batch, cells=np.r_[everyone, everyone]) == pytest.approx(whole)
    assert moments_correlation(moments, batch, cells=everyone[:50]) != whole
