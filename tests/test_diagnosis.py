"""Effects of columns of labels: noise is none, experiments are found, cell types are told from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import f_oneway
from sklearn.metrics import adjusted_rand_score

from cellnorm.diagnosis import (
    ALPHA,
    MILD,
    N_PERMUTATIONS,
    STRONG,
    Effect,
    aligned,
    effects,
    explained,
    find_clusters,
    follows_clusters,
    permutation_p,
    shared_structure,
    strength_verdict,
)

N_CELLS, N_DIMS = 900, 10


def kinds_of_cells(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cells of five kinds far apart, and the kinds."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(5, N_CELLS, p=[0.4, 0.25, 0.15, 0.1, 0.1])
    return rng.normal(0, 6, (5, N_DIMS))[kinds] + rng.normal(size=(N_CELLS, N_DIMS)), kinds


def with_batches(shift: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kinds of cells in three batches, each shifted by about `shift` in every dimension."""
    x, kinds = kinds_of_cells(seed)
    rng = np.random.default_rng(seed + 100)
    batch = rng.integers(0, 3, N_CELLS)
    return x + rng.normal(0, shift, (3, N_DIMS))[batch], kinds, batch


def effect_of(x: np.ndarray, codes: np.ndarray) -> Effect:
    return effects(x, [codes.astype(np.int64)])[0]


# -- what labels explain --------------------------------------------------------------------------------------------


def test_explained_is_adjusted_r_squared() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 4, 60)
    x = rng.normal(size=(60, 1)) + codes[:, None]
    f = f_oneway(*(x[codes == level, 0] for level in range(4))).statistic
    r2 = 3 * f / (3 * f + 56)
    beyond, chance = explained(x, codes)
    assert chance == pytest.approx(3 / 59)
    assert beyond == pytest.approx(1 - (1 - r2) * 59 / 56)


@given(st.integers(0, 1000), st.integers(2, 12), st.booleans())
def test_chance_is_the_mean_over_shuffles_within_groups(seed: int, n_levels: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.choice(3, 60, p=[0.6, 0.3, 0.1]) if grouped else np.zeros(60, int)
    x = rng.normal(size=(60, 2)) * (1 + 5 * groups[:, None])  # groups of unequal spread
    codes = rng.integers(0, n_levels, 60)
    beyond = []
    for _ in range(300):
        shuffled = codes.copy()
        for group in np.unique(groups):
            shuffled[groups == group] = rng.permutation(codes[groups == group])
        beyond.append(explained(x, shuffled, groups)[0])
    assert abs(np.mean(beyond)) < 4 * np.std(beyond) / np.sqrt(300) + 1e-9


def test_explained_reaches_both_ends() -> None:
    codes = np.repeat([0, 1], 10)
    assert explained(codes[:, None] * 1.0, codes)[0] == pytest.approx(1)
    assert explained(np.ones((20, 2)), codes)[0] <= 0
    assert explained(np.arange(20.0)[:, None], np.arange(20))[0] == 0  # every cell its own level: nothing to be said


def test_within_groups_only_what_is_beyond_them_counts() -> None:
    x, kinds = kinds_of_cells()
    assert explained(x, kinds)[0] > 0.8
    assert explained(x, kinds, kinds)[0] == pytest.approx(0)


def test_p_is_a_share_of_shuffles() -> None:
    x, kinds = kinds_of_cells()
    noise = np.random.default_rng(1).integers(0, 3, N_CELLS)
    p = permutation_p(x, [kinds, noise], np.zeros(N_CELLS, int), np.random.default_rng(0))
    assert p[0] == pytest.approx(1 / (N_PERMUTATIONS + 1))
    assert p[1] > ALPHA
    nothing_to_shuffle = permutation_p(x, [kinds], kinds, np.random.default_rng(0))
    assert nothing_to_shuffle[0] == 1


def test_p_values_of_noise_are_uniform() -> None:
    x, kinds = kinds_of_cells()
    rng = np.random.default_rng(0)
    noise = [rng.choice(6, N_CELLS, p=rng.dirichlet(np.ones(6))) for _ in range(150)]
    for groups in (np.zeros(N_CELLS, int), kinds):
        p = permutation_p(x, noise, groups, rng)
        assert 0.4 < p.mean() < 0.6
        assert (p <= 0.1).mean() < 0.2


# -- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_levels", [2, 10, 50])
@pytest.mark.parametrize("even", [True, False])
def test_noise_is_none(n_levels: int, even: bool) -> None:
    x, _, _ = with_batches(1.0)
    rng = np.random.default_rng(n_levels)
    shares = np.full(n_levels, 1 / n_levels) if even else rng.dirichlet(np.full(n_levels, 0.3))
    columns = [rng.choice(n_levels, N_CELLS, p=shares) for _ in range(20)]
    verdicts = [strength_verdict(effect) for effect in effects(x, columns)]
    assert verdicts.count("none") >= 19


@pytest.mark.parametrize(("shift", "verdict"), [(0.0, "none"), (0.25, "mild"), (1.0, "strong"), (4.0, "strong")])
def test_the_verdict_grows_with_the_shift(shift: float, verdict: str) -> None:
    x, _, batch = with_batches(shift)
    effect = effect_of(x, batch)
    assert strength_verdict(effect) == verdict
    assert not follows_clusters(effect, effect.shared, named=False) or shift == 4.0


def test_a_batch_that_drives_the_clusters_is_seen_within_aligned_ones() -> None:
    x, _, batch = with_batches(4.0)
    effect = effect_of(x, batch)
    assert effect.blind < 0.5 < 0.9 < effect.within


def test_cell_types_are_not_experiments() -> None:
    x, kinds, batch = with_batches(1.0)
    types, experiments = effects(x, [kinds, batch])
    assert types.blind < 0.1
    assert follows_clusters(types, types.shared, named=False)
    assert follows_clusters(types, types.shared, named=True)
    assert not follows_clusters(experiments, experiments.shared, named=False)


def test_composition_alone_is_no_effect() -> None:
    x, kinds = kinds_of_cells()
    rng = np.random.default_rng(3)
    shares = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    column = (rng.random(N_CELLS) < shares[kinds]).astype(np.int64)
    effect = effect_of(x, column)
    assert effect.p <= ALPHA  # it does explain something of all cells
    assert effect.strength > MILD
    assert strength_verdict(effect) == "none"


def test_verdicts_at_their_thresholds() -> None:
    def verdict(within: float, p: float = 0.0) -> str:
        return strength_verdict(Effect(0.5, 0.0, p, within, 0.0, 1.0))

    assert [verdict(w) for w in (MILD - 1e-9, MILD, STRONG - 1e-9, STRONG)] == ["none", "mild", "mild", "strong"]
    assert verdict(0.5, p=ALPHA * 1.01) == "none"


def test_a_level_too_small_to_tell_follows_nothing() -> None:
    x, _ = kinds_of_cells()
    effect = effect_of(x, np.arange(N_CELLS) // 10)
    assert np.isnan(effect.shared)
    assert not follows_clusters(effect, effect.shared, named=False)


def test_the_same_seed_gives_the_same_bits_and_leaves_the_global_generator() -> None:
    x, kinds, batch = with_batches(0.5)
    np.random.seed(1)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    assert effects(x, [kinds, batch], 3) == effects(x, [kinds, batch], 3)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert effects(x, []) == []


# -- structure and places -------------------------------------------------------------------------------------------


def test_shared_structure_is_the_mean_over_pairs() -> None:
    rng = np.random.default_rng(0)
    x, codes = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3)), np.repeat([0, 1, 2], [100, 60, 40])
    noise = np.linalg.eigvalsh(np.cov(x.T))[0] * np.eye(3)
    c = [np.cov(x[codes == level].T) - noise for level in range(3)]
    n = [100, 60, 40]
    pairs = [(0, 1), (0, 2), (1, 2)]
    mean = sum(n[i] * n[j] * (c[i] * c[j]).sum() for i, j in pairs) / sum(n[i] * n[j] for i, j in pairs)
    assert shared_structure(x, codes) == pytest.approx(mean / np.square(np.cov(x.T) - noise).sum())
    few = codes.copy()
    few[:19], few[19:] = 3, 0
    assert np.isnan(shared_structure(x, few))  # one level with twenty cells is left


def test_aligning_undoes_a_shift_and_leaves_composition() -> None:
    x, kinds = kinds_of_cells()
    rng = np.random.default_rng(0)
    batch = rng.integers(0, 2, N_CELLS)
    shifted = x + np.array([[0.0], [3.0]])[batch]
    moved = aligned(shifted, batch, 0)
    apart = [np.linalg.norm(z[batch == 1].mean(0) - z[batch == 0].mean(0)) for z in (shifted, moved)]
    assert apart[1] < 0.25 * apart[0]

    other_shares = (rng.random(N_CELLS) < np.array([0.95, 0.8, 0.5, 0.2, 0.05])[kinds]).astype(np.int64)
    step = aligned(x, other_shares, 0) - x
    between = np.linalg.norm(x[other_shares == 1].mean(0) - x[other_shares == 0].mean(0))
    assert np.linalg.norm(step, axis=1).max() < 0.25 * between


def test_small_levels_stay_where_they_are() -> None:
    x, _ = kinds_of_cells()
    codes = np.full(N_CELLS, 1)
    codes[:9], codes[9:400] = 2, 0
    moved = aligned(x, codes, 0)
    np.testing.assert_array_equal(moved[:9], x[:9])
    np.testing.assert_array_equal(aligned(x[:18], np.repeat([0, 1], 9), 0), x[:18])


def test_clusters_find_kinds() -> None:
    x, kinds = kinds_of_cells()
    clusters = find_clusters(x, 0)
    assert clusters.max() == 21  # 900 cells, one cluster per 40
    assert adjusted_rand_score(kinds, find_clusters(x, 0, most=5)) > 0.6
