"""Correct an AnnData: what is written, what stays, what is refused, and that the storage has no say."""

import logging
import warnings
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.adata import result_slots
from cellnorm.errors import DataError
from cellnorm.hvg import N_TOP_GENES

QUICK = {"n_steps": 30, "n_latent": 8, "device": "cpu"}


def corrected(adata: ad.AnnData, batch_key: str | list[str] = "batch", **options: Any) -> np.ndarray:
    """The embedding, from a copy."""
    result = cn.tl.correct(adata, batch_key, copy=True, **{**QUICK, **options})
    assert result is not None
    return np.asarray(result.obsm[options.get("key_added", "X_cellnorm")])


@pytest.fixture
def rich_adata(small_adata: ad.AnnData) -> ad.AnnData:
    """Something in every slot, so that a change would be seen."""
    rng = np.random.default_rng(1)
    n_cells, n_genes = small_adata.shape
    small_adata.layers["counts"] = small_adata.X.copy()
    small_adata.raw = small_adata.copy()
    sc.pp.normalize_total(small_adata)
    sc.pp.log1p(small_adata)
    small_adata.obs["score"] = rng.normal(size=n_cells)
    small_adata.obs["note"] = pd.Categorical(["a", "b", None] * (n_cells // 3), categories=["b", "a", "unused"])
    small_adata.var["highly_variable"] = rng.random(n_genes) < 0.5
    small_adata.obsm["X_pca"] = rng.normal(size=(n_cells, 5))
    small_adata.obsm["X_umap"] = rng.normal(size=(n_cells, 2))
    small_adata.varm["PCs"] = rng.normal(size=(n_genes, 5))
    small_adata.obsp["connectivities"] = sp.random(n_cells, n_cells, density=0.05, format="csr", random_state=0)
    small_adata.varp["links"] = sp.random(n_genes, n_genes, density=0.05, format="csr", random_state=0)
    small_adata.uns["neighbors"] = {"params": {"n_neighbors": 15}, "names": np.array(["a", "b"], dtype=object)}
    return small_adata


# -- the strength ----------------------------------------------------------------------------------------------------


def test_the_strength_is_chosen_said_and_recorded(small_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="cellnorm"):
        cn.tl.correct(small_adata, "batch", **QUICK)
    info = small_adata.uns["cellnorm"]["strength"]
    assert info["value"] == 1
    assert info["within"] > 0.015
    assert info["p"] < 0.01
    assert info["why"] in [record.getMessage() for record in caplog.records]
    assert small_adata.uns["cellnorm"]["parameters"]["strength"] == ""


def test_batches_at_random_are_left_as_they_are(small_adata: ad.AnnData) -> None:
    one = small_adata[(small_adata.obs["batch"] == "lab0").to_numpy()].copy()
    one.obs["half"] = ["a", "b"] * (one.n_obs // 2)
    cn.tl.correct(one, "half", **{**QUICK, "n_latent": 50})
    info = one.uns["cellnorm"]
    assert info["strength"]["value"] == 0
    assert info["alarm"]["reason"].startswith("no batch effect was found, and nothing was changed")
    assert info["alarm"]["kept"] == 1


def test_a_strength_can_be_asked_for(small_adata: ad.AnnData) -> None:
    cn.tl.correct(small_adata, "batch", strength=0.5, save_model=None, **QUICK)
    info = small_adata.uns["cellnorm"]
    assert (info["strength"]["value"], info["strength"]["why"]) == (0.5, "strength 0.50, as asked for")
    assert np.isnan(info["strength"]["p"])
    assert info["parameters"]["strength"] == 0.5
    none, full = (corrected(small_adata, strength=s) for s in (0, 1))
    np.testing.assert_allclose(small_adata.obsm["X_cellnorm"], (none + full) / 2, rtol=1e-3, atol=1e-3)


def test_a_wrong_strength_is_refused_before_any_work(small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellnorm.tl._correct.log_expression", None)
    with pytest.raises(DataError, match=r"A strength of 1\.5 was asked for"):
        cn.tl.correct(small_adata, "batch", strength=1.5)


# -- what is written -------------------------------------------------------------------------------------------------


def test_the_embedding_and_what_is_known_of_it(small_adata: ad.AnnData) -> None:
    assert cn.tl.correct(small_adata, "batch", random_state=4, **QUICK) is None
    embedding = small_adata.obsm["X_cellnorm"]
    assert (embedding.shape, embedding.dtype) == ((300, 8), np.float32)
    assert np.isfinite(embedding).all()
    assert (embedding.std(axis=0) > 0).all()
    info = small_adata.uns["cellnorm"]
    assert set(info) == {
        *("parameters", "random_state", "versions", "batch_key", "batches", "alarm", "history"),
        *("matrix", "matrix_kind", "genes", "seconds", "device", "strength", "model"),
    }
    assert set(info["strength"]) == {"value", "within", "p", "why"}
    assert info["parameters"]["n_steps"] == 30
    assert info["parameters"]["n_top_genes"] == N_TOP_GENES
    assert info["parameters"]["layer"] == ""
    assert info["random_state"] == 4
    assert info["versions"]["cellnorm"] == cn.__version__
    assert set(info["versions"]) == {"cellnorm", "torch", "scanpy", "anndata", "numpy", "scikit-learn"}
    assert info["batch_key"].tolist() == ["batch"]
    assert info["batches"]["name"].tolist() == ["lab0", "lab1", "lab2"]
    assert info["batches"]["n_cells"].tolist() == [100, 100, 100]
    assert len(info["batches"]["n_matched"]) == 3
    assert (info["matrix"], info["matrix_kind"], info["device"]) == ("X", "counts", "cpu")
    assert set(info["genes"]) <= set(small_adata.var_names)
    assert info["seconds"]["prepare"] > 0
    assert {"prepare", "train", "check"} <= set(info["seconds"])
    assert info["history"]
    assert all(isinstance(values, np.ndarray) for values in info["history"].values())


@pytest.mark.parametrize("key", [None, "foo"])
def test_nothing_else_changes(rich_adata: ad.AnnData, key: str | None) -> None:
    before = snapshot(rich_adata)
    cn.tl.correct(rich_adata, "batch", key_added=key, **QUICK)
    written = {tuple(path.split("/")[1:3]) for path in changes(before, snapshot(rich_adata))}
    assert written == set(result_slots(key))
    assert rich_adata.uns[key or "cellnorm"]["matrix"] == "layers['counts']"


def test_a_copy_is_changed_instead(rich_adata: ad.AnnData) -> None:
    before = snapshot(rich_adata)
    other = cn.tl.correct(rich_adata, "batch", copy=True, **QUICK)
    assert other is not None
    assert changes(before, snapshot(rich_adata)) == set()
    assert {tuple(p.split("/")[1:3]) for p in changes(before, snapshot(other))} == set(result_slots())


def test_two_corrections_live_side_by_side(small_adata: ad.AnnData) -> None:
    cn.tl.correct(small_adata, "batch", **QUICK)
    first = small_adata.obsm["X_cellnorm"].copy()
    cn.tl.correct(small_adata, "batch", key_added="other", random_state=1, **QUICK)
    np.testing.assert_array_equal(small_adata.obsm["X_cellnorm"], first)
    assert not np.array_equal(small_adata.obsm["other"], first)


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_result_comes_back_from_a_file(small_adata: ad.AnnData, suffix: str, tmp_path: Path) -> None:
    names = ["a/b", "Zürich 実験 🧬", "x" * 10_000]
    small_adata.obs["batch"] = np.array(names, dtype=object)[small_adata.obs["batch"].cat.codes]
    cn.tl.correct(small_adata, "batch", **QUICK)
    path = tmp_path / f"cells.{suffix}"
    getattr(small_adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.obsm["X_cellnorm"], small_adata.obsm["X_cellnorm"])
    info = back.uns["cellnorm"]
    assert sorted(info["batches"]["name"].tolist()) == sorted(names)
    assert changes(snapshot_of(info), snapshot_of(small_adata.uns["cellnorm"])) == set()


def snapshot_of(info: Any) -> dict[str, str]:
    """Contents of a mapping without the types that a file may exchange."""
    if hasattr(info, "keys"):
        return {f"{k}/{path}": text for k in info for path, text in snapshot_of(info[k]).items()}
    return {"": str(np.asarray(info).tolist())}


def test_cells_stay_in_order(small_adata: ad.AnnData) -> None:
    X = small_adata.X.toarray()
    X[5] = 0
    X[:, 9] = 0
    small_adata.X = X
    small_adata.obs_names = ["cell"] * 300
    small_adata.var_names = ["gene"] * 200
    cn.tl.correct(small_adata, "batch", **QUICK)
    assert small_adata.obsm["X_cellnorm"].shape[0] == 300
    assert np.isfinite(small_adata.obsm["X_cellnorm"]).all()
    types = small_adata.obs["cell_type"].cat.codes.to_numpy()
    near = np.delete(np.arange(300), 5)
    embedding = small_adata.obsm["X_cellnorm"][near]
    centres = np.stack([embedding[types[near] == t].mean(axis=0) for t in range(4)])
    found = ((embedding[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (found == types[near]).mean() > 0.6, "a wrong order would give a quarter"


# -- the verdict -----------------------------------------------------------------------------------------------------


def test_the_verdict_is_kept_and_said(small_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "cellnorm"):
        cn.tl.correct(small_adata, "batch", **QUICK)
    found = small_adata.uns["cellnorm"]["alarm"]
    assert set(found) == {
        *("verdict", "reason", "kept", "matched", "apart", "apart_before", "merged", "null_moved", "null_separated"),
        *("batches", "clusters"),
    }
    assert found["verdict"] == "good"
    assert found["batches"]["name"].tolist() == ["lab0", "lab1", "lab2"]
    assert found["batches"]["n_cells"].tolist() == [100, 100, 100]
    assert set(found["clusters"]["batch"]) == {"lab0", "lab1", "lab2"}
    assert np.isfinite(found["null_moved"])
    said = [r for r in caplog.records if r.getMessage().startswith("verdict")]
    assert [(r.levelno, r.getMessage()) for r in said] == [(logging.INFO, f"verdict good: {found['reason']}")]


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let every correction be judged so."""
    check = cn.CellNorm.check

    def judge(verdict: str) -> None:
        def checked(model: cn.CellNorm, **options: Any) -> Any:
            return replace(check(model, **options), verdict=verdict, reason="100% of %s")

        monkeypatch.setattr(cn.CellNorm, "check", checked)

    return judge


@pytest.mark.parametrize("verdict", ["look", "under-corrected", "over-corrected"])
def test_what_is_not_good_is_a_warning(
    small_adata: ad.AnnData, verdict: str, caplog: pytest.LogCaptureFixture, judged: Callable[[str], None]
) -> None:
    """In the log; and where nobody listens to that, in Python's manner, at the line that asked."""
    judged(verdict)
    with caplog.at_level(logging.WARNING, "cellnorm"), pytest.warns(UserWarning, match="100% of %s") as warned:
        cn.tl.correct(small_adata, "batch", **QUICK)
    assert [r.getMessage() for r in caplog.records] == [f"verdict {verdict}: 100% of %s"]
    assert [(str(w.message), w.filename) for w in warned] == [(f"verdict {verdict}: 100% of %s", __file__)]
    assert small_adata.uns["cellnorm"]["alarm"]["verdict"] == verdict
    assert small_adata.obsm["X_cellnorm"].shape == (300, 8)


@pytest.mark.parametrize(("verdict", "listening"), [("good", False), ("look", True)])
def test_nobody_is_warned_twice_or_for_nothing(
    small_adata: ad.AnnData, judged: Callable[[str], None], verdict: str, listening: bool
) -> None:
    judged(verdict)
    package, handler = logging.getLogger("cellnorm"), logging.StreamHandler(StringIO())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if listening:
            package.addHandler(handler)
        try:
            cn.tl.correct(small_adata, "batch", **QUICK)
        finally:
            package.removeHandler(handler)
    assert (f"verdict {verdict}" in handler.stream.getvalue()) == listening


def test_types_have_no_say_in_the_verdict(small_adata: ad.AnnData) -> None:
    """The alarm sees none: it judges before and after alone."""
    first = cn.tl.correct(small_adata, "batch", copy=True, **QUICK)
    small_adata.obs["cell_type"] = "one"
    second = cn.tl.correct(small_adata, "batch", copy=True, **QUICK)
    assert first is not None
    assert second is not None
    assert snapshot_of(first.uns["cellnorm"]["alarm"]) == snapshot_of(second.uns["cellnorm"]["alarm"])


# -- the same answer -------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[ad.AnnData], ad.AnnData]] = {
    "csc": lambda a: ad.AnnData(a.X.tocsc(), obs=a.obs, var=a.var),
    "dense": lambda a: ad.AnnData(a.X.toarray(), obs=a.obs, var=a.var),
    "float64": lambda a: ad.AnnData(a.X.astype(np.float64), obs=a.obs, var=a.var),
    "integers": lambda a: ad.AnnData(a.X.toarray().astype(np.int64), obs=a.obs, var=a.var),
    "view": lambda a: ad.concat([a, a], index_unique="-", merge="same")[: a.n_obs],
}


@pytest.mark.parametrize("form", FORMS)
def test_the_storage_has_no_say(small_adata: ad.AnnData, form: str) -> None:
    np.testing.assert_array_equal(corrected(FORMS[form](small_adata)), corrected(small_adata))


@pytest.mark.parametrize(
    "label",
    [
        lambda codes: codes,
        lambda codes: codes.astype(np.float32),
        lambda codes: pd.Categorical(codes.astype(str), categories=["unused", "2", "1", "0"]),
        lambda codes: pd.array(codes, dtype="Int64"),
    ],
    ids=["integers", "floats", "categorical", "nullable"],
)
def test_the_type_of_the_labels_has_no_say(small_adata: ad.AnnData, label: Callable[[Any], Any]) -> None:
    codes = small_adata.obs["batch"].cat.codes.to_numpy().astype(np.int64)
    small_adata.obs["text"] = codes.astype(str)
    small_adata.obs["typed"] = label(codes)
    np.testing.assert_array_equal(corrected(small_adata, "typed"), corrected(small_adata, "text"))


def test_a_view_is_corrected_in_place(small_adata: ad.AnnData) -> None:
    doubled = ad.concat([small_adata, small_adata], index_unique="-", merge="same")
    before = snapshot(doubled)
    view = doubled[:300]
    with pytest.warns(ad.ImplicitModificationWarning):
        cn.tl.correct(view, "batch", **QUICK)
    np.testing.assert_array_equal(view.obsm["X_cellnorm"], corrected(small_adata))
    assert changes(before, snapshot(doubled)) == set()


def test_several_keys_are_covariates_of_their_combinations(small_adata: ad.AnnData) -> None:
    small_adata.obs["half"] = np.arange(300) // 3 % 2
    small_adata.obs["both"] = [
        f"{b} / {h}" for b, h in zip(small_adata.obs["batch"], small_adata.obs["half"], strict=True)
    ]
    assert (corrected(small_adata, ["batch", "half"]) != corrected(small_adata, "both")).any()
    cn.tl.correct(small_adata, ["batch", "half"], **QUICK)
    assert small_adata.uns["cellnorm"]["batch_key"].tolist() == ["batch", "half"]
    assert small_adata.uns["cellnorm"]["batches"]["name"].tolist() == sorted(set(small_adata.obs["both"]))


def test_random_numbers_of_the_user_are_left_alone(small_adata: ad.AnnData) -> None:
    np.random.seed(3)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = corrected(small_adata)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(corrected(small_adata), first)
    assert not np.array_equal(corrected(small_adata, random_state=1), first)


# -- options ---------------------------------------------------------------------------------------------------------


def test_a_representation_is_corrected(small_adata: ad.AnnData) -> None:
    cn.pp.prepare(small_adata, "batch", n_comps=20)
    cn.tl.correct(small_adata, "batch", use_rep="X_pca", **QUICK)
    info = small_adata.uns["cellnorm"]
    assert small_adata.obsm["X_cellnorm"].shape == (300, 8)
    assert (info["matrix"], info["matrix_kind"], len(info["genes"])) == ("obsm['X_pca']", "representation", 0)
    assert (info["parameters"]["use_rep"], info["parameters"]["n_comps"]) == ("X_pca", "")


@pytest.mark.parametrize("option", [{"layer": "counts"}, {"mask_var": "mine"}, {"n_top_genes": 50}, {"n_comps": 10}])
def test_a_representation_has_no_genes(small_adata: ad.AnnData, option: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=f"use_rep 'X_pca' was asked for together with '{next(iter(option))}'"):
        cn.tl.correct(small_adata, "batch", use_rep="X_pca", **option)


def test_genes_are_chosen_as_asked(small_adata: ad.AnnData) -> None:
    cn.tl.correct(small_adata, "batch", n_top_genes=50, **QUICK)
    assert len(small_adata.uns["cellnorm"]["genes"]) == 50
    small_adata.var["mine"] = np.arange(200) < 60
    cn.tl.correct(small_adata, "batch", mask_var="mine", **QUICK)
    assert small_adata.uns["cellnorm"]["genes"].tolist() == [f"gene{i}" for i in range(60)]
    assert small_adata.uns["cellnorm"]["parameters"]["mask_var"] == "mine"


def test_an_unknown_parameter_is_named_with_the_valid_ones(small_adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r"unknown parameters: 'n_epochs'\. Those of CellNorm are: .*n_latent"):
        cn.tl.correct(small_adata, "batch", n_epochs=3)


def test_progress_is_told_stage_by_stage(small_adata: ad.AnnData) -> None:
    told: list[tuple[str, int, int, float | None]] = []
    cn.tl.correct(small_adata, "batch", progress=lambda *state: told.append(state), **QUICK)
    stages = list(dict.fromkeys(stage for stage, *_ in told))
    assert stages[0] == "prepare"
    assert "train" in stages
    assert all(0 <= done <= total for _, done, total, _ in told)
    last = {stage: (done, total) for stage, done, total, _ in told}
    assert all(done == total for done, total in last.values())


# -- bad input -------------------------------------------------------------------------------------------------------


def spoil(adata: ad.AnnData, value: float) -> None:
    X = adata.X.toarray()
    X[-1, -1] = value
    adata.X = X


def scale(adata: ad.AnnData) -> None:
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.scale(adata)


def part(adata: ad.AnnData) -> None:
    X = adata.X.toarray()
    alone = adata.obs["batch"] == "lab0"
    X[np.ix_(alone, np.arange(100))] = 0
    X[np.ix_(~alone, np.arange(100, 200))] = 0
    adata.X = X


BAD: list[tuple[str, Callable[[ad.AnnData], Any], dict[str, Any], str]] = [
    ("no such key", lambda a: None, {"batch_key": "lab"}, "'lab' was asked for.*'batch', 'cell_type'"),
    ("one batch", lambda a: a.obs.__setitem__("batch", "lab0"), {}, "one batch only"),
    ("NaN label", lambda a: a.obs.loc.__setitem__(("cell3", "batch"), None), {}, r"missing \(NaN\) for 1 of 300"),
    ("NaN", lambda a: spoil(a, np.nan), {}, "X holds 1 NaN"),
    ("infinite", lambda a: spoil(a, np.inf), {}, "1 infinite"),
    ("negative", lambda a: spoil(a, -2), {}, "negative values"),
    ("z-scores", scale, {}, "negative values .* scaled"),
    ("no shared gene", part, {}, "No gene is expressed both in batch"),
    ("no such layer", lambda a: None, {"layer": "counts"}, "the layers are: none"),
    ("no such representation", lambda a: None, {"use_rep": "X_pca"}, "'X_pca' was asked for, but obsm holds: none"),
    ("no such mask", lambda a: None, {"mask_var": "mine"}, "'mine' was asked for"),
    ("a key with a slash", lambda a: None, {"key_added": "a/b"}, "without '/'"),
    ("more dimensions than cells", lambda a: None, {"n_latent": 301}, "300 cells"),
    ("no GPU", lambda a: None, {"device": "cuda"}, "cuda"),
]


@pytest.mark.parametrize(("spoiled", "options", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_and_nothing_changes(
    small_adata: ad.AnnData, spoiled: Callable[[ad.AnnData], Any], options: dict[str, Any], words: str
) -> None:
    if options.get("device") == "cuda" and pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this machine has a GPU")
    spoiled(small_adata)
    before = snapshot(small_adata)
    with pytest.raises(DataError, match=words) as caught:
        cn.tl.correct(small_adata, **{"batch_key": "batch", **QUICK, **options})
    assert "\n" not in str(caught.value)
    assert changes(before, snapshot(small_adata)) == set()


def test_arguments_are_checked_before_any_work(small_adata: ad.AnnData) -> None:
    told: list[tuple[str, int, int, float | None]] = []
    for options in ({"key_added": "a/b"}, {"use_rep": "X_pca", "layer": "x"}, {"batch_key": "nope"}):
        with pytest.raises(DataError):
            cn.tl.correct(small_adata, progress=lambda *state: told.append(state), **{"batch_key": "batch", **options})
    assert told == []


def test_a_batch_of_one_cell_is_corrected_with_a_warning(
    small_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    labels = np.asarray(small_adata.obs["batch"].astype(object))
    labels[0] = "alone"
    small_adata.obs["batch"] = labels
    with caplog.at_level(logging.WARNING, "cellnorm"):
        cn.tl.correct(small_adata, "batch", **QUICK)
    assert np.isfinite(small_adata.obsm["X_cellnorm"]).all()
    assert "fewer than 10 cells: 'alone (1)'." in caplog.text


def test_empty_cells_are_kept_with_a_warning(small_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cellnorm"):
        corrected(small_adata)
    assert caplog.text == ""
    X = small_adata.X.toarray()
    X[[2, 50]] = 0
    small_adata.X = X
    assert np.isfinite(corrected(small_adata)).all()
    assert "2 cells express none of the chosen genes" in caplog.text


# -- several covariates ----------------------------------------------------------------------------------------------


def test_a_list_of_one_key_is_the_key(small_adata: ad.AnnData) -> None:
    np.testing.assert_array_equal(corrected(small_adata, ["batch"]), corrected(small_adata))
    np.testing.assert_array_equal(corrected(small_adata, ["batch", "batch"]), corrected(small_adata))


def test_a_label_may_be_missing_in_no_column(small_adata: ad.AnnData) -> None:
    small_adata.obs["half"] = np.where(np.arange(300) < 4, None, "a")
    with pytest.raises(DataError, match=r"obs\['half'\] is missing \(NaN\) for 4 of 300"):
        corrected(small_adata, ["batch", "half"])


def test_levels_that_are_small_are_told(small_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    small_adata.obs["day"] = np.where(np.arange(300) < 5, "first", "second")
    with caplog.at_level(logging.INFO, "cellnorm"):
        corrected(small_adata, ["batch", "day"])
    assert "combinations of batch (3 values), day (2 values), whose effects are added up" in caplog.text
    assert "fewer than 10 cells: 'first (5)'." in caplog.text


def test_a_model_of_several_columns_embeds_its_own_cells(small_adata: ad.AnnData, tmp_path: Path) -> None:
    small_adata.obs["half"] = np.arange(300) // 3 % 2
    cn.tl.correct(small_adata, ["batch", "half"], save_model=tmp_path / "m", **QUICK)
    again = small_adata[:200].copy()
    cn.tl.embed(again, tmp_path / "m")
    np.testing.assert_array_equal(again.obsm["X_cellnorm"], small_adata.obsm["X_cellnorm"][:200])
    batches = again.uns["cellnorm"]["batches"]
    assert batches["name"].tolist() == small_adata.uns["cellnorm"]["batches"]["name"].tolist()
    assert set(batches["treatment"]) == {"known"}
    small_adata.obs["half"] = small_adata.obs["half"] + (np.arange(300) >= 200)
    late = small_adata[200:].copy()
    cn.tl.embed(late, tmp_path / "m", ["half", "batch"])
    treatment = dict(zip(*(late.uns["cellnorm"]["batches"][key] for key in ("name", "treatment")), strict=True))
    assert treatment["lab0 / 2"] == "new"
    assert treatment["lab0 / 1"] == "known"
    cn.tl.expression(small_adata[:200].copy(), tmp_path / "m")
