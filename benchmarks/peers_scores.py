"""What all methods of `peers.py` share: the prepared set without cell types, and the scores of their answers."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

N_GENES, N_COMPONENTS, MAX_PAIRED = 2000, 50, 2000
TRUTH = ("Truth, all pairs", "Truth, between batches")
Scores = dict[str, float]


def blind(adata: ad.AnnData, batch_key: str) -> ad.AnnData:
    """The matrix, genes and batches alone: neither labels nor the names of cells, which may hold them."""
    names = [f"cell{i}" for i in range(adata.n_obs)]
    obs = pd.DataFrame({"batch": pd.Categorical(adata.obs[batch_key].astype(str))}, index=names)
    found = ad.AnnData(sp.csr_matrix(adata.X, dtype=np.float32), obs=obs, var=pd.DataFrame(index=adata.var_names))
    found.var_names_make_unique()
    return found


def prepared(adata: ad.AnnData) -> ad.AnnData:
    """Log-normalised values of batch-aware variable genes, their components, and their counts where X holds counts."""
    adata = adata.copy()
    if np.all(np.mod(adata.X.data[:10_000], 1) == 0):
        sc.pp.filter_genes(adata, min_cells=3)
        adata.layers["counts"] = adata.X.copy()
        sc.pp.normalize_total(adata, target_sum=1e4)
        sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=min(N_GENES, adata.n_vars), batch_key="batch")
    adata = adata[:, adata.var["highly_variable"]].copy()
    sc.pp.pca(adata, n_comps=min(N_COMPONENTS, min(adata.shape) - 1))
    return adata


def prepare(source: Path, batch_key: str, file: Path, ready: Path) -> None:
    """Write what a method may see: the file as it was, and the prepared set."""
    warnings.filterwarnings("ignore")
    cells = blind(ad.read_h5ad(source), batch_key)
    cells.write_h5ad(file)
    prepared(cells).write_h5ad(ready)


def truth_kept(Z: NDArray[Any], designed: NDArray[Any], batch: NDArray[Any]) -> Scores:
    """Spearman correlation of distances in the embedding with distances of designed proportions, over pairs of cells.

    Parameters
    ----------
    Z
        (n_cells, n_latent).
    designed
        (n_cells, n_parts), proportions of a mixture that were chosen before the experiment.
    batch
        (n_cells,); the second score takes only pairs of cells of different batches.
    """
    cells = np.sort(np.random.default_rng(0).permutation(len(Z))[:MAX_PAIRED])
    ours, theirs = pdist(Z[cells]), pdist(designed[cells])
    codes = np.unique(batch, return_inverse=True)[1][cells]
    between = pdist(codes[:, None].astype(float)) > 0
    pairs = (np.ones_like(between), between)
    return {name: float(spearmanr(ours[of], theirs[of]).statistic) for name, of in zip(TRUTH, pairs, strict=True)}


def graph_scores(graphs: Any, label: NDArray[Any]) -> Scores:
    """Scores of scib-metrics that need a graph alone. Others take a fixed number of nearest cells or distances."""
    import scib_metrics

    graph = SimpleNamespace(
        knn_graph_connectivities=graphs["connectivities"], knn_graph_distances=sp.csr_matrix(graphs["distances"])
    )
    found = scib_metrics.nmi_ari_cluster_labels_leiden(graph, label)
    connected = float(scib_metrics.graph_connectivity(graph, label))
    return {"Leiden NMI": float(found["nmi"]), "Leiden ARI": float(found["ari"]), "Graph connectivity": connected}


def scib_scores(cells: ad.AnnData, label_key: str, keys: list[str]) -> pd.DataFrame:
    """All scores of scib-metrics, isolated labels and Leiden included, a row for each embedding in obsm.

    Total is .6 biology + .4 batch. One benchmark serves all embeddings, since it compiles once.
    """
    from scib_metrics.benchmark import Benchmarker, BioConservation

    benchmark = Benchmarker(
        cells,
        "batch",
        label_key,
        keys,
        pre_integrated_embedding_obsm_key="X_pca",  # without it the benchmark would write over X_pca
        bio_conservation_metrics=BioConservation(
            isolated_labels=True, nmi_ari_cluster_labels_leiden=True, nmi_ari_cluster_labels_kmeans=False
        ),
        n_jobs=2,
        progress_bar=False,
    )
    benchmark.benchmark()
    return benchmark.get_results(min_max_scale=False).loc[keys].astype(float)


def embedding_scores(cells: ad.AnnData, Z: NDArray[Any]) -> Scores:
    """The scores of one embedding."""
    cells.obsm["Z"] = Z
    return {str(name): float(value) for name, value in scib_scores(cells, "label", ["Z"]).loc["Z"].items()}


class Judge:
    """The prepared set with its cell types, which methods have not seen, to score their answers one by one."""

    def __init__(self, source: Path, ready: Path, label_key: str) -> None:
        warnings.filterwarnings("ignore")
        original, self.cells = ad.read_h5ad(source), ad.read_h5ad(ready)
        if original.n_obs != self.cells.n_obs:
            raise ValueError(f"{original.n_obs} cells in {source.name}, {self.cells.n_obs} in what was made of it")
        self.cells.obs["label"] = pd.Categorical(original.obs[label_key].astype(str).to_numpy())
        designed = [column for column in original.obs if str(column).endswith("_prop")]
        self.designed = original.obs[designed].to_numpy(float)

    def read(self, answer: Path) -> ad.AnnData:
        """An answer, which has to hold the cells in their order."""
        found = ad.read_h5ad(answer)
        if not found.obs_names.equals(self.cells.obs_names):
            raise ValueError("cells changed their order")
        return found

    def scores(self, answer: Path) -> Scores:
        """Scores of an answer."""
        found = self.read(answer)
        if "connectivities" in found.obsp:
            return graph_scores(found.obsp, self.cells.obs["label"].to_numpy())
        Z = np.asarray(found.obsm["Z"])
        scores = embedding_scores(self.cells, Z)
        if self.designed.shape[1]:
            scores |= truth_kept(Z, self.designed, self.cells.obs["batch"].to_numpy())
        return scores
