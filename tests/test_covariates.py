"""Several covariates as batches: names that never meet, the ways to give them, and the design of their levels."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.covariates import columns_of, design_of, joined, level_codes

NAMES = st.text(alphabet="a /'\"\\", max_size=6)


@given(st.lists(NAMES, min_size=2, max_size=2), st.lists(NAMES, min_size=2, max_size=2))
def test_different_levels_never_give_one_name(one: list[str], other: list[str]) -> None:
    assert (joined(one) == joined(other)) == (one == other)


def test_names_are_plain_where_they_can_be() -> None:
    assert joined(["1", "10x 3'/5'", "M/F"]) == "1 / 10x 3'/5' / M/F"
    assert joined(["a / b", "c"]) != joined(["a", "b / c"])
    assert joined(["a /", "b"]) != joined(["a", "/ b"])
    assert joined(["'a / b'", "c"]) != joined(["a / b", "c"])
    assert joined(["'quoted'"]) == "'quoted'"  # alone it stays as it is


TABLE = [["a", 1], ["b", 1], ["a", 2]]


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame(TABLE),
        np.array(TABLE, dtype=object),
        [["a", "b", "a"], [1, 1, 2]],
        (pd.Series(["a", "b", "a"], dtype="category"), np.array([1, 1, 2])),
    ],
    ids=["table", "array", "lists", "columns"],
)
def test_the_ways_to_give_two_columns(given: Any) -> None:
    assert [[str(v) for v in column] for column in columns_of(given, 3)] == [["a", "b", "a"], ["1", "1", "2"]]


@pytest.mark.parametrize("given", [["a", "b"], ("ab", "cd"), np.array([1, 2]), pd.Series(["a", "b"]), [], [None, 1]])
def test_one_column_stays_one(given: Any) -> None:
    columns = columns_of(given, 2)
    assert len(columns) == 1
    assert columns[0] is given


def test_whole_numbers_stay_whole_beside_fractions() -> None:
    first, _ = columns_of(pd.DataFrame({"day": [1, 2], "dose": [0.5, 1.5]}), 2)
    assert [str(v) for v in np.asarray(first).tolist()] == ["1", "2"]


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_design_says_which_levels_a_batch_has(seed: int, n_covariates: int) -> None:
    rng = np.random.default_rng(seed)
    columns = [[f"{c}{v}" for v in rng.integers(0, 4, 30)] for c in range(n_covariates)]
    _, codes = np.unique([joined(levels) for levels in zip(*columns, strict=True)], return_inverse=True)
    design = design_of(columns, codes)
    varying = [column for column in columns if len(set(column)) > 1]
    assert set(np.unique(design)) <= {0.0, 1.0}
    if len(varying) > 1:
        assert design.shape == (codes.max() + 1, sum(len(set(column)) for column in varying))
        levels = [level for column in varying for level in sorted(set(column))]
        of_cells = level_codes(design)[codes]
        assert [[levels[i] for i in row] for row in of_cells] == [list(row) for row in zip(*varying, strict=True)]
    else:
        assert (design == np.eye(codes.max() + 1)).all()


def test_a_covariate_of_one_level_says_nothing() -> None:
    codes = np.array([0, 1, 2])
    assert (design_of([["a", "b", "c"], ["x", "x", "x"]], codes) == np.eye(3)).all()
    assert level_codes(np.eye(3, dtype=np.float32)).tolist() == [[0], [1], [2]]
