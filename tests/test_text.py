"""Tables for a terminal: aligned, the best marked, nothing that a terminal would obey."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellnorm.text import escaped, score_csv, score_json, score_table, table

NAN = float("nan")
SCORES = pd.DataFrame(
    {
        "X_pca": [0.1, 0.9, 0.93, 0.3, 0.9, 0.66],
        "X_new": [0.8, NAN, 0.93, 0.9, 0.905, 0.903],
        "X_bad": [0.05, 0.2, 0.93, 0.1, 0.2, 0.16],
    },
    index=pd.Index(["iLISI", "KBET", "cLISI", "Batch correction", "Bio conservation", "Total"], name="metric"),
)
INTERVALS = pd.concat(
    {name: pd.DataFrame({"value": v, "low": v - 0.01, "high": v + 0.02}) for name, v in SCORES.items()}, axis=1
)


def test_a_table() -> None:
    text = table(SCORES.iloc[:3], higher_is_better=dict.fromkeys(SCORES.index, True), sections={"cLISI": "Biology"})
    assert text.splitlines() == [
        "          X_pca    X_new    X_bad",
        "  iLISI   0.100    0.800*   0.050",
        "  KBET    0.900*       -    0.200",
        "",
        "Biology",
        "  cLISI   0.930    0.930    0.930",
    ]


def test_the_best_is_the_lowest_where_that_is_better_and_nothing_is_marked_unasked() -> None:
    text = table(SCORES.iloc[:2], higher_is_better={"iLISI": False})
    assert [line for line in text.splitlines() if "*" in line] == ["iLISI   0.100    0.800    0.050*"]
    assert "*" not in table(SCORES)


def test_values_that_look_alike_are_marked_alike() -> None:
    frame = pd.DataFrame({"a": [0.80001], "b": [0.80002], "c": [0.1]}, index=["x"])
    assert table(frame, higher_is_better={"x": True}).count("*") == 2
    assert table(frame[["a", "b"]], higher_is_better={"x": True}).count("*") == 0
    assert table(frame[["a"]], higher_is_better={"x": True}).count("*") == 0


def test_intervals_missing_values_and_zeros() -> None:
    text = table(INTERVALS, higher_is_better={"iLISI": True})
    assert "0.100 (0.090 to 0.120)" in text
    assert "0.800 (0.790 to 0.820)*" in text
    assert "-" in text.splitlines()[2]
    alone = INTERVALS.copy()
    alone[("X_pca", "low")] = NAN
    assert "0.100   " in table(alone)
    zero = table(pd.DataFrame({"a": [-0.00001, -0.5]}, index=["x", "y"]))
    assert zero.splitlines()[1:] == ["x    0.000", "y   -0.500"]


@given(st.text(), st.text())
def test_every_line_is_printable(row: str, column: str) -> None:
    frame = pd.DataFrame([[1.0, 0.5]], index=[row], columns=[column, column + "!"])
    text = table(frame, higher_is_better={row: True}, sections={row: column})
    assert all(line.isprintable() for line in text.split("\n"))
    assert len(text.split("\n")) <= 4


def test_names_are_escaped_and_cut() -> None:
    assert escaped("\x1b[2J\u202eevil\n") == "\\x1b[2J\\u202eevil\\n"
    assert escaped("donor é 漢") == "donor é 漢"
    long = escaped("a" * 100 + "b" * 100)
    assert len(long) <= 40
    assert long.startswith("aaa")
    assert long.endswith("bbb")


def test_scores_for_people() -> None:
    scores = SCORES.copy()
    scores.attrs["before"] = "X_pca"
    lines = score_table(scores).splitlines()
    assert [line for line in lines if line and not line.startswith(" ")] == [
        "Are batches mixed?",
        "Are cell types kept apart?",
        "Means, as in scib-metrics",
        "* best of its row; higher is better",
        "X_new mixes batches better (0.30 to 0.90) and keeps types apart about as before (0.90 to 0.91).",
        "X_bad mixes batches worse (0.30 to 0.10) and keeps types apart worse (0.90 to 0.20).",
    ]
    assert "X_new mixes" not in score_table(SCORES)  # nothing is known of what was before


def test_scores_without_types_for_people() -> None:
    scores = pd.DataFrame(
        {"before": [0.2, 1.0], "after": [0.9, 0.55]}, index=["Batch entropy adjusted", "Neighbors kept"]
    )
    scores.attrs["before"] = "before"
    last = score_table(scores).splitlines()[-1]
    assert last == "after mixes batches better (0.20 to 0.90) and keeps 55% of the neighbours within batches."


def test_intervals_for_people() -> None:
    scores = INTERVALS.copy()
    scores.attrs["before"] = "X_pca"
    text = score_table(scores)
    assert "0.800 (0.790 to 0.820)*" in text
    assert "X_new mixes batches better (0.30 to 0.90)" in text


def test_scores_for_programs() -> None:
    read = pd.read_csv(StringIO(score_csv(SCORES)), index_col="metric")
    pd.testing.assert_frame_equal(read, SCORES)
    wide = pd.read_csv(StringIO(score_csv(INTERVALS)), index_col="metric")
    assert wide.columns.tolist()[:4] == ["X_pca", "X_pca low", "X_pca high", "X_new"]
    plain = json.loads(score_json(SCORES))
    assert plain["before"] == ""
    assert plain["scores"]["X_new"]["KBET"] is None
    assert plain["scores"]["X_pca"] == SCORES["X_pca"].to_dict()
    full = json.loads(score_json(INTERVALS))["scores"]["X_new"]
    assert full["iLISI"] == pytest.approx({"value": 0.8, "low": 0.79, "high": 0.82})
    assert full["KBET"] == {"value": None, "low": None, "high": None}
    assert np.isnan(SCORES.loc["KBET", "X_new"])
