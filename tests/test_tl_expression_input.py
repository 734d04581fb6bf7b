"""Expression of all genes as logarithms, whatever it is stored as; batches by the names that the model has for them."""

import logging
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from cellnorm import CellNorm
from cellnorm.errors import DataError
from cellnorm.tl._expression_input import _labels, model_genes, read_embedding, read_matrix

ALL = slice(None)


def names(adata: ad.AnnData) -> np.ndarray:
    return np.asarray(adata.var_names, dtype=object)


@pytest.fixture
def counts() -> ad.AnnData:
    values = np.random.default_rng(0).poisson(1.0, (8, 6)).astype(np.float32)
    values[3] = 0  # a cell without anything
    return ad.AnnData(sp.csr_matrix(values), var=pd.DataFrame(index=[f"g{i}" for i in range(6)]))


def test_counts_become_logarithms_of_counts_per_ten_thousand(counts: ad.AnnData) -> None:
    matrix = read_matrix(counts, None, names(counts))
    values = counts.X.toarray()
    library = values.sum(1, keepdims=True)
    expected = np.log1p(1e4 * values / np.maximum(library, 1))
    np.testing.assert_allclose(matrix.log(ALL).toarray(), expected, rtol=1e-5)
    np.testing.assert_allclose(matrix.log(slice(2, 5)).toarray(), expected[2:5], rtol=1e-5)
    np.testing.assert_array_equal(matrix.total(ALL), library.ravel())
    np.testing.assert_array_equal(counts.X.toarray(), values)


def test_logarithms_stay_and_their_total_is_that_of_the_counts(counts: ad.AnnData) -> None:
    counts.X = sp.csr_matrix(np.log1p(counts.X.toarray() / 3))
    matrix = read_matrix(counts, None, names(counts))
    np.testing.assert_allclose(matrix.log(ALL).toarray(), counts.X.toarray())
    np.testing.assert_allclose(matrix.total(ALL), np.expm1(counts.X.toarray()).sum(1), rtol=1e-5)


def test_genes_are_picked_by_name_and_scaled_by_the_whole_library(
    counts: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    matrix = read_matrix(counts, None, np.array(["g4", "none", "g0", "g1"], dtype=object))
    whole = read_matrix(counts, None, names(counts)).log(ALL).toarray()
    picked = matrix.log(ALL).toarray()
    np.testing.assert_allclose(picked[:, [0, 2, 3]], whole[:, [4, 0, 1]])
    assert not picked[:, 1].any()
    assert "1 of 4 genes are not in X and have no corrected values: 'none'" in caplog.text
    np.testing.assert_allclose(matrix.total(ALL), counts.X.toarray()[:, [4, 0, 1]].sum(1))


def test_the_genes_of_the_model_are_found() -> None:
    genes = np.array(["a", "b", "c"], dtype=object)
    named: Any = SimpleNamespace(front_=object(), feature_names_in_=np.array(["c", "a", "x"]), n_features_in_=3)
    assert model_genes(named, genes).tolist() == [2, 0, -1]  # type: ignore[union-attr]
    of_array: Any = SimpleNamespace(front_=object(), n_features_in_=3)
    assert model_genes(of_array, genes).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    with pytest.raises(DataError, match="an array of 3 genes without names, here are 2"):
        model_genes(of_array, genes[:2])
    assert model_genes(SimpleNamespace(front_=None), genes) is None  # type: ignore[arg-type]


def _cells(**uns: Any) -> ad.AnnData:
    obs = pd.DataFrame({"lab": ["1", "1", "2"]}, index=list("abc"))
    return ad.AnnData(np.ones((3, 2)), obs=obs, uns={"cellnorm": uns})


def test_batches_have_the_names_under_which_they_were_embedded() -> None:
    assert _labels(_cells(), {"batch_key": np.array(["lab"])}, None).tolist() == ["1", "1", "2"]
    assert _labels(_cells(), {}, "lab").tolist() == ["1", "1", "2"]
    renamed = {"batch_key": ["lab"], "batches": {"name": np.array(["1 (2)", "2"])}}
    assert _labels(_cells(), renamed, None).tolist() == ["1 (2)", "1 (2)", "2"]
    one = {"batch_key": [], "batches": {"name": np.array(["new"])}}
    assert _labels(_cells(), one, None).tolist() == ["new"] * 3
    with pytest.raises(DataError, match="not recorded which column"):
        _labels(_cells(), {}, None)


def test_the_embedding_must_be_of_the_model() -> None:
    rng = np.random.default_rng(0)
    x, batch = rng.normal(size=(60, 8)).astype(np.float32), np.repeat(["1", "2"], 30)
    model = CellNorm(n_latent=4, n_comps=6, n_steps=2, device="cpu").fit(x, batch)
    adata = ad.AnnData(x, obs=pd.DataFrame({"lab": batch}, index=[f"c{i}" for i in range(60)]))
    adata.obsm["X_cellnorm"] = model.transform(x, batch)
    z, codes = read_embedding(adata, model, "lab", None)
    np.testing.assert_array_equal(z, adata.obsm["X_cellnorm"])
    np.testing.assert_array_equal(codes, np.repeat([0, 1], 30))
    np.testing.assert_array_equal(read_embedding(adata, model, batch[::-1], None)[1], np.repeat([1, 0], 30))
    adata.uns["cellnorm"] = {"model": "of another"}
    with pytest.raises(DataError, match="another model's"):
        read_embedding(adata, model, "lab", None)
    model.input_["made_from"] = ["of another"]  # by adding a batch
    read_embedding(adata, model, "lab", None)
    adata.obsm["X_cellnorm"] = x
    with pytest.raises(DataError, match=r"4 columns in obsm\['X_cellnorm'\]"):
        read_embedding(adata, model, "lab", None)


def test_nothing_is_said_when_all_genes_are_there(counts: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="cellnorm"):
        read_matrix(counts, None, names(counts)[::-1].copy())
    assert caplog.text == ""
