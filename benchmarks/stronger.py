"""Sets with stronger effects of laboratories than they had, made from sets of counts: for `peers.py` to score.

    python benchmarks/stronger.py --data FOLDER --output STRONGER
    python benchmarks/peers.py --data STRONGER --output DIR --methods cellnorm Harmony Scanorama ComBat unintegrated

In each batch each gene is found more or less often than it was, by a factor of its own, log-normal with mean 1; each
batch keeps a share of its counts, .3 to 1; counts are then drawn anew (Poisson). The factors are the same for all types
of cells, so that what a correction should do is known: to find again what was there. Of more than 2,500 cells as many
are drawn; cells in which fewer than ten genes are found go. A set without counts is left out.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

MAX_CELLS, LEAST_GENES = 2500, 10
LEAST_KEPT = 0.3  # share of its counts that a batch keeps


def changed(X: sp.csr_matrix, batch: NDArray[np.str_], spread: float, rng: np.random.Generator) -> sp.csr_matrix:
    """Counts with new effects of batches: (n_cells, n_genes) as given; spread is that of the factors' logarithm."""
    names, code = np.unique(batch, return_inverse=True)
    factors = np.exp(rng.normal(-(spread**2) / 2, spread, (len(names), X.shape[1])))
    kept = rng.uniform(LEAST_KEPT, 1, len(names))
    of = np.repeat(code, np.diff(X.indptr))
    counts = rng.poisson(X.data * factors[of, X.indices] * kept[of]).astype(np.float32)
    found = sp.csr_matrix((counts, X.indices.copy(), X.indptr.copy()), shape=X.shape)
    found.eliminate_zeros()
    return found


def changed_set(adata: ad.AnnData, batch_key: str, spread: float, rng: np.random.Generator) -> ad.AnnData | None:
    """A sample of the set with new effects, nothing but counts and obs; None for a set without counts."""
    adata = adata[np.sort(rng.permutation(adata.n_obs)[:MAX_CELLS])]
    X = sp.csr_matrix(adata.X, dtype=np.float32)
    if np.any(np.mod(X.data, 1)):
        return None
    X = changed(X, adata.obs[batch_key].astype(str).to_numpy(str), spread, rng)
    found = ad.AnnData(X, obs=adata.obs.copy(), var=pd.DataFrame(index=adata.var_names))
    return found[np.diff(X.indptr) >= LEAST_GENES].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="default: all of the folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--spread", type=float, nargs="+", default=[0.7, 1.2], help="of the factors' natural logarithm")
    parser.add_argument("--batch-key", default="batch")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for source in sorted(args.data.glob("*.h5ad")):
        if args.sets and source.stem not in args.sets:
            continue
        adata = ad.read_h5ad(source)
        for spread in args.spread:
            rng = np.random.default_rng([round(100 * spread), *source.stem.encode()])
            found = changed_set(adata, args.batch_key, spread, rng)
            said = "left out, it holds no counts" if found is None else f"{found.n_obs} cells, {found.n_vars} genes"
            print(f"{source.stem}, spread {spread}: {said}")
            if found is not None:
                found.write_h5ad(args.output / f"{source.stem}_{spread}.h5ad")


if __name__ == "__main__":
    main()
