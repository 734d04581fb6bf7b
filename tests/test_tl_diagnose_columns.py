"""Which columns of obs are looked at, and why the others are not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.tl._diagnose_columns import Column, judged_columns

N = 200


def reasons(**columns: object) -> dict[str, str]:
    """Reason for each column that is left out."""
    return {c["name"]: c["reason"] for c in judged_columns(pd.DataFrame(columns))[1]}


def test_labels_of_any_type_are_kept() -> None:
    half = np.arange(N) % 2
    obs = pd.DataFrame({"text": np.array(["a", "b"])[half], "bool": half == 0, "int": half, "dose": half * 0.5})
    obs["category"] = pd.Categorical(half, categories=[0, 1, 2])  # with a level that does not occur
    columns, left_out = judged_columns(obs)
    assert [column.name for column in columns] == list(obs)
    assert {column.n_levels for column in columns} == {2}
    assert left_out == []


def test_measurements_are_left_out_and_said() -> None:
    rng = np.random.default_rng(0)
    found = reasons(
        age_exact=rng.normal(size=N),
        n_genes=rng.integers(0, 10, N),
        n_genes_by_counts=rng.integers(0, 10, N),
        total_counts=np.arange(N) % 15,
        pct_counts_mt=rng.integers(0, 5, N),
        nCount_RNA=rng.integers(0, 5, N),
        nUMI=rng.integers(0, 5, N),
        many=np.arange(N) % 31,
        batch=np.arange(N) % 2,
    )
    assert set(found.values()) == {"a measurement"}
    assert "batch" not in found


def test_useless_columns_are_left_out_and_said() -> None:
    labels = [f"cell{i}" for i in range(N)]
    found = reasons(one="x", none=np.nan, barcode=labels, many=[f"c{i // 4}" for i in range(N)], lists=[[1]] * N)
    assert found["one"] == "one value only"
    assert found["none"] == "no values"
    assert found["barcode"] == "different for every cell"
    assert found["many"] == "50 values in 200 cells"
    assert found["lists"] == "values that are no labels"


def test_a_name_that_occurs_twice_is_left_out() -> None:
    obs = pd.DataFrame(np.arange(N)[:, None] % [2, 2], columns=["batch", "batch"])
    columns, left_out = judged_columns(obs)
    assert columns == []
    assert [c["reason"] for c in left_out] == ["its name occurs twice"] * 2


def test_missing_is_a_level_that_is_counted_apart() -> None:
    column = Column.of("donor", ["a", None, "b", "a", float("nan")])
    assert (column.n_levels, column.n_missing, len(set(column.codes))) == (2, 2, 3)


@pytest.mark.parametrize("name", ["batch", "Batch ID", "donor_id", "orig.ident", "LANE"])
def test_usual_names(name: str) -> None:
    assert Column.of(name, ["a", "b"]).rank is not None


@pytest.mark.parametrize(
    "name", ["condition", "Treatment", "disease_status", "stim", "sex", "time_point", "tissue type"]
)
def test_names_of_conditions(name: str) -> None:
    column = Column.of(name, ["a", "b"])
    assert column.condition
    assert column.rank is None


@pytest.mark.parametrize("name", ["cell_type", "leiden", "chip", "label_source", "stimulus_free_text", "dayton"])
def test_other_names_say_nothing(name: str) -> None:
    column = Column.of(name, ["a", "b"])
    assert not column.condition
    assert column.rank is None


@given(st.lists(st.one_of(st.none(), st.text(max_size=3), st.booleans()), min_size=1, max_size=50))
def test_codes_part_the_cells_as_the_values_do(values: list[object]) -> None:
    column = Column.of("any", pd.Series(values, dtype=object))
    assert len(column.codes) == len(values)
    assert set(column.codes) == set(range(column.n_levels + (column.n_missing > 0)))
