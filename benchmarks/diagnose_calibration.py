"""Print how often `cellnorm diagnose` is right: on real sets, on noise, on composition alone, on simulated effects.

    python benchmarks/diagnose_calibration.py --data FOLDER [--noise 60] [--only pbmc_8batches ...]

FOLDER holds .h5ad files with obs['batch'] and obs['cell_type']; without it only the simulated sets are looked at. The
thresholds in cellnorm/diagnosis.py and cellnorm/design.py were chosen by these tables.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray

import cellnorm as cn

LEVELS = (2, 3, 5, 10, 20, 50)
EFFECTS = (0.0, 0.2, 0.3, 0.5, 1.0, 2.0)


def noise(n_cells: int, n_columns: int, rng: np.random.Generator) -> dict[str, NDArray[np.int64]]:
    """Random columns of 2 to 50 levels; every second one with very unequal levels."""
    columns = {}
    for i in range(n_columns):
        n_levels = LEVELS[i % len(LEVELS)]
        even = i // len(LEVELS) % 2 == 0
        shares = np.full(n_levels, 1 / n_levels) if even else rng.dirichlet(np.full(n_levels, 0.5))
        columns[f"noise {i} {'even' if even else 'uneven'}"] = rng.choice(n_levels, n_cells, p=shares)
    return columns


def composition(kinds: NDArray[np.int64], n_levels: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Levels that hold the same cell types in other shares, and differ in nothing else."""
    shares = rng.dirichlet(np.full(n_levels, 1.0), kinds.max() + 1)
    return np.array([rng.choice(n_levels, p=shares[kind]) for kind in kinds])


def verdict(column: dict[str, object]) -> str:
    return "follows" if column["follows_clusters"] else str(column["verdict"])


def judge(adata: ad.AnnData, columns: dict[str, NDArray[np.int64]]) -> dict[str, dict[str, object]]:
    """What is said of the columns of obs and of these others."""
    told = ad.AnnData(adata.X, obs=adata.obs.copy(), var=adata.var[[]])
    told.obs = pd.concat([told.obs, pd.DataFrame(columns, index=told.obs_names).astype("category")], axis=1)
    diagnosis = cn.tl.diagnose(told)
    return {column["name"]: column for column in diagnosis["columns"]}


def real(path: Path, n_noise: int, seed: int) -> tuple[list[str], dict[str, list[str]]]:
    """Verdicts on the columns of a set, and on noise and composition made for it."""
    rng = np.random.default_rng(seed)
    adata = ad.read_h5ad(path)
    one = adata[(adata.obs["batch"] == adata.obs["batch"].value_counts().index[0]).to_numpy()].copy()
    start = time.perf_counter()
    found = judge(adata, noise(adata.n_obs, n_noise, rng))
    seconds = time.perf_counter() - start
    kinds = pd.factorize(one.obs["cell_type"])[0]
    mixed = judge(one, {f"composition {i}": composition(kinds, 2 + i % 4, rng) for i in range(20)})
    lines = [
        f"{path.stem:28}{name:18}{column['n_levels']:>7}{column['strength']:>10.3f}{column['within_clusters']:>12.3f}"
        f"{column['p']:>8.3f}{np.nan if column['shared'] is None else column['shared']:>8.2f}  {verdict(column)}"
        for name, column in found.items()
        if not name.startswith("noise")
    ]
    groups = {
        "noise, even levels": [verdict(c) for name, c in found.items() if name.endswith(" even")],
        "noise, uneven levels": [verdict(c) for name, c in found.items() if name.endswith("uneven")],
        f"composition, {'500 cells or more' if one.n_obs >= 500 else 'fewer cells'}": [
            verdict(c) for name, c in mixed.items() if name.startswith("composition")
        ],
    }
    print(f"{path.stem}: {len(found)} columns in {seconds:.1f} s", flush=True)
    return lines, groups


def simulated() -> None:
    """The verdicts along growing effects, and the effect at which they change."""
    print(f"\nsimulated, 3 batches, 1,500 cells, 5 seeds each\n{'batch_effect':>14}{'like cells':>12}   verdicts")
    for effect in EFFECTS:
        columns = []
        for seed in range(5):
            adata = cn.datasets.simulate(1500, 600, n_batches=3, batch_effect=effect, random_state=seed)
            columns.append(judge(adata, {})["batch"])
        share = np.mean([float(str(column["within_clusters"])) for column in columns])
        print(f"{effect:>14}{share:>12.3f}   {' '.join(verdict(column) for column in columns)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--noise", type=int, default=60, help="random columns per set")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    lines: list[str] = []
    groups: dict[str, list[str]] = {}
    for path in sorted(args.data.glob("*.h5ad")) if args.data else []:
        if not args.only or path.stem in args.only:
            more, verdicts = real(path, args.noise, args.seed)
            lines += more
            for name, values in verdicts.items():
                groups.setdefault(name, []).extend(values)
    print(f"\n{'set':28}{'column':18}{'values':>7}{'all cells':>10}{'like cells':>12}{'p':>8}{'shared':>8}  verdict")
    print("\n".join(lines))
    print(f"\n{'columns that are no batch effect':34}{'n':>6}{'mild':>7}{'strong':>8}{'said to have an effect':>25}")
    for name, values in groups.items():
        mild, strong = values.count("mild"), values.count("strong")
        print(f"{name:34}{len(values):>6}{mild:>7}{strong:>8}{(mild + strong) / len(values):>25.1%}")
    simulated()


if __name__ == "__main__":
    main()
