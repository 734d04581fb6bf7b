"""Do the cells next to a cell say what it expresses? Genes that no method saw, predicted from its neighbours.

    python benchmarks/hide_genes.py --data FOLDER --output HIDDEN
    python benchmarks/peers.py --data HIDDEN --output DIR --seeds 1
    python benchmarks/predict_genes.py --data FOLDER --hidden HIDDEN --output DIR

No cell types are needed, so that neither their coarseness nor a wrong one counts. The value of a gene in a cell, log1p
of counts per 10,000 less the mean of its batch, is predicted by the mean over the cell's 15 nearest cells; what is
printed is the correlation of both over the cells of a batch, mean over genes, then over batches. "own" asks the nearest
cells of the own batch: is its structure still there? "others" those of all other batches: what has a cell to do with
those that it was laid upon? Genes are the hidden ones of the 2,000 most variable. A count holds much chance: the best
correlation is far from 1, and methods are to be compared with each other, on the same set.
"""

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
from neighbors import N_NEIGHBORS, of_methods, show
from numpy.typing import NDArray
from peers_scores import prepared
from sklearn.neighbors import NearestNeighbors

LEAST_CELLS = 2 * N_NEIGHBORS


def hidden_values(source: Path, hidden: Path, batch_key: str) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """What the hidden, variable genes are expressed at, and batches, of the cells that methods saw.

    Returns
    -------
    values
        (n_cells, n_hidden), log1p of counts per 10,000, less the mean of the cell's batch.
    batch
        (n_cells,).
    """
    seen, adata = ad.read_h5ad(hidden, backed="r"), ad.read_h5ad(source)
    adata = adata[seen.obs_names].copy()
    adata.obs["batch"] = adata.obs[batch_key].astype(str).astype("category")
    adata = prepared(adata)
    adata = adata[:, ~adata.var_names.isin(seen.var_names)]
    batch, values = adata.obs["batch"].to_numpy(str), adata.X.toarray().astype(np.float32)
    for name in np.unique(batch):
        values[batch == name] -= values[batch == name].mean(0)
    return values, batch


def correlation(of: NDArray[np.float32], by: NDArray[np.float32]) -> float:
    """Mean over genes of the correlation over cells, (n_cells, n_genes) both.

    Genes without variance in the first are left out; 0 where only the second has none; nan if no gene is left.
    """
    of, by = of - of.mean(0), by - by.mean(0)
    spread = np.sqrt((of**2).sum(0)), np.sqrt((by**2).sum(0))
    asked = spread[0] > 0
    if not asked.any():
        return float("nan")
    both = (of * by).sum(0)[asked] / np.maximum(spread[0] * spread[1], 1e-12)[asked]
    return float(both.mean())


def from_nearest(Z: NDArray[np.float32], values: NDArray[np.float32], batch: NDArray[np.str_]) -> tuple[float, float]:
    """How well values are predicted from the nearest cells: among those of the own batch, and among all others."""
    own, others = [], []
    for name in np.unique(batch):
        here, there = np.flatnonzero(batch == name), np.flatnonzero(batch != name)
        if len(here) < LEAST_CELLS or len(there) < LEAST_CELLS:
            continue
        near = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(Z[here]).kneighbors(return_distance=False)
        far = NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(Z[there]).kneighbors(Z[here], return_distance=False)
        own.append(correlation(values[here], values[here][near].mean(1)))
        others.append(correlation(values[here], values[there][far].mean(1)))
    return float(np.nanmean(own)), float(np.nanmean(others))


def measured(source: Path, hidden: Path, output: Path, batch_key: str) -> dict[str, tuple[float, float]]:
    """Both correlations of each method that did a set."""
    values, batch = hidden_values(source, hidden / source.name, batch_key)
    return of_methods(output, source.stem, lambda Z: from_nearest(Z, values, batch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--hidden", type=Path, required=True, help="what hide_genes.py made of it")
    parser.add_argument("--output", type=Path, required=True, help="what peers.py made of that")
    parser.add_argument("--batch-key", default="batch")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sources = [s for s in sorted(args.data.glob("*.h5ad")) if (args.hidden / s.name).exists()]
    show({s.stem: measured(s, args.hidden, args.output, args.batch_key) for s in sources}, args.output)


if __name__ == "__main__":
    main()
