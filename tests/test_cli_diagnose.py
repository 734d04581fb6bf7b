"""`cellnorm diagnose` as a newcomer meets it."""

import json
from pathlib import Path

import anndata as ad
import pytest
from click.testing import Result
from command import run

import cellnorm as cn


def diagnose(*args: object) -> Result:
    """`cellnorm diagnose ARGS`."""
    return run("diagnose", *args)


@pytest.fixture
def source(small_adata: ad.AnnData, tmp_path: Path) -> Path:
    small_adata.write_h5ad(tmp_path / "my cells.h5ad")
    return tmp_path / "my cells.h5ad"


def test_the_first_lines_say_what_to_do(source: Path) -> None:
    before = source.read_bytes()
    result = diagnose(source)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == "Verdict: correct"
    assert "'batch' has a strong effect" in lines[1]
    assert f"  cellnorm correct '{source}' --batch-key batch" in lines
    assert "seconds: read" in result.stderr
    assert source.read_bytes() == before
    assert list(source.parent.iterdir()) == [source]


def test_json_is_what_python_gets(source: Path) -> None:
    result = diagnose(source, "--format", "json", "-q")
    assert result.stderr == ""
    assert json.loads(result.stdout) == cn.tl.diagnose(ad.read_h5ad(source), source=str(source))


def test_the_batch_can_be_named(source: Path) -> None:
    assert json.loads(diagnose(source, "-b", "cell_type", "--format", "json").stdout)["batch_key"] == "cell_type"
    both = json.loads(diagnose(source, "-b", "cell_type", "-b", "batch", "--format", "json").stdout)
    assert both["batch_key"] == "cell_type x batch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-b", "lab"], "'lab' was asked for"), (["--layer", "counts"], "layer 'counts' was asked for")],
)
def test_errors_of_the_data_are_one_line(source: Path, arguments: list[str], message: str) -> None:
    result = diagnose(source, *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr


def test_usage(source: Path) -> None:
    assert diagnose().exit_code == 2
    assert diagnose(source, "-q", "-v").exit_code == 2
    assert diagnose(source, "--format", "csv").exit_code == 2
    assert diagnose(source.with_name("nothing.h5ad")).exit_code == 1
    assert "cellnorm diagnose cells.h5ad" in diagnose("--help").stdout
