"""Nearest cells of a reference: those of a search by brute force, and each cell's own, whatever its company."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from cellnorm.transfer._nearby import CHUNK, nearest, other_batches


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 30), st.integers(1, 20))
def test_the_nearest_are_those_of_brute_force(seed: int, n: int, n_points: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    reference, points = rng.normal(size=(n, 4)).astype("f4"), rng.normal(size=(n_points, 4)).astype("f4")
    found, apart = nearest(reference, points, k)
    assert found.shape == apart.shape == (n_points, min(k, n))
    expected, _ = NearestNeighbors(n_neighbors=min(k, n)).fit(reference.astype(float)).kneighbors(points.astype(float))
    np.testing.assert_allclose(apart, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - reference[found], axis=2), apart, atol=1e-5)


def test_ties_are_in_the_order_of_the_reference() -> None:
    reference = np.zeros((4, 3), "f4")
    assert nearest(reference, np.ones((2, 3), "f4"), 3)[0].tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("n", [1, 3, CHUNK + 1])
def test_a_cell_has_the_same_neighbours_alone_and_in_company(n: int) -> None:
    rng = np.random.default_rng(0)
    reference, points = rng.normal(size=(500, 6)).astype("f4"), rng.normal(size=(2 * CHUNK + 5, 6)).astype("f4")
    found, apart = nearest(reference, points, 10)
    with threadpool_limits(limits=2):
        some, some_apart = nearest(reference, points[-n:], 10)
    np.testing.assert_array_equal(some, found[-n:])
    np.testing.assert_array_equal(some_apart, apart[-n:])


def test_far_from_the_origin_distances_stay_exact() -> None:
    reference = (np.arange(50, dtype="f4")[:, None] / 8 + 10_000).astype("f4")
    found, apart = nearest(reference, reference[10:11], 3)
    assert found.tolist() == [[10, 9, 11]]
    np.testing.assert_array_equal(apart, [[0, 0.125, 0.125]])


@given(st.integers(0, 10_000))
def test_neighbours_are_of_other_batches_and_the_nearest_of_those(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, batch = rng.normal(size=(60, 3)).astype("f4"), rng.integers(0, 3, 60)
    batch[:3] = [0, 1, 2]
    found, apart = other_batches(x, batch, 4)
    assert (batch[found] != batch[:, None]).all()
    distance = np.where(batch[:, None] != batch, np.linalg.norm(x[:, None] - x, axis=2), np.inf)
    np.testing.assert_allclose(apart, np.sort(distance, axis=1)[:, :4], atol=1e-5)


def test_there_are_no_more_neighbours_than_other_cells() -> None:
    x = np.arange(10, dtype="f4")[:, None]
    assert other_batches(x, np.array([0] * 8 + [1] * 2), 5)[0].shape == (10, 2)
