"""What a correction does where there is nothing to correct: one batch, split at random in two.

    python benchmarks/null_split.py --data FOLDER kang_8donors pbmc_8batches [--splits 5]

The largest batch of each set is split, genes and components are chosen as for any two batches, and the halves are
corrected. Printed is the share of the 15 nearest neighbours among the 50 components that are still among the 15 nearest
in the embedding, mean over cells and splits (and its standard deviation over splits): as the command does it, at full
strength, and by Harmony where it is installed. "strength" are the values chosen from the data.
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from mapping import harmony
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm import CellNorm
from cellnorm.pp import log_expression

K = 15
Cells = NDArray[np.float32]


def kept(before: Cells, after: Cells) -> float:
    """Share of a cell's nearest cells that are the same after, mean over cells."""
    table = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1)
    near = [table.fit(x).kneighbors()[1] for x in (before, after)]
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(*near, strict=True)]))


def splits(path: Path, n_splits: int) -> dict[str, list[float]]:
    """Neighbours kept, by method, and the strengths chosen."""
    adata = ad.read_h5ad(path)
    batch = adata.obs["batch"].astype(str)
    one = adata[(batch == batch.value_counts().index[0]).to_numpy()].copy()
    found: dict[str, list[float]] = {"cellnorm": [], "cellnorm, strength 1": [], "Harmony": [], "strength": []}
    for seed in range(n_splits):
        half = np.array(["a", "b"])[np.random.default_rng(seed).permutation(one.n_obs) % 2]
        X: Any = log_expression(one, half)[0]
        model = CellNorm(random_state=seed).fit(X, half)
        pcs = model.transform(X, half, strength=0)
        found["cellnorm"].append(kept(pcs, model.transform(X, half)))
        found["cellnorm, strength 1"].append(kept(pcs, model.transform(X, half, strength=1)))
        found["strength"].append(model.strength_)
        other = harmony(pcs, half)
        found["Harmony"].append(np.nan if other is None else kept(pcs, other))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(f"{'':28}{'cellnorm':>16}{'strength 1':>16}{'Harmony':>16}   strengths", flush=True)
    for name in args.sets:
        found = splits(args.data / f"{name}.h5ad", args.splits)
        strengths = " ".join(f"{value:.2f}" for value in found.pop("strength"))
        row = "".join(f"{np.mean(values):>10.3f} ({np.std(values):.2f})"[:17].rjust(16) for values in found.values())
        print(f"{name:28}{row}   {strengths}", flush=True)


if __name__ == "__main__":
    main()
