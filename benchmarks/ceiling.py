"""How much mixing the scores leave to gain: an embedding beside itself with the cells of each type exchanged at random.

    python benchmarks/ceiling.py --data FOLDER --output DIR

DIR is that of `peers.py`, from which the answers of a method are taken (default: cellnorm with seed 0). A cell gets
the place of another of its own type, whatever its batch: the embedding keeps its shape, so that all that looks at
types stays as it is, and batches differ in nothing but how many cells of each type they have. Mixing can then still
be far below 1, since iLISI, kBET and PCR comparison count composition as a batch effect. It is no strict limit (an
embedding of another shape may score more), but what a correction can hope for that lays no type onto another.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from peers_scores import Judge, scib_scores
from peers_table import number

MIXING, BIOLOGY = "Batch correction", "Bio conservation"


def exchanged(Z: NDArray[np.float32], label: NDArray[np.str_], rng: np.random.Generator) -> NDArray[np.float32]:
    """The rows of each label in another order, shape as given."""
    order = np.arange(len(Z))
    for name in np.unique(label):
        own = np.flatnonzero(label == name)
        order[own] = rng.permutation(own)
    return Z[order]


def of_set(source: Path, output: Path, answer: Path, label_key: str) -> tuple[float, float, float]:
    """Mixing as it is and with cells exchanged, and biology."""
    judge = Judge(source, output / "prepared" / source.name, label_key)
    Z = np.asarray(judge.read(answer).obsm["Z"], np.float32)
    judge.cells.obsm["as it is"] = Z
    judge.cells.obsm["exchanged"] = exchanged(Z, judge.cells.obs["label"].to_numpy(str), np.random.default_rng(0))
    found = scib_scores(judge.cells, "label", ["as it is", "exchanged"])
    return found.loc["as it is", MIXING], found.loc["exchanged", MIXING], found.loc["as it is", BIOLOGY]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="default: all that the method did")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--method", default="cellnorm")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--label-key", default="cell_type")
    args = parser.parse_args()
    print("| set | mixing | exchanged within types | biology | total | total with that mixing |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows = []
    ending = f".{args.method}.{args.seed}.h5ad"
    for answer in sorted((args.output / "answers").glob(f"*{ending}")):
        name = answer.name.removesuffix(ending)
        if args.sets and name not in args.sets:
            continue
        mixing, best, biology = of_set(args.data / f"{name}.h5ad", args.output, answer, args.label_key)
        rows.append([mixing, best, biology, 0.6 * biology + 0.4 * mixing, 0.6 * biology + 0.4 * best])
        print(f"| {name} | " + " | ".join(map(number, rows[-1])) + " |", flush=True)
    print("| mean | " + " | ".join(map(number, np.mean(rows, axis=0))) + " |")


if __name__ == "__main__":
    main()
