"""Checks of labels, matrix and device: what passes unchanged, and what is named in the refusal."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.errors import DataError
from cellnorm.validation import check_matrix, check_strength, choose_device, encode_labels, known_codes

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)


# -- labels ----------------------------------------------------------------------------------------------------------


@given(labels=st.lists(TEXT | st.integers(-3, 3), min_size=2, max_size=30).filter(lambda v: len(set(map(str, v))) > 1))
def test_names_and_codes_give_the_labels_back(labels: list[Any]) -> None:
    names, codes, design = encode_labels(np.array(labels, dtype=object), len(labels))
    assert names[codes].tolist() == [str(label) for label in labels]
    assert names.tolist() == sorted(set(map(str, labels)))
    assert codes.dtype == np.int64
    assert all(type(name) is str for name in names)
    assert (design == np.eye(len(names))).all()


@pytest.mark.parametrize("missing", [None, np.nan, pd.NA, pd.NaT, np.datetime64("NaT")], ids=repr)
def test_missing_labels_are_counted(missing: Any) -> None:
    with pytest.raises(DataError, match="missing for 2 of 5 cells"):
        encode_labels(np.array(["a", missing, "b", missing, "a"], dtype=object), 5)


@pytest.mark.parametrize("kind", ["string", "Int64", "boolean", "category", "datetime64[ns]"])
def test_missing_labels_of_pandas_are_counted(kind: str) -> None:
    values = {"boolean": [True, None, False], "Int64": [1, None, 2]}.get(kind, ["2020-01-01", None, "2021-01-01"])
    with pytest.raises(DataError, match="missing for 1 of 3 cells"):
        encode_labels(pd.Series(values, dtype=kind), 3)


@pytest.mark.parametrize("n_cells", [3, 5])
def test_labels_are_as_many_as_cells(n_cells: int) -> None:
    with pytest.raises(DataError, match=rf"each of {n_cells} cells.*\(4,\)"):
        encode_labels(np.array(["a", "b", "a", "b"]), n_cells)


@pytest.mark.parametrize(("labels", "found"), [(["lab 7"] * 3, "only 'lab 7'"), ([], "no cell")])
def test_one_batch_cannot_be_corrected(labels: list[str], found: str) -> None:
    with pytest.raises(DataError, match=f"at least two batches, found {found}"):
        encode_labels(np.array(labels, dtype=str), len(labels))


def test_long_names_are_cut_in_messages() -> None:
    with pytest.raises(DataError) as caught:
        encode_labels(np.array(["x" * 10_000] * 3), 3)
    assert len(str(caught.value)) < 300


# -- matrix ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.coo_matrix, sp.csr_array, pd.DataFrame])
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.uint8, bool])
def test_a_finite_matrix_passes(store: Any, kind: type) -> None:
    if kind is bool and store is sp.coo_matrix:
        kind = np.int8
    check_matrix(store(np.eye(5).astype(kind)), 5)


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix, sp.csc_matrix, pd.DataFrame])
def test_values_that_are_not_finite_are_counted(store: Any) -> None:
    X = np.eye(6)
    X[1, 2], X[3, 3], X[0, 5] = np.nan, np.inf, -np.inf
    with pytest.raises(DataError, match="3 values that are NaN"):
        check_matrix(store(X), 2)


def test_fewer_cells_than_dimensions_are_refused() -> None:
    with pytest.raises(DataError, match="7 dimensions was asked for, found 6 cells"):
        check_matrix(np.eye(6), 7)


# -- device ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cuda", "mps"), [(True, True), (True, False), (False, True), (False, False)])
def test_devices(cuda: bool, mps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == ("cuda" if cuda else "cpu")
    assert choose_device("cpu") == "cpu"
    for device, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert choose_device(device) == device
        else:
            with pytest.raises(DataError, match=f"'{device}' was asked for and is not there"):
                choose_device(device)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DataError, match=r"'tpu' is unknown\. Choose auto, cpu, cuda or mps"):
        choose_device("tpu")


# -- several covariates ----------------------------------------------------------------------------------------------


def test_combinations_are_batches() -> None:
    names, codes, design = encode_labels([["b", "a", "b"], [1, 1, 2]], 3)
    assert names.tolist() == ["a / 1", "b / 1", "b / 2"]
    assert codes.tolist() == [1, 0, 2]
    assert design.tolist() == [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]]
    for batch in ([["b", "a"], [2, 1]], ["b / 2", "a / 1"]):
        assert known_codes(batch, names, 2).tolist() == [2, 0]
    with pytest.raises(DataError, match="'a / 2' is unknown"):
        known_codes([["a", "b"], [2, 2]], names, 2)


def test_a_list_of_one_column_is_the_column() -> None:
    names, codes, design = encode_labels([["b / c", "a", "a"]], 3)
    assert names.tolist() == ["a", "b / c"]
    assert codes.tolist() == [1, 0, 0]
    assert (design == np.eye(2)).all()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pd.DataFrame({"a": ["x", "y"], "b": [1.0, np.nan]}), "missing for 1 of 2"),
        (pd.DataFrame(index=range(2)), "without columns"),
        ([["x", "x"], [1, 1]], "at least two batches, found only 'x / 1'"),
        (np.array([["x"], ["y"], ["z"]]), r"each of 2 cells, found an array of shape \(3,\)"),
    ],
)
def test_columns_that_are_no_covariates(batch: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode_labels(batch, 2)


# -- the strength ----------------------------------------------------------------------------------------------------


@given(st.none() | st.floats(0, 1) | st.integers(0, 1))
def test_a_strength_from_0_to_1_or_none_passes(strength: float | None) -> None:
    check_strength(strength)


@pytest.mark.parametrize("strength", [-1e-9, 1 + 1e-9, np.nan, -np.inf, "much", "", [0.5, 0.5], {}])
def test_another_strength_is_named(strength: Any) -> None:
    with pytest.raises(DataError, match=r"was asked for\. Give a number from 0 .* to 1 .* or leave it out") as caught:
        check_strength(strength)
    assert repr(strength)[:80] in str(caught.value)
