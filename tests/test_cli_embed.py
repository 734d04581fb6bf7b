"""`cellnorm embed` and the model that `cellnorm correct --save-model` writes for it, as a user meets them."""

import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from atlases import Atlas, make_atlas, without  # noqa: F401 - a fixture
from click.testing import Result
from command import correct, few_steps, folder_content, h5_content, run  # noqa: F401 - a fixture

import cellnorm as cn
from cellnorm.adata import result_slots
from cellnorm.estimator import CellNorm


def embed(*args: object) -> Result:
    """`cellnorm embed ARGS`."""
    return run("embed", *args)


@pytest.fixture
def march(atlas: Atlas, tmp_path: Path) -> Path:
    """A file of new cells, beside a copy of the model."""
    shutil.copytree(atlas.folder, tmp_path / "atlas.model")
    atlas.new.write_h5ad(tmp_path / "march.h5ad")
    return tmp_path / "march.h5ad"


def quick_umap(adata: ad.AnnData, random_state: int) -> None:
    """What scanpy's neighbors and UMAP write, in no time."""
    for slot, key in result_slots(umap=True)[2:]:
        values = {"obsm": np.ones((adata.n_obs, 2)), "obsp": sp.eye(adata.n_obs, format="csr"), "uns": {"params": {}}}
        getattr(adata, slot)[key] = values[slot]


def test_one_command_places_and_labels_a_sample(march: Path, atlas: Atlas) -> None:
    before = folder_content(march.parent)
    result = embed(march, "--model", march.parent / "atlas.model", "--transfer", "cell_type")
    target = march.parent / "march.cellnorm.h5ad"
    assert (result.exit_code, result.stdout.strip()) == (0, str(target))
    assert folder_content(march.parent).keys() - before.keys() == {target.name}
    assert {name: content for name, content in folder_content(march.parent).items() if name in before} == before
    for words in (
        "read 100 cells x 200 genes",
        "batches: 'lab2' new (100 cells)",
        "of the model's",
        "hardly any support in the reference",
        "labels: type",
        "unknown",
        "seconds: read",
        f"wrote {target}",
    ):
        assert words in result.stderr
    expected = atlas.query()
    cn.tl.embed(expected, atlas.folder, transfer="cell_type")
    found = ad.read_h5ad(target)
    np.testing.assert_array_equal(found.obsm["X_cellnorm"], expected.obsm["X_cellnorm"])
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    assert (found.obs["cellnorm_cell_type"].astype(str) == found.obs["cell_type"].astype(str)).mean() > 0.9


def test_all_else_in_the_file_stays(march: Path) -> None:
    embed(march, "--model", march.parent / "atlas.model", "--transfer", "cell_type")
    before, after = h5_content(march), h5_content(march.parent / "march.cellnorm.h5ad")
    changed = {name for name in before if before[name] != after.get(name)} - {"obs"}  # whose list of columns grows
    assert changed == set()
    new = {"/".join(name.split("/")[:2]) for name in after.keys() - before.keys()} - {"obsm", "uns"}
    labels = {f"obs/cellnorm_cell_type{end}" for end in ("", "_probability", "_radius")}
    assert new == {"obsm/X_cellnorm", "uns/cellnorm", "obs/cellnorm_match"} | labels


def test_the_next_sample_goes_into_the_model_that_has_grown(march: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cn.tl, "umap", quick_umap)
    folder, grown = march.parent / "atlas.model", march.parent / "grown.model"
    assert embed(march, "--model", folder, "--save-model", grown).exit_code == 0
    assert CellNorm.load(grown, device="cpu").batches_.tolist() == ["lab0", "lab1", "lab2"]
    again = embed(march, "--model", grown, "-o", march.parent / "again.zarr", "--umap", "-q")
    assert (again.exit_code, again.stderr) == (0, "")
    first, second = ad.read_h5ad(march.parent / "march.cellnorm.h5ad"), ad.read_zarr(march.parent / "again.zarr")
    np.testing.assert_array_equal(first.obsm["X_cellnorm"], second.obsm["X_cellnorm"])
    assert second.obsm["X_umap_cellnorm"].shape == (100, 2)
    assert second.uns["cellnorm"]["batches"]["treatment"].tolist() == ["known"]
    assert "cellnorm_match" in second.obs


def test_a_file_without_batches_is_one_named_like_the_file(march: Path) -> None:
    query = ad.read_h5ad(march)
    del query.obs["batch"]
    query.write_h5ad(march)
    result = embed(march, "--model", march.parent / "atlas.model", "--frozen")
    assert "all 100 cells are one new batch, 'march'" in result.stderr
    assert "'march' frozen (100 cells)" in result.stderr


def test_correct_saves_the_model_with_the_labels(atlas: Atlas, tmp_path: Path, few_steps: None) -> None:  # noqa: F811
    atlas.reference.write_h5ad(tmp_path / "atlas.h5ad")
    result = correct(tmp_path / "atlas.h5ad", "--save-model", tmp_path / "m", "--label-key", "cell_type")
    assert result.exit_code == 0
    assert f"saved the model in {tmp_path / 'm'}" in result.stderr
    model = CellNorm.load(tmp_path / "m", device="cpu")
    assert set(model.labels_["cell_type"]) == {"type0", "type1", "type2", "type3"}
    made = ad.read_h5ad(tmp_path / "atlas.cellnorm.h5ad")
    np.testing.assert_array_equal(made.obsm["X_cellnorm"][model.sketch_cells_], model.reference_embedding())
    refused = correct(tmp_path / "atlas.h5ad", "-o", tmp_path / "b.h5ad", "--save-model", tmp_path / "m")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert not (tmp_path / "b.h5ad").exists()
    forced = correct(tmp_path / "atlas.h5ad", "-o", tmp_path / "b.h5ad", "--save-model", tmp_path / "m", "-f")
    assert forced.exit_code == 0
    assert CellNorm.load(tmp_path / "m", device="cpu").labels_ == {}
    bare = correct(tmp_path / "atlas.h5ad", "-f", "--label-key", "cell_type")
    assert (bare.exit_code, "--label-key is for the report or the model" in bare.stderr) == (2, True)
    wrong = correct(tmp_path / "atlas.h5ad", "-f", "--save-model", tmp_path / "n", "--label-key", "no")
    assert (wrong.exit_code, (tmp_path / "n").exists()) == (1, False)


def test_corrected_expression_of_new_cells(march: Path) -> None:
    plain = embed(march, "--model", march.parent / "atlas.model", "--expression")
    assert plain.exit_code == 0, plain.stderr
    assert "without --reference" in plain.stderr
    cells = ad.read_h5ad(march.with_name("march.cellnorm.h5ad"))
    values = cells.layers["cellnorm"]
    assert values.shape == cells.shape
    assert np.isfinite(values).all()
    assert cells.uns["cellnorm"]["expression"]["kind"] == "corrected"
    before = np.log1p(1e4 * cells.X.toarray() / np.asarray(cells.X.sum(1)).reshape(-1, 1))
    assert 0 < np.abs(values - before).mean() < 0.5 * before.std()
    kept = embed(march, "--model", march.parent / "atlas.model", "--expression", "--expression-sparse", "-f")
    assert kept.exit_code == 0, kept.stderr
    sparse = ad.read_h5ad(march.with_name("march.cellnorm.h5ad")).layers["cellnorm"]
    assert sparse.nnz == cells.X.nnz
    assert sorted(p.name for p in march.parent.iterdir() if "tmp" in p.name) == []


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--transfer", "no"), 1, "Labels 'no' were to be transferred, but the model holds those of 'cell_type'"),
        (("-b", "no"), 1, "batch_key 'no' was asked for"),
        (("--layer", "no"), 1, "layer 'no' was asked for"),
        (("--use-rep", "no"), 1, "made with the expression of genes"),
        (("-o", "new.csv"), 1, "must end in .h5ad or .zarr"),
        (("--save-model", "atlas.model"), 1, "exists"),
        (("--save-model", "no/such/folder"), 1, "no folder"),
        (("--reference", "march.h5ad", "--transfer", "cell_type"), 1, "corrected with this very model"),
        (("--reference", "no.h5ad", "--transfer", "cell_type"), 1, "'no.h5ad' cannot be read"),
        (("--reference", "march.h5ad"), 2, "--transfer COLUMN"),
        (("-q", "-v"), 2, "exclude each other"),
        (("--device", "abacus"), 2, "Invalid value"),
        (("--model", "no.model"), 1, "There is no model 'no.model'"),
        (("--expression-sparse",), 2, "add --expression"),
    ],
)
def test_what_goes_wrong_leaves_nothing(
    march: Path, options: tuple[str, ...], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(march.parent)
    before = folder_content(march.parent)
    result = embed("march.h5ad", "--model", "atlas.model", *options)
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert code == 2 or (result.stderr.count("\n") == 1 and result.stderr.startswith("cellnorm: "))
    assert folder_content(march.parent) == before


def spoilt(folder: Path, how: str) -> None:
    """Do to a model what disks and people do."""
    config, weights = folder / "config.json", folder / "weights.safetensors"
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "edited":
        config.write_text(config.read_text().replace("lab0", "labX"))
    elif how == "newer":
        config.write_text(json.dumps({**json.loads(config.read_text()), "format_version": 99}))
    elif how == "half":
        weights.unlink()
    elif how == "foreign":
        config.write_text("{}")
    elif how == "missing":
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["truncated", "edited", "newer", "half", "foreign", "missing"])
def test_a_spoilt_model_is_refused_in_one_line(march: Path, how: str) -> None:
    folder = march.parent / "atlas.model"
    spoilt(folder, how)
    before = folder_content(march.parent)
    result = embed(march, "--model", folder, "--transfer", "cell_type")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("cellnorm: ")
    assert "atlas.model" in result.stderr
    assert folder_content(march.parent) == before


@pytest.mark.parametrize(
    ("rename", "hint"),
    [
        (lambda i, n: f"ENSG{i:011d}", "the model has gene symbols, the file Ensembl numbers"),
        (lambda i, n: n.upper(), "capitals alone"),
        (lambda i, n: f"hg38_{n}", "start with a genome"),
        (lambda i, n: str(i), "plain numbers are no gene names"),
        (lambda i, n: n if i < 30 else f"other{i}", "another species, or the file holds a part"),
    ],
)
def test_genes_of_another_kind_are_refused_with_a_hint(march: Path, rename: Any, hint: str) -> None:
    query = ad.read_h5ad(march)
    query.var_names = [rename(i, n) for i, n in enumerate(query.var_names)]
    query.write_h5ad(march)
    result = embed(march, "--model", march.parent / "atlas.model")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert hint in result.stderr
    assert "at least 30% are needed" in result.stderr
    assert not (march.parent / "march.cellnorm.h5ad").exists()


def test_missing_genes_are_told_of(march: Path) -> None:
    without(ad.read_h5ad(march), 0.4).write_h5ad(march)
    result = embed(march, "--model", march.parent / "atlas.model", "-q")
    assert result.exit_code == 0
    assert "genes are missing ('gene" in result.stderr
    assert "filled with what the others let expect" in result.stderr


def test_names_from_files_do_not_reach_the_terminal_raw(march: Path) -> None:
    evil = "\x1b[2J\nexit 0"
    query = ad.read_h5ad(march)
    query.obs["batch"] = evil
    query.var_names = [f"{evil}{i}" if i < 20 else n for i, n in enumerate(query.var_names)]
    query.write_h5ad(march)
    result = embed(march, "--model", march.parent / "atlas.model")
    assert result.exit_code == 0
    assert "exit 0" in result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    assert "\nexit 0" not in result.stdout + result.stderr


def test_a_model_of_two_columns_takes_the_same_two(atlas: Atlas, tmp_path: Path, few_steps: None) -> None:  # noqa: F811
    cells = atlas.reference.copy()
    cells.obs["day"] = np.arange(200) // 3 % 2
    cells.write_h5ad(tmp_path / "a.h5ad")
    keys = ("-b", "batch", "-b", "day")
    made = correct(tmp_path / "a.h5ad", *keys, "--save-model", tmp_path / "m")
    assert made.exit_code == 0, made.stderr
    assert "combinations of batch (2 values), day (2 values), whose effects are added up" in made.stderr
    for options in ((), keys):
        result = embed(tmp_path / "a.h5ad", "--model", tmp_path / "m", "-o", tmp_path / "b.h5ad", "-f", *options)
        assert result.exit_code == 0, result.stderr
        assert "'lab0 / 0' known (" in result.stderr
        first, second = (ad.read_h5ad(tmp_path / name) for name in ("a.cellnorm.h5ad", "b.h5ad"))
        np.testing.assert_array_equal(first.obsm["X_cellnorm"], second.obsm["X_cellnorm"])
    refused = embed(tmp_path / "a.h5ad", "--model", tmp_path / "m", "-o", tmp_path / "c.h5ad", "-b", "day")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "'day' was asked for, but the batches of the model are made of 'batch', 'day'" in refused.stderr
