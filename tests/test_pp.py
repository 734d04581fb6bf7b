"""Log-normalised expression of the chosen genes: scanpy's, whatever the storage; and the principal components."""

import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.errors import DataError
from cellnorm.labels import batch_labels
from cellnorm.pp import log_expression

Result = tuple[Any, np.ndarray, str, str]


def expression(adata: ad.AnnData, **options: Any) -> Result:
    return log_expression(adata, batch_labels(adata, "batch"), **options)


def reference(adata: ad.AnnData, n_top_genes: int, *, counts: bool) -> ad.AnnData:
    """Scanpy's recipe: 10,000 counts per cell, log, genes in three cells, genes that vary within batches."""
    adata = adata.copy()
    if counts:
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
        sc.pp.filter_genes(adata, min_cells=3)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(n_top_genes, adata.n_vars), batch_key="batch")
    return adata[:, adata.var["highly_variable"]].copy()


def assert_same(one: Result, other: Result) -> None:
    """Equal to the bit."""
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one[0], part), getattr(other[0], part))
    assert one[1].tolist() == other[1].tolist()


# -- scanpy's recipe -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_top_genes", [1, 50, 120, 2000])
def test_the_recipe_on_simulated_counts(small_adata: ad.AnnData, n_top_genes: int) -> None:
    expected = reference(small_adata, n_top_genes, counts=True)
    matrix, genes, source, kind = expression(small_adata, n_top_genes=n_top_genes)
    assert genes.tolist() == expected.var_names.tolist()
    np.testing.assert_allclose(matrix.toarray(), expected.X.toarray(), atol=2e-6)
    assert (source, kind, matrix.dtype, matrix.has_canonical_format) == ("X", "counts", np.float32, True)


def test_the_recipe_on_real_data(data_dir: Path) -> None:
    files = sorted(data_dir.glob("*.h5ad"))
    assert files
    for file in files:
        adata = ad.read_h5ad(file)
        matrix, genes, _, kind = expression(adata)
        expected = reference(adata, 2000, counts=kind == "counts")
        assert genes.tolist() == expected.var_names.tolist(), file.name
        assert abs(matrix - expected.X).max() < 2e-6, file.name


def test_logarithms_are_kept(small_adata: ad.AnnData) -> None:
    sc.pp.normalize_total(small_adata, target_sum=3000)
    sc.pp.log1p(small_adata)
    matrix, genes, _, kind = expression(small_adata, n_top_genes=50)
    assert kind == "log"
    np.testing.assert_array_equal(matrix.toarray(), small_adata[:, genes].X.toarray())
    assert genes.tolist() == reference(small_adata, 50, counts=False).var_names.tolist()


# -- storage ---------------------------------------------------------------------------------------------------------


def not_canonical(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """The same values with unsorted indices, a zero stored in each row, and every value above 1 in two pieces."""
    data, indices, indptr = [], [], [0]
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        values, genes = matrix.data[part][::-1], matrix.indices[part][::-1]
        data += [*np.minimum(values, 1), *(values[values > 1] - 1), 0.0]
        indices += [*genes, *genes[values > 1], row % matrix.shape[1]]
        indptr.append(len(data))
    return sp.csr_matrix((np.array(data, np.float32), np.array(indices), np.array(indptr)), shape=matrix.shape)


STORAGES: dict[str, Callable[[sp.csr_matrix], Any]] = {
    "csc": sp.csr_matrix.tocsc,
    "dense": sp.csr_matrix.toarray,
    "fortran": lambda matrix: np.asfortranarray(matrix.toarray()),
    "float64": lambda matrix: matrix.astype(np.float64),
    "float16": lambda matrix: matrix.toarray().astype(np.float16),
    "int64": lambda matrix: matrix.astype(np.int64),
    "int32 csc": lambda matrix: matrix.astype(np.int32).tocsc(),
    "uint16 dense": lambda matrix: matrix.toarray().astype(np.uint16),
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "not canonical": not_canonical,
}


@pytest.mark.parametrize("storage", STORAGES)
def test_the_storage_has_no_say(small_adata: ad.AnnData, storage: str) -> None:
    expected = expression(small_adata, n_top_genes=80)
    stored = STORAGES[storage](small_adata.X)
    other = ad.AnnData(stored, obs=small_adata.obs, var=small_adata.var)
    before = snapshot(other)
    assert_same(expression(other, n_top_genes=80), expected)
    assert changes(before, snapshot(other)) == set()


def test_views_layers_and_raw_give_the_same(small_adata: ad.AnnData, tmp_path: Path) -> None:
    expected = expression(small_adata, n_top_genes=80)
    doubled = ad.concat([small_adata, small_adata], index_unique="-")
    view = doubled[: small_adata.n_obs]
    assert_same(expression(view, n_top_genes=80), expected)
    assert view.is_view
    elsewhere = ad.AnnData(-small_adata.X, obs=small_adata.obs, var=small_adata.var)
    elsewhere.layers["counts"] = small_adata.X
    assert_same(expression(elsewhere, n_top_genes=80), expected)
    assert_same(expression(elsewhere, n_top_genes=80, layer="counts"), expected)
    del elsewhere.layers["counts"]
    elsewhere.raw = small_adata
    assert_same(expression(elsewhere, n_top_genes=80), expected)
    small_adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    assert_same(expression(backed, n_top_genes=80), expected)
    backed.file.close()


@pytest.mark.parametrize("storage", [sp.csr_matrix, sp.csc_matrix, sp.csr_matrix.toarray], ids=["csr", "csc", "dense"])
def test_memory_stays_below_the_bound(storage: Callable[[Any], Any]) -> None:
    X = storage(sp.random(20_000, 1000, density=0.15, format="csr", dtype=np.float32, random_state=0))
    size = X.nbytes if isinstance(X, np.ndarray) else X.data.nbytes + X.indices.nbytes + X.indptr.nbytes
    adata = ad.AnnData(X)
    adata.obs["batch"] = np.arange(20_000) % 4
    labels = batch_labels(adata, "batch")
    tracemalloc.start()
    log_expression(adata, labels, n_top_genes=500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * size, "with the input itself: four times its size"


# -- what real data have ---------------------------------------------------------------------------------------------


def test_empty_cells_and_genes_are_kept_or_left_aside(small_adata: ad.AnnData) -> None:
    small_adata.X = small_adata.X.toarray()
    small_adata.X[[7, 100]] = 0
    small_adata.X[:, [3, 50]] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix, genes, *_ = expression(small_adata)
    assert matrix.shape[0] == small_adata.n_obs
    assert matrix[[7, 100]].nnz == 0
    assert not {"gene3", "gene50"} & set(genes)
    np.testing.assert_allclose(np.expm1(matrix[8].toarray()).sum(), 1e4, rtol=1e-4)


def test_a_cell_has_the_same_values_alone_and_among_others(small_adata: ad.AnnData) -> None:
    matrix, genes, *_ = expression(small_adata)
    few = small_adata[[5, 190, 7, 250]].copy()
    alone, _, source, kind = expression(few, mask_var=np.isin(small_adata.var_names, genes))
    assert (source, kind) == ("X", "counts")
    assert (alone != matrix[[5, 190, 7, 250]]).nnz == 0


def test_genes_in_two_cells_are_left_out_of_choice_but_not_of_the_library(small_adata: ad.AnnData) -> None:
    expected = expression(small_adata)
    rare = np.zeros((300, 2))
    rare[:2, 0] = 1000  # in two cells
    rare[:3, 1] = 1  # in three
    wider = ad.AnnData(sp.hstack([small_adata.X, sp.csr_matrix(rare)], format="csr"), obs=small_adata.obs)
    wider.var_names = [*small_adata.var_names, "two", "three"]
    matrix, genes, *_ = expression(wider)
    assert genes.tolist() == [*expected[1], "three"]
    assert (matrix[3:, :-1] != expected[0][3:]).nnz == 0
    total = small_adata.X[0].sum() + 1001
    np.testing.assert_allclose(np.expm1(matrix[0].toarray()).sum(), 1e4 * (total - 1000) / total, rtol=1e-4)


def test_duplicate_names_are_told_apart_by_place(small_adata: ad.AnnData) -> None:
    expected = expression(small_adata, n_top_genes=80)
    small_adata.var_names = ["same"] * small_adata.n_vars
    small_adata.obs_names = ["cell"] * small_adata.n_obs
    matrix, genes, *_ = expression(small_adata, n_top_genes=80)
    assert (matrix != expected[0]).nnz == 0
    assert set(genes) == {"same"}


@pytest.mark.parametrize("n_small", [1, 2, 9])
def test_tiny_batches_are_no_trouble(small_adata: ad.AnnData, n_small: int) -> None:
    labels = np.asarray(small_adata.obs["batch"].astype(object))
    large = expression(small_adata[n_small:], n_top_genes=60)
    labels[:n_small] = "tiny"
    small_adata.obs["batch"] = labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix, genes, *_ = expression(small_adata, n_top_genes=60)
    assert matrix.shape == (300, 60)
    assert genes.tolist() == large[1].tolist()


def test_batches_without_a_shared_gene_are_refused(small_adata: ad.AnnData) -> None:
    X = small_adata.X.toarray()
    alone = (small_adata.obs["batch"] == "lab1").to_numpy()
    X[np.ix_(alone, np.arange(100))] = 0
    X[np.ix_(~alone, np.arange(100, 200))] = 0
    small_adata.X = X
    with pytest.raises(DataError, match="No gene is expressed both in batch 'lab1' and in another") as caught:
        expression(small_adata)
    assert "Ensembl" in str(caught.value)
    X[alone, 0] = 1
    small_adata.X = X
    expression(small_adata)


def test_a_batch_of_empty_cells_is_no_error(small_adata: ad.AnnData) -> None:
    X = small_adata.X.toarray()
    X[(small_adata.obs["batch"] == "lab1").to_numpy()] = 0
    small_adata.X = X
    assert expression(small_adata, n_top_genes=50)[0].shape == (300, 50)


def test_nothing_expressed_is_refused(small_adata: ad.AnnData) -> None:
    small_adata.X = np.zeros(small_adata.shape)
    with pytest.raises(DataError, match="X has no gene with a value above zero in 3 or more of its 300 cells"):
        expression(small_adata)


def test_masks(small_adata: ad.AnnData) -> None:
    everything = expression(small_adata)[0]
    wanted = np.arange(200) % 3 == 0
    small_adata.var["mine"] = wanted
    matrix, genes, *_ = expression(small_adata, mask_var="mine", n_top_genes=5)
    assert genes.tolist() == small_adata.var_names[wanted].tolist()
    assert (matrix != everything[:, wanted]).nnz == 0, "the library size is that of all genes"
    raw = small_adata[:, ::-1].copy()
    scaled = ad.AnnData(-np.ones((300, 20)), obs=small_adata.obs, var=small_adata.var[:20])
    scaled.raw = raw
    assert expression(scaled, mask_var="mine")[1].tolist() == [f"gene{i}" for i in (18, 15, 12, 9, 6, 3, 0)]
    scaled.var_names = [f"other{i}" for i in range(20)]
    with pytest.raises(DataError, match=r"mask_var names 7 genes, but raw\.X has none of them"):
        expression(scaled, mask_var="mine")


def test_progress_and_bounds(small_adata: ad.AnnData) -> None:
    told: list[tuple[str, int, int, float | None]] = []
    expression(small_adata, n_top_genes=50, progress=lambda *state: told.append(state))
    assert told == [("prepare", done, 2, None) for done in (0, 1, 2)]
    with pytest.raises(DataError, match="n_top_genes must be 1 or more, found 0"):
        expression(small_adata, n_top_genes=0)


# -- prepare ---------------------------------------------------------------------------------------------------------


def test_prepare_gives_what_scanpy_gives(small_adata: ad.AnnData) -> None:
    expected = reference(small_adata, 100, counts=True)
    sc.pp.pca(expected, n_comps=10)
    before = snapshot(small_adata)
    assert cn.pp.prepare(small_adata, "batch", n_top_genes=100, n_comps=10) is None
    written = {tuple(path.split("/")[1:3]) for path in changes(before, snapshot(small_adata))}
    assert written == {("obsm", "X_pca"), ("varm", "PCs"), ("uns", "pca"), ("var",)}
    assert small_adata.var_names[small_adata.var["highly_variable"]].tolist() == expected.var_names.tolist()
    pcs = small_adata.obsm["X_pca"]
    np.testing.assert_allclose(np.abs(pcs), np.abs(expected.obsm["X_pca"]), atol=2e-3)
    chosen = small_adata.var["highly_variable"].to_numpy()
    loadings = small_adata.varm["PCs"]
    assert not loadings[~chosen].any()
    np.testing.assert_allclose(loadings.T @ loadings, np.eye(10), atol=1e-6)
    np.testing.assert_allclose(np.abs(loadings[chosen]), np.abs(expected.varm["PCs"]), atol=2e-3)
    uns = small_adata.uns["pca"]
    np.testing.assert_allclose(uns["variance"], expected.uns["pca"]["variance"], rtol=1e-4)
    np.testing.assert_allclose(uns["variance_ratio"], expected.uns["pca"]["variance_ratio"], rtol=1e-4)


def test_prepare_goes_on_in_scanpy(small_adata: ad.AnnData, tmp_path: Path) -> None:
    cn.pp.prepare(small_adata, "batch", n_comps=5)
    sc.pl.pca(small_adata, color="batch", show=False, annotate_var_explained=True)
    sc.pl.pca_variance_ratio(small_adata, show=False)
    small_adata.write_h5ad(tmp_path / "cells.h5ad")
    back = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert back.uns["pca"]["params"]["matrix"] == "X"
    assert back.uns["pca"]["params"]["batch_key"].tolist() == ["batch"]


def test_prepare_copies_and_takes_names(small_adata: ad.AnnData) -> None:
    before = snapshot(small_adata)
    other = cn.pp.prepare(small_adata, "batch", n_comps=5, key_added="foo", copy=True)
    assert changes(before, snapshot(small_adata)) == set()
    assert other is not None
    assert (set(other.obsm), set(other.varm), set(other.uns)) == ({"foo"}, {"foo"}, {"foo"})


def test_prepare_finds_its_genes_in_var(small_adata: ad.AnnData) -> None:
    scaled = ad.AnnData(-np.ones((300, 20)), obs=small_adata.obs, var=small_adata.var[:20])
    scaled.raw = small_adata[:, ::-1].copy()
    cn.pp.prepare(scaled, "batch", n_comps=5)
    whole = cn.pp.prepare(small_adata, "batch", n_comps=5, copy=True)
    assert whole is not None
    np.testing.assert_allclose(np.abs(scaled.varm["PCs"]), np.abs(whole.varm["PCs"][:20]), atol=1e-5)
    assert scaled.var["highly_variable"].tolist() == whole.var["highly_variable"][:20].tolist()
    assert len(scaled.uns["pca"]["genes"]) == whole.var["highly_variable"].sum() > 20


def test_prepare_leaves_adata_alone_if_it_fails(small_adata: ad.AnnData) -> None:
    before = snapshot(small_adata)
    for options in ({"layer": "no"}, {"key_added": "a/b"}, {"mask_var": "no"}, {"n_top_genes": 0}):
        with pytest.raises(DataError):
            cn.pp.prepare(small_adata, "batch", **options)
    assert changes(before, snapshot(small_adata)) == set()
