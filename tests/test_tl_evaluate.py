"""`cn.tl.evaluate`: what it chooses, what it says, what it leaves as it was."""

import logging
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.metrics.table import METRICS, score
from cellnorm.tl import _evaluate
from cellnorm.tl._evaluate import evaluate, uncorrected

NAMES = [metric.name for metric in METRICS]
FREE = [metric.name for metric in METRICS if not metric.needs_labels]


@pytest.fixture
def adata(small_adata: ad.AnnData) -> ad.AnnData:
    """With embeddings of all sorts; "X_good" has the types and not the batches."""
    rng = np.random.default_rng(0)
    kind = small_adata.obs["cell_type"].cat.codes.to_numpy()
    small_adata.obsm["X_umap"] = rng.normal(size=(300, 2))
    small_adata.obsm["X_good"] = rng.normal(size=(300, 6)) + 4 * np.eye(6)[kind]
    small_adata.obsm["spatial"] = rng.normal(size=(300, 3))
    return small_adata


def said(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelno >= level)


def test_without_options_all_that_can_be_scored_is_scored(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    before = snapshot(adata)
    scores = evaluate(adata, "batch")
    assert changes(before, snapshot(adata)) == set()
    assert scores.columns.tolist() == ["uncorrected", "X_good"]
    assert scores.index.tolist() == FREE
    assert scores.index.name == "metric"
    assert scores.notna().all(axis=None)
    assert scores.loc["KBET overall", "X_good"] > 0.8 > scores.loc["KBET overall", "uncorrected"] + 0.3
    assert scores.attrs["before"] == "uncorrected"
    assert "left out: obsm['X_umap'], a layout of 2 dimensions" in said(caplog)
    assert "left out: obsm['spatial'], a layout of 3 dimensions" in said(caplog)
    assert "principal components of the counts in X" in said(caplog)
    assert "300 cells, 3 batches" in said(caplog)
    assert said(caplog, logging.WARNING) == ""


def test_scores_are_those_of_the_arrays(adata: ad.AnnData) -> None:
    scores = evaluate(adata, "batch", "cell_type", use_rep="X_good")
    batch, label = (adata.obs[key].cat.codes.to_numpy() for key in ("batch", "cell_type"))
    direct = score(adata.obsm["X_good"], batch, label, before=uncorrected(adata, "batch"))
    assert scores.index.tolist() == NAMES
    assert scores["X_good"].to_dict() == pytest.approx({name: one.value for name, one in direct.items()})
    assert scores.columns.tolist() == ["X_good"]


def test_the_pca_is_the_uncorrected_one_and_comes_first(adata: ad.AnnData) -> None:
    cn.pp.prepare(adata, "batch", n_comps=50)
    np.testing.assert_allclose(uncorrected(adata, "batch"), adata.obsm["X_pca"])
    scores = evaluate(adata, "batch", "cell_type")
    assert scores.columns.tolist() == ["X_pca", "X_good"]
    assert scores.attrs["before"] == "X_pca"
    assert scores.loc["PCR comparison", "X_pca"] == 0
    assert scores.loc["Neighbors kept", "X_pca"] == 1
    adata.X = adata.X * np.nan  # the expression is not looked at
    assert evaluate(adata, "batch", "cell_type").equals(scores)


def test_the_uncorrected_one_can_be_named(adata: ad.AnnData) -> None:
    cn.pp.prepare(adata, "batch")
    adata.obsm["raw_pcs"] = adata.obsm["X_pca"][:, :20] + 0.1
    scores = evaluate(adata, "batch", before="raw_pcs")
    assert scores.columns.tolist() == ["raw_pcs", "X_good", "X_pca"]
    assert scores.loc["Neighbors kept"].tolist() == pytest.approx([1, *scores.loc["Neighbors kept"].tolist()[1:]])
    assert scores.loc["Neighbors kept", "X_pca"] < 1


@pytest.mark.parametrize("use_rep", ["X_good", ["X_good"], ("X_good", "X_umap", "X_good")])
def test_use_rep_is_what_is_scored(adata: ad.AnnData, use_rep: str | Sequence[str]) -> None:
    wanted = ["X_good"] if isinstance(use_rep, str) else list(dict.fromkeys(use_rep))
    assert evaluate(adata, "batch", use_rep=use_rep).columns.tolist() == wanted


def test_intervals_are_columns(adata: ad.AnnData) -> None:
    scores = evaluate(adata, "batch", "cell_type", intervals=True, n_bootstrap=20)
    assert scores.columns.nlevels == 2
    assert scores.columns.levels[1].tolist() == ["high", "low", "value"]
    assert scores["X_good"].columns.tolist() == ["value", "low", "high"]
    plain = evaluate(adata, "batch", "cell_type")
    pd.testing.assert_frame_equal(
        scores.xs("value", axis=1, level="score"), plain, check_names=False, check_column_type=False
    )
    one = scores["X_good"].drop("Batch entropy SCALEX")
    assert ((one["low"] <= one["value"]) & (one["value"] <= one["high"])).all()
    assert (one.loc["BRAS", "high"] - one.loc["BRAS", "low"]) > 0


def test_cells_without_a_type_are_left_out_of_what_needs_types(
    adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    whole = evaluate(adata, "batch", "cell_type", use_rep="X_good")["X_good"]
    adata.obs["partly"] = adata.obs["cell_type"].astype(object).where(np.arange(300) % 3 > 0, np.nan)
    partly = evaluate(adata, "batch", "partly", use_rep="X_good")["X_good"]
    assert "100 of 300 cells have no value in obs['partly']" in said(caplog, logging.WARNING)
    assert partly[FREE].tolist() == whole[FREE].tolist()
    known = adata[np.arange(300) % 3 > 0].copy()
    alone = evaluate(known, "batch", "cell_type", use_rep="X_good")["X_good"]
    assert partly["Leiden NMI"] == alone["Leiden NMI"]
    assert partly["BRAS"] == pytest.approx(alone["BRAS"])


def test_a_column_without_any_type(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata.obs["none"] = np.nan
    assert evaluate(adata, "batch", "none").index.tolist() == FREE
    assert "obs['none'] holds no cell type" in said(caplog, logging.WARNING)


def test_types_in_one_batch_or_of_one_cell_are_said(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    kind = adata.obs["cell_type"].astype(object)
    kind[(adata.obs["batch"] == "lab0").to_numpy() & (kind == "type1").to_numpy()] = "lonely type"
    kind.iloc[7] = "one cell"
    adata.obs["cell_type"] = kind
    assert evaluate(adata, "batch", "cell_type", use_rep="X_good").notna().all(axis=None)
    assert "in one batch only, so without a say in how batches of a type mix: 'lonely type', 'one cell'" in said(caplog)
    assert "of one cell only, which counts as a silhouette of 0: 'one cell'" in said(caplog)


def test_what_cannot_be_computed_is_nan_and_why_is_said(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata.obs["nested"] = adata.obs["batch"].astype(str)
    scores = evaluate(adata, "batch", "nested")
    assert scores.loc["BRAS"].isna().all()
    assert scores.loc["cLISI"].notna().all()
    assert "Not computed, since no cell type is in two batches: BRAS, KBET" in said(caplog, logging.WARNING)


def test_without_expression_embeddings_are_still_scored(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    adata.X = sp.csr_matrix(adata.shape)
    scores = evaluate(adata, "batch", "cell_type")
    assert scores.columns.tolist() == ["X_good"]
    assert scores.attrs["before"] == ""
    assert scores.index[scores["X_good"].isna()].tolist() == [m.name for m in METRICS if m.needs_before]
    assert "There is no uncorrected embedding to compare with. X has no gene" in said(caplog, logging.WARNING)
    del adata.obsm["X_good"]
    with pytest.raises(cn.DataError, match="X has no gene"):
        evaluate(adata, "batch", "cell_type")


def test_embeddings_that_cannot_be_used_are_left_out_or_refused(
    adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    adata.obsm["X_nan"] = np.full((300, 5), np.nan)
    adata.obsm["X_text"] = pd.DataFrame(np.full((300, 5), "a"), index=adata.obs_names)
    assert evaluate(adata, "batch").columns.tolist() == ["uncorrected", "X_good"]
    assert "Left out: obsm['X_nan'] holds 1500 NaN" in said(caplog, logging.WARNING)
    assert "Left out: obsm['X_text'] must be a table of numbers" in said(caplog, logging.WARNING)
    with pytest.raises(cn.DataError, match="X_nan"):
        evaluate(adata, "batch", use_rep="X_nan")


def test_of_many_cells_a_sample_is_scored(
    adata: ad.AnnData, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    monkeypatch.setattr(_evaluate, "SMALLEST_SAMPLE", 10)
    scores = evaluate(adata, "batch", "cell_type", max_cells=120, random_state=1)
    assert "scoring a random sample of 120 of 300 cells" in said(caplog)
    assert scores.equals(evaluate(adata, "batch", "cell_type", max_cells=120, random_state=1))
    assert not scores.equals(evaluate(adata, "batch", "cell_type", max_cells=120, random_state=2))
    whole = evaluate(adata, "batch", "cell_type", max_cells=300)
    assert whole.equals(evaluate(adata, "batch", "cell_type"))
    assert scores.loc["Batch entropy", "X_good"] == pytest.approx(whole.loc["Batch entropy", "X_good"], abs=0.05)


def test_a_sample_keeps_the_shares_of_batches_and_some_of_the_small_ones() -> None:
    batch = np.repeat([0, 1, 2], [6000, 3000, 30])
    cells = _evaluate._sample(batch, 900, 0)
    assert np.bincount(batch[cells]).tolist() == [598, 299, 30]
    assert (np.diff(cells) > 0).all()


def test_the_seed_and_the_global_generator(adata: ad.AnnData) -> None:
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - it is the global one that must not change
    options = {"intervals": True, "n_bootstrap": 3}
    first, again, other = (evaluate(adata, "batch", random_state=s, **options) for s in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert np.random.get_state()[1].tolist() == state  # noqa: NPY002


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_key": "kind"}, "label_key 'kind' was asked for, but is no column of obs, which has: 'batch', 'cell_"),
        ({"use_rep": "X_no"}, "use_rep 'X_no' was asked for, but obsm holds: 'X_umap', 'X_good', 'spatial'"),
        ({"use_rep": []}, "use_rep names no embedding; obsm holds"),
        ({"before": "X_no"}, "before 'X_no' was asked for, but obsm holds"),
        ({"batch_key": "lab"}, "batch_key 'lab' was asked for"),
        ({"batch_key": "one"}, "one batch only"),
        ({"device": "tpu"}, "Device 'tpu' is unknown"),
        ({"max_cells": 2}, "max_cells must be 3 or more and n_bootstrap 1 or more, found 2 and 100"),
        ({"n_bootstrap": 0}, "found 50000 and 0"),
    ],
)
def test_wrong_arguments_are_refused(adata: ad.AnnData, options: dict[str, object], message: str) -> None:
    adata.obs["one"] = "a"
    with pytest.raises(cn.DataError, match=message):
        evaluate(adata, **{"batch_key": "batch", **options})  # type: ignore[arg-type]


def test_two_columns_of_one_name_are_refused(adata: ad.AnnData) -> None:
    adata.obs = pd.concat([adata.obs, adata.obs[["cell_type"]]], axis=1)
    with pytest.raises(cn.DataError, match="'cell_type' is the name of several columns"):
        evaluate(adata, "batch", "cell_type")


def test_several_batch_columns_are_crossed(adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    adata.obs["day"] = np.where(np.arange(300) % 2, "a", "b")
    evaluate(adata, ["batch", "day"], use_rep="X_good")
    assert "300 cells, 6 batches" in said(caplog)
