"""Kinds and the offsets of batches in them: known effects are found, composition is no effect, the algebra is right."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellnorm.kinds import MOST_KINDS, Kinds, _offsets, _offsets_of_levels, find_kinds, n_kinds

Cells = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def cells(effect: float, shares: Any = ((0.5, 0.3, 0.2), (0.5, 0.3, 0.2)), n: int = 1500, seed: int = 0) -> Cells:
    """Coordinates, batch and type: batches of known composition that differ by another step in each of three types."""
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % len(shares)
    type_ = np.array([rng.choice(3, p=shares[b]) for b in batch])
    step, own = rng.normal(size=(len(shares), 1, 6)), rng.normal(size=(len(shares), 3, 6))
    step = effect * (
        step / np.linalg.norm(step, axis=2, keepdims=True) + own / np.linalg.norm(own, axis=2)[:, :, None] / 3
    )
    centre = 12 * np.eye(3, 6) - 4
    return (rng.normal(size=(n, 6)) + centre[type_] + step[batch, type_]).astype(np.float32), batch, type_


def found(z: NDArray[np.float32], batch: NDArray[np.int64], k: int = 12, seed: int = 0) -> Kinds:
    return find_kinds(z, batch, k, np.random.default_rng(seed))


def placed(kinds: Kinds, z: NDArray[np.float32], batch: NDArray[np.int64]) -> NDArray[np.float64]:
    """The formula of `Autoencoder.removed`, written out."""
    centres = kinds.centres + kinds.offsets[batch]
    logit = np.log(np.maximum(kinds.shares, 1e-6))[batch] - np.square(z[:, None] - centres).sum(2) / 2 / kinds.variance
    member = np.exp(logit - logit.max(1, keepdims=True))
    member /= member.sum(1, keepdims=True)
    return np.asarray(z - (member[:, :, None] * kinds.offsets[batch]).sum(1))


def gaps(z: Any, batch: NDArray[np.int64], type_: NDArray[np.int64]) -> list[float]:
    """Distance between the means of the first two batches, type by type."""
    return [
        float(np.linalg.norm(z[(batch == 0) & (type_ == t)].mean(0) - z[(batch == 1) & (type_ == t)].mean(0)))
        for t in range(3)
    ]


def test_an_effect_that_differs_from_type_to_type_is_taken_away() -> None:
    z, batch, type_ = cells(4.0)
    before, after = gaps(z, batch, type_), gaps(placed(found(z, batch), z, batch), batch, type_)
    assert min(before) > 4.0
    assert all(b > 5 * a for a, b in zip(after, before, strict=True))
    assert sorted(after)[1] < 0.35  # the third type's own step is further than is taken at its word


def test_one_offset_for_all_would_not_do() -> None:
    z, batch, type_ = cells(4.0)
    common = np.stack([z[batch == b].mean(0) for b in range(2)])
    assert max(gaps(z - common[batch], batch, type_)) > 1.0  # by their means


def test_composition_is_no_effect() -> None:
    z, batch, _ = cells(0.0, ((0.7, 0.2, 0.1), (0.1, 0.2, 0.7)))
    moved = np.linalg.norm(placed(found(z, batch), z, batch) - z, axis=1)
    assert np.abs(z[batch == 0].mean(0) - z[batch == 1].mean(0)).max() > 5
    assert np.median(moved) < 0.5  # noise within a type has a length of 2.4


def test_a_type_that_a_batch_lacks_stays_where_it_is() -> None:
    z, batch, type_ = cells(1.0, ((0.4, 0.4, 0.2), (0.6, 0.4, 0.0)))
    private = type_ == 2
    after = placed(found(z, batch), z, batch)
    others = np.stack([after[type_ == t].mean(0) for t in range(2)])
    distance = np.linalg.norm(after[private].mean(0) - others, axis=1).min()
    assert distance > 12


def test_three_batches_one_of_them_small() -> None:
    z, batch, type_ = cells(3.0, ((0.5, 0.3, 0.2),) * 3)
    few = (batch < 2) | (np.arange(len(z)) < 90)
    after = placed(found(z[few], batch[few]), z[few], batch[few])
    assert max(gaps(after, batch[few], type_[few])) < 0.6


@pytest.mark.parametrize("n_batches", [2, 5])
def test_the_ridge_regression_is_that_of_each_kind(n_batches: int) -> None:
    """Against the normal equations of one kind, an intercept free and a ridge of 1 on every batch."""
    rng = np.random.default_rng(1)
    z, batch = rng.normal(size=(80, 4)), rng.integers(0, n_batches, 80)
    member = rng.dirichlet(np.ones(3), 80)
    here = np.eye(n_batches)[batch]
    centres, offsets, shares = _offsets(z, member, here)
    design = np.column_stack([np.ones(80), here])
    for k in range(3):
        gram = design.T @ (member[:, k, None] * design) + np.diag([0.0] + [1.0] * n_batches)
        solved = np.linalg.solve(gram, design.T @ (member[:, k, None] * z))
        np.testing.assert_allclose(centres[k], solved[0], atol=1e-10)
        np.testing.assert_allclose(offsets[:, k], solved[1:], atol=1e-10)
    np.testing.assert_allclose(shares.sum(1), 1)


@given(st.integers(2, 60), st.integers(1, 4), st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_anything_finite_gives_something_finite(n: int, n_batches: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 3)).astype(np.float32) * rng.choice([0.0, 1e-6, 1.0, 1e6])
    batch = np.sort(np.concatenate([np.arange(n_batches), rng.integers(0, n_batches, n)])[:n])
    _, batch = np.unique(batch, return_inverse=True)
    kinds = find_kinds(z, batch, min(n_kinds(n), n), np.random.default_rng(0))
    for values in (kinds.centres, kinds.offsets, kinds.shares):
        assert np.isfinite(values).all()
    assert kinds.variance > 0


def test_the_same_seed_gives_the_same_kinds_and_the_input_stays() -> None:
    z, batch, _ = cells(2.0)
    kept = z.copy()
    one, other = found(z, batch), found(z, batch)
    assert (one.offsets == other.offsets).all()
    assert (found(z, batch, seed=1).offsets != one.offsets).any()
    assert (z == kept).all()


def test_how_many_kinds() -> None:
    assert [n_kinds(n) for n in (1, 90, 600, 10**6)] == [2, 3, 20, MOST_KINDS]


# -- several covariates ----------------------------------------------------------------------------------------------

CROSSED = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], np.float32)


@pytest.mark.parametrize("design", [CROSSED, CROSSED[[0, 3]], np.eye(4, dtype=np.float32)])
def test_the_ridge_regression_is_on_levels(design: NDArray[np.float32]) -> None:
    """Against the normal equations of one kind; of two columns that say the same, too."""
    rng, n = np.random.default_rng(1), len(design)
    z, batch = rng.normal(size=(80, 4)), np.arange(80) % n
    member = rng.dirichlet(np.ones(3), 80)
    centres, offsets, shares = _offsets_of_levels(z, member, batch, design.astype(float))
    told = np.column_stack([np.ones(80), design[batch]])
    for k in range(3):
        gram = told.T @ (member[:, k, None] * told) + np.diag([0.0] + [1.0] * design.shape[1])
        solved = np.linalg.solve(gram, told.T @ (member[:, k, None] * z))
        np.testing.assert_allclose(centres[k], solved[0], atol=1e-8)
        np.testing.assert_allclose(offsets[:, k], design @ solved[1:], atol=1e-8)
    if n == design.shape[1] and (design.sum(1) == 1).all():
        for found, expected in zip((centres, offsets, shares), _offsets(z, member, np.eye(4)[batch]), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_design_of_one_covariate_changes_no_bit() -> None:
    z, batch, _ = cells(2.0)
    plain = found(z, batch)
    told = find_kinds(z, batch, 12, np.random.default_rng(0), np.eye(2, dtype=np.float32))
    assert (plain.offsets == told.offsets).all()
    assert (plain.centres == told.centres).all()


def test_a_tiny_combination_has_the_offsets_of_its_levels() -> None:
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1, 2, 3], [500, 500, 500, 5])
    type_ = rng.integers(0, 3, len(batch))
    effect = CROSSED @ rng.normal(size=(4, 6)) * 2
    z = (rng.normal(size=(len(batch), 6)) + (12 * np.eye(3, 6) - 4)[type_] + effect[batch]).astype(np.float32)

    def missed(kinds: Kinds) -> float:
        gap = (kinds.offsets[3] - kinds.offsets[0]) - (effect[3] - effect[0])
        return float(np.linalg.norm(gap, axis=1).mean())

    together = missed(find_kinds(z, batch, 6, np.random.default_rng(0), CROSSED))
    assert together < 0.6
    assert together < 0.6 * missed(find_kinds(z, batch, 6, np.random.default_rng(0)))
