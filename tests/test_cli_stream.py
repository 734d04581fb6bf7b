"""`cellnorm correct` on files that are too large to be read: when it streams, what it writes, what it refuses."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from command import correct, few_steps, folder_content, h5_content

import cellnorm as cn
from cellnorm import memory
from cellnorm.output import names_file

__all__ = ["few_steps"]

pytestmark = pytest.mark.usefixtures("few_steps")


@pytest.fixture
def source(small_adata: ad.AnnData, tmp_path: Path) -> Path:
    small_adata.write_h5ad(tmp_path / "in.h5ad")
    return tmp_path / "in.h5ad"


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 100 MB left, in which no file fits."""
    monkeypatch.setattr(memory, "free_memory", lambda: 10**8)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No temporary file or folder stays, whatever happens."""
    yield
    assert [p for p in folder_content(tmp_path) if Path(p).name.startswith(".") and ".zarr/" not in p] == []


# -- which way --------------------------------------------------------------------------------------------------------


def test_a_file_that_fits_is_read_as_a_whole_and_nothing_is_said(source: Path) -> None:
    result = correct(source)
    assert result.exit_code == 0
    assert "stream" not in result.stderr
    assert "read" in ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]["seconds"]


@pytest.mark.usefixtures("no_memory")
def test_a_file_that_does_not_fit_is_streamed_and_one_line_says_why(source: Path) -> None:
    result = correct(source)
    assert result.exit_code == 0
    said = [line for line in result.stderr.splitlines() if "stream" in line]
    assert len(said) == 1
    assert re.fullmatch(r"streaming: 0\.\d GB expected in memory, 0\.1 GB free; streamed about 0\.\d GB", said[0])
    seconds = ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]["seconds"]
    assert {"survey", "values", "pca", "train", "encode"} <= set(seconds)
    assert re.search(r"seconds: survey \d", result.stderr)


@pytest.mark.parametrize(("spare", "streamed"), [(1.01, False), (0.99, True)])
def test_it_streams_above_the_stated_share_of_the_free_memory(
    source: Path, monkeypatch: pytest.MonkeyPatch, spare: float, streamed: bool
) -> None:
    monkeypatch.setattr(memory, "in_memory_peak", lambda contents, n_top: 7 * 10**9)
    monkeypatch.setattr(memory, "free_memory", lambda: int(spare * 10**10))
    assert ("streaming: " in correct(source).stderr) == streamed


@pytest.mark.usefixtures("no_memory")
def test_no_stream_reads_it_all_the_same_and_warns(source: Path) -> None:
    result = correct(source, "--no-stream")
    assert result.exit_code == 0
    assert re.search(r"warning: 0\.\d GB expected in memory, 0\.1 GB free: --no-stream was asked for", result.stderr)
    assert "read" in ad.read_h5ad(source.with_name("in.cellnorm.h5ad")).uns["cellnorm"]["seconds"]


def test_both_ways_give_the_same_file_but_for_the_time(source: Path, tmp_path: Path) -> None:
    options = (source, "-b", "batch", "--n-top-genes", 100, "--seed", 3, "-q")
    assert correct(*options, "--no-stream", "-o", tmp_path / "whole.h5ad").exit_code == 0
    assert correct(*options, "--stream", "-o", tmp_path / "parts.h5ad").exit_code == 0
    whole, parts = h5_content(tmp_path / "whole.h5ad"), h5_content(tmp_path / "parts.h5ad")

    def lasting(content: dict[str, tuple]) -> dict[str, tuple]:
        return {name: value for name, value in content.items() if "/seconds" not in name}

    assert lasting(parts) == lasting(whole)


def test_zarr_streams_into_zarr(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.write_zarr(tmp_path / "in.zarr")
    result = correct(tmp_path / "in.zarr", "--stream")
    assert result.exit_code == 0
    assert "streaming: about 0." in result.stderr
    assert ad.read_zarr(tmp_path / "in.cellnorm.zarr").obsm["X_cellnorm"].shape == (300, 50)


@pytest.mark.usefixtures("no_memory")
def test_a_matrix_stored_by_genes_streams_as_well(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.X = sp.csc_matrix(small_adata.X)
    small_adata.write_h5ad(tmp_path / "in.h5ad")
    result = correct(tmp_path / "in.h5ad")
    assert (result.exit_code, "streaming: " in result.stderr) == (0, True)


# -- the options ------------------------------------------------------------------------------------------------------


def test_a_model_is_saved_as_in_memory(source: Path, small_adata: ad.AnnData, tmp_path: Path) -> None:
    result = correct(source, "--stream", "--save-model", tmp_path / "model", "--label-key", "cell_type", "-q")
    assert result.exit_code == 0
    Z = ad.read_h5ad(tmp_path / "in.cellnorm.h5ad").obsm["X_cellnorm"]
    cn.tl.embed(small_adata, tmp_path / "model", transfer="cell_type")
    assert np.array_equal(small_adata.obsm["X_cellnorm"], Z)
    assert "cellnorm_cell_type" in small_adata.obs


def test_a_umap_is_that_of_the_same_embedding(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the layout, whose compilation takes minutes: it must see the embedding, and be written."""

    def umap(adata: ad.AnnData, *, random_state: int = 0) -> None:
        adata.obsm["X_umap_cellnorm"] = adata.obsm["X_cellnorm"][:, :2] + random_state
        adata.uns |= {"X_umap_cellnorm": {"a": 1.0}, "cellnorm_neighbors": {"method": "none"}}
        for name in ("distances", "connectivities"):
            adata.obsp[f"cellnorm_neighbors_{name}"] = sp.eye_array(adata.n_obs, format="csr")

    monkeypatch.setattr(cn.tl, "umap", umap)
    assert correct(source, "--stream", "--umap", "--seed", 2, "-q").exit_code == 0
    adata = ad.read_h5ad(tmp_path / "in.cellnorm.h5ad")
    assert np.array_equal(adata.obsm["X_umap_cellnorm"], adata.obsm["X_cellnorm"][:, :2] + 2)
    assert adata.X.nnz == ad.read_h5ad(source).X.nnz
    only = tmp_path / "only.h5ad"
    assert correct(source, "--stream", "--umap", "--seed", 2, "-q", "--embedding-only", only).exit_code == 0
    assert np.array_equal(ad.read_h5ad(only).obsm["X_umap_cellnorm"], adata.obsm["X_umap_cellnorm"])


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
@pytest.mark.parametrize("name", ["z.h5ad", "z.parquet", "z.npy"])
def test_the_embedding_alone_whichever_way(source: Path, tmp_path: Path, how: str, name: str) -> None:
    if name == "z.parquet":
        pytest.importorskip("pyarrow")
    target = tmp_path / name
    result = correct(source, how, "-q", "--embedding-only", target)
    assert result.exit_code == 0
    assert result.stdout == f"{target}\n"
    adata = ad.read_h5ad(source)
    cn.tl.correct(adata, "batch")
    if name == "z.h5ad":
        found = ad.read_h5ad(target)
        names, values = found.obs_names.tolist(), found.obsm["X_cellnorm"]
        assert list(found.obs) == ["batch"]
        assert found.uns["cellnorm"]["alarm"]["verdict"] == adata.uns["cellnorm"]["alarm"]["verdict"]
    elif name == "z.parquet":
        table = pd.read_parquet(target)
        names, values = table.index.tolist(), table.to_numpy()
    else:
        names, values = names_file(target).read_text().splitlines(), np.load(target)
    assert names == adata.obs_names.tolist()
    assert np.array_equal(values, adata.obsm["X_cellnorm"])
    beside = {names_file(target).name} if name == "z.npy" else set()
    assert {p.name for p in tmp_path.iterdir()} == {"in.h5ad", name} | beside
    again = correct(source, how, "-q", "--embedding-only", target)
    assert (again.exit_code, "exists" in again.stderr) == (1, True)


def test_a_work_folder_means_streaming_and_stays(source: Path, tmp_path: Path) -> None:
    result = correct(source, "--work-dir", tmp_path / "work")
    assert result.exit_code == 0
    assert "streaming: about" in result.stderr
    assert (tmp_path / "work" / "job.json").is_file()
    first = ad.read_h5ad(tmp_path / "in.cellnorm.h5ad").obsm["X_cellnorm"]
    again = correct(source, "--work-dir", tmp_path / "work", "--embedding-only", tmp_path / "z.npy", "-q")
    assert again.exit_code == 0
    assert np.array_equal(np.load(tmp_path / "z.npy"), first)
    other = correct(source, "--work-dir", tmp_path / "work", "--seed", 7, "-f")
    assert (other.exit_code, "was begun for another job" in other.stderr) == (1, True)


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--work-dir", "w", "--no-stream"], "--work-dir is for streaming"),
        (["--scheduler", "tcp://a:1", "--no-stream"], "--scheduler is for streaming"),
        (["--embedding-only", "z.npy", "-o", "out.h5ad"], "leave --output out"),
        (["--embedding-only", "z.npy", "--expression"], "beside the matrix"),
        (["--embedding-only", "z.npy", "--umap"], r"let --embedding-only end in \.h5ad"),
        (["--stream", "--report", "r.html"], "--report needs the whole file.*cellnorm evaluate"),
        (["--stream", "--expression"], "--expression needs the whole file.*cellnorm embed --expression"),
        (["--stream", "other.h5ad", "-o", "o.h5ad"], "Several INPUTs are joined in memory"),
    ],
)
def test_options_that_exclude_each_other_are_named(source: Path, options: list[str], message: str) -> None:
    result = correct(source, *options)
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.stderr.split()))


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("options", [["--report", "r.html"], ["--expression"]])
def test_what_needs_the_whole_file_is_refused_where_it_does_not_fit(source: Path, options: list[str]) -> None:
    result = correct(source, *options)
    assert result.exit_code == 1
    assert re.search(rf"would be streamed, but {options[0]} needs all of it\. .*--no-stream", result.stderr)
    assert [p.name for p in source.parent.iterdir()] == ["in.h5ad"]


def test_a_10x_folder_cannot_be_streamed(tmp_path: Path) -> None:
    (tmp_path / "matrix.mtx.gz").touch()
    result = correct(tmp_path, "--stream", "-o", tmp_path.parent / f"{tmp_path.name}.h5ad")
    assert (result.exit_code, "of a format that is read as a whole" in result.stderr) == (1, True)


def test_a_result_of_another_format_is_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    result = correct(source, "--stream", "-o", tmp_path / "out.zarr")
    assert (result.exit_code, "format" in result.stderr) == (1, True)
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]


def test_logging_is_as_it_was(source: Path) -> None:
    before = logging.getLogger("cellnorm").handlers[:]
    correct(source, "--stream", "-q")
    assert logging.getLogger("cellnorm").handlers == before


def test_a_scheduler_that_is_none_is_refused_in_one_line(source: Path) -> None:
    result = correct(source, "--scheduler", "node1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"cellnorm: A scheduler was asked for at 'node1'\. Give its address .*\n", result.stderr)
