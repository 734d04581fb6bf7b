"""Silhouettes against scikit-learn, against scib-metrics, and worked by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import silhouette_samples
from sklearn.metrics.pairwise import cosine_distances

from cellnorm.errors import DataError
from cellnorm.metrics import silhouette
from cellnorm.metrics.silhouette import batch_silhouette, bras, isolated_labels, label_mean, label_silhouette

Data = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]


def cells(seed: int = 0, n: int = 300, n_types: int = 5, n_batches: int = 3) -> Data:
    rng = np.random.default_rng(seed)
    label, batch = rng.integers(n_types, size=n), rng.integers(n_batches, size=n)
    x = rng.normal(size=(n, 8)) + 2 * rng.normal(size=(n_types, 8))[label] + rng.normal(size=(n_batches, 8))[batch]
    return x.astype(np.float32), label, batch


@given(st.integers(0, 1000), st.integers(2, 9))
def test_label_silhouette_is_scikit_learns(seed: int, n_types: int) -> None:
    x, label, _ = cells(seed, 60, n_types)
    np.testing.assert_allclose(label_silhouette(x, label), silhouette_samples(x, label), atol=1e-5)


def test_chunks_of_the_distances_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, label, _ = cells()
    whole = label_silhouette(x, label)
    monkeypatch.setattr(silhouette, "CHUNK_VALUES", 700)  # a few rows at a time
    np.testing.assert_allclose(label_silhouette(x, label), whole, atol=1e-6)


def test_far_from_the_origin_and_with_batches_far_apart_no_digits_are_lost() -> None:
    x, label, _ = cells()
    far = x.copy()
    far[:, 0] += np.where(label == 0, 1000, 0) + 500
    np.testing.assert_allclose(label_silhouette(far, label), silhouette_samples(far, label), atol=1e-4)


def test_one_cell_duplicates_and_one_type() -> None:
    x = np.array([[0.0], [0.0], [5.0], [5.0], [9.0]], np.float32)
    label = np.array([0, 0, 1, 1, 2])
    assert label_silhouette(x, label).tolist() == [1, 1, 1, 1, 0]
    assert label_silhouette(np.zeros((4, 2)), np.array([0, 0, 1, 1])).tolist() == [0, 0, 0, 0]
    assert np.isnan(label_silhouette(x, np.zeros(5, int))).all()


def test_codes_may_have_gaps_but_must_be_codes() -> None:
    x, label, batch = cells()
    np.testing.assert_array_equal(label_silhouette(x, 3 * label + 2), label_silhouette(x, label))
    with pytest.raises(DataError, match="integer codes"):
        label_silhouette(x, label.astype(str))
    with pytest.raises(DataError, match="One batch is needed for each of 300 cells"):
        bras(x, label, batch[:-1])


def naive_bras(x: NDArray[np.float32], label: NDArray[np.int64], batch: NDArray[np.int64]) -> float:
    """As the definition reads, cell by cell."""
    of_types = []
    for kind in np.unique(label):
        rows = np.flatnonzero(label == kind)
        apart, own = cosine_distances(x[rows]), batch[rows]
        if not 1 < len(np.unique(own)) < len(rows):
            continue
        widths = []
        for i, row in enumerate(apart):
            same = own == own[i]
            a, b = row[same].sum() / max(same.sum() - 1, 1), row[~same].mean()
            widths.append((b - a) / max(a, b) if same.sum() > 1 else 0)
        of_types.append(1 - np.abs(widths).mean())
    return float(np.mean(of_types))


@given(st.integers(0, 1000))
def test_bras_is_what_its_definition_says(seed: int) -> None:
    x, label, batch = cells(seed, 50)
    assert label_mean(bras(x, label, batch), label) == pytest.approx(naive_bras(x, label, batch), abs=1e-5)


def test_bras_and_batch_silhouette_are_those_of_scib_metrics() -> None:
    scib = pytest.importorskip("scib_metrics")
    x, label, batch = cells(n=200)
    batch[label == 1] = 0  # a type in one batch
    assert label_mean(bras(x, label, batch), label) == pytest.approx(float(scib.bras(x, label, batch)), abs=1e-5)
    ours = label_mean(batch_silhouette(x, label, batch), label)
    assert ours == pytest.approx(float(scib.silhouette_batch(x, label, batch)), abs=1e-5)
    isolated = isolated_labels(label, batch)
    assert set(label[isolated]) == {1}
    width = (label_silhouette(x, label) + 1) / 2
    ours = label_mean(np.where(isolated, width, np.nan), label)
    assert ours == pytest.approx(float(scib.isolated_labels(x, label, batch)), abs=1e-5)


@pytest.mark.parametrize("measure", [bras, batch_silhouette])
def test_both_ends_of_the_range(measure: Any) -> None:
    rng = np.random.default_rng(0)
    batch, label = np.arange(400) % 2, np.zeros(400, int)
    mixed = rng.normal(size=(400, 5))
    apart = 0.01 * mixed + np.where(batch[:, None], 1, -1)
    assert label_mean(measure(mixed, label, batch), label) > 0.97
    assert label_mean(measure(apart, label, batch), label) < 0.03


def test_batches_and_types_are_not_interchangeable() -> None:
    x, label, batch = cells()
    for measure in (bras, batch_silhouette):
        right, wrong = measure(x, label, batch), measure(x, batch, label)
        assert abs(label_mean(right, label) - label_mean(wrong, batch)) > 0.05
    assert isolated_labels(label, np.where(label == 2, 0, batch)).sum() == (label == 2).sum()


def test_types_that_say_nothing_of_batches_are_left_out() -> None:
    x, label, batch = cells()
    batch[label == 0] = 1
    label[0], batch[0] = 9, 2  # alone
    for measure in (bras, batch_silhouette):
        values = measure(x, label, batch)
        assert np.isnan(values[(label == 0) | (label == 9)]).all()
        assert np.isfinite(values[(label > 0) & (label < 9)]).all()
        assert np.isnan(label_mean(measure(x, batch * 0, batch * 0), batch * 0))


def test_a_cell_at_the_origin_has_no_direction() -> None:
    x = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.1], [0.0, 1.0]])
    assert np.isfinite(bras(x, np.zeros(4, int), np.array([0, 0, 1, 1]))).all()


def test_label_mean_counts_types_not_cells_and_leaves_gaps_out() -> None:
    values = np.array([1.0, np.nan, 3.0, 10.0, np.nan])
    assert label_mean(values, np.array([0, 0, 0, 1, 2])) == 6.0
    assert np.isnan(label_mean(np.array([np.nan]), np.array([0])))
    assert np.isnan(label_mean(np.empty(0), np.empty(0, int)))
