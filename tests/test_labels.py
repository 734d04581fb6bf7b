"""Batch labels: any type, several columns, odd names, and the guess of the column."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.errors import DataError
from cellnorm.labels import BATCH_NAMES, batch_labels, guess_batch_key, listed

CODES = np.array([0, 1, 2, 1, 0, 2, 2, 1])


def cells(**columns: object) -> ad.AnnData:
    """As many cells as the columns are long."""
    obs = pd.DataFrame(columns)
    obs.index = [f"c{i}" for i in range(len(obs))]
    return ad.AnnData(np.ones((len(obs), 2), np.float32), obs=obs)


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "column",
    [
        CODES,
        CODES.astype(np.int8),
        CODES.astype(np.float64),
        CODES.astype(str),
        CODES.astype(object),
        pd.Categorical(CODES.astype(str)),
        pd.Categorical(CODES, categories=[7, 2, 1, 0]),
        pd.Categorical(CODES.astype(str), categories=["unused", "2", "0", "1"], ordered=True),
        pd.array(CODES, dtype="Int64"),
        pd.array(CODES.astype(str), dtype="string"),
    ],
    ids=lambda column: f"{type(column).__name__}-{column.dtype}"[:40],
)
def test_the_type_of_the_column_has_no_say(column: object) -> None:
    labels = batch_labels(cells(batch=column), "batch")
    assert labels.tolist() == [str(code) for code in CODES]
    assert all(type(label) is str for label in labels)


def test_booleans_fractions_and_dates_are_labels() -> None:
    dates = pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-01"])
    adata = cells(flag=[True, False, True], dose=[0.5, 2.0, 0.5], day=dates)
    assert batch_labels(adata, "flag").tolist() == ["True", "False", "True"]
    assert batch_labels(adata, "dose").tolist() == ["0.5", "2", "0.5"]
    assert batch_labels(adata, "day").tolist() == ["2024-01-01 00:00:00", "2024-01-02 00:00:00", "2024-01-01 00:00:00"]


def test_values_written_alike_are_one_batch() -> None:
    assert batch_labels(cells(batch=np.array([1, "1", 2, 2.0], dtype=object)), "batch").tolist() == ["1", "1", "2", "2"]


def test_odd_names_stay_as_they_are() -> None:
    names = ["a/b", "Zürich 実験 🧬", "x" * 10_000, "12", " ", "a|b"]
    labels = batch_labels(cells(batch=names * 2), "batch")
    assert labels.tolist() == names * 2
    assert labels.dtype == object, "fixed-width strings would take 40 kB a cell here"


@given(st.lists(st.text(min_size=1, max_size=4), min_size=3, max_size=30))
def test_cells_share_a_label_if_they_share_a_value(values: list[str]) -> None:
    if len(set(values)) in (1, len(values)):
        return
    assert batch_labels(cells(batch=values), "batch").tolist() == values


def test_several_columns_are_crossed() -> None:
    adata = cells(lab=["a", "a", "b", "b", "a"], day=[1, 2, 1, 1, 1])
    assert batch_labels(adata, ["lab", "day"]).tolist() == ["a / 1", "a / 2", "b / 1", "b / 1", "a / 1"]
    assert batch_labels(adata, ("lab", "lab")).tolist() == batch_labels(adata, "lab").tolist()


def test_combinations_written_alike_stay_apart() -> None:
    adata = cells(one=["a / b", "a", "a", "a"], two=["c", "b / c", "b / c", "b"])
    labels = batch_labels(adata, ["one", "two"])
    assert len(set(labels)) == 3
    assert labels[1] == labels[2]
    # the same name whatever other combinations there are: a model knows a batch by it
    assert labels[0] == batch_labels(adata[[0, 3]], ["one", "two"], several=False)[0] == "'a / b' / c"


# -- refusing --------------------------------------------------------------------------------------------------------


def refused(adata: ad.AnnData, key: str | list[str]) -> str:
    with pytest.raises(DataError) as caught:
        batch_labels(adata, key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_column_is_named_and_the_others_listed() -> None:
    message = refused(cells(donor=["a", "b", "a"], age=[1, 2, 3]), "batch")
    assert "'batch'" in message
    assert "'donor', 'age'" in message
    assert "'nope'" in refused(cells(donor=["a", "b", "a"]), ["donor", "nope"])


def test_a_long_list_of_columns_is_shortened() -> None:
    message = refused(cells(**{f"col{i}": [1, 2, 1] for i in range(40)}, **{"y" * 5000: [1, 2, 1]}), "batch")
    assert "and 29 more" in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "column",
    [
        ["a", None, "b", "a", None],
        [1.0, np.nan, 2.0, 1.0, np.nan],
        pd.Categorical(["a", None, "b", "a", None]),
        pd.array([1, None, 2, 1, None], dtype="Int64"),
    ],
    ids=["strings", "floats", "categorical", "nullable"],
)
def test_missing_labels_are_counted(column: object) -> None:
    assert "missing (NaN) for 2 of 5 cells" in refused(cells(batch=column), "batch")


def test_one_batch_has_nothing_to_correct() -> None:
    assert "one batch only ('a')" in refused(cells(batch=["a"] * 4), "batch")
    unused = pd.Categorical(["a"] * 4, categories=["a", "b"])
    assert "one batch only ('a')" in refused(cells(batch=unused), "batch")


def test_a_column_of_cell_names_is_no_batch() -> None:
    assert "every cell is a batch of its own" in refused(cells(barcode=["a", "b", "c"]), "barcode")


def test_no_key_two_columns_of_one_name_and_lists() -> None:
    adata = cells(batch=["a", "b", "a"])
    assert "names no column" in refused(adata, [])
    adata.obs = pd.concat([adata.obs, adata.obs], axis=1)
    assert "name of 2 columns" in refused(adata, "batch")
    lists = cells(day=[1, 1, 2])
    lists.obs["batch"] = pd.Series([[1], [2], [1]], index=lists.obs_names, dtype=object)
    assert "no labels" in refused(lists, "batch")


# -- guessing --------------------------------------------------------------------------------------------------------


def table(n_cells: int = 100, **levels: int) -> pd.DataFrame:
    """Columns with a number of levels each, at random, so that no two part the cells alike."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({n.replace("__", " "): rng.permutation(np.arange(n_cells) % k) for n, k in levels.items()})


@pytest.mark.parametrize("name", [*BATCH_NAMES, "BATCH", "Batch__ID", "batch-id", "SampleID", "Orig_Ident", "donor.id"])
def test_usual_names_are_found(name: str) -> None:
    obs = table(cell_type=5, **{name: 3})
    key, reason = guess_batch_key(obs)
    assert key == name.replace("__", " ")
    assert "3 values" in reason
    assert key in obs


def test_two_plausible_columns_are_not_chosen_from() -> None:
    with pytest.raises(DataError, match=r"Several columns.*'batch' \(3 values\), 'donor' \(4 values\).*--batch-key"):
        guess_batch_key(table(donor=4, batch=3, cell_type=5))


def test_columns_that_part_the_cells_alike_are_one() -> None:
    obs = table(batch=3)
    obs["Lab"] = obs["batch"].map({0: "z", 1: "y", 2: "x"}).astype("category")
    key, reason = guess_batch_key(obs[["Lab", "batch"]])
    assert key == "batch"
    assert "'Lab'" in reason
    obs.loc[0, "batch"] = (obs.loc[0, "batch"] + 1) % 3
    with pytest.raises(DataError, match="Several columns"):
        guess_batch_key(obs)


def test_two_levels_to_a_tenth_of_the_cells() -> None:
    assert guess_batch_key(table(batch=10, donor=1, sample=11))[0] == "batch"
    for levels in (1, 11):
        with pytest.raises(DataError, match=rf"No column of obs can mean.*'batch' \({levels} values\).*--batch-key"):
            guess_batch_key(table(batch=levels))


def test_without_a_usual_name_candidates_are_named() -> None:
    with pytest.raises(DataError, match=r"Candidates: 'cell_type' \(5 values\), 'well' \(2 values\)\. .*--batch-key"):
        guess_batch_key(table(cell_type=5, well=2, score=100))
    with pytest.raises(DataError, match="obs has: no column"):
        guess_batch_key(pd.DataFrame(index=range(30)))


def test_a_missing_value_is_a_level_and_lists_are_no_labels() -> None:
    obs = table(batch=3)
    obs["notes"] = [[1]] * len(obs)
    assert guess_batch_key(obs)[0] == "batch"
    obs["donor"] = obs["batch"].where(obs["batch"] > 0)
    assert "'donor'" in guess_batch_key(obs)[1]


def test_names_in_messages_are_short() -> None:
    assert listed([]) == "none"
    assert listed(["x" * 10_000]) == repr("x" * 57 + "...")
    assert listed(range(5), limit=2) == "'0', '1' and 3 more"
