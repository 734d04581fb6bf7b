"""The parts of the rows: each row once, in order, whatever the number."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import parts
from cellnorm.parts import BLOCK_ROWS, blocks, spans


@given(n_rows=st.integers(0, 10**9))
def test_the_parts_are_all_rows_once_and_not_many(n_rows: int) -> None:
    found = spans(n_rows)
    assert found[0].start == 0
    assert found[-1].stop == n_rows
    assert all(one.stop == other.start for one, other in pairwise(found))
    sizes = [span.stop - span.start for span in found]
    assert len(found) <= parts.MOST_SPANS
    assert len(found) == 1 or min(sizes[:-1]) >= parts.SPAN_ROWS
    assert max(sizes) == sizes[0] >= sizes[-1] >= (n_rows > 0)


@pytest.mark.parametrize(("n_rows", "n_parts"), [(1, 1), (65_536, 1), (65_537, 2), (10**6, 16), (10**8, 64)])
def test_a_part_has_enough_rows_to_be_worth_its_while(n_rows: int, n_parts: int) -> None:
    assert len(spans(n_rows)) == n_parts


def test_blocks_hold_every_row_once() -> None:
    matrix = sp.random(2500, 7, density=0.3, format="csr", random_state=0)
    whole = list(blocks(matrix))
    assert [rows.stop - rows.start for rows, _ in whole] == [BLOCK_ROWS, BLOCK_ROWS, 2500 - 2 * BLOCK_ROWS]
    assert (sp.vstack([block for _, block in whole]) != matrix).nnz == 0
    some = list(blocks(matrix, slice(10, 2000), 300))
    assert (sp.vstack([block for _, block in some]) != matrix[10:2000]).nnz == 0
    assert (some[0][0].start, some[-1][0].stop) == (10, 2000)


def test_a_matrix_without_rows_has_no_blocks() -> None:
    assert list(blocks(np.zeros((0, 3)))) == []
