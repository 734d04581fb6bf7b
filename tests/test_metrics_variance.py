"""Principal-component regression against scib-metrics, the definition, and both ends of its range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from cellnorm.metrics.variance import pcr, pcr_comparison


def cells(seed: int, shift: float = 1.0, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch = rng.integers(3, size=n)
    return rng.normal(size=(n, 6)) * np.arange(1, 7) + shift * rng.normal(size=(3, 6))[batch], batch


@given(st.integers(0, 1000))
def test_it_is_the_regression_of_components_on_batches(seed: int) -> None:
    x, batch = cells(seed)
    pca = PCA().fit(x)
    pcs, one_hot = pca.transform(x), np.eye(3)[batch]
    r2 = [LinearRegression().fit(one_hot, pc).score(one_hot, pc) for pc in pcs.T]
    assert pcr(x, batch) == pytest.approx(np.average(r2, weights=pca.explained_variance_), abs=1e-9)


def test_it_is_that_of_scib_metrics() -> None:
    scib = pytest.importorskip("scib_metrics")
    x, batch = cells(0, 3.0)
    after, _ = cells(0, 1.0)
    theirs = scib.pcr_comparison(x.astype(np.float32), after.astype(np.float32), batch, categorical=True)
    assert pcr_comparison(x, after, batch) == pytest.approx(theirs, abs=1e-4)
    assert 0.3 < theirs < 0.95


def test_both_ends() -> None:
    batch = np.repeat([0, 1], 50)
    rng = np.random.default_rng(0)
    same = np.tile(rng.normal(size=(50, 4)), (2, 1))
    points = np.where(batch[:, None], 1.0, -1.0) * np.ones(4)
    assert pcr(same, batch) == pytest.approx(0, abs=1e-12)
    assert pcr(points, batch) == pytest.approx(1)
    assert pcr(np.ones((100, 4)), batch) == 0
    assert pcr_comparison(points, same, batch) == pytest.approx(1)
    assert pcr_comparison(points, points, batch) == 0


def test_worse_than_before_is_zero_and_nothing_before_is_undefined() -> None:
    x, batch = cells(0, 1.0)
    worse = x + 10 * batch[:, None]
    assert pcr_comparison(x, worse, batch) == 0
    assert pcr_comparison(worse, x, batch) > 0.5  # before and after are not interchangeable
    assert np.isnan(pcr_comparison(np.ones((120, 2)), x, batch))


def test_chosen_cells_count_as_often_as_they_are_named() -> None:
    x, batch = cells(1)
    chosen = np.random.default_rng(0).integers(120, size=80)
    assert pcr(x, batch, cells=chosen) == pytest.approx(pcr(x[chosen], batch[chosen]))
    assert pcr(x, batch, cells=np.flatnonzero(batch != 1)) == pytest.approx(pcr(x[batch != 1], batch[batch != 1]))


def test_an_offset_and_a_scale_change_nothing() -> None:
    x, batch = cells(2)
    assert pcr(1e3 * x + 1e6, batch) == pytest.approx(pcr(x, batch), rel=1e-6)
