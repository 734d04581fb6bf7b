"""The match: even for known types, low for others, each batch by its own measure, and a matter of the batch alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from cellnorm.transfer._nearby import nearest
from cellnorm.transfer._support import BULK, MAX_COMPANIONS, K, Support

Singles = NDArray[np.float32]
N_DIMS, N_LATENT = 12, 5


def cells(sizes: list[int], seed: int, *, noise: float = 1.0) -> tuple[Singles, NDArray[np.int64]]:
    """Cells of types whose centres are the same each time."""
    centres = 4 * np.random.default_rng(99).normal(size=(6, N_DIMS))
    kind = np.repeat(np.arange(len(sizes)), sizes)
    x = centres[kind] + noise * np.random.default_rng(seed).normal(size=(len(kind), N_DIMS))
    return x.astype(np.float32), kind


def z(x: Singles) -> Singles:
    """An embedding that sees some of the components."""
    return np.ascontiguousarray(x[:, :N_LATENT])


def reference(n_types: int = 4, n_batches: int = 3, size: int = 60) -> Support:
    parts = [cells([size] * n_types, seed)[0] for seed in range(n_batches)]
    x = np.concatenate(parts)
    return Support.fit(x, z(x), np.repeat(np.arange(n_batches), n_types * size))


SUPPORT = reference()


def test_cells_of_known_types_have_an_even_match() -> None:
    x, _ = cells([80] * 4, seed=50)
    match = SUPPORT.score(x, z(x))
    assert ((match > 0) & (match <= 1)).all()
    assert 0.4 < np.median(match) < 0.75
    assert (match < 0.08).mean() < 0.1


@pytest.mark.parametrize("new", [4, 5])
def test_cells_of_a_new_type_have_a_low_match(new: int) -> None:
    sizes = [60] * 4 + [0] * 2
    sizes[new] = 40
    x, kind = cells(sizes, seed=51)
    match = SUPPORT.score(x, z(x))
    assert np.median(match[kind == new]) < 0.02
    assert roc_auc_score(kind != new, match) > 0.98
    assert (match[kind != new] < 0.08).mean() < 0.1


def test_companions_tell_what_a_cell_alone_does_not() -> None:
    """A displacement well inside the noise of a cell, shared by all of a type."""
    x, kind = cells([100] * 4, seed=52)
    x[kind == 3] += np.float32(1.5) * np.eye(N_DIMS, dtype=np.float32)[9]
    together = SUPPORT.score(x, z(x))
    alone = np.array([SUPPORT.score(x[i : i + 1], z(x[i : i + 1]))[0] for i in range(0, len(x), 20)])
    assert roc_auc_score(kind != 3, together) > 0.9
    assert roc_auc_score(kind != 3, together) > roc_auc_score(kind[::20] != 3, alone) + 0.1


def test_a_batch_is_measured_by_its_bulk() -> None:
    """Noisier cells lie farther off, all of them; those of a new type still farther."""
    x, kind = cells([60] * 4 + [20], seed=53, noise=1.15)
    match = SUPPORT.score(x, z(x))
    assert (match[kind < 4] < 0.08).mean() < 0.2
    assert (match[kind == 4] < 0.08).mean() > 0.9


def test_a_batch_of_new_cells_alone_is_not_its_own_measure() -> None:
    x, kind = cells([0, 0, 0, 0, 60], seed=54)
    assert (kind == 4).all()
    assert (SUPPORT.score(x, z(x)) < 0.08).mean() > 0.9


def test_a_match_is_the_share_of_reference_cells_that_lie_as_far_off() -> None:
    x, _ = cells([30] * 4, seed=55)
    met = SUPPORT.meet(x, z(x))
    ranked = met.yard.ranked
    allowed = (1 + np.arange(len(ranked) + 1)) / (len(ranked) + 1)
    match = SUPPORT.score(x, z(x), known={-1: met})
    assert np.isin(match.round(9), allowed.round(9)).all()
    assert (ranked <= 0).mean() == pytest.approx(BULK, abs=0.05)  # of each batch, below its bulk


@settings(max_examples=8)
@given(st.integers(0, 1000), st.integers(1, 40))
def test_a_cell_scores_alone_as_in_company_when_its_companions_are_kept(seed: int, n: int) -> None:
    x, _ = cells([20] * 5, seed)
    met = SUPPORT.meet(x, z(x))
    whole = SUPPORT.score(x, z(x), np.full(len(x), 7), {7: met})
    some = np.random.default_rng(seed).permutation(len(x))[:n]
    np.testing.assert_allclose(SUPPORT.score(x[some], z(x[some]), np.full(n, 7), {7: met}), whole[some], atol=1e-9)
    np.testing.assert_allclose(SUPPORT.score(x, z(x)), whole, atol=1e-9)  # what is met anew is the same


def test_order_and_duplicates_do_not_matter() -> None:
    x, _ = cells([20] * 5, seed=56)
    order = np.random.default_rng(0).permutation(len(x))
    plain = SUPPORT.score(x, z(x))
    np.testing.assert_allclose(SUPPORT.score(x[order], z(x[order])), plain[order], atol=1e-9)
    twice = np.concatenate([x, x[:50]])
    np.testing.assert_allclose(SUPPORT.score(twice, z(twice))[: len(x)], plain, atol=1e-9)


def test_batches_are_scored_each_for_itself() -> None:
    a, b = cells([30] * 5, seed=57)[0], cells([10, 40, 0, 5, 0], seed=58)[0]
    both, codes = np.concatenate([a, b]), np.repeat([8, 3], [len(a), len(b)])
    found = SUPPORT.score(both, z(both), codes)
    np.testing.assert_allclose(found[: len(a)], SUPPORT.score(a, z(a)), atol=1e-9)
    np.testing.assert_allclose(found[len(a) :], SUPPORT.score(b, z(b)), atol=1e-9)


def test_cells_of_a_known_batch_have_those_of_the_reference_as_companions() -> None:
    own = np.flatnonzero(SUPPORT.batch == 1)
    x = SUPPORT.x[own[:1]] + np.float32(0.01)
    met = SUPPORT.meet(SUPPORT.x[own], SUPPORT.z[own], cells=own)
    assert SUPPORT.score(x, z(x), np.array([1])) == SUPPORT.score(x, z(x), np.array([1]), {1: met})
    assert len(met.x) == len(own)
    first = np.flatnonzero((met.x == SUPPORT.x[own[0]]).all(1))[0]
    near = nearest(SUPPORT.z, SUPPORT.z[own[:1]], K + 1)[0][0]
    assert near[0] == own[0]  # and yet no companion is displaced from itself
    np.testing.assert_allclose(met.displacement[first], SUPPORT.x[own[0]] - SUPPORT.x[near[1:]].mean(0), atol=1e-4)


def test_companions_are_no_more_than_are_needed() -> None:
    x = np.random.default_rng(0).normal(size=(MAX_COMPANIONS + 500, N_DIMS)).astype(np.float32)
    met = SUPPORT.meet(x, z(x))
    assert len(met.x) == MAX_COMPANIONS
    again = SUPPORT.meet(x[::-1], z(x[::-1]))
    np.testing.assert_array_equal(met.x, again.x)
    assert met.bulk == pytest.approx(again.bulk)


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_few_cells_are_finite_and_sane(n: int) -> None:
    x = cells([2, 2, 1, 0], seed=59)[0][:n]
    match = SUPPORT.score(x, z(x))
    assert match.shape == (n,)
    assert ((match > 0) & (match <= 1)).all()


def test_tiny_and_equal_references_are_finite() -> None:
    x = np.ones((6, N_DIMS), np.float32)
    for values in (x, x + np.arange(6, dtype=np.float32)[:, None]):
        match = Support.fit(values, z(values), np.array([0, 0, 0, 1, 1, 2])).score(values, z(values))
        assert np.isfinite(match).all()
