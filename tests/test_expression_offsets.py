"""Offsets of batches are found where they are, shrunk to nothing where there are none, and never taken for types."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.expression._offsets import Sums, shrunk_offsets


def sums_of(x: np.ndarray, batch: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sums per batch and kind, of squares, and numbers of cells."""
    n = np.zeros((batch.max() + 1, kind.max() + 1))
    total = np.zeros((*n.shape, x.shape[1]))
    np.add.at(n, (batch, kind), 1)
    np.add.at(total, (batch, kind), x)
    return total, np.square(x).sum(0), n


def found(x: np.ndarray, batch: np.ndarray, kind: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total, squares, n = sums_of(x, batch, kind)
    return shrunk_offsets(total, squares, n, np.ones(len(n), bool))


def test_the_sums_are_those_of_all_cells_however_they_come() -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(0.5, (50, 6)).astype(np.float32)
    p, share = rng.normal(size=(50, 3)).astype(np.float32), rng.dirichlet(np.ones(4), 50).astype(np.float32)
    row = rng.integers(0, 2, 50)
    sums = Sums(2, 4, 6, 3)
    for part in (slice(0, 20), slice(20, 50)):
        sums.add(sp.csr_matrix(x[part]) if part.start else x[part], p[part], share[part], row[part])
    for b in range(2):
        own = row == b
        np.testing.assert_allclose(sums.n[b], share[own].sum(0), rtol=1e-5)
        np.testing.assert_allclose(sums.x[b], share[own].T @ x[own], rtol=1e-5)
        np.testing.assert_allclose(sums.p[b], share[own].T @ p[own], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.xx, np.square(x).sum(0))
    np.testing.assert_allclose(sums.xp, x.T @ p, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(sums.pp, p.T @ p, rtol=1e-5, atol=1e-4)


def test_loadings_are_the_regression_within_batches() -> None:
    rng = np.random.default_rng(0)
    p, row = rng.normal(size=(400, 3)).astype(np.float32), np.repeat([0, 1], 200)
    p[200:] += 3  # the batches lie apart
    truth = rng.normal(size=(5, 3))
    x = (p @ truth.T + 0.01 * rng.normal(size=(400, 5))).astype(np.float32)
    x[200:] += np.array([9.0, 0, 0, -9, 0], np.float32)  # which must not pass for a loading
    sums = Sums(2, 1, 5, 3)
    sums.add(x, p, np.ones((400, 1), np.float32), row)
    np.testing.assert_allclose(sums.loadings(), truth, atol=0.01)


def test_a_component_that_is_constant_gets_no_loading() -> None:
    sums = Sums(1, 1, 2, 2)
    p = np.column_stack([np.arange(10.0), np.ones(10)]).astype(np.float32)
    sums.add(2 * p[:, :1] + np.array([[0, 5.0]], np.float32), p, np.ones((10, 1), np.float32), np.zeros(10, int))
    assert np.isfinite(sums.loadings()).all()
    np.testing.assert_allclose(sums.loadings(), [[2, 0], [2, 0]], atol=0.02)


def test_offsets_are_found_though_the_batches_hold_types_in_other_proportions() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 300)
    kind = np.where(rng.random(600) < np.where(batch == 0, 0.9, 0.2), 0, 1)
    level = rng.normal(0, 5, (2, 40))
    offset = np.array([1.0, -1.0])[:, None] * rng.normal(size=40)
    mean, got = found(level[kind] + offset[batch] + 0.1 * rng.normal(size=(600, 40)), batch, kind)
    np.testing.assert_allclose(got, np.repeat(offset[:, None], 2, axis=1), atol=0.05)
    share = np.bincount(kind) / 600
    np.testing.assert_allclose(mean, share @ level, atol=0.05)


def test_what_differs_between_kinds_of_one_batch_is_found() -> None:
    rng = np.random.default_rng(1)
    batch, kind = np.repeat([0, 1, 2], 400), np.tile(np.arange(4), 300)
    truth = rng.normal(size=(3, 4, 30))
    truth -= truth.mean(0)
    _, got = found(truth[batch, kind] + 0.1 * rng.normal(size=(1200, 30)), batch, kind)
    np.testing.assert_allclose(got, truth, atol=0.05)


def test_without_an_effect_next_to_nothing_is_taken() -> None:
    rng = np.random.default_rng(0)
    batch, kind = rng.integers(0, 3, 600), rng.integers(0, 5, 600)
    x = rng.normal(size=(600, 300))
    total, _, n = sums_of(x, batch, kind)
    raw = total / n[..., None]
    raw -= raw.mean(0)
    _, got = found(x, batch, kind)
    assert np.square(got).sum() < 0.15 * np.square(raw).sum()


def test_a_kind_that_one_batch_alone_has_moves_with_its_batch() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 300)
    kind = np.where(batch == 0, np.arange(600) % 2, np.arange(600) % 3)  # kind 2 in batch 1 alone
    offset = np.array([2.0, -2.0])[:, None] * np.ones(20)
    x = np.array([0.0, 3.0, 50.0])[kind][:, None] + offset[batch] + 0.1 * rng.normal(size=(600, 20))
    _, got = found(x, batch, kind)
    np.testing.assert_allclose(got[1, 2], offset[1], atol=0.1)


def test_a_batch_that_is_nearly_all_of_a_kind_of_its_own_is_compared_by_the_rest() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 300)
    kind = np.where(batch == 0, 0, (np.arange(600) % 10 > 0).astype(int))  # nine in ten of batch 1 are of kind 1
    offset = np.array([2.0, -2.0])[:, None] * np.ones(20)
    x = 5.0 * kind[:, None] + offset[batch] + 0.1 * rng.normal(size=(600, 20))
    _, got = found(x, batch, kind)
    np.testing.assert_allclose(got[[0, 1], [0, 1]], offset, atol=0.1)


@pytest.mark.parametrize("alone", ["kinds", "batch"])
def test_where_nothing_can_be_compared_nothing_is_taken(alone: str) -> None:
    rng = np.random.default_rng(0)
    batch = np.zeros(60, int) if alone == "batch" else np.repeat([0, 1], 30)
    _, got = found(rng.normal(size=(60, 8)) + 9 * batch[:, None], batch, batch)
    np.testing.assert_allclose(got, 0, atol=1e-6)


def test_the_frame_is_the_mean_of_its_batches() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1, 2], 200)
    x = np.array([1.0, -1.0, 5.0])[batch][:, None] + 0.01 * rng.normal(size=(600, 10))
    total, squares, n = sums_of(x, batch, np.zeros(600, int))
    mean, got = shrunk_offsets(total, squares, n, np.array([True, True, False]))
    np.testing.assert_allclose(got[:, 0], np.array([[1.0], [-1.0], [5.0]]) * np.ones(10), atol=0.01)
    np.testing.assert_allclose(mean, 0, atol=0.01)


@given(
    n=st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=4),
    seed=st.integers(0, 50),
)
def test_any_numbers_of_cells_give_finite_offsets_no_larger_than_what_was_seen(n: list[list[int]], seed: int) -> None:
    table = np.array(n)
    if table.sum() == 0:
        return
    batch = np.repeat(np.arange(len(table)), table.sum(1))
    kind = np.concatenate([np.repeat(np.arange(3), row) for row in table])
    x = np.random.default_rng(seed).normal(size=(len(batch), 4))
    total = np.zeros((len(table), 3, 4))
    np.add.at(total, (batch, kind), x)
    mean, got = shrunk_offsets(total, np.square(x).sum(0), table.astype(float), np.ones(len(table), bool))
    assert np.isfinite(mean).all()
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= 6 * np.abs(x).max()
