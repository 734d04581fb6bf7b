"""Anchors: mutual nearest neighbours as a loop over all pairs finds them, on a fair sketch."""

from itertools import combinations
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from cellnorm.anchors import Anchors, cosine, find_anchors, level_anchors, sketch, within_batch_distance

SEEDS = st.integers(0, 10**6)


def cells(seed: int, *sizes: int, n_dims: int = 4) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scattered cells of batches of the given sizes, in random order."""
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(size=(len(batch), n_dims)).astype(np.float32), batch


def as_set(pairs: Anchors) -> set[tuple[int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


def by_hand(x: NDArray[Any], batch: NDArray[Any], n_neighbors: int) -> set[tuple[int, int]]:
    """Mutual nearest neighbours, from all distances, one cell at a time."""
    distance = cdist(x.astype(np.float64), x.astype(np.float64))

    def near(cell: int, other: int, k: int) -> set[int]:
        there = [int(i) for i in np.flatnonzero(batch == other)]
        return set(sorted(there, key=lambda i: distance[cell, i])[:k])

    found = set()
    for a, b in combinations(np.unique(batch).tolist(), 2):
        smaller = min((batch == a).sum(), (batch == b).sum())
        k = max(1, min(n_neighbors, ceil(0.1 * smaller)))
        for i in np.flatnonzero(batch == a).tolist():
            found |= {(i, j) for j in near(i, b, k) if i in near(j, a, k)}
    return found


# -- pairs -----------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), n_neighbors=st.integers(1, 8))
def test_pairs_are_those_of_a_loop_over_all_cells(seed: int, sizes: list[int], n_neighbors: int) -> None:
    x, batch = cells(seed, *sizes)
    pairs = find_anchors(x, batch, n_neighbors)
    assert as_set(pairs) == by_hand(x, batch, n_neighbors)
    assert len(pairs) == len(as_set(pairs)) == len(pairs.left) == len(pairs.right)


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_the_left_cell_is_of_the_earlier_batch(seed: int, sizes: list[int]) -> None:
    x, batch = cells(seed, *sizes)
    pairs = find_anchors(x, batch, 5)
    assert (batch[pairs.left] < batch[pairs.right]).all()
    assert (pairs.left.dtype, pairs.right.dtype) == (np.int64, np.int64)


@given(seed=SEEDS)
def test_the_order_of_the_cells_does_not_matter(seed: int) -> None:
    x, batch = cells(seed, 30, 45, 20)
    order = np.random.default_rng(seed).permutation(len(x))
    shuffled = find_anchors(x[order], batch[order], 5)
    assert as_set(Anchors(order[shuffled.left], order[shuffled.right])) == as_set(find_anchors(x, batch, 5))


def test_the_names_of_the_batches_do_not_matter() -> None:
    x, batch = cells(0, 30, 45)
    swapped = find_anchors(x, 1 - batch, 5)
    assert {(j, i) for i, j in as_set(swapped)} == as_set(find_anchors(x, batch, 5))


def test_every_pair_of_batches_is_looked_at() -> None:
    x, batch = cells(0, 30, 30, 30, 30)
    pairs = find_anchors(x, batch, 3)
    assert set(zip(batch[pairs.left], batch[pairs.right], strict=True)) == set(combinations(range(4), 2))


@given(seed=SEEDS, n_types=st.integers(2, 5))
def test_partners_are_of_one_type_where_types_lie_further_apart_than_batches(seed: int, n_types: int) -> None:
    rng = np.random.default_rng(seed)
    kind, batch = rng.integers(0, n_types, 200), rng.integers(0, 2, 200)
    # two types at right angles are 28 apart, two batches 3
    x = 20 * np.eye(n_types)[kind] + 3 * batch[:, None] / np.sqrt(n_types) + rng.normal(0, 0.3, (200, n_types))
    pairs = find_anchors(x.astype(np.float32), batch, 10)
    for t in range(n_types):
        both = min(((kind == t) & (batch == b)).sum() for b in (0, 1))
        if both:
            assert (kind[pairs.left] == t).any()
    present = [set(kind[batch == b]) for b in (0, 1)]
    shared = np.isin(kind[pairs.left], list(present[0] & present[1]))
    assert (kind[pairs.left] == kind[pairs.right])[shared].all()


@pytest.mark.parametrize(("small", "n_neighbors", "partners"), [(1, 20, 1), (10, 20, 1), (30, 20, 3), (300, 20, 20)])
def test_near_means_a_tenth_of_the_smaller_batch_at_most(small: int, n_neighbors: int, partners: int) -> None:
    x, batch = cells(0, small, 400)
    pairs = find_anchors(x, batch, n_neighbors)
    most = max(np.bincount(pairs.left).max(), np.bincount(pairs.right).max())
    assert most == partners


@pytest.mark.parametrize("sizes", [(1, 1), (1, 50), (1, 1, 50), (2, 1)])
def test_a_batch_of_one_cell_has_a_partner(sizes: tuple[int, ...]) -> None:
    x, batch = cells(0, *sizes)
    pairs = find_anchors(x, batch, 20)
    assert pairs.matched(len(x))[batch == sizes.index(1)].all()


def test_cells_at_one_place_are_no_obstacle() -> None:
    batch = np.arange(60) % 3
    pairs = find_anchors(np.zeros((60, 4), np.float32), batch, 5)
    assert (batch[pairs.left] < batch[pairs.right]).all()
    assert np.bincount(pairs.left).max() <= 2 * 2  # two near cells of each of two batches


def test_matched_marks_both_sides_and_no_other_cell() -> None:
    pairs = Anchors(np.array([0, 2, 2]), np.array([4, 4, 5]))
    assert pairs.matched(7).tolist() == [True, False, True, False, True, True, False]
    assert len(pairs) == 3


def test_without_pairs_no_cell_is_matched() -> None:
    nothing = np.empty(0, np.int64)
    assert not Anchors(nothing, nothing).matched(5).any()
    assert len(Anchors(nothing, nothing)) == 0


# -- sketch ----------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 50), min_size=1, max_size=5), size=st.integers(1, 60))
def test_a_sketch_takes_its_number_from_every_batch(seed: int, sizes: list[int], size: int) -> None:
    _, batch = cells(seed, *sizes)
    chosen = sketch(batch, size, np.random.default_rng(seed))
    assert np.bincount(batch[chosen]).tolist() == [min(n, size) for n in sizes]
    assert (np.diff(chosen) > 0).all()  # sorted, and none twice


def test_a_sketch_takes_every_cell_as_often() -> None:
    batch = np.repeat([0, 1], [40, 10])
    rng = np.random.default_rng(0)
    times = np.zeros(50)
    for _ in range(400):
        times[sketch(batch, 10, rng)] += 1
    assert (times[batch == 1] == 400).all()
    assert abs(times[batch == 0] - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_a_sketch_follows_its_generator() -> None:
    batch = np.repeat([0, 1], 100)
    first, again, other = (sketch(batch, 10, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


# -- lengths ---------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3))
def test_cosine_keeps_the_angle_alone(seed: int, scale: float) -> None:
    x, _ = cells(seed, 20)
    unit = cosine(x)
    assert unit.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(cosine(x * np.float32(scale)), unit, atol=1e-5)
    np.testing.assert_allclose(cdist(unit, unit, "sqeuclidean"), 2 * cdist(x, x, "cosine"), atol=1e-5)


def test_cosine_leaves_a_row_of_zeros() -> None:
    assert cosine(np.array([[0, 0], [3, 4]], np.float32)).tolist() == [[0, 0], [np.float32(0.6), np.float32(0.8)]]


def squares_by_hand(x: NDArray[Any], batch: NDArray[Any], k: int) -> float:
    found = []
    for i in range(len(x)):
        own = [float(np.square(x[i] - x[j]).sum()) for j in range(len(x)) if j != i and batch[j] == batch[i]]
        if own:
            found.append(np.mean(sorted(own)[:k]))
    return float(np.median(found))


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 25), min_size=2, max_size=3), k=st.integers(1, 12))
def test_the_distance_within_batches_is_that_of_a_loop(seed: int, sizes: list[int], k: int) -> None:
    x, batch = cells(seed, *sizes, 3)
    assert within_batch_distance(x, batch, k) == pytest.approx(squares_by_hand(x, batch, k), rel=1e-4)


@given(seed=SEEDS, factor=st.floats(0.01, 100))
def test_the_distance_within_batches_is_a_square_and_blind_to_batch_effects(seed: int, factor: float) -> None:
    x, batch = cells(seed, 30, 30)
    plain = within_batch_distance(x, batch)
    assert within_batch_distance(np.float32(factor) * x, batch) == pytest.approx(factor**2 * plain, rel=1e-3)
    assert within_batch_distance(x + 8 * batch[:, None].astype(np.float32), batch) == pytest.approx(plain, rel=1e-3)


def test_without_a_distance_the_unit_is_one() -> None:
    x, _ = cells(0, 3)
    assert within_batch_distance(x, np.arange(3)) == 1
    assert within_batch_distance(np.ones((20, 4), np.float32), np.arange(20) % 2) == 1


def test_exact_search_agrees_with_a_tree() -> None:
    x, batch = cells(0, 200, 200)
    a, b = np.flatnonzero(batch == 0), np.flatnonzero(batch == 1)
    to_b = NearestNeighbors(n_neighbors=7, algorithm="kd_tree").fit(x[b]).kneighbors(x[a], return_distance=False)
    to_a = NearestNeighbors(n_neighbors=7, algorithm="kd_tree").fit(x[a]).kneighbors(x[b], return_distance=False)
    expected = {(int(a[i]), int(b[j])) for i in range(len(a)) for j in to_b[i] if i in to_a[j]}
    assert as_set(find_anchors(x, batch, 7)) == expected


# -- several covariates ----------------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_anchors_of_levels_are_those_of_each_covariate(seed: int) -> None:
    x, _ = cells(seed, 90)
    levels = np.random.default_rng(seed).integers(0, [3, 2], (90, 2))
    pairs = level_anchors(x, levels, 5)
    expected = {frozenset(pair) for column in levels.T for pair in as_set(find_anchors(x, column, 5))}
    assert {frozenset(pair) for pair in as_set(pairs)} == expected
    assert len(pairs) == len(expected)  # a pair that both covariates find is there once
    assert (levels[pairs.left] != levels[pairs.right]).any(1).all()


def test_anchors_of_one_covariate_are_the_same_in_the_same_order() -> None:
    x, batch = cells(0, 30, 45, 20)
    one, other = level_anchors(x, batch[:, None], 5), find_anchors(x, batch, 5)
    assert one.left.tolist() == other.left.tolist()
    assert one.right.tolist() == other.right.tolist()
