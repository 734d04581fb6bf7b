"""Matched minibatches: every batch's share, every anchor's partner, no cell twice."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellnorm.anchors import Anchors
from cellnorm.sampling import Minibatch, minibatches, shares

SEEDS = st.integers(0, 10**6)
COUNTS = st.lists(st.integers(0, 5000), min_size=1, max_size=8)


def random_anchors(batch: NDArray[Any], n: int, rng: np.random.Generator) -> Anchors:
    """Pairs of cells of different batches, without repeats."""
    pairs = rng.integers(0, len(batch), (n, 2))
    pairs = pairs[batch[pairs[:, 0]] != batch[pairs[:, 1]]]
    pairs = np.where((batch[pairs[:, 0]] < batch[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1])
    pairs = np.unique(pairs, axis=0)
    return Anchors(pairs[:, 0].astype(np.int64), pairs[:, 1].astype(np.int64))


def drawn(
    batch: NDArray[Any], anchors: Anchors, *, seed: int = 0, pairs: int = 16, others: int = 8
) -> Iterator[Minibatch]:
    return minibatches(batch, anchors, np.random.default_rng(seed), n_pairs=pairs, n_others=others)


def partners_of(anchors: Anchors) -> set[tuple[int, int]]:
    there = set(zip(anchors.left.tolist(), anchors.right.tolist(), strict=True))
    return there | {(j, i) for i, j in there}


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([100, 100], 10, [5, 5]),
        ([100, 100], 11, [6, 6]),
        ([900, 100], 12, [9, 3]),  # 3 to 1, not 9 to 1
        ([10_000, 1], 10, [10, 1]),
        ([100, 2], 100, [88, 2]),
        ([0, 50], 10, [0, 10]),
        ([0, 0], 10, [0, 0]),
        ([4, 4], 100, [4, 4]),
    ],
)
def test_shares_of_known_batches(counts: list[int], size: int, expected: list[int]) -> None:
    assert shares(np.array(counts), size).tolist() == expected


@given(counts=COUNTS, size=st.integers(1, 600))
def test_every_batch_that_has_cells_gets_a_share(counts: list[int], size: int) -> None:
    cells = np.array(counts)
    found = shares(cells, size)
    assert ((found >= 1) == (cells >= 1)).all()
    assert (found <= cells).all()
    assert found.sum() <= size + len(cells)
    assert (found[np.argsort(cells, kind="stable")] == np.sort(found)).all()  # more cells, no fewer draws
    if (found < cells).all():
        assert found.sum() >= size


@given(counts=st.lists(st.integers(500, 5000), min_size=2, max_size=6), size=st.integers(100, 400))
def test_shares_go_by_the_square_root(counts: list[int], size: int) -> None:
    root = np.sqrt(counts)
    assert np.abs(shares(np.array(counts), size) - size * root / root.sum()).max() <= 1 + 1e-9


# -- minibatches -----------------------------------------------------------------------------------------------------


@given(
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4),
    n_anchors=st.integers(0, 300),
    pairs=st.integers(1, 60),
    others=st.integers(0, 60),
)
def test_no_cell_twice_and_every_anchor_beside_its_partner(
    seed: int, sizes: list[int], n_anchors: int, pairs: int, others: int
) -> None:
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    anchors = random_anchors(batch, n_anchors, rng)
    known = partners_of(anchors)
    for mini in islice(drawn(batch, anchors, seed=seed, pairs=pairs, others=others), 8):
        assert mini.cells.dtype == np.int64
        assert len(set(mini.cells.tolist())) == len(mini.cells)
        assert ((mini.cells >= 0) & (mini.cells < len(batch))).all()
        n = mini.n_pairs
        first, second = mini.cells[:n].tolist(), mini.cells[n : 2 * n].tolist()
        assert len(first) == len(second) == n
        assert set(zip(first, second, strict=True)) <= known
        assert bool(n) == bool(len(anchors))
        assert len(mini.cells) - 2 * n <= others


def dense(sizes: list[int], degree: int, seed: int = 0) -> tuple[NDArray[np.int64], Anchors]:
    """Batches in which every cell has partners in all other batches."""
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    found = []
    for cell in range(len(batch)):
        for other in set(range(len(sizes))) - {int(batch[cell])}:
            found += [(cell, int(p)) for p in rng.choice(np.flatnonzero(batch == other), degree, replace=False)]
    pairs = np.array([(i, j) if batch[i] < batch[j] else (j, i) for i, j in found])
    pairs = np.unique(pairs, axis=0)
    return batch, Anchors(pairs[:, 0], pairs[:, 1])


def test_every_batch_has_its_share_in_every_minibatch() -> None:
    sizes = [1600, 400, 100]
    batch, anchors = dense(sizes, 5)
    expected = shares(np.array(sizes), 70)
    assert expected.tolist() == [40, 20, 10]
    asked = np.array(
        [np.bincount(batch[m.cells[: m.n_pairs]], minlength=3) for m in islice(drawn(batch, anchors, pairs=70), 40)]
    )
    assert (asked <= expected).all()
    # what is missing are the pairs that share a cell with another one
    assert (asked >= expected / 2).all()
    assert (asked.mean(axis=0) >= 0.7 * expected).all()
    assert asked[:, 1].mean() / asked[:, 0].mean() == pytest.approx(0.5, rel=0.15)


def test_a_small_batch_is_in_every_minibatch_though_chance_would_leave_it_out() -> None:
    batch, anchors = dense([2000, 2000, 8], 2)
    of_small = [
        np.bincount(batch[m.cells], minlength=3)[2] for m in islice(drawn(batch, anchors, pairs=32, others=0), 50)
    ]
    assert min(of_small) >= 1
    assert 64 * 8 / 4008 < 0.2  # what chance would give it


def test_pairs_fall_off_alone_when_they_share_a_cell() -> None:
    batch = np.repeat([0, 1], 100)
    anchors = Anchors(np.arange(100), np.arange(100, 200))  # one partner each
    for mini in islice(drawn(batch, anchors, pairs=40, others=0), 20):
        # 20 cells of each batch are asked for; two that are partners of each other make one pair
        assert 20 <= mini.n_pairs <= 40
        assert mini.n_pairs == len({min(c, c - 100 if c >= 100 else c) for c in mini.cells.tolist()})


def test_every_anchor_and_every_cell_comes_round() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1, 2], [60, 40, 20])
    anchors = random_anchors(batch[:110], 90, rng)  # the last ten cells have no partner
    seen, asked, pairs = np.zeros(120, int), np.zeros(120, int), set()
    for mini in islice(drawn(batch, anchors, pairs=12, others=12), 400):
        n = mini.n_pairs
        np.add.at(seen, mini.cells, 1)
        np.add.at(asked, mini.cells[:n], 1)
        pairs |= set(zip(mini.cells[:n].tolist(), mini.cells[n : 2 * n].tolist(), strict=True))
    assert (seen > 0).all()
    assert ((asked > 0) == anchors.matched(120)).all()
    assert pairs == partners_of(anchors)


def test_a_round_of_the_deck_asks_every_cell_once() -> None:
    batch, anchors = dense([64, 64], 6)
    rounds = list(islice(drawn(batch, anchors, pairs=16, others=0), 8))  # 8 of each batch at a time
    assert rounds[0].cells[: rounds[0].n_pairs].max() > 64  # and not the first ones first
    asked = np.bincount(np.concatenate([m.cells[: m.n_pairs] for m in rounds]), minlength=128)
    assert asked.max() == 1
    assert asked.sum() >= 0.8 * 128


def test_without_anchors_other_cells_come_alone() -> None:
    nothing = np.empty(0, np.int64)
    for mini in islice(drawn(np.arange(30) % 2, Anchors(nothing, nothing), others=8), 10):
        assert (mini.n_pairs, len(mini.cells)) == (0, 8)


def test_few_cells_make_a_small_minibatch() -> None:
    batch = np.array([0, 1, 1])
    anchors = Anchors(np.array([0]), np.array([2]))
    for mini in islice(drawn(batch, anchors, pairs=256, others=64), 10):
        assert sorted(mini.cells.tolist()) == [0, 1, 2]
        assert set(mini.cells[:2].tolist()) == {0, 2}


def test_other_cells_are_drawn_matched_or_not() -> None:
    batch = np.repeat([0, 1], 50)
    anchors = Anchors(np.arange(5), np.arange(50, 55))
    minis = list(islice(drawn(batch, anchors, pairs=2, others=20), 100))
    times = np.bincount(np.concatenate([m.cells[2 * m.n_pairs :] for m in minis]), minlength=100)
    paired = np.bincount(np.concatenate([m.cells[: 2 * m.n_pairs] for m in minis]), minlength=100)
    matched = anchors.matched(100)
    assert ((paired > 0) == matched).all()
    assert times[~matched].tolist() == [20] * 90
    # a fifth of what is left of them: those in the pairs do not come again
    assert times[matched].sum() == pytest.approx(0.2 * (100 - paired[matched]).sum(), rel=0.2)


def test_minibatches_follow_their_generator() -> None:
    batch, anchors = dense([60, 40], 4)
    first, again, other = (
        [m.cells.tolist() for m in islice(drawn(batch, anchors, seed=seed), 5)] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]
    assert set(first[0]) != set(other[0])
