"""`cellnorm correct` as a newcomer meets it: one command, everything kept, nothing half done."""

import html
import logging
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from click.testing import CliRunner, Result
from command import FORKING_PYTHON, correct, few_steps, folder_content, h5_content

import cellnorm as cn
from cellnorm.cli import main

__all__ = ["few_steps"]

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "cellnorm"]


class Corrected(NamedTuple):
    result: Result
    source: Path
    before: bytes
    output: Path


@pytest.fixture(scope="session")
def cells(simulated_once: ad.AnnData) -> ad.AnnData:
    """Counts with the marks of an analysis: layers, an embedding, colours, an unused level, one batch column."""
    adata = simulated_once.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = sp.csr_matrix(np.log1p(adata.X.toarray()))
    adata.raw = adata.copy()
    adata.obs["batch"] = adata.obs["batch"].cat.add_categories("unused")
    adata.obs["score"] = np.where(np.arange(300) % 7, 0.5, np.nan)
    adata.obsm["X_umap"] = np.random.default_rng(0).random((300, 2))
    adata.uns["batch_colors"] = np.array(["#111111", "#222222"], dtype=object)
    adata.uns["log1p"] = {"base": 2.0}
    return adata


@pytest.fixture(scope="session")
def corrected(cells: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Corrected:
    """The one run of the command without options that many tests look at."""
    source = tmp_path_factory.mktemp("corrected") / "in.h5ad"
    cells.write_h5ad(source)
    before = source.read_bytes()
    return Corrected(correct(source), source, before, source.with_name("in.cellnorm.h5ad"))


@pytest.fixture
def source(cells: ad.AnnData, tmp_path: Path) -> Path:
    cells.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


@pytest.fixture(autouse=True)
def nothing_of_a_command_stays() -> Iterator[None]:
    """Handlers, levels and signals are as they were before the command."""
    package = logging.getLogger("cellnorm")
    before = package.handlers[:], package.level, signal.getsignal(signal.SIGTERM)
    yield
    assert (package.handlers, package.level, signal.getsignal(signal.SIGTERM)) == before


# -- one command ----------------------------------------------------------------------------------------------------


def test_one_command_without_options_writes_beside_the_input(corrected: Corrected) -> None:
    assert corrected.result.exit_code == 0
    assert corrected.result.stdout == f"{corrected.output}\n"
    adata = ad.read_h5ad(corrected.output)
    assert adata.obsm["X_cellnorm"].shape == (300, signature(cn.CellNorm).parameters["n_latent"].default)
    assert adata.obsm["X_cellnorm"].dtype == np.float32
    assert np.isfinite(adata.obsm["X_cellnorm"]).all()
    assert sorted(os.listdir(corrected.source.parent)) == ["in.cellnorm.h5ad", "in.h5ad"]


def test_it_says_what_it_chose_and_why(corrected: Corrected) -> None:
    said = corrected.result.stderr
    assert "300 cells x 200 genes" in said
    assert "column 'batch' (the only column" in said
    assert "counts in layers['counts']" in said
    assert "3 batches" in said
    assert re.search(r"seconds: read \d.*prepare \d.*train \d", said)
    assert "\r" not in said
    assert "% |" not in said  # no bars where there is no terminal
    assert re.search(r"verdict good: clusters of one kind lie 0\.\d\d apart", said)


def test_everything_of_the_input_is_in_the_output_untouched(corrected: Corrected) -> None:
    assert corrected.source.read_bytes() == corrected.before
    before, after = h5_content(corrected.source), h5_content(corrected.output)
    assert {name: content for name, content in after.items() if name in before} == before
    added = {"/".join(name.split("/")[:2]) for name in set(after) - set(before)}
    assert added == {"obsm/X_cellnorm", "uns/cellnorm"}


def test_the_output_says_how_it_was_made(corrected: Corrected) -> None:
    info = ad.read_h5ad(corrected.output).uns["cellnorm"]
    assert info["batches"]["name"].tolist() == ["lab0", "lab1", "lab2"]
    assert info["batches"]["n_cells"].tolist() == [100, 100, 100]
    assert (info["matrix"], info["matrix_kind"], info["batch_key"].tolist()) == (
        "layers['counts']",
        "counts",
        ["batch"],
    )
    assert info["versions"]["cellnorm"] == cn.__version__
    assert {"read", "prepare", "train", "encode", "check"} <= set(info["seconds"])
    assert info["alarm"]["verdict"] == "good"
    assert info["alarm"]["batches"]["name"].tolist() == ["lab0", "lab1", "lab2"]
    assert all(taken >= 0 for taken in info["seconds"].values())


def test_it_corrects(corrected: Corrected) -> None:
    """Cells of one type lie together whatever their batch: a wrong batch column or matrix would show here."""
    adata = ad.read_h5ad(corrected.output)
    Z = adata.obsm["X_cellnorm"]
    kind, batch = adata.obs["cell_type"].to_numpy(), adata.obs["batch"].to_numpy()
    distance = np.linalg.norm(Z[:, None] - Z[None], axis=2) + np.where(batch[:, None] == batch, np.inf, 0)
    nearest_elsewhere = distance.argmin(axis=1)
    assert (kind == kind[nearest_elsewhere]).mean() > 0.9


def test_the_same_again_needs_force_and_gives_the_same(corrected: Corrected, tmp_path: Path) -> None:
    before = corrected.output.read_bytes()
    again = correct(corrected.source)
    assert again.exit_code == 1
    assert "exists" in again.stderr
    assert corrected.output.read_bytes() == before
    source = tmp_path / "in.h5ad"
    source.write_bytes(corrected.before)
    (tmp_path / "in.cellnorm.h5ad").write_text("an older result")
    assert correct(source, "--force", "-q").exit_code == 0
    first, second = (ad.read_h5ad(p).obsm["X_cellnorm"] for p in (corrected.output, tmp_path / "in.cellnorm.h5ad"))
    assert first.tobytes() == second.tobytes()


# -- options --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
def test_every_option_arrives(source: Path, tmp_path: Path) -> None:
    result = correct(
        *(source, "-o", tmp_path / "out.zarr", "--batch-key", "batch", "--batch-key", "cell_type", "--layer", "counts"),
        *("--n-top-genes", 150, "--n-latent", 5, "--seed", 3, "--device", "cpu", "--umap", "-q"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    adata = ad.read_zarr(tmp_path / "out.zarr")
    info = adata.uns["cellnorm"]
    assert info["batch_key"].tolist() == ["batch", "cell_type"]
    assert len(info["batches"]["name"]) == 12
    assert info["matrix"] == "layers['counts']"
    assert len(info["genes"]) == 150
    assert (info["random_state"], info["device"]) == (3, "cpu")
    assert adata.obsm["X_cellnorm"].shape == (300, 5)
    assert adata.obsm["X_umap_cellnorm"].shape == (300, 2)
    np.testing.assert_array_equal(adata.obsm["X_umap"], ad.read_h5ad(source).obsm["X_umap"])  # the user's own
    assert adata.obsp["cellnorm_neighbors_connectivities"].shape == (300, 300)
    assert "umap" in info["seconds"]


@pytest.mark.usefixtures("few_steps")
def test_several_files_are_several_labs(cells: ad.AnnData, tmp_path: Path) -> None:
    plain = ad.AnnData(cells.layers["counts"], cells.obs[["cell_type"]], cells.var)
    for lab in ("lab0", "lab1"):
        of_lab = plain[(cells.obs["batch"] == lab).to_numpy(), : 180 if lab == "lab0" else 200].copy()
        of_lab.obs_names = [f"cell{i}" for i in range(of_lab.n_obs)]
        of_lab.write_h5ad(tmp_path / f"{lab}.h5ad")
    result = correct(tmp_path / "lab0.h5ad", tmp_path / "lab1.h5ad", "-o", tmp_path / "merged.h5ad")
    assert result.exit_code == 0
    assert "200 cells x 180 genes" in result.stderr
    assert "'lab0.h5ad'" in result.stderr.replace(f"{tmp_path}/", "")
    assert "column 'batch' (one batch per file)" in result.stderr
    adata = ad.read_h5ad(tmp_path / "merged.h5ad")
    assert adata.uns["cellnorm"]["batches"]["name"].tolist() == ["lab0", "lab1"]
    assert adata.obs["batch"].tolist() == ["lab0"] * 100 + ["lab1"] * 100
    assert adata.obs_names.is_unique
    assert adata.obsm["X_cellnorm"].shape[0] == 200


@pytest.mark.usefixtures("few_steps")
def test_a_zarr_stays_a_zarr(cells: ad.AnnData, tmp_path: Path) -> None:
    cells.write_zarr(tmp_path / "in.zarr")
    before = folder_content(tmp_path / "in.zarr")
    result = correct(tmp_path / "in.zarr", "-v")
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'in.cellnorm.zarr'}\n")
    after = folder_content(tmp_path / "in.cellnorm.zarr")
    assert {name for name in before if after[name] != before[name]} == {".zmetadata"}
    assert folder_content(tmp_path / "in.zarr") == before


@pytest.mark.usefixtures("few_steps")
def test_relative_names_are_given_back_as_they_were_given(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    assert correct("in.h5ad", "-q").stdout == "in.cellnorm.h5ad\n"


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a.h5ad", "--no-such-option"),
        ("a.h5ad", "-q", "-v"),
        ("a.h5ad", "b.h5ad"),
        ("a.h5ad", "--n-latent", "0"),
        ("a.h5ad", "--n-latent", "many"),
        ("a.h5ad", "--seed", "-1"),
        ("a.h5ad", "--strength", "much"),
        ("a.h5ad", "--device", "tpu"),
        ("a.h5ad", "--label-key", "cell_type"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    result = correct(*arguments)
    assert result.exit_code == 2
    assert "Usage: cellnorm correct" in result.stderr


def test_types_without_a_report_are_a_mistake(source: Path) -> None:
    result = correct(source, "--label-key", "cell_type")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--label-key is for the report or the model: add --report FILE or --save-model DIR" in result.stderr
    assert os.listdir(source.parent) == ["in.h5ad"]


def test_versions_and_helps() -> None:
    for arguments in (["--version"], ["correct", "--version"]):
        assert CliRunner().invoke(main, arguments).output == f"cellnorm, version {cn.__version__}\n"
    for option in ("-h", "--help"):
        assert "correct" in CliRunner().invoke(main, [option]).output
        text = CliRunner().invoke(main, ["correct", option]).output
        for name in (
            "--output",
            "--batch-key",
            "--layer",
            "--n-top-genes",
            "--n-latent",
            "--strength",
            "--seed",
            "--device",
            "--umap",
            "--report",
            "--label-key",
            "--force",
            "--quiet",
            "--verbose",
            "--version",
        ):
            assert name in text
        assert "\b" not in text


def test_helps_show_the_defaults(corrected: Corrected) -> None:
    text = " ".join(CliRunner().invoke(main, ["correct", "--help"]).output.split())
    homes = {name: parameter.default for name, parameter in signature(cn.CellNorm).parameters.items()}
    homes |= {name: parameter.default for name, parameter in signature(cn.pp.prepare).parameters.items()}
    for option, name in {
        "--n-latent": "n_latent",
        "--seed": "random_state",
        "--device": "device",
        "--n-top-genes": "n_top_genes",
    }.items():
        assert re.search(rf"{option} .*?\(default: (\w+)", text)[1] == str(homes[name])  # type: ignore[index]


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*COMMAND, "correct", "--help"], check=True, capture_output=True, cwd=ROOT)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.3
    script = "import sys, cellnorm.cli; print(sorted({'numpy', 'torch', 'anndata', 'tqdm', 'h5py'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "[]\n"


def test_a_correction_does_without_what_scanpy_brings() -> None:
    script = "import sys; from cellnorm.tl import correct, correct_file; print({'scanpy', 'numba'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=ROOT)
    assert ran.stdout == "set()\n"


# -- the report -----------------------------------------------------------------------------------------------------


def text_of(page: Path) -> str:
    """What a page shows, without its tags and pictures, in one line."""
    body = re.sub(r"<(style|head)\b.*?</\1>|<[^>]*>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(body).split())


@pytest.mark.usefixtures("few_steps")
def test_a_report_says_whether_it_worked(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page, typed = source.with_name("report.html"), ["cellnorm", "correct", "it's.h5ad", "--report", "report.html"]
    monkeypatch.setattr(sys, "argv", typed)
    before = source.read_bytes()
    result = correct(source, "--report", page, "--label-key", "cell_type")
    assert (result.exit_code, result.stdout) == (0, f"{source.with_name('in.cellnorm.h5ad')}\n")
    assert sorted(os.listdir(source.parent)) == ["in.cellnorm.h5ad", "in.h5ad", "report.html"]
    assert source.read_bytes() == before
    info = ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]
    shown = text_of(page)
    assert info["alarm"]["reason"][1:] in shown  # its first letter may be a capital
    assert shown.lower().index(info["alarm"]["verdict"]) < shown.index("lab0")  # the verdict comes first
    for text in ("in.h5ad", "lab2", "type3", "iLISI", "Graph connectivity", shlex.join(typed)):
        assert text in shown
    assert "data:image/png;base64," in page.read_text()
    assert "<script" not in page.read_text()
    assert f"wrote {page}" in result.stderr


@pytest.mark.usefixtures("few_steps")
def test_the_report_has_no_say_in_the_correction(source: Path, tmp_path: Path) -> None:
    """Nor have the types; several keys and a layer go into it too."""
    options = ("-q", "--seed", 3, "--n-latent", 5, "--layer", "counts", "-b", "batch", "-b", "note")
    adata = ad.read_h5ad(source)
    adata.obs["note"] = pd.Categorical(np.where(np.arange(300) % 2, "<odd>", "even"))
    adata.write_h5ad(source)
    assert correct(source, "-o", tmp_path / "plain.h5ad", *options).exit_code == 0
    page = ("--report", tmp_path / "report.html", "--label-key", "cell_type")
    shown = correct(source, "-o", tmp_path / "shown.h5ad", *options, *page)
    assert (shown.exit_code, shown.stderr) == (0, "")
    first, second = (h5_content(tmp_path / name) for name in ("plain.h5ad", "shown.h5ad"))
    assert {name for name in first if first[name] != second[name]} <= {n for n in first if "/seconds" in n}
    assert set(second) == set(first)
    assert "<odd>" in text_of(tmp_path / "report.html")
    assert "<odd>" not in (tmp_path / "report.html").read_text()


@pytest.mark.usefixtures("few_steps")
def test_a_report_of_several_files(cells: ad.AnnData, tmp_path: Path) -> None:
    plain = ad.AnnData(cells.X, cells.obs[["cell_type"]], cells.var, layers={"mine": cells.layers["counts"]})
    for lab in ("lab0", "lab1"):
        plain[(cells.obs["batch"] == lab).to_numpy()].write_h5ad(tmp_path / f"{lab}.h5ad")
    inputs, page = (tmp_path / "lab0.h5ad", tmp_path / "lab1.h5ad"), tmp_path / "report.html"
    options = ("--report", page, "--label-key", "cell_type", "--layer", "mine", "-q")
    result = correct(*inputs, "-o", tmp_path / "merged.h5ad", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "lab0.h5ad, lab1.h5ad" in text_of(page)
    assert ad.read_h5ad(tmp_path / "merged.h5ad").uns["cellnorm"]["alarm"]["batches"]["name"].tolist() == [
        *("lab0", "lab1")
    ]


def test_what_no_report_can_show_is_refused_before_the_work(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_late(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the work has begun")

    for name in ("correct", "diagnose", "evaluate"):
        monkeypatch.setattr(f"cellnorm.tl.{name}", too_late)
    page = source.with_name("report.html")
    for options, words in (
        ((page, "--label-key", "no"), "'no' was asked for"),
        ((source.with_name("report.pdf"),), "must end in .html, found"),
        ((source.parent / "nowhere" / "report.html",), "There is no folder"),
    ):
        refused = correct(source, "--report", *options)
        assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
        assert words in refused.stderr
    assert os.listdir(source.parent) == ["in.h5ad"]
    page.write_text("an older page")
    refused = correct(source, "--report", page)
    assert refused.exit_code == 1
    assert re.search(r"report\.html'? exists\..*\(--force\)", refused.stderr)
    assert page.read_text() == "an older page"


@pytest.mark.usefixtures("few_steps")
def test_force_replaces_an_older_report(source: Path) -> None:
    page = source.with_name("report.html")
    page.write_text("an older page")
    assert correct(source, "--report", page, "-q", "--force").exit_code == 0
    assert "verdict" in text_of(page).lower()


@pytest.mark.usefixtures("few_steps")
def test_a_report_that_fails_leaves_the_result(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The correction took the time: it is written first."""

    def fails(*args: Any, **kwargs: Any) -> None:
        raise cn.DataError("no room")

    monkeypatch.setattr("cellnorm.report.write_correction", fails)
    result = correct(source, "--report", source.with_name("report.html"), "-q")
    assert (result.exit_code, result.stderr) == (1, "cellnorm: no room\n")
    assert sorted(os.listdir(source.parent)) == ["in.cellnorm.h5ad", "in.h5ad"]


@pytest.mark.usefixtures("few_steps")
def test_a_bad_verdict_is_said_even_when_quiet_and_the_result_is_written(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellnorm.reuse.encode", lambda net, x, batch: np.zeros((len(x), 5), np.float32))
    result = correct(source, "-q", "--n-latent", 5)
    assert (result.exit_code, result.stdout) == (0, f"{source.with_name('in.cellnorm.h5ad')}\n")
    assert result.stderr.startswith("warning: verdict over-corrected: ")
    assert result.stderr.count("\n") == 1
    info = ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]
    assert info["alarm"]["verdict"] == "over-corrected"


# -- the terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("given", "value", "why"), [("auto", 1.0, "strength 1.00: "), ("0.25", 0.25, "as asked for")])
def test_the_strength_arrives_and_is_said(source: Path, given: str, value: float, why: str) -> None:
    result = correct(source, "--n-latent", 5, "--strength", given)
    assert result.exit_code == 0
    assert why in result.stderr
    info = ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]
    assert info["strength"]["value"] == value
    assert why in info["strength"]["why"]


@pytest.mark.parametrize("given", ["1.5", "-0.1", "nan"])
def test_a_strength_beyond_0_to_1_is_refused_in_a_line(source: Path, given: str) -> None:
    result = correct(source, "--strength", given)
    assert result.exit_code == 1
    assert f"A strength of {float(given)} was asked for. Give a number from 0" in result.stderr
    assert not source.with_name("in.cellnorm.h5ad").exists()


@pytest.mark.usefixtures("few_steps")
def test_quiet_means_quiet_and_verbose_speaks_at_once(source: Path, tmp_path: Path) -> None:
    assert correct(source, "-q", "--n-latent", 5).stderr == ""
    failed = correct(source, "-o", tmp_path / "x.h5ad", "--batch-key", "no")
    assert failed.stderr.count("\n") == 1
    loud = correct(source, "-o", tmp_path / "x.h5ad", "--batch-key", "no", "-v")
    assert "300 cells x 200 genes" in loud.stderr
    assert loud.stderr.splitlines()[-1] == failed.stderr.strip()


def test_on_a_terminal_there_are_bars_with_the_loss(source: Path) -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    process = subprocess.Popen([*COMMAND, "correct", str(source)], stdout=subprocess.PIPE, stderr=end, cwd=ROOT)
    os.close(end)
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # how a terminal says that the other side has gone
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    output = process.communicate()[0]
    assert (process.returncode, output) == (0, f"{source.with_name('in.cellnorm.h5ad')}\n".encode())
    assert re.search(rb"train +\d+% \|", shown)
    assert b"loss" in shown


@pytest.mark.usefixtures("few_steps")
def test_names_from_a_file_do_not_reach_the_terminal_raw(cells: ad.AnnData, tmp_path: Path) -> None:
    evil = "\x1b[2J\x1b]0;owned\x07\nexit 0"
    adata = cells.copy()
    adata.obs[evil] = pd.Categorical(np.where(np.arange(300) < 5, evil, "other"))
    adata.write_h5ad(tmp_path / "in.h5ad")
    failed = correct(tmp_path / "in.h5ad", "--batch-key", "no")
    worked = correct(tmp_path / "in.h5ad", "--batch-key", evil, "-v", "--n-latent", 5)
    assert (failed.exit_code, worked.exit_code) == (1, 0)
    assert "owned" in failed.stderr
    assert "owned" in worked.stderr
    for said in (failed.stderr, worked.stderr):
        assert all(line.isprintable() for line in said.splitlines())
        assert "\nexit 0" not in said


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_bug_keeps_its_traceback_and_leaves_nothing(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("cellnorm.tl.correct", fails)
    with pytest.raises(ZeroDivisionError):
        correct(source)
    assert os.listdir(source.parent) == ["in.h5ad"]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize(("number", "said"), [(signal.SIGTERM, ""), (signal.SIGINT, "cellnorm: interrupted")])
@pytest.mark.parametrize("during", ["cellnorm.estimator.CellNorm.fit_transform", "cellnorm.io._take_room"])
def test_a_stopped_run_tidies_up(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, said: str, during: str
) -> None:
    def stops(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), number)
        time.sleep(5)  # the signal cuts this short

    monkeypatch.setattr(during, stops)
    result = correct(source, "--n-latent", 5, "-q")
    assert result.exit_code == 128 + number
    assert result.stderr.strip() == said
    assert os.listdir(source.parent) == ["in.h5ad"]


def test_a_real_terminate_ends_a_real_run(source: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "correct", str(source), "-v"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr is not None
    assert any("300 cells" in line for line in process.stderr)  # it is at work
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, "Traceback" in said) == (143, False)
    assert os.listdir(source.parent) == ["in.h5ad"]


# Runs the command whole, then again and again and kills it at random moments. All in children of one process that has
# paid for the imports: so the moments lie where the work is done. What bears the final name then gets a number.
KILLED = """
import os, random, signal, sys, time
from cellnorm import io, tl
from cellnorm.cli import main
from cellnorm.estimator import CellNorm

CellNorm.__init__.__kwdefaults__["n_steps"] = 20  # so that training does not take all the moments
source, output = sys.argv[1:]
moments, whole_run, killed, number = random.Random(0), None, 0, 0
while killed < 8:
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        main(["correct", source, "-q"])
    if whole_run is not None:
        time.sleep(moments.uniform(0, whole_run))
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    killed += status == -signal.SIGKILL
    if status == 0:  # the first one pays for what is loaded late: later ones are done sooner
        whole_run = min(whole_run or 60.0, time.perf_counter() - start)
    if os.path.exists(output):
        os.rename(output, output + str(number))
    number += 1
    print(status, file=sys.stderr)
"""


@pytest.mark.usefixtures("few_steps")
def test_killed_at_random_moments_the_result_is_complete_or_absent(source: Path) -> None:
    output, before = source.with_name("in.cellnorm.h5ad"), source.read_bytes()
    command = [*FORKING_PYTHON, "-c", KILLED, source, output]
    statuses = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr.split()
    assert statuses[0] == "0"
    assert set(statuses) == {"0", "-9"}  # whole at first, and where the moment came too late
    found = sorted(source.parent.glob("in.cellnorm.h5ad?*"))
    assert found
    for path in found:
        assert ad.read_h5ad(path).obsm["X_cellnorm"].shape[0] == 300
    assert source.read_bytes() == before
    assert correct(source, "-q").exit_code == 0
    left = {p.name for p in source.parent.iterdir()} - {p.name for p in found}
    assert left == {"in.cellnorm.h5ad", "in.h5ad"}  # leftovers of the killed are gone


# -- corrected expression -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_steps")
def test_corrected_expression_is_one_more_layer_and_all_else_is_untouched(source: Path) -> None:
    result = correct(source, "--expression")
    assert result.exit_code == 0
    assert "corrected expression of 200 genes in layers['cellnorm']: log(1 + counts per 10,000)" in result.stderr
    output = source.with_name("in.cellnorm.h5ad")
    before, after = h5_content(source), h5_content(output)
    assert {name: content for name, content in after.items() if name in before} == before
    added = {"/".join(name.split("/")[:2]) for name in set(after) - set(before)}
    assert added == {"obsm/X_cellnorm", "uns/cellnorm", "layers/cellnorm"}
    adata = ad.read_h5ad(output)
    assert adata.layers["cellnorm"].shape == adata.shape
    assert adata.layers["cellnorm"].dtype == np.float32
    assert "with batch ignored" in adata.uns["cellnorm"]["expression"]["purpose"]
    assert sorted(os.listdir(source.parent)) == ["in.cellnorm.h5ad", "in.h5ad"]  # no model is left behind


@pytest.mark.usefixtures("few_steps")
def test_the_command_writes_the_layer_that_python_makes(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.zarr"
    options = (
        "--expression=denoised",
        "--expression-counts",
        "--expression-sparse",
        "--save-model",
        tmp_path / "model",
    )
    assert correct(source, "-o", output, *options).exit_code == 0
    adata = ad.read_zarr(output)
    layer = adata.layers.pop("cellnorm")
    assert sp.issparse(layer)
    cn.tl.expression(adata, tmp_path / "model", kind="denoised", counts=True, sparse=True)
    np.testing.assert_allclose(layer.toarray(), adata.layers["cellnorm"].toarray(), rtol=1e-6)
    np.testing.assert_allclose(layer.toarray().sum(1), adata.layers["counts"].toarray().sum(1), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["in.h5ad", "--expression-counts"], "add --expression"),
        (["in.h5ad", "--expression-sparse"], "add --expression"),
        (["in.h5ad", "--expression", "smooth"], "'smooth' is neither 'corrected' nor 'denoised'"),
        (["--expression", "in.h5ad"], "Write INPUT before --expression"),
    ],
)
def test_options_of_expression_that_say_nothing_are_refused(options: list[str], said: str) -> None:
    result = correct(*options)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
