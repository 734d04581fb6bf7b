"""`tl.diagnose` on designs with a known answer: what it finds, what it recommends, that it changes nothing."""

import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.errors import DataError
from cellnorm.tl._diagnose_text import format_diagnosis


@pytest.fixture(scope="module")
def shifted_once() -> ad.AnnData:
    """Four batches with an effect of their own; obs `donor`, `cell_type`."""
    adata = cn.datasets.simulate(800, 400, n_batches=4, batch_effect=1.0, composition=5.0, random_state=0)
    adata.obs = adata.obs[["batch", "cell_type"]].rename(columns={"batch": "donor"}).astype(str)
    return adata


@pytest.fixture
def shifted(shifted_once: ad.AnnData) -> ad.AnnData:
    return shifted_once.copy()


@pytest.fixture
def pooled() -> ad.AnnData:
    """Three donors without an effect."""
    adata = cn.datasets.simulate(600, 300, n_batches=3, batch_effect=0.0, random_state=1)
    adata.obs = adata.obs[["batch", "cell_type"]].astype(str)
    return adata


def column(diagnosis: dict[str, Any], name: str) -> dict[str, Any]:
    return next(entry for entry in diagnosis["columns"] if entry["name"] == name)


def test_the_batch_is_found_and_a_command_given(shifted: ad.AnnData) -> None:
    shifted.obs["noise"] = np.random.default_rng(0).choice(list("abcdefgh"), 800)
    shifted.obs["n_genes"] = np.arange(800)
    diagnosis = cn.tl.diagnose(shifted, source="my cells.h5ad")
    assert diagnosis["verdict"] == "correct"
    assert diagnosis["batch_key"] == diagnosis["columns"][0]["name"] == "donor"
    assert diagnosis["command"] == "cellnorm correct 'my cells.h5ad' --batch-key donor"
    assert column(diagnosis, "donor")["verdict"] == "strong"
    assert column(diagnosis, "noise")["verdict"] == "none"
    assert column(diagnosis, "cell_type")["follows_clusters"]
    assert column(diagnosis, "cell_type")["verdict"] == "none"
    assert diagnosis["left_out"] == [{"name": "n_genes", "reason": "a measurement"}]


def test_a_batch_stronger_than_the_cell_types_does_not_make_these_experiments() -> None:
    adata = cn.datasets.simulate(900, 400, n_batches=3, batch_effect=2.5, random_state=1)
    adata.obs = adata.obs[["cell_type", "batch"]]
    diagnosis = cn.tl.diagnose(adata)
    assert (diagnosis["batch_key"], diagnosis["verdict"]) == ("batch", "correct")
    assert column(diagnosis, "cell_type")["follows_clusters"]


def test_no_effect_needs_no_correction(pooled: ad.AnnData) -> None:
    diagnosis = cn.tl.diagnose(pooled)
    assert (diagnosis["verdict"], diagnosis["command"]) == ("no correction needed", "")
    assert diagnosis["batch_key"] == "batch"
    assert column(diagnosis, "batch")["verdict"] == "none"


@pytest.mark.parametrize("n_levels", [2, 50])
def test_noise_as_the_batch_needs_no_correction(shifted: ad.AnnData, n_levels: int) -> None:
    rng = np.random.default_rng(n_levels)
    shifted.obs["lane"] = rng.choice(n_levels, 800, p=rng.dirichlet(np.full(n_levels, 1.0)))
    diagnosis = cn.tl.diagnose(shifted, "lane")
    assert diagnosis["batch_key"] == "lane"
    assert diagnosis["verdict"] == "no correction needed"


def test_cell_types_given_as_the_batch_cannot_be_separated(shifted: ad.AnnData) -> None:
    diagnosis = cn.tl.diagnose(shifted, "cell_type")
    assert (diagnosis["batch_key"], diagnosis["verdict"]) == ("cell_type", "cannot be separated")
    assert diagnosis["command"] == ""


def test_a_condition_of_which_each_batch_has_one_value_cannot_be_separated(shifted: ad.AnnData) -> None:
    shifted.obs["condition"] = np.where(shifted.obs["donor"].isin(["batch1", "batch2"]), "ill", "well")
    diagnosis = cn.tl.diagnose(shifted)
    assert (diagnosis["verdict"], diagnosis["command"]) == ("cannot be separated", "")
    assert diagnosis["batch_key"] == "donor"
    assert diagnosis["confounding"][0]["relation"] == "confounded"
    assert "no method can say" in diagnosis["recommendation"]
    assert any("'condition'" in warning and "any method" in warning for warning in diagnosis["warnings"])


def test_a_condition_in_every_batch_does_no_harm(shifted: ad.AnnData) -> None:
    shifted.obs["condition"] = np.random.default_rng(0).choice(["ill", "well"], 800)
    diagnosis = cn.tl.diagnose(shifted)
    assert diagnosis["verdict"] == "correct"
    assert {c["column"]: c["relation"] for c in diagnosis["confounding"]}["condition"] == "crossed"


def test_a_condition_alone_is_not_recommended_as_the_batch(shifted: ad.AnnData) -> None:
    shifted.obs["condition"] = shifted.obs.pop("donor")
    diagnosis = cn.tl.diagnose(shifted)
    assert (diagnosis["verdict"], diagnosis["command"], diagnosis["batch_key"]) == ("cannot be separated", "", "")


def test_a_confounded_column_of_unknown_meaning_is_warned_of(shifted: ad.AnnData) -> None:
    shifted.obs["cohort"] = shifted.obs["donor"].str.replace("batch", "c")
    diagnosis = cn.tl.diagnose(shifted)
    assert diagnosis["verdict"] == "correct"
    assert any("'cohort'" in warning for warning in diagnosis["warnings"])
    assert diagnosis["confounding"][0]["relation"] == "same"


def test_an_unusual_name_is_recommended_with_a_question(shifted: ad.AnnData) -> None:
    shifted.obs["chip"] = shifted.obs.pop("donor")
    diagnosis = cn.tl.diagnose(shifted)
    assert (diagnosis["batch_key"], diagnosis["verdict"]) == ("chip", "correct")
    assert "Make sure that 'chip' is an experiment" in diagnosis["recommendation"]


def test_gaps_are_no_batch_and_are_said(shifted: ad.AnnData) -> None:
    shifted.obs.loc[shifted.obs_names[:40], "donor"] = np.nan
    diagnosis = cn.tl.diagnose(shifted)
    assert diagnosis["batch_key"] == ""
    assert "misses values" in diagnosis["recommendation"]
    assert "missing for 40 cells" in column(diagnosis, "donor")["text"]
    with pytest.raises(DataError, match="missing"):
        cn.tl.diagnose(shifted, "donor")


def test_several_columns_are_crossed(shifted: ad.AnnData) -> None:
    shifted.obs["lane"] = np.arange(800) % 2
    diagnosis = cn.tl.diagnose(shifted, ["donor", "lane"], layer=None)
    assert diagnosis["batch_key"] == "donor x lane"
    assert len(diagnosis["batches"]) == 8
    assert diagnosis["command"] == "cellnorm correct cells.h5ad --batch-key donor --batch-key lane"


def test_tiny_batches_and_few_shared_genes_are_warned_of(shifted: ad.AnnData) -> None:
    matrix = shifted.X.toarray()
    first = (shifted.obs["donor"] == "batch1").to_numpy()
    matrix[first, 80:] = 0  # a panel of few genes
    shifted.X = sp.csr_matrix(matrix)
    shifted.obs.loc[shifted.obs_names[np.flatnonzero(~first)[:7]], "donor"] = "tiny"
    diagnosis = cn.tl.diagnose(shifted)
    said = " ".join(diagnosis["warnings"])
    assert "'tiny (7)'" in said
    assert "share few genes with the others: 'batch1" in said


def test_a_lacking_type_is_said() -> None:
    adata = cn.datasets.simulate(900, 400, n_batches=3, batch_effect=0.6, missing_types=0, random_state=2)
    kept = ~((adata.obs["batch"] == "batch2") & (adata.obs["cell_type"].astype(str).str[:2] == "T1")).to_numpy()
    diagnosis = cn.tl.diagnose(adata[kept].copy(), "batch")
    lacks = {batch["name"]: batch["lacks"] for batch in diagnosis["batches"]}
    assert lacks["batch2"]
    assert any("'batch2'" in warning and "lack" in warning for warning in diagnosis["warnings"])


def test_it_changes_nothing_and_repeats_itself(shifted: ad.AnnData) -> None:
    shifted.layers["counts"] = shifted.X.copy()
    before = snapshot(shifted)
    first = cn.tl.diagnose(shifted)
    assert changes(before, snapshot(shifted)) == set()
    assert cn.tl.diagnose(shifted) == first
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_the_storage_has_no_say(shifted: ad.AnnData) -> None:
    expected = cn.tl.diagnose(shifted)
    for store in (sp.csc_matrix, lambda matrix: matrix.toarray()):
        other = shifted.copy()
        other.X = store(shifted.X)
        assert cn.tl.diagnose(other) == expected


def test_a_draw_of_the_cells_comes_to_the_same_end(shifted: ad.AnnData) -> None:
    diagnosis = cn.tl.diagnose(shifted, max_cells=400)
    assert diagnosis["n_examined"] == 400
    assert diagnosis["verdict"] == "correct"
    assert sum(batch["n_cells"] for batch in diagnosis["batches"]) == 800


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_key": "lab"}, "'lab' was asked for"),
        ({"layer": "raw"}, "layer 'raw'"),
        ({"max_cells": 5}, "at least 20"),
    ],
)
def test_what_cannot_be_used_is_refused(shifted: ad.AnnData, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        cn.tl.diagnose(shifted, **arguments)


def test_obs_without_labels_and_few_cells(shifted: ad.AnnData) -> None:
    shifted.obs = pd.DataFrame(index=shifted.obs_names)
    diagnosis = cn.tl.diagnose(shifted)
    assert (diagnosis["columns"], diagnosis["verdict"]) == ([], "no correction needed")
    assert "add a column" in diagnosis["recommendation"]
    assert "none that holds labels" in format_diagnosis(diagnosis)
    with pytest.raises(DataError, match="at least 20 cells"):
        cn.tl.diagnose(shifted[:19].copy())


def test_a_set_of_twenty_cells_gets_through(shifted: ad.AnnData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        diagnosis = cn.tl.diagnose(shifted[:20].copy())
    assert diagnosis["matrix"]["n_cells"] == 20


REAL = {"pancreas_5batches": "strong", "pbmc_8batches": "strong", "kang_8donors": "mild", "pbmc_3tech_small": "strong"}


@pytest.mark.parametrize("name", REAL)
def test_known_sets(name: str, data_dir: Path) -> None:
    adata = ad.read_h5ad(data_dir / f"{name}.h5ad")
    rng = np.random.default_rng(0)
    for n_levels in (3, 50):
        adata.obs[f"even{n_levels}"] = rng.integers(0, n_levels, adata.n_obs).astype(str)
        adata.obs[f"uneven{n_levels}"] = rng.choice(n_levels, adata.n_obs, p=rng.dirichlet(np.ones(n_levels))).astype(
            str
        )
    diagnosis = cn.tl.diagnose(adata, max_cells=2500)
    assert (diagnosis["batch_key"], diagnosis["verdict"]) == ("batch", "correct")
    assert column(diagnosis, "batch")["verdict"] == REAL[name]
    assert column(diagnosis, "cell_type")["follows_clusters"]
    assert {c["verdict"] for c in diagnosis["columns"] if "even" in c["name"]} == {"none"}
