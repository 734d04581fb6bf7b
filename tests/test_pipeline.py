"""A whole analysis as a scanpy user does it: read, QC, correct, neighbors, leiden, umap, plot."""

from pathlib import Path

import anndata as ad
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors

import cellnorm as cn


def same_batch_among_neighbours(points: np.ndarray, batch: np.ndarray) -> float:
    """Share of a cell's 15 nearest neighbours that are of its own batch."""
    near = NearestNeighbors(n_neighbors=16).fit(points).kneighbors(return_distance=False)[:, 1:]
    return float((batch[near] == batch[:, None]).mean())


@pytest.fixture
def file(small_adata: ad.AnnData, tmp_path: Path) -> Path:
    """Counts as they come: with genes of mitochondria, a cell without counts and a gene without any."""
    X = small_adata.X.toarray()
    X[11] = 0
    X[:, 17] = 0
    small_adata.X = sp.csr_matrix(X)
    small_adata.var_names = [f"MT-{i}" if i < 5 else name for i, name in enumerate(small_adata.var_names)]
    small_adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def test_from_file_to_figure(file: Path, tmp_path: Path) -> None:
    mpl.use("Agg")
    adata = sc.read_h5ad(file)
    adata.var["mt"] = adata.var_names.str.startswith("MT-")
    sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, inplace=True)
    sc.pp.filter_cells(adata, min_counts=10)
    sc.pp.filter_genes(adata, min_cells=3)
    adata = adata[adata.obs["pct_counts_mt"] < 50].copy()
    assert "cell11" not in adata.obs_names
    counts = adata.X.copy()

    cn.pp.prepare(adata, "batch", n_comps=20)
    cn.tl.correct(adata, "batch", n_steps=150, n_latent=10, device="cpu")
    assert (counts != adata.X).nnz == 0
    batch = adata.obs["batch"].to_numpy()
    before = same_batch_among_neighbours(adata.obsm["X_pca"], batch)
    after = same_batch_among_neighbours(adata.obsm["X_cellnorm"], batch)
    assert after < before - 0.1, "the batches lie closer together than before"

    sc.pp.neighbors(adata, use_rep="X_cellnorm")
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, resolution=0.5)
    assert adjusted_rand_score(adata.obs["cell_type"], adata.obs["leiden"]) > 0.5
    sc.tl.umap(adata)
    figure = sc.pl.umap(adata, color=["batch", "leiden"], show=False, return_fig=True)
    assert len(figure.axes) >= 2
    figure.savefig(tmp_path / "umap.png", dpi=50)
    assert (tmp_path / "umap.png").stat().st_size > 5000
    plt.close("all")

    adata.write_h5ad(tmp_path / "result.h5ad")
    back = sc.read_h5ad(tmp_path / "result.h5ad")
    np.testing.assert_array_equal(back.obsm["X_cellnorm"], adata.obsm["X_cellnorm"])
    assert back.uns["cellnorm"]["matrix_kind"] == "counts"
