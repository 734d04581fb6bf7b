"""Correct a file part by part: what correcting it in memory gives, to the bit, whatever the storage and however often
it was interrupted."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp

import cellnorm as cn
from cellnorm import parts
from cellnorm.errors import DataError
from cellnorm.front import LinearFront

QUICK: dict[str, Any] = {"n_steps": 6, "n_latent": 8, "device": "cpu"}


@pytest.fixture(autouse=True)
def several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """300 cells are three parts, of several blocks each."""
    monkeypatch.setattr(parts, "SPAN_ROWS", 110)
    monkeypatch.setattr(parts, "BLOCK_ROWS", 32)


def write(adata: ad.AnnData, path: Path) -> Path:
    (adata.write_h5ad if path.suffix == ".h5ad" else adata.write_zarr)(path)
    return path


def read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def assert_alike(one: Any, other: Any, place: str = "uns") -> None:
    """Equal to the bit, but for the time taken."""
    if isinstance(one, dict):
        assert set(one) == set(other), place
        for key in set(one) - {"seconds"}:
            assert_alike(one[key], other[key], f"{place}/{key}")
    else:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=place)


def assert_as_in_memory(adata: ad.AnnData, result: ad.AnnData, batch_key: Any = "batch", **options: Any) -> None:
    expected = cn.tl.correct(adata, batch_key, copy=True, **{**QUICK, **options})
    assert expected is not None
    np.testing.assert_array_equal(result.obsm["X_cellnorm"], expected.obsm["X_cellnorm"])
    round_trip = ad.AnnData(obs=expected.obs[[]], uns={"cellnorm": expected.uns["cellnorm"]})
    assert_alike(result.uns["cellnorm"], round_trip.uns["cellnorm"])


# -- the same as in memory -------------------------------------------------------------------------------------------

STORAGES: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csr float32": lambda matrix: matrix,
    "csr int64": lambda matrix: matrix.astype(np.int64),
    "csr unsorted": lambda matrix: sp.csr_matrix(matrix.toarray()[:, ::-1])[:, ::-1],
    "dense float32": sp.csr_matrix.toarray,
    "dense int64": lambda matrix: matrix.toarray().astype(np.int64),
    "csc float32": sp.csr_matrix.tocsc,
}


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("storage", STORAGES)
def test_the_result_is_that_of_memory(small_adata: ad.AnnData, tmp_path: Path, storage: str, suffix: str) -> None:
    small_adata.X = STORAGES[storage](small_adata.X)
    path = write(small_adata, tmp_path / f"cells{suffix}")
    before = sorted(p.name for p in tmp_path.iterdir())
    written = cn.tl.correct_file(path, "batch", n_top_genes=120, **QUICK)
    assert written == tmp_path / f"cells.cellnorm{suffix}"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*before, written.name]), "nothing is left behind"
    result = read(written)
    assert_as_in_memory(small_adata, result, n_top_genes=120)
    assert (result.X != small_adata.X).sum() == 0


def test_logarithms_several_columns_a_mask_and_a_layer(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.obs["half"] = np.arange(300) // 150
    small_adata.var["use"] = np.arange(200) % 2 == 0
    sc.pp.normalize_total(small_adata, target_sum=1e4)
    sc.pp.log1p(small_adata)
    small_adata.layers["mine"] = small_adata.X.toarray()
    small_adata.X = -small_adata.X.toarray()
    path = write(small_adata, tmp_path / "cells.h5ad")
    options = {"layer": "mine", "mask_var": "use", "strength": 0.5, "random_state": 3}
    written = cn.tl.correct_file(path, ["batch", "half"], **QUICK, **options)
    result = read(written)
    assert result.uns["cellnorm"]["matrix_kind"] == "log"
    assert_as_in_memory(small_adata, result, ["batch", "half"], **options)


@pytest.mark.parametrize("fraction", [0, 150, 299])
def test_logarithms_of_which_a_part_is_whole(small_adata: ad.AnnData, tmp_path: Path, fraction: int) -> None:
    logarithms = small_adata.X.minimum(8).tolil()
    logarithms[fraction, 3] = 0.5
    small_adata.X = logarithms.tocsr()
    written = cn.tl.correct_file(write(small_adata, tmp_path / "cells.h5ad"), "batch", n_top_genes=50, **QUICK)
    assert_as_in_memory(small_adata, read(written), n_top_genes=50)


def test_counts_in_raw_are_found_behind_others(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.raw = small_adata[:, ::-1].copy()
    small_adata.X = small_adata.X.toarray() - 1
    written = cn.tl.correct_file(write(small_adata, tmp_path / "cells.zarr"), "batch", **QUICK)
    result = read(written)
    assert result.uns["cellnorm"]["matrix"] == "raw.X"
    assert_as_in_memory(small_adata, result)


def test_on_real_data(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SPAN_ROWS", 1500)
    path = data_dir / "pbmc_8batches.h5ad"
    adata = ad.read_h5ad(path)
    written = cn.tl.correct_file(path, "batch", tmp_path / "out.h5ad", **QUICK)
    assert_as_in_memory(adata, read(written))


def test_the_number_of_parts_hardly_matters(small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of three parts differ by rounding from the sum of one: the components up to 1e-3, the genes not."""
    several = cn.pp.prepare(small_adata, "batch", n_top_genes=120, copy=True)
    monkeypatch.setattr(parts, "SPAN_ROWS", 65_536)
    one = cn.pp.prepare(small_adata, "batch", n_top_genes=120, copy=True)
    assert several is not None
    assert one is not None
    assert several.uns["pca"]["genes"].tolist() == one.uns["pca"]["genes"].tolist()
    np.testing.assert_allclose(several.obsm["X_pca"][:, :10], one.obsm["X_pca"][:, :10], atol=1e-3)


# -- interruptions ---------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    """Ends a run at a moment that a test chooses."""


STAGES = ["survey", "values", "pca", "anchors", "strength", "train", "encode", "check", "write"]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_was_stopped_goes_on(small_adata: ad.AnnData, tmp_path: Path, stage: str) -> None:
    path = write(small_adata, tmp_path / "cells.h5ad")
    plain = read(cn.tl.correct_file(path, "batch", tmp_path / "plain.h5ad", **QUICK))

    def stop(now: str, done: int, total: int, loss: float | None) -> None:
        if now == stage and done >= total / 2:
            raise StoppedError

    options = {"work_dir": tmp_path / "work", **QUICK}
    with pytest.raises(StoppedError):
        cn.tl.correct_file(path, "batch", tmp_path / "out.h5ad", progress=stop, **options)
    assert stage == "write" or not (tmp_path / "out.h5ad").exists()
    told: list[str] = []
    written = cn.tl.correct_file(
        path, "batch", tmp_path / "out.h5ad", progress=lambda *state: told.append(state[0]), force=True, **options
    )
    assert_alike(read(written).uns["cellnorm"], plain.uns["cellnorm"])
    np.testing.assert_array_equal(read(written).obsm["X_cellnorm"], plain.obsm["X_cellnorm"])
    assert not any(p.name.startswith(".") for folder in (tmp_path, tmp_path / "work") for p in folder.iterdir())
    if stage in ("train", "encode", "check", "write"):
        assert not {"survey", "values", "pca"} & set(told), "what is done is not done again"


def test_a_finished_job_is_written_again(small_adata: ad.AnnData, tmp_path: Path) -> None:
    path = write(small_adata, tmp_path / "cells.zarr")
    options = {"work_dir": tmp_path / "work", **QUICK}
    first = cn.tl.correct_file(path, "batch", tmp_path / "one.zarr", **options)
    left = sorted(p.name for p in (tmp_path / "work").iterdir())
    assert not any("0000" in name or "values" in name or "gram" in name for name in left), left
    told: list[str] = []
    again = cn.tl.correct_file(
        path, "batch", tmp_path / "two.zarr", progress=lambda *state: told.append(state[0]), **options
    )
    assert set(told) == {"check", "write"}
    np.testing.assert_array_equal(read(again).obsm["X_cellnorm"], read(first).obsm["X_cellnorm"])
    assert read(again).uns["cellnorm"]["seconds"].keys() == read(first).uns["cellnorm"]["seconds"].keys()
    with pytest.raises(DataError, match="exists"):
        cn.tl.correct_file(path, "batch", tmp_path / "two.zarr", **options)
    with pytest.raises(DataError, match="another job: n_latent is '9' and was '8'"):
        cn.tl.correct_file(path, "batch", tmp_path / "three.zarr", **{**options, "n_latent": 9})
    small_adata.obs["batch"] = ["x", "y", "z"] * 100
    small_adata.write_zarr(path)
    with pytest.raises(DataError, match="another job: input_"):
        cn.tl.correct_file(path, "batch", tmp_path / "three.zarr", **options)


# -- what is written and said ----------------------------------------------------------------------------------------


def test_a_model_can_be_saved_with_labels(small_adata: ad.AnnData, tmp_path: Path) -> None:
    path = write(small_adata, tmp_path / "cells.h5ad")
    cn.tl.correct_file(path, "batch", save_model=tmp_path / "ours", label_key="cell_type", **QUICK)
    cn.tl.correct(small_adata, "batch", save_model=tmp_path / "theirs", label_key="cell_type", **QUICK)
    for name in ("config.json", "weights.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


@pytest.mark.parametrize("kind", ["h5ad", "npy"])
def test_the_embedding_alone(small_adata: ad.AnnData, tmp_path: Path, kind: str) -> None:
    path = write(small_adata, tmp_path / "cells.h5ad")
    target = tmp_path / f"z.{kind}"
    assert cn.tl.correct_file(path, "batch", embedding_only=target, **QUICK) == target
    expected = read(cn.tl.correct_file(path, "batch", **QUICK)).obsm["X_cellnorm"]
    found = np.load(target) if kind == "npy" else read(target).obsm["X_cellnorm"]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="exists"):
        cn.tl.correct_file(path, "batch", embedding_only=target, **QUICK)
    with pytest.raises(DataError, match=r"together with embedding_only .* Give the one or the other"):
        cn.tl.correct_file(path, "batch", tmp_path / "o.h5ad", embedding_only=target, force=True, **QUICK)


def test_what_is_said_is_what_is_said_in_memory(
    small_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small_adata.X[5] = 0
    small_adata.obs["batch"] = ["tiny"] * 4 + list(small_adata.obs["batch"])[4:]
    path = write(small_adata, tmp_path / "cells.h5ad")

    def said(work: Callable[[], Any]) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="cellnorm"):
            work()
        return [text for r in caplog.records if not (text := r.getMessage()).startswith("seconds: ")]

    found = said(lambda: cn.tl.correct_file(path, "batch", **QUICK))
    assert found == said(lambda: cn.tl.correct(small_adata, "batch", **QUICK))
    assert any("1 cells express none" in text for text in found)
    assert any("fewer than 10 cells: 'tiny (4)'" in text for text in found)


def test_progress_is_told_stage_by_stage(small_adata: ad.AnnData, tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    cn.tl.correct_file(
        write(small_adata, tmp_path / "cells.h5ad"), "batch", progress=lambda *state: told.append(state), **QUICK
    )
    assert list(dict.fromkeys(state[0] for state in told)) == STAGES
    assert [state[1:3] for state in told if state[0] == "survey"] == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_seconds_of_all_stages_are_kept(small_adata: ad.AnnData, tmp_path: Path) -> None:
    result = read(cn.tl.correct_file(write(small_adata, tmp_path / "cells.h5ad"), "batch", **QUICK))
    assert set(result.uns["cellnorm"]["seconds"]) == set(STAGES) - {"write"}


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_key": "none"}, "batch_key 'none' was asked for"),
        ({"layer": "none"}, "layer 'none' was asked for"),
        ({"mask_var": "none"}, "mask_var 'none' was asked for"),
        ({"n_top_genes": 0}, "n_top_genes must be 1 or more"),
        ({"n_latent": 400}, "An embedding of 400 dimensions was asked for, found 300 cells"),
        ({"n_comps": None}, "n_comps=None is for a representation"),
        ({"strength": 2}, "A strength of 2 was asked for"),
        ({"device": "abacus"}, "Device 'abacus' is unknown"),
        ({"key_added": "a/b"}, "key_added must be a name"),
        ({"label_key": "cell_type"}, "label_key is for a saved model"),
        ({"output": "out.zarr"}, "is streamed into a file of its own format"),
        ({"output": "cells.h5ad"}, "would change the input"),
    ],
)
def test_what_cannot_be_done_is_refused(
    small_adata: ad.AnnData, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    path = write(small_adata, tmp_path / "cells.h5ad")
    if "output" in options:
        options = {**options, "output": tmp_path / options["output"]}
    with pytest.raises(DataError, match=message):
        cn.tl.correct_file(path, **{"batch_key": "batch", **QUICK, **options})
    assert [p.name for p in tmp_path.iterdir()] == ["cells.h5ad"]


def test_an_unknown_parameter_is_refused(small_adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unknown parameters: 'use_rep'"):
        cn.tl.correct_file(write(small_adata, tmp_path / "cells.h5ad"), "batch", use_rep="X_pca")


def test_values_that_cannot_be_used_are_refused_as_in_memory(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.X = small_adata.X.toarray() - 1
    small_adata.layers["counts"] = small_adata.X * np.nan
    path = write(small_adata, tmp_path / "cells.h5ad")
    with pytest.raises(DataError) as ours:
        cn.tl.correct_file(path, "batch", **QUICK)
    with pytest.raises(DataError) as theirs:
        cn.tl.correct(small_adata, "batch", **QUICK)
    assert str(ours.value) == str(theirs.value)


def test_too_many_genes_for_a_covariance_matrix_are_refused(
    small_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellnorm.streaming.MAX_GENES_EXACT", 100)
    path = write(small_adata, tmp_path / "cells.h5ad")
    with pytest.raises(DataError, match="genes were asked for; streaming takes up to 100"):
        cn.tl.correct_file(path, "batch", **QUICK)
    cn.tl.correct_file(path, "batch", n_top_genes=100, **QUICK)


def test_the_matrix_is_never_in_memory(
    small_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor the components of all cells but those of the sketch."""
    path = write(small_adata, tmp_path / "cells.h5ad")
    monkeypatch.setattr("cellnorm.work.IN_MEMORY", 0)
    seen: list[int] = []
    project = LinearFront.project

    def watched(front: LinearFront, X: Any) -> Any:
        seen.append(X.shape[0])
        return project(front, X)

    def never(*_: Any) -> Iterator[Any]:
        raise AssertionError("the file is read as a whole")

    monkeypatch.setattr(LinearFront, "project", watched)
    for name in ("cellnorm.io.read", "anndata.io.read_h5ad", "anndata.read_h5ad"):
        monkeypatch.setattr(name, never)
    cn.tl.correct_file(path, "batch", **QUICK)
    assert seen == [110, 110, 80]
