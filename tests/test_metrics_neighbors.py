"""The table of neighbours: exact, in one order only, the same bits however it is made."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm import DataError
from cellnorm.metrics import Neighbors, nearest_neighbors, neighbors
from cellnorm.metrics.neighbors import compact_codes, count_codes, row_chunks

SEEDS = st.integers(0, 10**6)


def by_hand(x: NDArray[Any], cells: NDArray[Any], k: int) -> Neighbors:
    """Every cell compared with every other, in double precision; ties in float32 by index; the cell itself first."""
    x = x.astype(np.float64)
    indices, distances = [], []
    for cell in cells:
        apart = np.sqrt(np.square(x - x[cell]).sum(axis=1)).astype(np.float32)
        near = sorted(range(len(x)), key=lambda i: (i != cell, apart[i], i))[:k]
        indices.append(near)
        distances.append(apart[near])
    return Neighbors(np.array(indices), np.array(distances, np.float32))


def assert_same(found: Neighbors, expected: Neighbors) -> None:
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.distances, expected.distances)


def clumps(n_cells: int, n_dims: int = 12, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n_cells, n_dims)) + 8 * rng.integers(3, size=(n_cells, 1))).astype(np.float32)


# -- exactness -------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n_cells=st.integers(1, 60), n_dims=st.integers(1, 5), k=st.integers(1, 70))
def test_neighbors_are_those_of_a_loop_over_all_cells(seed: int, n_cells: int, n_dims: int, k: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n_cells, n_dims)).astype(np.float32)
    found = nearest_neighbors(x, k)
    assert found.k == min(k, n_cells)
    assert len(found) == n_cells
    assert_same(found, by_hand(x, np.arange(n_cells), k))


@given(seed=SEEDS, n_cells=st.integers(1, 150), k=st.integers(1, 12))
def test_cells_in_one_place_come_in_the_order_of_their_indices(seed: int, n_cells: int, k: int) -> None:
    x = np.random.default_rng(seed).integers(3, size=(n_cells, 2)).astype(np.float32)  # nine places
    found = nearest_neighbors(x, k)
    np.testing.assert_array_equal(found.indices[:, 0], np.arange(n_cells))
    np.testing.assert_array_equal(found.distances[:, 0], 0)
    assert_same(found, by_hand(x, np.arange(n_cells), k))


def test_many_cells_as_scikit_learn_finds_them() -> None:
    x = clumps(3000)
    found = nearest_neighbors(x, 30)
    distance, index = NearestNeighbors(n_neighbors=30, algorithm="kd_tree").fit(x.astype(np.float64)).kneighbors()
    np.testing.assert_allclose(found.distances[:, 1:], distance[:, :29], rtol=1e-6)
    np.testing.assert_array_equal(found.indices[:, 1:], index[:, :29])


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 1e5,
        lambda x: x * 1e30,
        lambda x: x * 1e-30,
        lambda x: np.vstack([x[:-1], 1e5 + x[-1:]]),
        lambda x: np.vstack([x[:-300], 1e6 + x[-300:]]),
        lambda x: np.vstack([x[:-300], np.zeros((300, x.shape[1]))]),
        lambda x: np.zeros_like(x),
    ],
    ids=["far from 0", "huge", "tiny", "an outlier", "a far clump", "a clump in one place", "all in one place"],
)
def test_hard_geometries(change: Any) -> None:
    x = change(clumps(1500).astype(np.float64)).astype(np.float32)
    cells = np.random.default_rng(1).choice(1500, 60, replace=False)
    found = nearest_neighbors(x, 20)
    assert_same(Neighbors(found.indices[cells], found.distances[cells]), by_hand(x, cells, 20))


def test_rough_products_lose_no_neighbor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in few bits mislead the first search; the bound on their error notices."""
    x = clumps(1200)
    expected = nearest_neighbors(x, 15)
    precise = torch.addmm

    def rough(bias: torch.Tensor, a: torch.Tensor, b: torch.Tensor, *, alpha: float) -> torch.Tensor:
        if a.dtype == torch.float32:
            a, b = a.bfloat16().float(), b.bfloat16().float()
        return precise(bias, a, b, alpha=alpha)

    monkeypatch.setattr(torch, "addmm", rough)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert_same(nearest_neighbors(x, 15), expected)
        monkeypatch.setattr(neighbors, "_rounding", lambda dtype: 0.0)  # the same without the bound
        assert (nearest_neighbors(x, 15).indices != expected.indices).any()
    finally:
        torch.set_float32_matmul_precision(before)


# -- one result ------------------------------------------------------------------------------------------------------


def test_the_size_of_chunks_and_the_number_of_threads_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = clumps(700)
    expected = nearest_neighbors(x, 25)
    torch.set_num_threads(2)
    monkeypatch.setattr(neighbors, "CPU_CHUNK", 5000)
    assert_same(nearest_neighbors(x, 25), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is there")
def test_the_device_changes_no_bit() -> None:
    x = clumps(5000)
    assert_same(nearest_neighbors(x, 90, device="cuda"), nearest_neighbors(x, 90))


def test_rows_of_some_cells() -> None:
    x, cells = clumps(300), np.array([7, 250, 7, 0])
    found, everyone = nearest_neighbors(x, 9, cells=cells), nearest_neighbors(x, 9)
    assert_same(found, Neighbors(everyone.indices[cells], everyone.distances[cells]))


def test_the_first_of_a_table() -> None:
    x = clumps(200)
    table = nearest_neighbors(x, 20)
    assert_same(table.first(7), nearest_neighbors(x, 7))
    assert table.first(50).k == 20


def test_no_array_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    product = torch.addmm

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal largest
        found = product(*args, **kwargs)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch, "addmm", watched)
    nearest_neighbors(clumps(4000, 2), 5)
    assert 0 < largest <= neighbors.CPU_CHUNK < 4000**2


def test_the_input_stays_as_it_was() -> None:
    x = clumps(100).astype(np.float64)
    kept = x.copy()
    nearest_neighbors(x, 5)
    np.testing.assert_array_equal(x, kept)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "k", "message"),
    [
        (np.zeros(3), 2, r"shape \(n_cells, n_dims\), found \(3,\)"),
        (np.zeros((0, 2)), 2, r"found \(0, 2\)"),
        (np.zeros((3, 0)), 2, r"found \(3, 0\)"),
        (np.array([[0.0], [np.nan], [np.inf], [1e300]]), 2, "coordinates of 3 of 4 cells are NaN"),
        (np.zeros((3, 2)), 0, "0 neighbours were asked for"),
    ],
)
def test_what_has_no_neighbors_is_refused(x: Any, k: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        nearest_neighbors(x, k)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DataError, match="'abacus' is unknown"):
        nearest_neighbors(np.zeros((3, 2)), 2, device="abacus")


# -- codes and chunks ------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30))
def test_codes_are_numbered_in_their_order(values: list[int]) -> None:
    compact, n_codes = compact_codes(values, len(values), "batch")
    there = sorted(set(values))
    assert n_codes == len(there)
    assert [there[c] for c in compact] == values


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([0, 1], r"One batch is needed for each of 3 cells, found an array of shape \(2,\)"),
        (["a", "b", "c"], "must be given as integer codes, found <U1"),
        ([0.0, 1.0, np.nan], "must be given as integer codes, found float64"),
        ([0, -1, 1], r"batch is missing \(negative\) for 1 of 3 cells"),
    ],
)
def test_what_are_no_codes_is_refused(codes: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        compact_codes(codes, 3, "batch")


@given(seed=SEEDS, n_rows=st.integers(0, 8), k=st.integers(0, 6), n_codes=st.integers(1, 5))
def test_counts_are_those_of_a_loop(seed: int, n_rows: int, k: int, n_codes: int) -> None:
    rng = np.random.default_rng(seed)
    codes, weights = rng.integers(n_codes, size=(n_rows, k)), rng.random((n_rows, k))
    expected, weighted = np.zeros((n_rows, n_codes), int), np.zeros((n_rows, n_codes))
    for i, j in np.ndindex(n_rows, k):
        expected[i, codes[i, j]] += 1
        weighted[i, codes[i, j]] += weights[i, j]
    np.testing.assert_array_equal(count_codes(codes, n_codes), expected)
    np.testing.assert_allclose(count_codes(codes, n_codes, weights), weighted)


@given(n_rows=st.integers(0, 10_000), width=st.integers(0, 300), size=st.integers(1, 5000))
def test_chunks_cover_every_row_once(n_rows: int, width: int, size: int) -> None:
    parts = list(row_chunks(n_rows, width, size))
    assert [row for part in parts for row in range(n_rows)[part]] == list(range(n_rows))
    assert all(0 < part.stop - part.start <= 4096 for part in parts)
    assert all((part.stop - part.start) * width <= max(size, width) for part in parts)
