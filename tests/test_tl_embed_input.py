"""New cells in the terms of a model: the same values as in training, however a file names, stores or scales them."""

import logging
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from atlases import Atlas, make_atlas, without  # noqa: F401 - a fixture

from cellnorm.errors import DataError
from cellnorm.pp import log_expression
from cellnorm.tl._embed_input import read_features


def values(adata: ad.AnnData, atlas: Atlas, **options: Any) -> np.ndarray:
    """What the model takes of a file."""
    return np.asarray(read_features(adata, atlas.model, **options).X.toarray())


def logs(adata: ad.AnnData, target: float) -> ad.AnnData:
    """Counts as logarithms of counts per `target`."""
    sc.pp.normalize_total(adata, target_sum=target)
    sc.pp.log1p(adata)
    return adata


def test_the_values_are_those_of_the_training(atlas: Atlas) -> None:
    found = read_features(atlas.reference, atlas.model)
    trained, genes, _, _ = log_expression(atlas.reference, atlas.reference.obs["batch"].to_numpy())
    assert genes.tolist() == atlas.model.feature_names_in_.tolist()
    np.testing.assert_array_equal(found.X.toarray(), trained.toarray())
    np.testing.assert_allclose(found.length, np.linalg.norm(trained.toarray(), axis=1), rtol=1e-5)
    assert (found.source, found.kind, found.model) == ("X", "counts", atlas.model)


def test_neither_storage_nor_the_order_of_genes_counts(atlas: Atlas) -> None:
    straight = values(atlas.new, atlas)
    mixed = atlas.query()[:, np.random.default_rng(0).permutation(200)].copy()
    np.testing.assert_array_equal(values(mixed, atlas), straight)
    for convert in (sp.csc_matrix, lambda x: x.toarray(), lambda x: x.toarray().astype(int)):
        other = atlas.query()
        other.X = convert(other.X)
        np.testing.assert_array_equal(values(other, atlas), straight)
    layered = atlas.query()
    layered.layers["raw"], layered.X = layered.X.copy(), np.ones(layered.shape)
    np.testing.assert_array_equal(values(layered, atlas, layer="raw"), straight)


def test_a_gene_more_is_ignored_but_counts_in_the_library(atlas: Atlas) -> None:
    extra = ad.AnnData(sp.csr_matrix(np.ones((100, 1), "float32")), obs=atlas.new.obs)
    extra.var_names = ["extra"]
    wider = ad.concat([extra, atlas.new], axis=1, merge="same")
    scaled = np.expm1(values(wider, atlas))
    before = np.expm1(values(atlas.new, atlas))
    library = np.asarray(atlas.new.X.sum(axis=1)).reshape(-1, 1)
    np.testing.assert_allclose(scaled * (library + 1), before * library, rtol=1e-5)


@pytest.mark.parametrize("target", [1e4, 1e6, 700.0])
def test_logarithms_are_brought_to_the_scale_of_the_model(
    atlas: Atlas, target: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    np.testing.assert_allclose(values(logs(atlas.query(), target), atlas), values(atlas.new, atlas), atol=2e-5)
    assert ("scaled from" in caplog.text) == (target != 1e4)
    assert "doubtful" not in caplog.text


def test_other_logarithms_are_taken_with_a_warning(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    odd = atlas.query()
    odd.X = odd.X.log1p()
    np.testing.assert_array_equal(values(odd, atlas), odd[:, atlas.model.feature_names_in_].X.toarray())
    assert "taken as they are, but doubtful. Give counts" in caplog.text


def test_a_model_of_logarithms_takes_logarithms_and_counts(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas.model, "input_", {**atlas.model.input_, "kind": "log"})
    odd = atlas.query()
    odd.X = odd.X.log1p()
    np.testing.assert_array_equal(values(odd, atlas), odd[:, atlas.model.feature_names_in_].X.toarray())
    np.testing.assert_allclose(values(atlas.new, atlas), values(logs(atlas.query(), 1e4), atlas), rtol=1e-5)


def test_a_smaller_library_for_lack_of_genes_is_made_up_for(atlas: Atlas) -> None:
    half = without(atlas.new, 0.5)
    found = read_features(half, atlas.model)
    assert found.match is not None
    whole = values(atlas.new, atlas)[:, found.match.found]
    made_up = float(np.median(np.expm1(found.X.toarray()[whole > 0]) / np.expm1(whole[whole > 0])))
    library = [np.asarray(q.X.sum(axis=1)).ravel() for q in (half, atlas.new)]
    lost = float(np.median(library[1] / library[0]))
    assert lost > 1.3
    assert 0.7 < made_up < 1.3
    assert found.model.n_features_in_ == found.X.shape[1] == found.match.found.sum()
    assert atlas.model.n_features_in_ == len(atlas.model.feature_names_in_)


def test_names_in_another_column_are_found(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    renamed = atlas.query()
    renamed.var["symbol"] = renamed.var_names
    renamed.var_names = [f"ENSG{i:011d}" for i in range(200)]
    np.testing.assert_array_equal(values(renamed, atlas), values(atlas.new, atlas))
    assert "names taken from var['symbol']" in caplog.text
    of_raw = renamed.copy()
    of_raw.raw = renamed
    of_raw = of_raw[:, :3].copy()
    of_raw.X = -np.ones((100, 3))
    np.testing.assert_array_equal(values(of_raw, atlas), values(atlas.new, atlas))
    del renamed.var["symbol"]
    with pytest.raises(DataError, match="the model has gene symbols, the file Ensembl numbers"):
        read_features(renamed, atlas.model)


def test_cells_without_any_gene_are_told_of(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    empty = atlas.query()
    empty.X = sp.csr_matrix(np.where(np.arange(100)[:, None] < 3, 0, empty.X.toarray()))
    found = read_features(empty, atlas.model)
    assert "3 cells express none of the model's genes" in caplog.text
    assert (found.length[:3] == 0).all()


def test_what_holds_no_expression_is_refused(atlas: Atlas) -> None:
    scaled = atlas.query()
    scaled.X = scaled.X.toarray() - 1.0
    with pytest.raises(DataError, match="negative values"):
        read_features(scaled, atlas.model)
    with pytest.raises(DataError, match="no values"):
        read_features(atlas.new[:0].copy(), atlas.model)
