"""Clusters of a batch, and how two groups of cells lie to each other."""

import numpy as np
import pytest
import torch
from clouds import clouds
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from cellnorm.anchors import find_anchors
from cellnorm.clusters import aligned, blocks, distances, mutual, near, own_clusters, side_by_side

SEEDS = st.integers(0, 10**6)


def cells(n: int, seed: int = 0, n_dims: int = 5) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, n_dims)).astype(np.float32)


def lie_apart(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """`side_by_side` of two groups of cells."""
    return side_by_side(distances(np.concatenate([a, b])), np.arange(len(a)), len(a) + np.arange(len(b)))


# -- distances and neighbours ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_blocks_are_where_the_batches_lie(sizes: list[int]) -> None:
    batch = np.repeat(np.arange(len(sizes)), sizes)
    parts = blocks(batch)
    assert [set(batch[part].tolist()) for part in parts] == [{b} for b in range(len(sizes))]
    assert [part.stop - part.start for part in parts] == sizes


def test_distances_are_those_of_scipy_wherever_the_cells_lie() -> None:
    x = cells(80)
    np.testing.assert_allclose(distances(x).numpy(), cdist(x, x), atol=2e-3)
    np.testing.assert_allclose(distances(x + 1000).numpy(), cdist(x, x), atol=5e-3)


def test_near_gives_the_nearest_first_and_not_the_cell_itself() -> None:
    apart = distances(np.array([[0.0], [1.0], [3.0], [3.0]], np.float32))
    before = apart.clone()
    assert near(apart, 2)[:2].tolist() == [[0, 1], [1, 0]]
    assert near(apart, 1, own=True).tolist() == [[1], [0], [3], [2]]  # cells at one place see each other
    assert torch.equal(apart, before)
    assert near(apart, 99).shape == (4, 4)
    assert near(apart, 99, own=True).shape == (4, 3)
    assert near(apart[:1, :1], 5, own=True).shape == (1, 1)  # a batch of one cell


# -- mutual neighbours -----------------------------------------------------------------------------------------------


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), n_neighbors=st.integers(1, 10))
def test_mutual_neighbours_are_the_anchors(seed: int, sizes: list[int], n_neighbors: int) -> None:
    x, batch = cells(sum(sizes), seed), np.repeat(np.arange(len(sizes)), sizes)
    found = mutual(torch.from_numpy(cdist(x, x)), blocks(batch), n_neighbors).numpy()
    anchors = find_anchors(x, batch, n_neighbors)
    assert set(zip(*np.nonzero(np.triu(found)), strict=True)) == set(zip(anchors.left, anchors.right, strict=True))
    np.testing.assert_array_equal(found, found.T)
    assert not found[batch[:, None] == batch].any()


# -- the common offset -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_common_offset_goes_although_a_batch_lacks_a_type(seed: int) -> None:
    """The second batch is the first, less a type, moved: what is left of the move is the shrinkage of few anchors."""
    first = clouds([[40] * 6], seed).truth
    kind, offset = np.repeat(np.arange(6), 40), np.random.default_rng(seed).normal(size=10).astype(np.float32) * 3
    there = kind != 5
    batch = np.repeat([0, 1], [len(first), there.sum()])
    x = np.concatenate([first, first[there] + offset])
    before = x.copy()
    found, apart = aligned(x, batch, 20)
    left = found[: len(first)][there] - found[len(first) :]
    assert np.abs(left).max() < 0.1 * np.abs(offset).max()
    means = np.abs(x[batch == 0].mean(0) - x[batch == 1].mean(0) + offset).max()
    assert np.abs(left).max() < means  # which is what centring each batch would leave
    for b in (0, 1):  # one move for all cells of a batch
        assert np.ptp((x - found)[batch == b], axis=0).max() < 1e-3
    np.testing.assert_allclose(apart.numpy(), cdist(found, found), atol=0.02)
    np.testing.assert_array_equal(x, before)


def test_types_of_one_batch_each_do_not_pull_the_others() -> None:
    """Each batch has a type that the other lacks: a median over draws, since such types can be taken for one."""
    left = []
    for seed in range(9):
        data = clouds([[40] * 5 + [0], [40] * 4 + [0, 40]], seed)
        found, _ = aligned(data.measured, data.batch, 20)
        centres = [[found[(data.batch == b) & (data.kind == t)].mean(0) for t in range(4)] for b in (0, 1)]
        plain = [[data.measured[(data.batch == b) & (data.kind == t)].mean(0) for t in range(4)] for b in (0, 1)]
        gap, gap_before = (np.linalg.norm(np.subtract(*c)) for c in (centres, plain))
        left.append(gap / gap_before)
    assert np.median(left) < 0.15


def test_several_batches_meet() -> None:
    data = clouds([[60, 40, 50], [60, 0, 50], [30, 40, 0], [20, 50, 60]])
    found, _ = aligned(data.measured, data.batch, 20)
    for kind in range(3):
        there = [b for b in range(4) if ((data.batch == b) & (data.kind == kind)).any()]
        centres = np.stack([found[(data.batch == b) & (data.kind == kind)].mean(0) for b in there])
        assert np.linalg.norm(centres - centres[0], axis=1).max() < 3  # offsets are 13 apart


def test_without_an_anchor_nothing_moves() -> None:
    x = cells(30)
    for resistant in (True, False):
        found, _ = aligned(x, np.zeros(30, np.int64), 5, resistant=resistant)
        np.testing.assert_array_equal(found, x)


# -- clusters --------------------------------------------------------------------------------------------------------


def test_clusters_are_the_types() -> None:
    data = clouds([[60, 100, 30, 25]])
    found = own_clusters(distances(data.truth), 15)
    assert adjusted_rand_score(data.kind, found) == 1
    np.testing.assert_array_equal(found, own_clusters(distances(data.truth), 15))
    assert sorted(set(found.tolist())) == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 3, 15])
def test_few_cells_are_one_cluster(n: int) -> None:
    assert own_clusters(distances(10 * cells(n)), 15).tolist() == [0] * n


def test_cells_at_one_place_are_clustered_too() -> None:
    x = np.repeat([[0.0, 0], [9, 9]], 30, axis=0).astype(np.float32)
    found = own_clusters(distances(x), 15)
    assert set(found[:30]).isdisjoint(found[30:])


# -- side by side ----------------------------------------------------------------------------------------------------

SIZES = [(100, 10), (10, 100), (10, 10), (60, 60), (200, 15)]


@pytest.mark.parametrize(("n", "m"), SIZES)
@given(seed=SEEDS)
def test_mixed_groups_of_any_sizes_lie_in_each_other(n: int, m: int, seed: int) -> None:
    pairs = [lie_apart(cells(n, seed + i), cells(m, seed + 1000 + i)) for i in range(20)]
    assert np.mean(pairs) < 0.1
    assert min(pairs) == 0


@pytest.mark.parametrize(("n", "m"), [*SIZES, (2, 2), (3, 3), (3, 50), (5, 4)])
def test_groups_without_a_neighbour_of_the_other_lie_side_by_side(n: int, m: int) -> None:
    assert lie_apart(cells(n), cells(m, 1) + 50) == 1


@given(seed=SEEDS, n=st.integers(2, 40), m=st.integers(2, 40), step=st.floats(0, 5))
def test_no_side_is_preferred(seed: int, n: int, m: int, step: float) -> None:
    a, b = cells(n, seed), cells(m, seed + 1) + np.float32(step)
    apart = distances(np.concatenate([a, b]))
    first, second = np.arange(n), n + np.arange(m)
    found = side_by_side(apart, first, second)
    assert 0 <= found <= 1
    assert side_by_side(apart, second, first) == pytest.approx(found, abs=1e-12)
    assert side_by_side(apart, first[::-1], second) == pytest.approx(found, abs=1e-12)


def test_the_further_apart_the_more() -> None:
    found = [lie_apart(cells(80), cells(80, 1) + np.float32(step)) for step in (0, 0.5, 1, 2, 4)]
    assert found == sorted(found)
    assert found[0] < 0.1 < found[1]
    assert found[-1] == 1


def test_other_cells_have_no_say() -> None:
    a, b, others = cells(30), cells(30, 1) + 1, cells(100, 2)
    apart = distances(np.concatenate([others, a, b]))
    assert side_by_side(apart, 100 + np.arange(30), 130 + np.arange(30)) == lie_apart(a, b)


def offset_left(sizes: list[list[int]], seed: int, *, resistant: bool) -> float:
    """How far two batches of clouds still are from each other, by the first two types, which both have."""
    data = clouds(sizes, seed)
    x, apart = aligned(data.measured, data.batch, 20, resistant=resistant)
    np.testing.assert_allclose(apart.numpy(), cdist(x, x), atol=0.02)
    shared = data.kind < 2
    left, batch = (x - data.truth)[shared], data.batch[shared]
    return float(np.linalg.norm(left[batch == 0].mean(0) - left[batch == 1].mean(0)))


@pytest.mark.parametrize("seed", [0, 2, 4, 5, 6, 7])
def test_types_of_one_batch_alone_do_not_bend_a_resistant_offset(seed: int) -> None:
    """Half of all types are in one batch alone. In a tenth of the distance between types the offset is found."""
    sizes = [[60, 60, 60, 60, 0, 0], [60, 60, 0, 0, 60, 60]]
    assert offset_left(sizes, seed, resistant=True) < 2.5
    assert offset_left(sizes, seed, resistant=False) > 5, "with all pairs it is bent"


def test_a_resistant_offset_goes_from_the_better_start() -> None:
    """From where the cells lie each batch finds wrong types near; what all pairs say is no answer, but a start."""
    assert offset_left([[60, 60, 120, 0], [60, 60, 0, 120]], seed=2, resistant=True) < 2.5


@pytest.mark.parametrize("resistant", [True, False])
def test_batches_of_a_cell_each_and_equal_cells_are_no_harm(resistant: bool) -> None:
    for x, batch in ((cells(3), np.arange(3)), (np.zeros((40, 5), np.float32), np.repeat([0, 1], 20))):
        found, apart = aligned(x, batch, 20, resistant=resistant)
        assert np.isfinite(found).all()
        assert np.isfinite(apart.numpy()).all()
