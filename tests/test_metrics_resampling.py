"""Bootstrap intervals: seeded, as wide as theory says, and around their value."""

import numpy as np
import pytest

from cellnorm.metrics.resampling import interval, resample

X = np.random.default_rng(0).normal(size=2000)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    draws = resample({"mean": lambda cells: X[cells].mean()}, len(X), n_bootstrap=1000)["mean"]
    low, high = interval(draws, X.mean())
    assert high - low == pytest.approx(2 * 1.96 * X.std() / np.sqrt(len(X)), rel=0.1)


def test_all_scores_see_the_same_draws_and_a_seed_repeats_them() -> None:
    metrics = {"mean": lambda cells: X[cells].mean(), "double": lambda cells: 2 * X[cells].mean()}
    draws = resample(metrics, len(X), n_bootstrap=5, random_state=3)
    np.testing.assert_allclose(draws["double"], 2 * draws["mean"])
    again = resample(metrics, len(X), n_bootstrap=5, random_state=3)
    np.testing.assert_array_equal(draws["mean"], again["mean"])
    assert not np.array_equal(draws["mean"], resample(metrics, len(X), n_bootstrap=5, random_state=4)["mean"])
    assert len(set(draws["mean"])) == 5


def test_an_interval_holds_its_value_even_if_repeated_cells_raise_the_score() -> None:
    def unseen(cells: np.ndarray) -> float:
        return 1 - len(np.unique(cells)) / 2000  # 0 on all cells, .37 on resamples

    draws = resample({"unseen": unseen}, 2000, n_bootstrap=50)["unseen"]
    assert draws.min() > 0.3
    low, high = interval(draws, 0.0)
    assert low <= 0 <= high
    assert high - low < 0.1


def test_what_cannot_be_computed_is_left_out() -> None:
    assert interval(np.array([np.nan, 1.0, 3.0, np.nan]), 2.0, level=1.0) == (1.0, 3.0)
    assert np.isnan(interval(np.array([np.nan]), 2.0)).all()
    assert np.isnan(interval(np.empty(0), 2.0)).all()
    assert resample({"mean": lambda cells: 1.0}, 10, n_bootstrap=0)["mean"].shape == (0,)
