"""What each piece of the method is worth: the full method beside variants that lack one piece or have another there.

    python benchmarks/ablation.py --data FOLDER                              all sets, all rows, two seeds
    python benchmarks/ablation.py --data FOLDER pancreas_5batches --rows full shared per-batch --seeds 0
    python benchmarks/ablation.py --data FOLDER --rows full shared+no-shift+no-offsets
    python benchmarks/ablation.py --readme                                   only the tables, from what there is

FOLDER holds .h5ad files with obs['batch'] and obs['cell_type']. Of larger sets a random sample is used, each batch with
its share, both for training and for scores; the components are those of `cellnorm.pp.prepare`. Scores are those of
scib-metrics: total = .6 biology + .4 mixing. Cell types are used for these alone. A row is a variant or several,
joined by "+". Scores are appended to a CSV file as they come, one line for each row, set and seed: run it again after
an interruption, and it does what is missing. Take another file after a change of the method.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from ablation_variants import FULL, UNCORRECTED, VARIANTS, embed, label, parts
from numpy.typing import NDArray
from peers_scores import scib_scores

from cellnorm import __version__, io, pp

SCORES = ["Batch correction", "Bio conservation", "Total"]
KEY = ["set", "row", "seed", "cells"]
README = Path(__file__).resolve().parent / "README.md"
BEGIN, END = "<!-- ablation: begin -->", "<!-- ablation: end -->"
# The last offsets can make up for what the norm did not do: what the norms are worth shows without them, too.
COMBINED = [
    "shared+no-shift", "no-contrast+no-kinship", "shared+no-offsets", "per-batch+no-offsets",
    "shared+no-shift+no-offsets",
]  # fmt: skip
ROWS = [*(row for row in VARIANTS if row != UNCORRECTED), *COMBINED, UNCORRECTED]


# Sets and scores -------------------------------------------------------------------------------------------------


def sample(batch: NDArray[Any], size: int) -> NDArray[np.int64]:
    """At most `size` random cells, each batch with its share of them; sorted rows."""
    if len(batch) <= size:
        return np.arange(len(batch))
    order = np.random.default_rng(0).permutation(len(batch))
    names, codes, counts = np.unique(batch[order], return_inverse=True, return_counts=True)
    chosen = [order[codes == b][: counts[b] * size // len(batch)] for b in range(len(names))]
    return np.sort(np.concatenate(chosen))


def prepared(path: Path, n_cells: int) -> ad.AnnData:
    """A sample of a set: components in obsm['X_pca'], batches and types in obs, and no matrix, which nothing needs."""
    adata = io.read(path)
    adata = adata[sample(adata.obs["batch"].astype(str).to_numpy(), n_cells)].copy()
    pp.prepare(adata, "batch")
    obs = pd.DataFrame({key: pd.Categorical(adata.obs[key].astype(str)) for key in ("batch", "cell_type")})
    obs.index = adata.obs_names
    return ad.AnnData(obs=obs, obsm={"X_pca": np.asarray(adata.obsm["X_pca"], np.float32)})


def scored(cells: ad.AnnData, embeddings: dict[str, NDArray[Any]]) -> pd.DataFrame:
    """SCORES of embeddings, one row each, by one benchmark."""
    cells = ad.AnnData(obs=cells.obs, obsm={"X_pca": cells.obsm["X_pca"], **embeddings})
    return scib_scores(cells, "cell_type", list(embeddings))[SCORES]


# Results ---------------------------------------------------------------------------------------------------------


def load(results: Path) -> pd.DataFrame:
    """The scores so far."""
    return pd.read_csv(results) if results.exists() else pd.DataFrame(columns=[*KEY, *SCORES])


def append(results: Path, found: pd.DataFrame) -> None:
    """Add lines to the results; an interruption leaves all of them or none."""
    before = results.read_text() if results.exists() else ""
    beside = results.with_name(f".{results.name}.tmp")
    beside.write_text(before + found.to_csv(index=False, float_format="%.5f", header=not before))
    beside.replace(results)


def run(path: Path, args: argparse.Namespace) -> bool:
    """All that is missing on a set, seed by seed; false if a variant failed."""
    done = {tuple(key) for key in load(args.output)[KEY].to_numpy().tolist()}
    cells, well = None, True
    for seed in args.seeds:
        todo = [row for row in args.rows if (path.stem, row, seed, args.cells) not in done]
        if not todo:
            continue
        cells = prepared(path, args.cells) if cells is None else cells
        found, seconds = {}, {}
        for row in todo:
            start = time.perf_counter()
            z = embed(row, cells.obsm["X_pca"], cells.obs["batch"].to_numpy(), seed)
            seconds[row] = time.perf_counter() - start
            if np.isfinite(z).all():
                found[row] = z
            else:
                well = False
                print(f"{path.stem}, {row}, seed {seed}: the embedding is not finite", file=sys.stderr)
        start = time.perf_counter()
        if found:
            scores = scored(cells, found).rename_axis("row").reset_index()
            append(args.output, scores.assign(set=path.stem, seed=seed, cells=args.cells)[[*KEY, *SCORES]])
        said = f"{len(todo)} rows in {sum(seconds.values()):.0f} s, scored in {time.perf_counter() - start:.0f} s"
        print(f"{path.stem}, seed {seed}: {cells.n_obs} cells, {said}", file=sys.stderr, flush=True)
    return well


# The table -------------------------------------------------------------------------------------------------------


def table(results: pd.DataFrame, rows: list[str], sets: list[str]) -> pd.DataFrame:
    """One line for each row: total on each set, means, and what changes against the full method.

    Means are over seeds, then over sets; the change is over the sets and seeds that both have, "worse" the number of
    those sets on which the total is less than the full method's.
    """
    known = results[results["set"].isin(sets)]
    lines = []
    for row in rows:
        own = known[known["row"] == row]
        both = own.merge(known[known["row"] == FULL], on=["set", "seed", "cells"], suffixes=("", " of full"))
        change = (both["Total"] - both["Total of full"]).groupby(both["set"]).mean()
        totals = own.groupby("set")["Total"].mean().reindex(sets)
        means = own.groupby("set")[SCORES].mean().mean()
        line = {"": label(row), **totals}
        line |= {"mixing": means[SCORES[0]], "biology": means[SCORES[1]], "total": means[SCORES[2]]}
        versus = "" if row == FULL or not len(change) else f"{int((change < 0).sum())} of {len(change)}"
        lines.append({**line, "change": np.nan if row == FULL else change.mean(), "worse": versus})
    return pd.DataFrame(lines)


def markdown(found: pd.DataFrame) -> str:
    """The table as it stands in the README, columns aligned."""
    shown = [[str(name) for name in found.columns]]
    for _, line in found.iterrows():
        shown.append([cell(str(name), value) for name, value in line.items()])
    wide = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
    rule = ["-" * wide[0], *("-" * (w - 1) + ":" for w in wide[1:])]
    aligned = [
        [t.rjust(w) if i else t.ljust(w) for i, (t, w) in enumerate(zip(line, wide, strict=True))] for line in shown
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in [aligned[0], rule, *aligned[1:]])


def cell(column: str, value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    if np.isnan(value):
        return ""
    text = f"{value:+.3f}" if column == "change" else f"{value:.3f}"
    return text.replace("0.", ".", 1)


def noise(results: pd.DataFrame, sets: list[str]) -> float:
    """Standard deviation between seeds of the full method's total, over the sets; NaN with one seed."""
    totals = results[(results["row"] == FULL) & results["set"].isin(sets)].groupby("set")["Total"]
    return float(np.sqrt(totals.var().mean()))


def generated(results: pd.DataFrame, rows: list[str], sets: list[str], n_cells: int) -> str:
    """What stands between the marks of the README."""
    seeds = sorted(int(seed) for seed in results["seed"].unique())
    said = f"cellnorm {__version__}, at most {n_cells} cells of a set, seeds {', '.join(map(str, seeds))}."
    if not np.isnan(spread := noise(results, sets)):
        said += f" Between seeds the total of the full method on a set has a standard deviation of {spread:.3f}."
    return f"{said}\n\n{markdown(table(results, rows, sets))}"


def write_readme(text: str, readme: Path) -> None:
    before, begin, rest = readme.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{readme.name} has no place for the table: it has to hold {BEGIN} and {END}")
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def chosen(args: argparse.Namespace) -> Iterator[Path]:
    """Files of the sets asked for, small ones first."""
    files = sorted(args.data.glob("*.h5ad"), key=lambda path: path.stat().st_size) if args.data else []
    if args.data and (unknown := set(args.sets) - {path.stem for path in files}):
        raise SystemExit(f"no such sets in {args.data}: {', '.join(sorted(unknown))}")
    yield from (path for path in files if not args.sets or path.stem in args.sets)


def row_name(text: str) -> str:
    try:
        parts(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="names of files without .h5ad (default: all)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="without it, nothing is run")
    parser.add_argument("--rows", nargs="+", type=row_name, default=ROWS, metavar="ROW", help=" ".join(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--cells", type=int, default=3000, help="cells of a set at most (default: 3000)")
    parser.add_argument("--output", type=Path, default=Path("ablation.csv"), metavar="FILE.csv")
    parser.add_argument("--readme", action="store_true", help="the table into benchmarks/README.md")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    done = [run(path, args) for path in chosen(args)]

    results = load(args.output)
    results = results[(results["cells"] == args.cells) & results["seed"].isin(args.seeds)]
    sets = [name for name in results["set"].unique() if not args.sets or name in args.sets]
    if not sets:
        print("no results yet: --data says where the sets are", file=sys.stderr)
        return 1
    text = generated(results, args.rows, sorted(sets), args.cells)
    print(text)
    args.output.with_suffix(".md").write_text(f"{text}\n")
    if args.readme:
        write_readme(text, README)
    return 0 if all(done) else 1


if __name__ == "__main__":
    sys.exit(main())
