"""The strength is chosen by evidence: 0 where batches are random, 1 where they differ among like cells."""

import json
import re

import numpy as np
import pytest
from clouds import clouds
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellnorm import strength as module
from cellnorm.diagnosis import ALPHA, MILD, Effect
from cellnorm.strength import LITTLE, Strength, choose_strength

Cells = NDArray[np.float32]


def two_types(n: int = 600, seed: int = 0) -> tuple[Cells, NDArray[np.int64]]:
    """Two types of cells in ten dimensions, and batches drawn at random."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 10)).astype(np.float32)
    x[:, 0] += 10 * (rng.random(n) < 0.4)
    return x, rng.integers(2, size=n)


def chosen(monkeypatch: pytest.MonkeyPatch, within: float, p: float) -> Strength:
    """What is made of this evidence."""
    monkeypatch.setattr(module, "effects", lambda *_: [Effect(0.0, 0.0, p, within, within, 1.0)])
    return choose_strength(*two_types(40), 0)


def test_random_batches_are_not_corrected() -> None:
    found = [choose_strength(*two_types(seed=seed), seed) for seed in range(20)]
    assert sum(f.value == 0 for f in found) >= 19
    assert all(f.p is not None and f.within is not None for f in found)


@pytest.mark.parametrize("seed", range(5))
def test_an_effect_is_corrected_in_full(seed: int) -> None:
    x, batch = two_types(seed=seed)
    x[:, 3] += 1.5 * batch
    found = choose_strength(x, batch, seed)
    assert found.value == 1
    assert found.within is not None
    assert found.within > MILD


def test_a_type_that_one_batch_has_more_of_is_no_effect() -> None:
    cells = clouds([[200, 50, 100], [60, 200, 100]], offset=0.0)
    assert choose_strength(cells.measured, cells.batch, 0).value == 0


def test_a_small_batch_counts() -> None:
    """Of 120 cells among 6,000 it would explain little of the variance of all."""
    x, _ = two_types(6000)
    batch = (np.arange(6000) < 120).astype(np.int64)
    x[batch == 1, 3:7] += 1.5
    assert choose_strength(x, batch, 0).value == 1


@given(unit=st.sampled_from([1e-3, 0.5, 8.0, 1e4]), seed=st.integers(0, 50))
def test_units_have_no_say(unit: float, seed: int) -> None:
    x, batch = two_types(120, seed)
    found, other = choose_strength(x, batch, 0), choose_strength(np.float32(unit) * x, batch, 0)
    assert other.value == pytest.approx(found.value, abs=1e-3)


def test_it_is_the_same_again_and_leaves_the_world_alone() -> None:
    x, batch = two_types()
    state, before = np.random.get_state()[1].copy(), x.copy()  # type: ignore[union-attr, index]  # noqa: NPY002
    assert choose_strength(x, batch, 3) == choose_strength(x, batch, 3)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    np.testing.assert_array_equal(x, before)


def test_large_sets_are_sampled_each_batch_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[list[int]] = []

    def effects(x: Cells, columns: list[NDArray[np.int64]], random_state: int) -> list[Effect]:
        sizes.append(np.bincount(columns[0]).tolist())
        assert len(x) == len(columns[0])
        return [Effect(0.0, 0.0, 1.0, 0.0, 0.0, 1.0)]

    monkeypatch.setattr(module, "effects", effects)
    x = np.zeros((9000, 2), np.float32)
    choose_strength(x, np.repeat([0, 1, 4], [5000, 3990, 10]), 0)  # batch numbers may be missing
    assert sizes == [[666, 666, 10]]


@pytest.mark.parametrize(
    ("within", "p", "value"),
    [
        (0.5, 2 * ALPHA, 0.0),
        (0.5, ALPHA, 1.0),
        (MILD, ALPHA, 1.0),
        ((LITTLE + MILD) / 2, ALPHA, 0.5),
        (LITTLE, ALPHA, 0.0),
        (-0.01, ALPHA, 0.0),
    ],
)
def test_from_evidence_to_strength(within: float, p: float, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = chosen(monkeypatch, within, p)
    assert found.value == pytest.approx(value)
    assert found.within == max(0.0, within)
    assert found.p == p
    json.dumps(vars(found), allow_nan=False)


def test_more_evidence_never_makes_it_weaker(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [chosen(monkeypatch, share, ALPHA).value for share in np.linspace(0, 0.03, 40)]
    assert values == sorted(values)
    assert (values[0], values[-1]) == (0, 1)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (Strength(0.3), "^strength 0.30, as asked for$"),
        (
            Strength(1.0, 0.051, 0.007),
            "^strength 1.00: batches explain 5.1% of the variance .* .p = 0.007.$",
        ),
        (Strength(0.5, 0.01, 0.007), "^strength 0.50: batches explain 1.0% .*little more than composition does$"),
        (Strength(0.0, 0.0, 0.41), "^strength 0, the components as they are: .* no more than chance .p = 0.41.$"),
        (Strength(0.0, 0.002, 0.007), "^strength 0, .*: batches explain 0.2% .*no more than composition does$"),
    ],
)
def test_it_says_why_in_a_line(found: Strength, expected: str) -> None:
    assert "\n" not in found.why
    assert len(found.why) < 150
    assert re.search(expected, found.why)


@pytest.mark.parametrize("case", ["one place", "few", "a batch of one cell"])
def test_cells_that_say_little_are_left_alone(case: str) -> None:
    x, batch = two_types(40)
    if case == "one place":
        x[:] = 1
    elif case == "few":
        x, batch = x[:6], np.arange(6) % 2
    else:
        batch = (np.arange(40) == 0).astype(np.int64)
    assert choose_strength(x, batch, 0).value == 0
