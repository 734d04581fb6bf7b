"""Everything that laboratories do to their files, through the command line.

What cannot be corrected ends with 1 and one line, and leaves the folder as it was. What can be is corrected, with the
cells in the order of the input.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from command import correct, few_steps, folder_content

__all__ = ["few_steps"]

Arguments = list[object]
Arrange = Callable[[ad.AnnData, Path], Arguments]

LONG = "n" * 10_000


def _saved(adata: ad.AnnData, folder: Path, *options: object) -> Arguments:
    adata.write_h5ad(folder / "in.h5ad")
    return [folder / "in.h5ad", *options]


def _bytes(folder: Path, content: bytes) -> Arguments:
    (folder / "in.h5ad").write_bytes(content)
    return [folder / "in.h5ad"]


def _with_obs(adata: ad.AnnData, folder: Path, *options: object, **columns: Any) -> Arguments:
    adata.obs = adata.obs.assign(**columns)
    return _saved(adata, folder, *options)


def _with_value(adata: ad.AnnData, folder: Path, *values: float) -> Arguments:
    adata.X.data[: len(values)] = values
    return _saved(adata, folder)


def _truncated(adata: ad.AnnData, folder: Path) -> Arguments:
    arguments = _saved(adata, folder)
    return _bytes(folder, (folder / "in.h5ad").read_bytes()[:-1000]) if arguments else []


def _missing_batch(adata: ad.AnnData, folder: Path) -> Arguments:
    values = adata.obs["batch"].astype(object)
    values.iloc[:7] = np.nan
    return _with_obs(adata, folder, "--batch-key", "batch", batch=pd.Categorical(values))


def _scaled(adata: ad.AnnData, folder: Path) -> Arguments:
    X = np.log1p(adata.X.toarray())
    adata.X = (X - X.mean(axis=0)) / (X.std(axis=0) + 1)
    return _saved(adata, folder)


def _no_shared_gene(adata: ad.AnnData, folder: Path) -> Arguments:
    adata.write_h5ad(folder / "a.h5ad")
    adata.var_names = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.write_h5ad(folder / "b.h5ad")
    return [folder / "a.h5ad", folder / "b.h5ad", "-o", folder / "out.h5ad"]


def _disjoint_batches(adata: ad.AnnData, folder: Path) -> Arguments:
    """One file whose labs measured different genes: joined by others with zeros."""
    X = adata.X.tolil()
    first = (adata.obs["batch"] == "lab0").to_numpy()
    X[np.ix_(first, np.arange(100))] = 0
    X[np.ix_(~first, np.arange(100, 200))] = 0
    adata.X = X.tocsr()
    return _saved(adata, folder)


def _existing(adata: ad.AnnData, folder: Path) -> Arguments:
    (folder / "in.cellnorm.h5ad").write_text("precious")
    return _saved(adata, folder)


def _a_file_for_a_folder(adata: ad.AnnData, folder: Path) -> Arguments:
    (folder / "file").touch()
    return _saved(adata, folder, "-o", folder / "file" / "out.h5ad")


def _hostile_names(adata: ad.AnnData, folder: Path) -> Arguments:
    adata.obs["\x1b[31mred\x07\n" + LONG] = "x"
    return _saved(adata, folder, "--batch-key", LONG)


FAILS: dict[str, tuple[Arrange, str]] = {
    "no such file": (lambda a, d: [d / "none.h5ad"], "none.h5ad' cannot be read: no such file"),
    "no such file in no such folder": (lambda a, d: [d / "no" / "none.h5ad"], "no such file"),
    "not an h5ad": (lambda a, d: _bytes(d, b"cell,gene\n1,2\n" * 1000), "not an .h5ad file"),
    "empty file": (lambda a, d: _bytes(d, b""), "not an .h5ad file"),
    "truncated": (_truncated, "truncated or damaged"),
    "an empty folder": (lambda a, d: [d], "folder without a zarr store or a 10x matrix"),
    "no such batch key": (lambda a, d: _saved(a, d, "--batch-key", "no"), "'no'.*'batch', 'cell_type'"),
    "no such layer": (lambda a, d: _saved(a, d, "--layer", "no"), "'no'.*layers are: none"),
    "no column that can be the batch": (lambda a, d: _with_obs(a[:, :].copy(), d, batch=0), "--batch-key"),
    "two columns that can be the batch": (
        lambda a, d: _with_obs(a, d, donor=[f"d{i % 5}" for i in range(300)]),
        r"'batch' \(3 values\), 'donor' \(5 values\).*--batch-key",
    ),
    "one batch only": (lambda a, d: _with_obs(a, d, "--batch-key", "one", one="a"), "one batch only"),
    "NaN in the batch column": (_missing_batch, "7 of 300 cells"),
    "fewer cells than latent dimensions": (
        lambda a, d: _saved(a[:24].copy(), d, "--batch-key", "batch", "--n-latent", 50),
        "24.*50|50.*24",
    ),
    "no cells": (lambda a, d: _saved(a[:0].copy(), d, "--batch-key", "batch"), "batch"),
    "no genes": (lambda a, d: _saved(a[:, :0].copy(), d), "no values|no gene"),
    "NaN": (lambda a, d: _with_value(a, d, np.nan, np.nan), "X holds 2 NaN and 0 infinite"),
    "infinite": (lambda a, d: _with_value(a, d, np.inf), "X holds 0 NaN and 1 infinite"),
    "negative": (lambda a, d: _with_value(a, d, -3.0), r"negative values \(down to -3\)"),
    "z-scored without counts": (_scaled, "negative values.*counts"),
    "labs without a shared gene": (_no_shared_gene, "0 genes are shared.*Ensembl"),
    "batches without a shared gene": (_disjoint_batches, "gene"),
    "a missing folder": (lambda a, d: _saved(a, d, "-o", d / "no" / "out.h5ad"), "no folder"),
    "a file in place of the folder": (_a_file_for_a_folder, "no folder"),
    "an unwritable folder": (lambda a, d: _saved(a, d, "-o", "/proc/self/out.h5ad"), "cannot be written"),
    "an existing output": (_existing, "exists.*--force"),
    "the input as output": (lambda a, d: _saved(a, d, "-o", d / "in.h5ad", "--force"), "would change the input"),
    "another suffix": (lambda a, d: _saved(a, d, "-o", d / "out.csv"), r"must end in \.h5ad or \.zarr"),
    "one file twice": (lambda a, d: [*_saved(a, d), d / "in.h5ad", "-o", d / "out.h5ad"], "given twice"),
    "names of 10,000 characters that steer a terminal": (_hostile_names, r"\\x1b\[31mred"),
    "CUDA that is not there": (lambda a, d: _saved(a, d, "--device", "cuda"), "(?i)cuda"),
    "MPS that is not there": (lambda a, d: _saved(a, d, "--device", "mps"), "(?i)mps"),
}


def _assert_refused(folder: Path, arguments: Arguments, message: str) -> None:
    before = folder_content(folder)
    result = correct(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("cellnorm: ")
    line = result.stderr.removeprefix("cellnorm: ")
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert line[:-1].isprintable()
    assert len(line) < 2000
    assert re.search(message, line), line
    assert folder_content(folder) == before


@pytest.mark.parametrize("name", FAILS)
def test_what_cannot_be_corrected_is_refused_in_one_line(small_adata: ad.AnnData, tmp_path: Path, name: str) -> None:
    if name.startswith("CUDA") and torch.cuda.is_available():
        pytest.skip("CUDA is there")
    if name.startswith("MPS") and torch.backends.mps.is_available():
        pytest.skip("MPS is there")
    if "unwritable" in name and not Path("/proc/self").is_dir():
        pytest.skip("there is no folder here in which even an administrator cannot write")
    arrange, message = FAILS[name]
    _assert_refused(tmp_path, arrange(small_adata, tmp_path), message)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of its own, of 300 kB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [shutil.which("mount") or "mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no disk can be mounted here; the test with an error of the system still runs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.usefixtures("few_steps")
def test_a_full_disk(small_adata: ad.AnnData, tmp_path: Path, small_disk: Path) -> None:
    arguments = _saved(small_adata, tmp_path, "-o", small_disk / "out.h5ad", "-q")
    _assert_refused(tmp_path, arguments, "the disk is full")


@pytest.mark.usefixtures("few_steps")
def test_a_disk_that_gets_full_while_writing(
    small_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above by an error that the system would raise, where no disk can be mounted."""

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    arguments = _saved(small_adata, tmp_path, "-q")
    monkeypatch.setattr("os.fsync", full)
    _assert_refused(tmp_path, arguments, "the disk is full")


# -- odd, but it can be corrected -----------------------------------------------------------------------------------


def _single_cell_batch(adata: ad.AnnData, folder: Path) -> Arguments:
    values = adata.obs["batch"].astype(object)
    values.iloc[5] = "lonely"
    return _with_obs(adata, folder, batch=values)


def _empty_rows_and_columns(adata: ad.AnnData, folder: Path) -> Arguments:
    X = adata.X.tolil()
    X[[0, 7]] = 0
    X[:, 3] = 0
    adata.X = X.tocsr()
    return _saved(adata, folder)


def _duplicates(adata: ad.AnnData, folder: Path) -> Arguments:
    adata.obs_names = [f"cell{i % 100}" for i in range(300)]
    adata.var_names = [f"gene{i % 150}" for i in range(200)]
    return _saved(adata, folder)


def _named(*names: object) -> Arrange:
    def arrange(adata: ad.AnnData, folder: Path) -> Arguments:
        values = [names[i % len(names)] for i in range(300)]
        return _with_obs(adata, folder, batch=values if isinstance(names[0], int | float) else pd.Categorical(values))

    return arrange


def _unused_levels(adata: ad.AnnData, folder: Path) -> Arguments:
    return _with_obs(adata, folder, batch=adata.obs["batch"].cat.add_categories(["unused", "also unused"]))


def _dense_integers(adata: ad.AnnData, folder: Path) -> Arguments:
    adata.X = adata.X.toarray().astype(np.int32)
    return _saved(adata, folder)


def _scaled_with_counts(adata: ad.AnnData, folder: Path) -> Arguments:
    adata.layers["counts"] = adata.X.copy()
    return _scaled(adata, folder)


WORKS: dict[str, tuple[Arrange, str, list[str]]] = {
    "a batch of one cell": (
        _single_cell_batch,
        r"warning: .*statistics of all.*lonely \(1\)",
        ["lab0", "lab1", "lab2", "lonely"],
    ),
    "all-zero cells and genes": (_empty_rows_and_columns, "warning: 2 cells express none", ["lab0", "lab1", "lab2"]),
    "names that repeat": (_duplicates, "", ["lab0", "lab1", "lab2"]),
    "batch names with slashes": (_named("a/b", "/", "../c"), "3 batches", ["../c", "/", "a/b"]),
    "batch names in all scripts": (_named("Zürich", "細胞", "🧬"), "3 batches", ["Zürich", "細胞", "🧬"]),
    "batch names of 10,000 characters": (_named(LONG + "1", LONG + "2"), "2 batches", [LONG + "1", LONG + "2"]),
    "empty and spaced batch names": (_named("", " ", "a b"), "3 batches", ["", " ", "a b"]),
    "whole numbers as batch names": (_named(1, 2, 10), "3 batches", ["1", "10", "2"]),
    "fractions as batch names": (_named(0.5, 1.5), "2 batches", ["0.5", "1.5"]),
    "unused levels": (_unused_levels, "3 batches", ["lab0", "lab1", "lab2"]),
    "dense integers": (_dense_integers, "counts in X", ["lab0", "lab1", "lab2"]),
    "z-scored with counts": (_scaled_with_counts, r"counts in layers\['counts'\]", ["lab0", "lab1", "lab2"]),
}


@pytest.mark.parametrize("name", WORKS)
@pytest.mark.usefixtures("few_steps")
def test_what_is_odd_but_can_be_corrected_is(small_adata: ad.AnnData, tmp_path: Path, name: str) -> None:
    arrange, message, batches = WORKS[name]
    arguments = arrange(small_adata, tmp_path)
    before = folder_content(tmp_path)
    result = correct(*arguments)
    assert result.exit_code == 0, result.stderr
    assert re.search(message, result.stderr), result.stderr
    assert all(len(line) < 2000 for line in result.stderr.splitlines())
    after = folder_content(tmp_path)
    assert set(after) - set(before) == {"in.cellnorm.h5ad"}
    assert {name: after[name] for name in before} == before
    adata, source = ad.read_h5ad(tmp_path / "in.cellnorm.h5ad"), ad.read_h5ad(tmp_path / "in.h5ad")
    assert adata.obs_names.tolist() == source.obs_names.tolist()  # cells in, cells out, same order
    assert adata.var_names.tolist() == source.var_names.tolist()
    assert adata.obsm["X_cellnorm"].shape[0] == source.n_obs
    assert np.isfinite(adata.obsm["X_cellnorm"]).all()
    assert sorted(adata.uns["cellnorm"]["batches"]["name"].tolist()) == sorted(batches)
    pd.testing.assert_frame_equal(adata.obs, source.obs)
    assert sp.issparse(adata.X) == sp.issparse(source.X)
