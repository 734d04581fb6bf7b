"""Sets in which laboratories lack types of cells, made from sets in which most have all: for `peers.py` to score.

    python benchmarks/partial.py --data FOLDER --output PARTIAL --draws 2
    python benchmarks/peers.py --data PARTIAL --output DIR --methods cellnorm Harmony unintegrated

Each type is taken out of each batch with the same chance, but stays in one batch at least; batches that keep fewer than
30 cells go. Of more than 3,000 cells as many are drawn. A set in which no two batches share a type is left out: nothing
says then what a correction should do. Cell types choose the cells here, which is why the files are made beforehand: a
method sees nothing but what is left.
"""

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
from numpy.typing import NDArray

LEAST_CELLS, MAX_CELLS = 30, 3000


def combinations(kind: NDArray[np.str_], batch: NDArray[np.str_]) -> set[tuple[str, str]]:
    """Which types are in which batches, from those of each cell."""
    return set(zip(kind.tolist(), batch.tolist(), strict=True))


def kept_cells(
    batch: NDArray[np.str_], kind: NDArray[np.str_], chance: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Sorted rows of the cells that stay; none if no type is left in two batches."""
    stays = np.ones(len(batch), bool)
    for name in np.unique(kind):
        there = np.unique(batch[kind == name])
        gone = rng.random(len(there)) < chance
        if gone.all():
            gone[rng.integers(len(there))] = False
        stays &= ~((kind == name) & np.isin(batch, there[gone]))
    for name in np.unique(batch):
        if (stays & (batch == name)).sum() < LEAST_CELLS:
            stays &= batch != name
    if len(np.unique(kind[stays])) == len(combinations(kind[stays], batch[stays])):
        return np.array([], np.int64)
    return np.sort(rng.permutation(np.flatnonzero(stays))[:MAX_CELLS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="default: all of the folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--chance", type=float, default=0.35, help="that a type is taken out of a batch")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--label-key", default="cell_type")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    for source in sorted(args.data.glob("*.h5ad")):
        if args.sets and source.stem not in args.sets:
            continue
        adata = ad.read_h5ad(source)
        batch, kind = (adata.obs[key].astype(str).to_numpy(str) for key in (args.batch_key, args.label_key))
        for draw in range(args.draws):
            cells = kept_cells(batch, kind, args.chance, np.random.default_rng([draw, *source.stem.encode()]))
            both = len(combinations(kind[cells], batch[cells]))
            shape = f"{len(cells)} cells, {len(np.unique(batch[cells]))} batches, {len(np.unique(kind[cells]))} types"
            print(f"{source.stem}, draw {draw}: {shape}, {both} pairs of these" + ("" if len(cells) else ": left out"))
            if len(cells):
                adata[cells].copy().write_h5ad(args.output / f"{source.stem}_{draw}.h5ad")


if __name__ == "__main__":
    main()
