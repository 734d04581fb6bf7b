"""The axes of the final frame: those of noise shrink while those of signal stay."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cellnorm.frame import LEAST, signal_axes, signal_share


def two_types(n: int = 600, width: int = 6, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two types of cells in two batches, apart along the first column; the others are noise."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, width)).astype(np.float32)
    z[:, 0] += 12 * (rng.random(n) < 0.5)
    return z, rng.integers(2, size=n)


def test_a_column_of_types_is_signal_and_a_column_of_noise_is_not() -> None:
    z, batch = two_types(width=30)
    share = signal_share(z, batch)
    assert share[0] > 0.9
    assert (share[1:] < 0.5).all()


def test_an_offset_between_batches_is_no_signal() -> None:
    z, batch = two_types()
    np.testing.assert_allclose(
        signal_share(z + 50 * batch[:, None].astype(np.float32), batch), signal_share(z, batch), atol=1e-3
    )


def test_cells_in_one_place_and_batches_of_one_cell_are_harmless() -> None:
    assert (signal_share(np.ones((9, 3), np.float32), np.zeros(9, int)) == 1).all()
    assert (signal_share(np.eye(3, dtype=np.float32), np.arange(3)) == 1).all()
    axes, inverse = signal_axes(np.ones((9, 3), np.float32), np.zeros(9, int))
    np.testing.assert_allclose(axes @ inverse, np.eye(3), atol=1e-9)


@given(st.integers(0, 2**16), st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_the_axes_can_be_undone_and_never_stretch(seed: int, width: int) -> None:
    z, batch = two_types(80, width, seed)
    axes, inverse = signal_axes(z, batch)
    np.testing.assert_allclose(axes @ inverse, np.eye(width), atol=1e-8)
    np.testing.assert_allclose(axes, axes.T, atol=1e-12)
    shrunk = np.linalg.eigvalsh(axes)
    assert (shrunk <= 1 + 1e-9).all()
    assert (shrunk >= LEAST - 1e-9).all()


def test_an_axis_shrinks_to_its_share() -> None:
    z, batch = two_types()
    axes, _ = signal_axes(z, batch)
    centred = z - z.mean(0)
    shrunk, turn = np.linalg.eigh(axes)
    expected = np.maximum(signal_share((centred @ turn).astype(np.float32), batch), LEAST)
    np.testing.assert_allclose(shrunk, expected, rtol=1e-4)


def test_the_embedding_stays_in_its_coordinates() -> None:
    """Where all is signal the axes are the identity, whatever the principal axes: nothing is turned or mirrored."""
    z, _ = two_types()
    np.testing.assert_allclose(signal_axes(z, np.arange(len(z)))[0], np.eye(6), atol=1e-9)


def test_turning_the_embedding_changes_no_distance_after_the_axes() -> None:
    z, batch = two_types()
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    turned = (z @ turn).astype(np.float32)
    placed = [x @ signal_axes(x, batch)[0] for x in (z, turned)]
    a, b = (np.linalg.norm(x[:50, None] - x[50:100], axis=2) for x in placed)
    np.testing.assert_allclose(a, b, atol=1e-2)


def test_types_stand_out_more_in_the_frame() -> None:
    z, batch = two_types(width=30)
    placed = z @ signal_axes(z, batch)[0]
    kind = z[:, 0] > 6

    def contrast(x: NDArray[np.floating]) -> float:
        gap = np.linalg.norm(x[kind].mean(0) - x[~kind].mean(0))
        return float(gap / np.sqrt(x[kind].var(0).sum()))

    assert contrast(placed) > 1.3 * contrast(z)
