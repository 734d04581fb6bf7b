"""Sets without a fifth of their genes, which `predict_genes.py` asks for: for `peers.py` to correct.

    python benchmarks/hide_genes.py --data FOLDER --output HIDDEN
    python benchmarks/peers.py --data HIDDEN --output DIR --seeds 1

Genes are drawn at random, with the same draw each time. Of more than 4,000 cells as many are drawn.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np

HIDDEN_SHARE, MAX_CELLS = 0.2, 4000


def without_some_genes(adata: ad.AnnData, rng: np.random.Generator) -> ad.AnnData:
    """The set without a random fifth of its genes; names of cells and genes as they were, both in their order."""
    cells = np.sort(rng.permutation(adata.n_obs)[:MAX_CELLS])
    genes = np.sort(rng.permutation(adata.n_vars)[round(HIDDEN_SHARE * adata.n_vars) :])
    return adata[cells, genes].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="default: all of the folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for source in sorted(args.data.glob("*.h5ad")):
        if args.sets and source.stem not in args.sets:
            continue
        adata = ad.read_h5ad(source)
        found = without_some_genes(adata, np.random.default_rng([*source.stem.encode()]))
        print(f"{source.stem}: {found.n_obs} of {adata.n_obs} cells, {found.n_vars} of {adata.n_vars} genes")
        found.write_h5ad(args.output / source.name)


if __name__ == "__main__":
    main()
