"""Print how well batches mix and cell types keep apart, before (PCA) and after correction.

    python benchmarks/demo_scores.py corrected.h5ad [--batch-key batch] [--label-key cell_type]

Three numbers, so that a newcomer sees both sides of the bargain with what the package itself installs: mixing is easy
if biology may be lost, and biology is easy if nothing is corrected.
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import silhouette_score
from sklearn.neighbors import NearestNeighbors

K = 30
COLUMNS = ("batch mixing", "type purity", "type silhouette")


def uncorrected_pca(adata: ad.AnnData, n_comps: int = 50) -> NDArray[np.float32]:
    """PCA of log-normalised counts, blind to batches: what an analysis without correction would use."""
    plain = ad.AnnData(adata.X.copy(), var=adata.var[[]])
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.pca(plain, n_comps=min(n_comps, min(plain.shape) - 1), random_state=0)
    return np.asarray(plain.obsm["X_pca"])


def scores(embedding: NDArray[np.float32], batch: ArrayLike, label: ArrayLike) -> tuple[float, float, float]:
    """Batch mixing (0 to 1), type purity (0 to 1) and type silhouette (-1 to 1) of an embedding.

    Mixing is the share of a cell's 30 neighbours that come from other batches, relative to the share expected if
    batches were mixed at random; purity is the share of its neighbours that are of its own type.
    """
    batch, label = np.asarray(batch, dtype=str), np.asarray(label, dtype=str)
    k = min(K, len(embedding) - 1)
    neighbors = NearestNeighbors(n_neighbors=k).fit(embedding).kneighbors(return_distance=False)
    codes, sizes = np.unique(batch, return_inverse=True, return_counts=True)[1:]
    expected = 1 - (sizes[codes] - 1) / (len(batch) - 1)
    other = (batch[neighbors] != batch[:, None]).mean(axis=1)
    mixing = min(1.0, float(other.mean() / expected.mean()))
    purity = float((label[neighbors] == label[:, None]).mean())
    return mixing, purity, float(silhouette_score(embedding, label))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corrected", type=Path)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--label-key", default="cell_type")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    adata = ad.read_h5ad(args.corrected)
    batch, label = adata.obs[args.batch_key], adata.obs[args.label_key]
    rows = {"before (PCA)": uncorrected_pca(adata), "after (X_cellnorm)": np.asarray(adata.obsm["X_cellnorm"])}
    print(f"{adata.n_obs} cells, {batch.nunique()} batches, {label.nunique()} cell types; higher is better")
    print(f"{'':20}" + "".join(f"{column:>18}" for column in COLUMNS))
    for name, embedding in rows.items():
        print(f"{name:20}" + "".join(f"{value:18.2f}" for value in scores(embedding, batch, label)))


if __name__ == "__main__":
    main()
