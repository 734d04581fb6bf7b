"""How often a cell's nearest cells are of its type: those of its own batch, and those of all other batches.

    python benchmarks/neighbors.py --data FOLDER --output DIR

DIR is that of `peers.py`, from which the methods' answers are taken, all seeds. What is looked at is what a user who
carries types from one laboratory to another would meet: no clusters, no geometry and no single number for mixing, which
can hide what was merged. "own" says whether a batch's own structure is still there; "others" whether types lie on each
other: a method that moves a type onto another loses it, and so does one that does nothing where effects are large.
Each type counts alike, whatever its number of cells; types of one batch alone have no cells of others to be asked for.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import anndata as ad
import numpy as np
from numpy.typing import NDArray
from peers_methods import METHODS
from peers_table import markdown, number
from sklearn.neighbors import NearestNeighbors

N_NEIGHBORS = 15


def of_own_type(
    Z: NDArray[np.float32], label: NDArray[np.str_], among: NDArray[np.int64], asked: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Share of a cell's nearest cells that are of its type.

    Parameters
    ----------
    Z
        (n_cells, n_latent).
    label
        (n_cells,).
    among
        Rows of the cells among which nearest ones are sought.
    asked
        Rows of the cells that are asked, none of them among those; left out, those themselves, each among the others.

    Returns
    -------
    shares
        (n_asked,), 0 to 1.
    """
    search, k = NearestNeighbors().fit(Z[among]), min(N_NEIGHBORS, len(among) - (asked is None))
    near = search.kneighbors(None if asked is None else Z[asked], k, return_distance=False)
    own = label[among if asked is None else asked]
    return np.asarray((label[among][near] == own[:, None]).mean(1))


def each_type_alike(share: NDArray[np.float64], label: NDArray[np.str_]) -> float:
    """Mean over types of the mean over cells, (n_cells,), nan where a cell was not asked."""
    asked = ~np.isnan(share)
    return float(np.mean([share[asked & (label == kind)].mean() for kind in np.unique(label[asked])]))


def shares(Z: NDArray[np.float32], batch: NDArray[np.str_], label: NDArray[np.str_]) -> tuple[float, float]:
    """Means over types, among cells of the own batch and among those of all others."""
    own, others = np.full(len(Z), np.nan), np.full(len(Z), np.nan)
    for name in np.unique(batch):
        here, there = np.flatnonzero(batch == name), np.flatnonzero(batch != name)
        shared = here[np.isin(label[here], label[there])]
        if len(here) > 1:
            own[here] = of_own_type(Z, label, here)
        if len(shared):
            others[shared] = of_own_type(Z, label, there, shared)
    return each_type_alike(own, label), each_type_alike(others, label)


def answers(output: Path, name: str, method: str) -> Iterator[NDArray[np.float32]]:
    """The embeddings that a method gave for a set, one for each seed."""
    for file in sorted((output / "answers").glob(f"{name}.{method}.*.h5ad")):
        found = ad.read_h5ad(file)
        if "Z" in found.obsm:
            yield np.asarray(found.obsm["Z"], np.float32)


def of_methods(
    output: Path, name: str, scores: Callable[[NDArray[np.float32]], tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Two scores, among the own batch and among others, of each method that did a set: means over its seeds."""
    found = {}
    for method in METHODS:
        of_seeds = [scores(Z) for Z in answers(output, name, method)]
        if of_seeds:
            own, others = np.mean(of_seeds, axis=0)
            found[method] = float(own), float(others)
    return found


def measured(source: Path, output: Path, batch_key: str, label_key: str) -> dict[str, tuple[float, float]]:
    """Both shares of each method that did a set."""
    obs = ad.read_h5ad(source, backed="r").obs
    batch, label = (obs[key].astype(str).to_numpy(str) for key in (batch_key, label_key))
    return of_methods(output, source.stem, lambda Z: shares(Z, batch, label))


def show(found: dict[str, dict[str, tuple[float, float]]], output: Path) -> None:
    """Print a table of each score, sets by methods that did all of them."""
    methods = [m for m in METHODS if found and all(m in of_set for of_set in found.values())]
    if not methods:
        raise SystemExit(f"no method in {output} did all sets")
    for which, title in enumerate(("own batch", "other batches")):
        table = np.array([[of_set[m][which] for m in methods] for of_set in found.values()])
        rows = [[name, *map(number, row)] for name, row in zip([*found, "mean"], [*table, table.mean(0)], strict=True)]
        print(markdown([title, *methods], rows), end="\n\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="default: all of the folder")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--label-key", default="cell_type")
    args = parser.parse_args()
    sources = [s for s in sorted(args.data.glob("*.h5ad")) if not args.sets or s.stem in args.sets]
    show({s.stem: measured(s, args.output, args.batch_key, args.label_key) for s in sources}, args.output)


if __name__ == "__main__":
    main()
