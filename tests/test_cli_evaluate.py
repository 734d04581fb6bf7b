"""`cellnorm evaluate` as a user meets it."""

import json
import sys
import types
from io import StringIO
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from command import folder_content, run

import cellnorm as cn


def evaluate(*args: object) -> Result:
    """`cellnorm evaluate ARGS`."""
    return run("evaluate", *args)


@pytest.fixture
def source(small_adata: ad.AnnData, tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    kind = small_adata.obs["cell_type"].cat.codes.to_numpy()
    small_adata.obsm["X_cellnorm"] = rng.normal(size=(300, 6)) + 4 * np.eye(6)[kind]
    small_adata.obsm["X_umap"] = rng.normal(size=(300, 2))
    small_adata.write_h5ad(tmp_path / "out.h5ad")
    return tmp_path / "out.h5ad"


def test_the_fewest_options_say_something_useful(source: Path) -> None:
    before = folder_content(source.parent)
    result = evaluate(source)
    assert result.exit_code == 0
    assert folder_content(source.parent) == before
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["uncorrected", "X_cellnorm"]
    assert any(line.startswith("  iLISI") and line.endswith("*") for line in lines)
    assert lines[-1].startswith("X_cellnorm mixes batches better (")
    assert "KBET overall" in result.stdout
    assert "BRAS" not in result.stdout
    assert "column 'batch' (the only column" in result.stderr
    assert "300 cells, 3 batches" in result.stderr
    assert "--label-key names their column" in result.stderr
    assert max(map(len, lines)) <= 100


def test_with_types(source: Path) -> None:
    result = evaluate(source, "--label-key", "cell_type")
    assert result.exit_code == 0
    for heading in (
        "Are batches mixed?",
        "Are cell types kept apart?",
        "Is the structure",
        "Means, as in scib-metrics",
    ):
        assert heading in result.stdout
    assert "4 cell types" in result.stderr
    assert "--label-key" not in result.stderr
    assert "X_cellnorm mixes batches better (" in result.stdout


def test_quiet_gives_the_table_alone(source: Path) -> None:
    loud, quiet = evaluate(source, "--label-key", "cell_type"), evaluate(source, "--label-key", "cell_type", "-q")
    assert (quiet.stderr, quiet.stdout) == ("", loud.stdout)


def test_csv_and_json_hold_what_python_gives(source: Path) -> None:
    options = ("-q", "--label-key", "cell_type", "--use-rep", "X_cellnorm", "--seed", "3", "--max-cells", "200")
    expected = cn.tl.evaluate(
        ad.read_h5ad(source), "batch", "cell_type", use_rep="X_cellnorm", random_state=3, max_cells=200
    )
    as_csv = pd.read_csv(StringIO(evaluate(source, *options, "--format", "csv").stdout), index_col="metric")
    assert as_csv["X_cellnorm"].to_dict() == pytest.approx(expected["X_cellnorm"].to_dict(), abs=1e-6)
    as_json = json.loads(evaluate(source, *options, "--format", "json").stdout)
    assert as_json["before"] == "uncorrected"
    assert as_json["scores"]["X_cellnorm"] == pytest.approx(expected["X_cellnorm"].to_dict(), abs=1e-6)


def test_embeddings_are_chosen_and_intervals_shown(source: Path) -> None:
    result = evaluate(source, "--use-rep", "X_umap", "--use-rep", "X_cellnorm", "--intervals", "--before", "X_umap")
    assert result.stdout.splitlines()[0].split() == ["X_umap", "X_cellnorm"]
    assert " to 0." in result.stdout
    assert "uncorrected: obsm['X_umap']" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--label-key", "no"), 1, "cellnorm: label_key 'no' was asked for"),
        (("--use-rep", "no"), 1, "cellnorm: use_rep 'no' was asked for"),
        (("--batch-key", "no"), 1, "cellnorm: batch_key 'no' was asked for"),
        (("-q", "-v"), 2, "exclude each other"),
        (("--format", "xml"), 2, "Invalid value"),
        (("--max-cells", "2"), 2, "Invalid value"),
    ],
)
def test_what_goes_wrong(source: Path, options: tuple[str, ...], code: int, message: str) -> None:
    result = evaluate(source, *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    result = evaluate(tmp_path / "no.h5ad")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)


def test_names_from_a_file_do_not_reach_the_terminal_raw(source: Path) -> None:
    evil = "\x1b[2J\nexit 0"
    adata = ad.read_h5ad(source)
    adata.obsm[evil] = adata.obsm["X_cellnorm"]
    adata.write_h5ad(source)
    result = evaluate(source)
    assert "exit 0" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert "\nexit 0" not in result.stdout + result.stderr


def test_a_report_is_asked_for_with_intervals_and_the_table_stays_plain(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def write_evaluation(path: Path, adata: ad.AnnData, **options: Any) -> Path:
        asked.update(options, path=path, n=adata.n_obs)
        return path

    report = types.SimpleNamespace(write_evaluation=write_evaluation)
    monkeypatch.setitem(sys.modules, "cellnorm.report", report)  # type: ignore[arg-type]
    target = source.with_name("report.html")
    result = evaluate(source, "--report", target, "--label-key", "cell_type")
    assert result.exit_code == 0
    assert result.stdout == evaluate(source, "--label-key", "cell_type").stdout
    assert (asked["path"], asked["n"], asked["force"]) == (target, 300, False)
    assert (asked["batch_key"], asked["label_key"]) == (["batch"], "cell_type")
    assert asked["scores"].columns.nlevels == 2
    assert asked["command"].split()[0] == "cellnorm"
    target.touch()
    asked.clear()
    refused = evaluate(source, "--report", target)
    assert (refused.exit_code, asked) == (1, {})
    assert "exists. Choose another name (--report) or replace it (--force)" in refused.stderr
    assert evaluate(source, "--report", target, "--force").exit_code == 0
    assert asked["force"]


def test_defaults_have_one_home_and_helps_show_them() -> None:
    text = " ".join(evaluate("--help").stdout.split())
    home = cn.tl.evaluate.__kwdefaults__
    assert home is not None
    assert f"(default: {home['max_cells']})" in text
    assert f"(default: {home['random_state']})" in text
    assert "\b" not in text
