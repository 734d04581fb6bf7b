"""What a diagnosis says: the page, escaping, and sentences at their thresholds."""

import copy
from typing import Any

import pytest

from cellnorm.tl._diagnose_text import advice, column_text, format_diagnosis, warnings_of

COLUMN: dict[str, Any] = {
    "name": "donor",
    "n_levels": 2,
    "n_missing": 0,
    "strength": 0.2,
    "null": 0.01,
    "p": 0.005,
    "within_clusters": 0.31,
    "shared": 0.9,
    "follows_clusters": False,
    "usual_name": True,
    "condition_name": False,
    "verdict": "strong",
    "text": "strong effect on like cells",
}
BATCH = {"n_cells": 60, "n_genes": 90, "shared_genes": 80, "median_counts": 500.0, "lacks": [], "text": ""}
DIAGNOSIS: dict[str, Any] = {
    "matrix": {"n_cells": 120, "n_genes": 90, "n_empty": 0, "text": "120 cells"},
    "n_examined": 120,
    "columns": [COLUMN],
    "left_out": [],
    "batch_key": "donor",
    "confounding": [],
    "batches": [{"name": "a", **BATCH}, {"name": "b", **BATCH}],
    "warnings": [],
    "verdict": "correct",
    "recommendation": "Because.",
    "command": "cellnorm correct cells.h5ad --batch-key donor",
}


def changed(**of_column: Any) -> dict[str, Any]:
    """The diagnosis with another column of batches."""
    diagnosis = copy.deepcopy(DIAGNOSIS)
    diagnosis["columns"][0].update(of_column)
    return diagnosis


def test_the_page_begins_with_the_verdict_and_what_to_type() -> None:
    page = format_diagnosis(DIAGNOSIS).splitlines()
    assert page[0] == "Verdict: correct"
    assert page[1] == "  Because."
    assert page[3:5] == ["Next:", f"  {DIAGNOSIS['command']}"]
    assert any("donor" in line and "31.0%" in line for line in page)
    assert max(map(len, page)) <= 120


def test_nothing_in_the_page_moves_the_cursor() -> None:
    evil = "\x1b[31mred\nline"
    diagnosis = changed(name=evil)
    diagnosis["batches"][0]["name"] = diagnosis["batch_key"] = evil
    diagnosis["left_out"] = [{"name": evil, "reason": "one value only"}]
    diagnosis["warnings"] = warnings_of(diagnosis)
    diagnosis["verdict"], diagnosis["recommendation"] = advice(diagnosis)
    page = format_diagnosis(diagnosis)
    assert all(line.isprintable() for line in page.split("\n"))
    assert "\\x1b[31mred\\nline" in page


def test_long_tables_are_cut_and_say_so() -> None:
    diagnosis = copy.deepcopy(DIAGNOSIS)
    diagnosis["batches"] = [{"name": f"batch{i}", **BATCH} for i in range(60)]
    page = format_diagnosis(diagnosis)
    assert "and 40 more" in page
    assert "batch19" in page
    assert "batch20" not in page


@pytest.mark.parametrize(
    ("change", "verdict", "word"),
    [
        ({}, "correct", "strong effect: 31%"),
        ({"verdict": "mild", "within_clusters": 0.04}, "correct", "mild effect: 4%"),
        ({"verdict": "mild"}, "correct", "With so few cells"),
        ({"verdict": "none", "p": 0.5}, "no correction needed", "no more than chance"),
        ({"verdict": "none", "within_clusters": 0.001}, "no correction needed", "same kind"),
        ({"verdict": "none", "follows_clusters": True}, "cannot be separated", "as cell types do"),
        ({"usual_name": False}, "correct", "Make sure that 'donor' is an experiment"),
    ],
)
def test_advice(change: dict[str, Any], verdict: str, word: str) -> None:
    found, why = advice(changed(**change))
    assert found == verdict
    assert word in why


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"p": 0.4}, "no more than chance"),
        ({"follows_clusters": True}, "follows the clusters, as cell types do"),
        ({"verdict": "none"}, "other shares of the same cell types, no effect on like cells"),
        ({"condition_name": True}, "strong effect on like cells; by its name a condition, not an experiment"),
        ({"n_missing": 3}, "strong effect on like cells; missing for 3 cells"),
    ],
)
def test_column_text(change: dict[str, Any], text: str) -> None:
    assert column_text({**COLUMN, **change}) == text


def test_warnings_at_their_thresholds() -> None:
    diagnosis = copy.deepcopy(DIAGNOSIS)
    assert warnings_of(diagnosis) == []
    first = diagnosis["batches"][0]
    for change, word in [
        ({"n_cells": 29}, "fewer than 30 cells"),
        ({"shared_genes": 26}, "share few genes"),
        ({"median_counts": 5001.0}, "10-fold"),
        ({"lacks": ["1 (A, B)"]}, "seem to lack"),
    ]:
        diagnosis["batches"][0] = {**first, **change}
        assert [word in warning for warning in warnings_of(diagnosis)] == [True]
