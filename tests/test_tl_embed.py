"""New cells in a trained model's embedding: what is written, what stays, what is the same, and what is refused."""

import logging
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from atlases import QUICK, Atlas, make_atlas, without  # noqa: F401 - a fixture
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.adata import result_slots
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm

NAMES = ("cellnorm_cell_type", "cellnorm_cell_type_probability", "cellnorm_cell_type_radius")


def embedded(adata: ad.AnnData, model: Any, batch_key: Any = None, **options: Any) -> ad.AnnData:
    """A copy with the embedding."""
    result = cn.tl.embed(adata, model, batch_key, copy=True, **options)
    assert result is not None
    return result


def accuracy(adata: ad.AnnData) -> float:
    """Share of cells with the right label."""
    return float((adata.obs[NAMES[0]].astype(str) == adata.obs["cell_type"].astype(str)).mean())


# -- what is written -------------------------------------------------------------------------------------------------


def test_a_new_batch_finds_its_place(atlas: Atlas) -> None:
    query = atlas.query()
    assert cn.tl.embed(query, atlas.folder, transfer="cell_type") is None
    z = query.obsm["X_cellnorm"]
    assert (z.shape, z.dtype) == ((100, 8), np.float32)
    assert np.isfinite(z).all()
    assert accuracy(query) > 0.9
    match = query.obs["cellnorm_match"]
    assert match.between(0, 1).all()
    assert match.median() > 0.2
    labels, probability, radius = (query.obs[name] for name in NAMES)
    assert isinstance(labels.dtype, pd.CategoricalDtype)
    assert probability.between(0, 1).all()
    assert (radius[labels == "unknown"] == 0).all()
    assert (radius[labels != "unknown"] > 0).mean() > 0.5


def test_what_is_known_of_it(atlas: Atlas) -> None:
    info = embedded(atlas.new, atlas.model, transfer="cell_type").uns["cellnorm"]
    assert info["batch_key"].tolist() == ["batch"]
    assert {name: values.tolist() for name, values in info["batches"].items() if name != "n_matched"} == {
        "name": ["lab2"], "label": ["lab2"], "n_cells": [100], "treatment": ["new"],
    }  # fmt: skip
    assert 50 < info["batches"]["n_matched"][0] <= 100
    assert (info["matrix"], info["matrix_kind"], info["genes_share"]) == ("X", "counts", 1.0)
    assert info["genes"].tolist() == atlas.model.feature_names_in_.tolist()
    assert info["genes_missing"].tolist() == []
    assert info["reference"] == atlas.reference.uns["cellnorm"]["model"] != info["model"]
    assert set(info["versions"]) == set(atlas.reference.uns["cellnorm"]["versions"])
    assert info["parameters"]["n_latent"] == 8
    assert info["parameters"]["transfer"].tolist() == ["cell_type"]
    assert {"prepare", "map", "encode", "transfer"} == set(info["seconds"])


@pytest.mark.parametrize("key", [None, "foo"])
@pytest.mark.parametrize("transfer", [(), ("cell_type",)])
def test_nothing_else_changes(atlas: Atlas, key: str | None, transfer: tuple[str, ...]) -> None:
    query = atlas.query()
    query.layers["other"], query.obsm["X_pca"] = query.X.copy(), np.ones((100, 2))
    kept = query.obs.copy()
    before = snapshot(query)
    cn.tl.embed(query, atlas.model, transfer=transfer, key_added=key)
    written = {tuple(path.split("/")[1:3]) for path in changes(before, snapshot(query))} - {("obs",)}
    slots = result_slots(key, cells=True, transfer=transfer)
    assert written == {slot for slot in slots if slot[0] != "obs"}
    assert [name for name in query.obs if name not in kept] == [name for slot, name in slots if slot == "obs"]
    pd.testing.assert_frame_equal(query.obs[list(kept)], kept)


def test_a_copy_is_changed_instead(atlas: Atlas) -> None:
    query = atlas.query()
    before = snapshot(query)
    assert "cellnorm_match" in embedded(query, atlas.model).obs
    assert changes(before, snapshot(query)) == set()


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_result_comes_back_from_a_file(atlas: Atlas, suffix: str, tmp_path: Path) -> None:
    query = embedded(without(atlas.new, 0.1), atlas.model, transfer="cell_type")
    getattr(query, f"write_{suffix}")(tmp_path / f"new.{suffix}")
    back = getattr(ad, f"read_{suffix}")(tmp_path / f"new.{suffix}")
    pd.testing.assert_frame_equal(back.obs, query.obs)
    assert back.uns["cellnorm"]["genes_missing"].tolist() == query.uns["cellnorm"]["genes_missing"].tolist()


# -- what is the same ------------------------------------------------------------------------------------------------


def test_cells_of_the_reference_come_back_to_the_bit(atlas: Atlas) -> None:
    again = embedded(atlas.reference, atlas.folder, key_added="again")
    np.testing.assert_array_equal(again.obsm["again"], atlas.reference.obsm["X_cellnorm"])
    assert again.uns["again"]["batches"]["treatment"].tolist() == ["known", "known"]
    assert again.uns["again"]["model"] == again.uns["again"]["reference"]


def test_a_cell_gets_the_same_answer_alone_and_among_others(atlas: Atlas, tmp_path: Path) -> None:
    all_cells = embedded(atlas.new, atlas.folder, transfer="cell_type", save_model=tmp_path / "grown")
    for i in (0, 57):
        alone = embedded(atlas.new[[i]].copy(), tmp_path / "grown", transfer="cell_type")
        np.testing.assert_array_equal(alone.obsm["X_cellnorm"], all_cells.obsm["X_cellnorm"][[i]])
        for column in (*NAMES, "cellnorm_match"):
            assert alone.obs[column].iloc[0] == all_cells.obs[column].iloc[i], column
        assert alone.uns["cellnorm"]["batches"]["treatment"].tolist() == ["known"]
        assert alone.uns["cellnorm"]["model"] == all_cells.uns["cellnorm"]["model"]


@settings(max_examples=4)
@given(st.integers(0, 2**32 - 1))
def test_order_of_cells_and_genes_has_no_say(atlas: Atlas, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells, genes = rng.permutation(100), rng.permutation(200)
    straight, mixed = (embedded(q, atlas.model) for q in (atlas.new, atlas.new[cells][:, genes].copy()))
    np.testing.assert_array_equal(mixed.obsm["X_cellnorm"], straight.obsm["X_cellnorm"][cells])


def test_the_reference_does_not_move(atlas: Atlas, tmp_path: Path) -> None:
    embedded(atlas.new, atlas.folder, save_model=tmp_path / "grown")
    grown = CellNorm.load(tmp_path / "grown", device="cpu")
    assert grown.batches_.tolist() == ["lab0", "lab1", "lab2"]
    again = embedded(atlas.reference, grown)
    np.testing.assert_array_equal(again.obsm["X_cellnorm"], atlas.reference.obsm["X_cellnorm"])


def test_batches_of_one_file_do_not_depend_on_each_other(atlas: Atlas) -> None:
    both = ad.concat([atlas.new, atlas.new])
    both.obs["batch"] = np.repeat(["march", "april"], 100)
    both.obs_names_make_unique()
    alone, together = embedded(atlas.new, atlas.model), embedded(both, atlas.model)
    np.testing.assert_array_equal(together.obsm["X_cellnorm"], np.tile(alone.obsm["X_cellnorm"], (2, 1)))


# -- genes, batches, labels ------------------------------------------------------------------------------------------


def test_with_genes_missing_the_answer_degrades_smoothly(atlas: Atlas, tmp_path: Path) -> None:
    whole = embedded(atlas.new, atlas.model).obsm["X_cellnorm"]
    spread = np.linalg.norm(whole - whole.mean(0))
    off = []
    for share in (0.1, 0.3, 0.5):
        query = embedded(without(atlas.new, share), atlas.model, transfer="cell_type", save_model=tmp_path / f"{share}")
        off.append(np.linalg.norm(query.obsm["X_cellnorm"] - whole) / spread)
        named = query[query.obs[NAMES[0]] != "unknown"]
        assert accuracy(named) > 0.95  # what is said is right, and less is said
        assert named.n_obs > 0.5 * query.n_obs
        assert len(query.uns["cellnorm"]["genes_missing"]) == pytest.approx(200 * share, abs=25)
    assert off[0] < off[2] < 1
    assert CellNorm.load(tmp_path / "0.5", device="cpu").n_features_in_ == atlas.model.n_features_in_


def test_frozen_new_and_known_batches_differ(atlas: Atlas) -> None:
    own, shared = embedded(atlas.new, atlas.model), embedded(atlas.new, atlas.model, frozen=True)
    assert shared.uns["cellnorm"]["batches"]["treatment"].tolist() == ["frozen"]
    assert shared.uns["cellnorm"]["batches"]["n_matched"].tolist() == [0]
    assert not np.array_equal(own.obsm["X_cellnorm"], shared.obsm["X_cellnorm"])
    assert own.obs["cellnorm_match"].mean() > 0.2
    anew = embedded(atlas.reference, atlas.model, as_new=True, key_added="anew")
    batches = anew.uns["anew"]["batches"]
    assert batches["name"].tolist() == ["lab0 (2)", "lab1 (2)"]
    assert batches["label"].tolist() == ["lab0", "lab1"]
    assert batches["treatment"].tolist() == ["new", "new"]


def test_labels_come_from_the_model_or_from_the_reference(atlas: Atlas, tmp_path: Path) -> None:
    bare = CellNorm.load(atlas.folder, device="cpu")
    bare.labels_ = {}
    with pytest.raises(DataError, match=r"the model holds none.*--label-key cell_type.*--reference FILE"):
        cn.tl.embed(atlas.query(), bare, transfer="cell_type")
    from_file = embedded(
        atlas.new, bare, transfer="cell_type", reference=atlas.reference, save_model=tmp_path / "grown"
    )
    from_model = embedded(atlas.new, atlas.model, transfer="cell_type")
    pd.testing.assert_frame_equal(from_file.obs[list(NAMES)], from_model.obs[list(NAMES)])
    later = embedded(atlas.new, tmp_path / "grown", transfer="cell_type", reference=atlas.reference)
    assert (later.obs[NAMES[0]] == from_file.obs[NAMES[0]]).mean() > 0.95


def test_several_columns_are_transferred(atlas: Atlas) -> None:
    atlas.reference.obs["side"] = pd.Categorical(np.where(atlas.reference.obs["cell_type"] == "type0", "left", "right"))
    query = embedded(atlas.new, atlas.model, transfer=["cell_type", "side"], reference=atlas.reference)
    assert {"cellnorm_cell_type", "cellnorm_side", "cellnorm_side_radius"} <= set(query.obs)
    del atlas.reference.obs["side"]


def test_a_representation_is_embedded_too(atlas: Atlas, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kind = atlas.reference.obs["cell_type"].cat.codes.to_numpy()
    atlas.reference.obsm["X_rep"] = (5 * np.eye(12)[kind] + rng.normal(size=(200, 12))).astype("float32")
    query = atlas.query()
    query.obsm["X_rep"] = (5 * np.eye(12)[query.obs["cell_type"].cat.codes] + rng.normal(size=(100, 12)) + 1).astype(
        "float32"
    )
    cn.tl.correct(atlas.reference, "batch", use_rep="X_rep", save_model=tmp_path / "m", label_key="cell_type",
                  key_added="of_rep", **QUICK)  # fmt: skip
    cn.tl.embed(query, tmp_path / "m", transfer="cell_type")
    assert accuracy(query) > 0.95
    assert query.uns["cellnorm"]["matrix"] == "obsm['X_rep']"
    query.obsm["other"] = query.obsm.pop("X_rep")
    with pytest.raises(DataError, match="use_rep 'X_rep' was asked for, but obsm holds"):
        cn.tl.embed(query, tmp_path / "m")
    cn.tl.embed(query, tmp_path / "m", use_rep="other")
    query.obsm["narrow"] = query.obsm["other"][:, :5]
    with pytest.raises(DataError, match="has 5 columns, the model was made with 12"):
        cn.tl.embed(query, tmp_path / "m", use_rep="narrow")
    with pytest.raises(DataError, match="layer 'x' was asked for, but the model was made with a representation"):
        cn.tl.embed(query, tmp_path / "m", layer="x")


def test_what_is_said(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    cn.tl.embed(atlas.query(), atlas.model, transfer="cell_type")
    for words in (
        "batches: column 'batch', as in the model",
        "batches: 'lab2' new (100 cells)",
        "genes: ",
        "labels: type",
    ):
        assert words in caplog.text
    assert "of 100 cells" in caplog.text


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_key": "no"}, "batch_key 'no' was asked for"),
        ({"layer": "no"}, "layer 'no' was asked for"),
        ({"use_rep": "X_pca"}, "made with the expression of genes"),
        ({"transfer": "no"}, r"'no' were to be transferred, but the model holds those of 'cell_type'"),
        ({"transfer": "no", "reference": "itself"}, "must have been corrected with this very model"),
        ({"transfer": "match"}, "'match'"),
        ({"key_added": "a/b"}, "without '/'"),
        ({"save_model": "taken"}, "exists"),
    ],
)
def test_nothing_is_left_after_an_error(atlas: Atlas, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    query = atlas.query()
    if options.get("reference"):
        options = {**options, "reference": query.copy()}
    if "save_model" in options:
        (tmp_path / "taken").mkdir()
        options = {**options, "save_model": tmp_path / "taken"}
    before = snapshot(query)
    with pytest.raises(DataError, match=message):
        cn.tl.embed(query, atlas.folder, **options)
    assert changes(before, snapshot(query)) == set()


def test_the_reference_must_be_of_this_model(atlas: Atlas) -> None:
    other = atlas.reference.copy()
    cn.tl.correct(other, "batch", random_state=1, **QUICK)
    with pytest.raises(DataError, match=r"very model, but its uns\['cellnorm'\] is of another model"):
        cn.tl.embed(atlas.query(), atlas.model, transfer="cell_type", reference=other)
    with pytest.raises(DataError, match="Column 'no' was asked for"):
        cn.tl.embed(atlas.query(), atlas.model, transfer="no", reference=atlas.reference)


def test_a_model_that_is_none(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none"):
        cn.tl.embed(atlas.query(), tmp_path / "none")
    nameless = CellNorm(**QUICK).fit(atlas.reference.X, atlas.reference.obs["batch"].to_numpy())
    with pytest.raises(DataError, match="The model has no names of its 200 genes"):
        cn.tl.embed(atlas.query(), nameless)
