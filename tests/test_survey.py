"""One look at all values: what they are and their moments, the same however the rows are parted and stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import parts
from cellnorm.parts import spans
from cellnorm.survey import TARGET_SUM, Seen, Survey, canonical, count_scale, log_block, log_values, survey

FIELDS = ("n_cells", "n_found", "total", "squares")


def counts(n_cells: int = 90, n_genes: int = 30, seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    matrix = sp.csr_matrix(rng.poisson(0.7, (n_cells, n_genes)).astype(np.float32))
    matrix[3] = 0
    matrix.eliminate_zeros()
    return matrix


def labels(n_cells: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 3, n_cells)


def whole(matrix: Any, codes: np.ndarray, **options: Any) -> Survey:
    """The sum over all parts."""
    found = None
    for span in spans(matrix.shape[0]):
        of_part = survey(matrix, span, codes[span], 3, **options)
        if found is None:
            found = of_part
        else:
            found.add(of_part)
    assert found is not None
    return found


def assert_same(one: Survey, other: Survey, *, exact: bool = True) -> None:
    for name in FIELDS:
        compare = np.testing.assert_array_equal if exact else np.testing.assert_allclose
        compare(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.seen, one.counts) == (other.seen, other.counts)


# -- moments ---------------------------------------------------------------------------------------------------------


def test_the_moments_are_those_of_normalised_counts() -> None:
    matrix, codes = counts(), labels()
    found = whole(matrix, codes)
    dense = matrix.toarray().astype(np.float64)
    library = dense.sum(axis=1, keepdims=True)
    scaled = np.divide(TARGET_SUM * dense, library, out=np.zeros_like(dense), where=library > 0)
    for code in range(3):
        np.testing.assert_allclose(found.total[code], scaled[codes == code].sum(axis=0))
        np.testing.assert_allclose(found.squares[code], np.square(scaled[codes == code]).sum(axis=0))
    assert found.n_found.tolist() == (dense > 0).sum(axis=0).tolist()
    assert found.n_cells.tolist() == np.bincount(codes).tolist()
    assert found.seen.kind() == ("counts", "")


def test_logarithms_have_the_moments_of_their_counts() -> None:
    matrix, codes = counts(), labels()
    logged = log_values(matrix, np.arange(30), count_scale(matrix))
    found = whole(logged, codes)
    assert found.seen.kind()[0] == "log"
    assert not found.counts
    for name in ("total", "squares"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole(matrix, codes), name), rtol=1e-5)


@given(size=st.integers(1, 100), seed=st.integers(0, 1000))
def test_any_parts_give_the_same(size: int, seed: int) -> None:
    matrix, codes = counts(seed=seed), labels(seed=seed)
    expected = whole(matrix, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "SPAN_ROWS", size)
        patch.setattr(parts, "MOST_SPANS", 1000)
        assert len(spans(90)) == -(-90 // size)
        assert_same(whole(matrix, codes), expected, exact=False)


@given(size=st.integers(1, 100))
def test_the_size_of_blocks_has_no_say_to_the_bit(size: int) -> None:
    matrix, codes = counts(), labels()
    expected = whole(matrix, codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "BLOCK_ROWS", size)
        assert_same(whole(matrix, codes), expected)


STORAGES: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "dense": sp.csr_matrix.toarray,
    "float64": lambda matrix: matrix.astype(np.float64),
    "int64": lambda matrix: matrix.astype(np.int64),
    "uint8 dense": lambda matrix: matrix.toarray().astype(np.uint8),
    "float16 dense": lambda matrix: matrix.toarray().astype(np.float16),
    "unsorted": lambda matrix: sp.csr_matrix(matrix.toarray()[:, ::-1])[:, ::-1],
}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_storage_has_no_say(storage: str) -> None:
    assert_same(whole(STORAGES[storage](counts()), labels()), whole(counts(), labels()))


# -- what the values are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [0, 50, 89])
def test_one_fraction_anywhere_makes_logarithms_of_a_part(row: int) -> None:
    matrix = counts().tolil()
    matrix[row, 2] = 1.5
    assert_same(whole(matrix.tocsr(), labels()), whole(matrix.tocsr(), labels(), counts=False))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (-1, "negative values (down to -1), as scaled or centred data do"),
        (-0.5, "negative values (down to -0.5), as scaled or centred data do"),
        (np.nan, "1 NaN and 0 infinite values"),
        (np.inf, "0 NaN and 1 infinite values"),
        (1e6 + 0.5, "fractional values up to 1e+06"),
    ],
)
def test_what_cannot_be_used_is_told(value: float, kind: str) -> None:
    matrix = counts().astype(np.float64).tolil()
    matrix[40, 2] = value
    assert whole(matrix.tocsr(), labels()).seen.kind() == ("other", kind)
    assert whole(matrix.toarray(), labels()).seen.kind() == ("other", kind)


def test_what_is_no_number_is_told() -> None:
    seen = Seen()
    seen.look(np.array([1 + 2j]))
    assert seen.kind() == ("other", "values of type complex128, which are not numbers")


@given(st.lists(st.floats(width=32), max_size=30), st.lists(st.floats(width=32), max_size=30), st.sampled_from("fdl"))
def test_what_is_seen_adds_up(one: list[float], other: list[float], code: str) -> None:
    def of(values: list[float]) -> Seen:
        seen = Seen()
        known = values if code != "l" else [v for v in values if np.isfinite(v) and abs(v) < 2**60]
        seen.look(np.array(known, code))
        return seen

    both = of(one)
    both.add(of(other))
    assert both == of(one + other)


# -- values ----------------------------------------------------------------------------------------------------------


def test_values_are_log_normalised() -> None:
    block = sp.csr_matrix(np.array([[1, 3, 0], [0, 0, 0], [0, 0, 4]], dtype=np.int32))
    found = log_block(block, np.array([1, 2]), count_scale(block))
    np.testing.assert_allclose(found.toarray(), np.log1p([[7500, 0], [0, 0], [0, 1e4]]), rtol=1e-6)
    assert found.dtype == np.float32
    assert log_block(block, np.array([0]), None).toarray().tolist() == [[1], [0], [0]]


def test_blocks_of_values_make_the_matrix_of_values() -> None:
    matrix = counts(2500)
    positions = np.array([1, 4, 29])
    found = log_values(matrix, positions, count_scale(matrix))
    assert (found != log_block(matrix, positions, count_scale(matrix))).nnz == 0
    assert found.has_canonical_format


def test_canonical_leaves_its_input_as_it_is() -> None:
    matrix = sp.csr_matrix((np.array([1.0, 0.0, 2.0]), np.array([2, 0, 2]), np.array([0, 3])), shape=(1, 3))
    found = canonical(matrix)
    assert found.toarray().tolist() == [[0, 0, 3]]
    assert (found.nnz, matrix.nnz) == (1, 3)
    assert canonical(found) is found
