"""What is read from an AnnData, what is written into it, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from snapshots import changes, snapshot

from cellnorm.adata import (
    cell_keys,
    choose_matrix,
    gene_mask,
    layer_key,
    representation,
    result_keys,
    result_slots,
    umap_keys,
    write_cells,
    write_pca,
    write_result,
)
from cellnorm.errors import DataError

COUNTS = np.random.default_rng(0).poisson(0.7, (30, 12)).astype(np.float32)
LOG = np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
SCALED = ((LOG - LOG.mean(axis=0)) / LOG.std(axis=0)).astype(np.float32)


def make(X: Any, *, counts: Any = None, raw: Any = None, **layers: Any) -> ad.AnnData:
    """An AnnData with matrices where users keep them; raw may have more genes than X."""
    adata = ad.AnnData(X, layers={**layers, **({} if counts is None else {"counts": counts})})
    adata.var_names = [f"g{i}" for i in range(adata.n_vars)]
    if raw is not None:
        inner = ad.AnnData(raw, obs=adata.obs)
        inner.var_names = [f"r{i}" for i in range(inner.n_vars)]
        adata.raw = inner
    return adata


def dense(matrix: Any) -> np.ndarray:
    return matrix.toarray() if sp.issparse(matrix) else matrix


# -- the matrix ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adata", "source", "kind"),
    [
        (make(COUNTS), "X", "counts"),
        (make(COUNTS, counts=COUNTS + 1, raw=COUNTS), "X", "counts"),
        (make(LOG, counts=COUNTS, raw=COUNTS), "layers['counts']", "counts"),
        (make(LOG, raw=COUNTS), "raw.X", "counts"),
        (make(LOG, raw=LOG), "X", "log"),
        (make(SCALED, counts=COUNTS, raw=LOG), "layers['counts']", "counts"),
        (make(SCALED, raw=COUNTS), "raw.X", "counts"),
        (make(SCALED, raw=LOG), "raw.X", "log"),
        (make(LOG, counts=SCALED), "X", "log"),
        (make(SCALED, counts=LOG, raw=LOG), "raw.X", "log"),
        (make(np.full((3, 2), np.nan, np.float32), counts=COUNTS[:3, :2]), "layers['counts']", "counts"),
        (make(COUNTS * 1000, raw=LOG), "X", "counts"),
        (make(np.zeros((4, 3), np.float32)), "X", "counts"),
        (make(COUNTS > 0), "X", "counts"),
        (make(COUNTS.astype(np.uint8)), "X", "counts"),
        (make(LOG * np.float32(29.9 / LOG.max())), "X", "log"),
        (make(LOG.astype(np.float64)), "X", "log"),
    ],
)
def test_the_matrix_is_found(adata: ad.AnnData, source: str, kind: str) -> None:
    matrix, genes, found, what = choose_matrix(adata)
    assert (found, what) == (source, kind)
    expected = {"X": adata.X, "raw.X": adata.raw.X if adata.raw else None}.get(source)
    np.testing.assert_array_equal(dense(matrix), dense(adata.layers["counts"] if expected is None else expected))
    assert genes.tolist() == [f"{'r' if source == 'raw.X' else 'g'}{i}" for i in range(matrix.shape[1])]


def test_raw_may_have_more_genes() -> None:
    matrix, genes, source, _ = choose_matrix(make(SCALED[:, :4], raw=COUNTS))
    assert (matrix.shape, len(genes), source) == ((30, 12), 12, "raw.X")


def test_no_x_is_no_error_if_there_are_counts() -> None:
    adata = ad.AnnData(obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=["g"]))
    with pytest.raises(DataError, match="all empty"):
        choose_matrix(adata)
    adata.layers["counts"] = np.ones((2, 1))
    assert choose_matrix(adata)[2:] == ("layers['counts']", "counts")


def test_a_layer_is_taken_as_asked() -> None:
    adata = make(COUNTS, mine=LOG, counts=COUNTS)
    matrix, _, source, kind = choose_matrix(adata, "mine")
    assert (source, kind) == ("layers['mine']", "log")
    np.testing.assert_array_equal(matrix, LOG)
    assert choose_matrix(make(COUNTS, counts=LOG), "counts")[2:] == ("layers['counts']", "log")


def test_a_missing_layer_is_refused_with_those_there_are() -> None:
    with pytest.raises(DataError, match=r"'mine' was asked for, but the layers are: 'other', 'counts'\."):
        choose_matrix(make(COUNTS, other=LOG, counts=COUNTS), "mine")
    with pytest.raises(DataError, match="the layers are: none"):
        choose_matrix(make(COUNTS), "mine")


def spoiled(*values: float) -> np.ndarray:
    matrix = LOG.copy()
    matrix[-1, : len(values)] = values
    return matrix


@pytest.mark.parametrize("storage", [np.asarray, sp.csr_matrix, sp.csc_matrix], ids=["dense", "csr", "csc"])
@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (spoiled(np.nan), "X holds 1 NaN and 0 infinite values"),
        (spoiled(np.nan, np.inf, -np.inf), "X holds 1 NaN and 2 infinite values"),
        (spoiled(-0.25), r"X holds negative values \(down to -0.25\)"),
        (SCALED, r"X holds negative values .* scaled"),
        (COUNTS - 1, r"X holds negative values \(down to -1\)"),
        (spoiled(30.5), "X holds fractional values up to 30.5"),
        (LOG * 1000, "X holds fractional values up to"),
    ],
)
def test_what_is_neither_counts_nor_logarithms_is_refused(matrix: np.ndarray, words: str, storage: Any) -> None:
    with pytest.raises(DataError, match=words) as caught:
        choose_matrix(make(storage(matrix)))
    assert "counts" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_place_is_named() -> None:
    with pytest.raises(DataError, match=r"X holds negative.*layers\['counts'\] holds 1 NaN.*raw\.X holds fractional"):
        choose_matrix(make(SCALED, counts=spoiled(np.nan), raw=LOG * 1000))
    with pytest.raises(DataError, match=r"layers\['mine'\] holds negative"):
        choose_matrix(make(COUNTS, mine=SCALED), "mine")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0, 0.5])
def test_the_last_of_many_values_is_looked_at(value: float) -> None:
    matrix = np.ones((1100, 1000), np.float32)
    matrix[-1, -1] = value
    for stored in (matrix, sp.csr_matrix(matrix)):
        if value == 0.5:
            assert choose_matrix(make(stored))[3] == "log"
        else:
            with pytest.raises(DataError, match="X holds"):
                choose_matrix(make(stored))


def test_no_cells_no_genes_no_numbers() -> None:
    with pytest.raises(DataError, match=r"no values \(0 cells x 12 genes\)"):
        choose_matrix(make(COUNTS[:0]))
    with pytest.raises(DataError, match=r"no values \(30 cells x 0 genes\)"):
        choose_matrix(make(COUNTS[:, :0]))
    with pytest.raises(DataError, match="type complex64, which are not numbers"):
        choose_matrix(make(COUNTS.astype(np.complex64)))


def test_zeros_that_are_stored_are_zeros() -> None:
    stored = sp.csr_matrix(COUNTS)
    stored.data[:5] = 0
    assert choose_matrix(make(stored))[3] == "counts"


@pytest.mark.parametrize("storage", [np.asarray, sp.csr_matrix, sp.csc_matrix], ids=["dense", "csr", "csc"])
def test_views_and_files_are_read_as_plain_matrices(storage: Any, tmp_path: Path) -> None:
    adata = make(storage(COUNTS))
    view = adata[::2, 3:]
    matrix, genes, *_ = choose_matrix(view)
    assert view.is_view
    assert type(matrix) in (np.ndarray, sp.csr_matrix, sp.csc_matrix)
    np.testing.assert_array_equal(dense(matrix), COUNTS[::2, 3:])
    assert genes[0] == "g3"

    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    matrix, *_ = choose_matrix(backed)
    assert type(matrix) in (np.ndarray, sp.csr_matrix, sp.csc_matrix)
    np.testing.assert_array_equal(dense(matrix), COUNTS)
    backed.file.close()


# -- masks and representations ---------------------------------------------------------------------------------------


def test_a_mask_is_a_column_or_an_array() -> None:
    adata = make(COUNTS)
    wanted = np.arange(12) < 4
    adata.var["mine"] = wanted
    np.testing.assert_array_equal(gene_mask(adata, "mine"), wanted)
    np.testing.assert_array_equal(gene_mask(adata, wanted.tolist()), wanted)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("nope", "'nope' was asked for, but the columns of var are: 'number'"),
        ("number", r"True or False for each of the 12 genes, found shape \(12,\) of type int"),
        (np.full(11, True), r"found shape \(11,\)"),
        (np.full(12, False), "every value is False"),
    ],
)
def test_a_bad_mask_is_refused(mask: Any, words: str) -> None:
    adata = make(COUNTS)
    adata.var["number"] = np.arange(12)
    with pytest.raises(DataError, match=words):
        gene_mask(adata, mask)


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, pd.DataFrame], ids=["array", "sparse", "frame"])
def test_a_representation_is_read_in_any_form(form: Callable[[Any], Any]) -> None:
    adata = make(COUNTS)
    values = form(SCALED.astype(np.float64))
    if isinstance(values, pd.DataFrame):
        values.index, values.columns = adata.obs_names, values.columns.astype(str)
    adata.obsm["X_mine"] = values
    read, source = representation(adata, "X_mine")
    np.testing.assert_array_equal(read, SCALED)
    assert (read.dtype, source) == (np.float32, "obsm['X_mine']")


def test_a_bad_representation_is_refused() -> None:
    adata = make(COUNTS)
    adata.obsm["X_pca"] = SCALED.copy()
    adata.obsm["words"] = pd.DataFrame({"a": ["x"] * 30}, index=adata.obs_names)
    with pytest.raises(DataError, match="'X_scvi' was asked for, but obsm holds: 'X_pca', 'words'"):
        representation(adata, "X_scvi")
    with pytest.raises(DataError, match="must be a table of numbers"):
        representation(adata, "words")
    adata.obsm["X_pca"][0, :2] = np.nan, np.inf
    with pytest.raises(DataError, match=r"obsm\['X_pca'\] holds 2 NaN or infinite"):
        representation(adata, "X_pca")


# -- writing ---------------------------------------------------------------------------------------------------------

INFO = {
    "parameters": {"n_latent": 30, "dropout": 0.1, "n_comps": None, "device": "auto", "amp": False},
    "random_state": np.int64(3),
    "batch_key": ["a/b", "c"],
    "batches": {"name": np.array(["x/y", "Zürich 🧬", "z" * 10_000]), "n_cells": np.array([1, 2, 27])},
    "genes": np.array(["g1", "g1"], dtype=object),
    "none": np.empty(0, dtype=object),
    "shape": (30, 12),
    "history": {"loss": np.array([1.0, 0.5])},
    "seconds": {"prepare": np.float64(0.1)},
}


@pytest.mark.parametrize("key", [None, "foo"])
def test_two_places_change(key: str | None) -> None:
    adata = make(LOG, counts=COUNTS, raw=COUNTS)
    before = snapshot(adata)
    write_result(adata, key, SCALED.astype(np.float64), INFO)
    obsm, uns = result_keys(key)
    changed = changes(before, snapshot(adata))
    assert {tuple(path.split("/")[1:3]) for path in changed} == {("obsm", obsm), ("uns", uns)}
    assert {("obsm", obsm), ("uns", uns)} == set(result_slots(key))
    assert adata.obsm[obsm].dtype == np.float32
    assert adata.uns[uns]["parameters"]["n_comps"] == ""


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_what_is_written_comes_back_from_a_file(suffix: str, tmp_path: Path) -> None:
    adata = make(COUNTS)
    write_result(adata, None, SCALED, INFO)
    path = tmp_path / f"cells.{suffix}"
    getattr(adata, f"write_{suffix}")(path)
    back = getattr(ad, f"read_{suffix}")(path)
    np.testing.assert_array_equal(back.obsm["X_cellnorm"], SCALED)
    stored = back.uns["cellnorm"]
    assert stored.keys() == INFO.keys()
    assert stored["batches"]["name"].tolist() == ["x/y", "Zürich 🧬", "z" * 10_000]
    assert stored["batches"]["n_cells"].tolist() == [1, 2, 27]
    assert stored["batch_key"].tolist() == ["a/b", "c"]
    assert stored["genes"].tolist() == ["g1", "g1"]
    assert len(stored["none"]) == 0
    assert stored["shape"].tolist() == [30, 12]
    assert stored["history"]["loss"].tolist() == [1.0, 0.5]
    assert dict(stored["parameters"]) == {**INFO["parameters"], "n_comps": ""}
    assert (stored["random_state"], stored["seconds"]["prepare"]) == (3, 0.1)


def test_nothing_is_written_if_the_embedding_does_not_fit() -> None:
    adata = make(COUNTS)
    before = snapshot(adata)
    with pytest.raises(ValueError, match="shape"):
        write_result(adata, None, SCALED[:-1], INFO)
    assert changes(before, snapshot(adata)) == set()


def test_keys_follow_key_added() -> None:
    assert result_keys() == ("X_cellnorm", "cellnorm")
    assert result_keys("foo") == ("foo", "foo")
    assert umap_keys() == ("X_umap_cellnorm", "cellnorm_neighbors")
    assert umap_keys("foo") == ("X_umap_foo", "foo_neighbors")
    assert set(result_slots("foo")) < set(result_slots("foo", umap=True))


@pytest.mark.parametrize("key", ["a/b", "", 3])
def test_a_key_that_files_cannot_hold_is_refused(key: Any) -> None:
    with pytest.raises(DataError, match="key_added"):
        result_keys(key)


def test_components_go_where_scanpy_puts_them() -> None:
    adata = make(COUNTS)
    chosen = np.arange(12) < 5
    write_pca(adata, None, SCALED[:, :3], np.ones((12, 3)), chosen, {"variance": np.ones(3)})
    assert (set(adata.obsm), set(adata.varm), set(adata.uns)) == ({"X_pca"}, {"PCs"}, {"pca"})
    np.testing.assert_array_equal(adata.var["highly_variable"], chosen)
    write_pca(adata, "foo", SCALED[:, :3], np.ones((12, 3)), chosen, {})
    assert (set(adata.obsm), set(adata.varm), set(adata.uns)) == ({"X_pca", "foo"}, {"PCs", "foo"}, {"pca", "foo"})


# -- columns of cells ------------------------------------------------------------------------------------------------


def test_names_of_columns_and_layers_follow_the_key() -> None:
    assert cell_keys("foo") == ("foo_match",)
    assert cell_keys("foo", "a/b") == ("foo_a_b", "foo_a_b_probability", "foo_a_b_radius")
    assert (layer_key(), layer_key("foo")) == ("cellnorm", "foo")
    written = result_slots("foo", cells=True, transfer=["type"], expression=True)
    assert ("obs", "foo_match") in written
    assert {("obs", key) for key in cell_keys("foo", "type")} < set(written)
    assert ("layers", "foo") in written


def test_columns_are_written_and_nothing_else(tmp_path: Path) -> None:
    adata = make(COUNTS)
    before = snapshot(adata)
    write_cells(adata, {"match": np.linspace(0, 1, 30), "type": np.array(["T", "B", "unknown"] * 10, object)})
    assert changes(before, snapshot(adata)) == {"/obs"}
    assert adata.obs.columns.tolist() == ["match", "type"]
    assert adata.obs["match"].dtype == np.float32
    assert adata.obs["type"].cat.categories.tolist() == ["B", "T", "unknown"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert ad.read_h5ad(tmp_path / "cells.h5ad").obs["type"].tolist() == adata.obs["type"].tolist()
