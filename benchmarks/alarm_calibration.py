"""Print how often the over-correction alarm cries wolf, and how often it catches a correction spoiled on purpose.

    python benchmarks/alarm_calibration.py [--sims 30] [--data FOLDER]

Well: cellnorm's own corrections, and corrections that are right by construction (a simulation in which the means of a
type are made equal in all batches; one batch of a real set split in three, with types left out and offsets added, and
the offsets taken off again).
Not well: corrections by cellnorm after which a type that stood out in its batch has mostly others around it.
Spoiled: from cellnorm's corrections, with the cell types: two types merged in all batches, a type that one batch alone
has laid onto another, all structure lost, batches pushed apart. Cell types are used here alone; the alarm sees none.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

import cellnorm as cn
from cellnorm.alarm import judge
from cellnorm.pp import log_expression

MAX_CELLS = 2500
DISTINCT = 0.8  # share of its own kind among a type's neighbours in its batch, from which on a user could tell it apart
KEPT = 0.5  # share of its own kind among a type's neighbours, below which a correction cannot be called well


class Cells(NamedTuple):
    """The same cells before and after, with what is known of them."""

    before: NDArray[np.float32]
    after: NDArray[np.float32]
    batch: NDArray[np.int64]
    label: NDArray[np.str_]


def trained(
    X: object, batch: NDArray[np.int64], label: NDArray[np.str_], *, n_comps: int | None
) -> tuple[Cells, cn.CellNorm]:
    """Cells before and after cellnorm's correction."""
    model = cn.CellNorm(n_comps=n_comps, device="cpu").fit(X, batch)
    before = model.front_.project(X) if model.front_ is not None else np.asarray(X)
    return Cells(before / model.scale_, model.transform(X, batch) / model.scale_, batch, label), model


def simulated(seed: int) -> tuple[str, list[tuple[str, Cells]]]:
    """A simulation of random design, corrected by cellnorm and by its truth."""
    rng = np.random.default_rng(1000 + seed)
    n_batches, n_types = int(rng.choice([2, 3, 5])), int(rng.choice([4, 6, 8]))
    effect, composition = float(rng.choice([0, 0.4, 1, 1.5])), float(rng.choice([1.5, 5, 50]))
    adata = cn.datasets.simulate(
        int(rng.choice([600, 1500, 2500])),
        1000,
        n_batches=n_batches,
        n_types=n_types,
        batch_effect=effect,
        composition=composition,
        missing_types=int(rng.choice([0, 0, 1, 2])),
        random_state=seed,
    )
    batch = np.unique(adata.obs["batch"].astype(str), return_inverse=True)[1]
    label = adata.obs["cell_type"].to_numpy(str)
    X, *_ = log_expression(adata, batch.astype(str), layer=None, n_top_genes=1000, mask_var=None, progress=None)
    cells, _ = trained(X, batch, label, n_comps=50)
    return f"simulation {seed}", [
        ("simulated, by cellnorm", cells),
        ("simulated, means made equal", equal_means(cells)),
    ]


def equal_means(cells: Cells) -> Cells:
    """The cells before correction, the mean of each type moved to the same place in all batches that hold it."""
    after = cells.before.copy()
    for t in np.unique(cells.label):
        groups = [np.flatnonzero((cells.label == t) & (cells.batch == b)) for b in np.unique(cells.batch)]
        means = [cells.before[g].mean(0) for g in groups if len(g)]
        for group, mean in zip([g for g in groups if len(g)], means, strict=True):
            after[group] += np.mean(means, axis=0) - mean
    return cells._replace(after=after)


def principal_components(
    path: Path, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.str_]]:
    """Components, batches and types of at most MAX_CELLS cells of a real set."""
    adata = ad.read_h5ad(path)
    adata = adata[np.sort(rng.permutation(adata.n_obs)[:MAX_CELLS])].copy()
    cn.pp.prepare(adata, "batch")
    batch = np.unique(adata.obs["batch"].astype(str), return_inverse=True)[1]
    return np.asarray(adata.obsm["X_pca"], np.float32), batch, adata.obs["cell_type"].to_numpy(str)


def real(path: Path) -> tuple[str, list[tuple[str, Cells]]]:
    """A real set corrected by cellnorm, and its largest batch split in three with a known offset."""
    rng = np.random.default_rng(0)
    pcs, batch, label = principal_components(path, rng)
    cells, _ = trained(pcs, batch, label, n_comps=None)
    largest = np.flatnonzero(batch == np.bincount(batch).argmax())
    part = rng.integers(3, size=len(largest))
    types = np.unique(label[largest])
    for p, t in enumerate(rng.permutation(types)[: len(types) // 3]):  # each of these is missing from one part
        part[(label[largest] == t) & (part == p % 3)] = (p + 1) % 3
    truth, kinds = pcs[largest], label[largest]
    offset = rng.normal(size=(3, pcs.shape[1])) * truth.std(0)
    split, model = trained(truth + offset[part].astype(np.float32), part, kinds, n_comps=None)
    return path.stem, [
        ("real, by cellnorm", cells),
        ("real batch in three, by cellnorm", split),
        ("real batch in three, the truth", split._replace(after=truth / model.scale_)),
    ]


def distinct(cells: Cells) -> set[tuple[int, str]]:
    """(batch, type) that stand out in their own batch before correction: of 20 cells or more."""
    found = set()
    for b in np.unique(cells.batch):
        own = np.flatnonzero(cells.batch == b)
        k = min(15, len(own) - 1)
        near = NearestNeighbors(n_neighbors=k).fit(cells.before[own]).kneighbors(return_distance=False)
        same = (cells.label[own][near] == cells.label[own][:, None]).mean(1)
        for t in np.unique(cells.label[own]):
            mine = cells.label[own] == t
            if mine.sum() >= 20 and same[mine].mean() > DISTINCT:
                found.add((int(b), str(t)))
    return found


def types_kept(cells: Cells) -> float:
    """The least share of its own type among the neighbours, in all batches, of a type that stood out before."""
    near = NearestNeighbors(n_neighbors=15).fit(cells.after).kneighbors(return_distance=False)
    same = (cells.label[near] == cells.label[:, None]).mean(1)
    shares = [same[(cells.batch == b) & (cells.label == t)].mean() for b, t in distinct(cells)]
    return float(min(shares, default=1))


def laid_onto(
    after: NDArray[np.float32], moved: NDArray[np.bool_], onto: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Some cells spread as others are: each in between two random ones of them, with their variance."""
    after, there = after.copy(), np.flatnonzero(onto)
    centre, size = after[there].mean(0), int(moved.sum())
    between = (after[rng.choice(there, size)] + after[rng.choice(there, size)]) / 2
    after[moved] = centre + (between - centre) * np.sqrt(2)
    return after


def merged(cells: Cells, rng: np.random.Generator) -> Cells | None:
    """One type laid onto another in all batches; a batch tells both apart."""
    clear = distinct(cells)
    pairs = sorted({(s, t) for b, s in clear for c, t in clear if b == c and s != t})
    if not pairs:
        return None
    s, t = pairs[rng.integers(len(pairs))]
    return cells._replace(after=laid_onto(cells.after, cells.label == s, cells.label == t, rng))


def private(cells: Cells, rng: np.random.Generator, *, nearest: bool) -> Cells | None:
    """A type that one batch alone has laid onto one that this batch lacks: any other, or its nearest relative."""
    clear = sorted(distinct(cells))
    for _ in range(50 if clear else 0):
        b, s = clear[rng.integers(len(clear))]
        here, kind = cells.batch == b, cells.label == s
        others = sorted({t for c, t in clear if c != b and t != s and (~here & (cells.label == t)).sum() >= 30})
        if not others:
            continue
        centre = cells.after[kind].mean(0)
        gaps = [np.linalg.norm(cells.after[cells.label == t].mean(0) - centre) for t in others]
        t = others[int(np.argmin(gaps))] if nearest else others[rng.integers(len(others))]
        keep = ~(kind & ~here) & ~((cells.label == t) & here)
        left = np.bincount(cells.batch[keep], minlength=cells.batch.max() + 1)
        if left.min() < 20 or len(np.unique(cells.label[keep & here])) < 2:
            continue
        after = laid_onto(cells.after, kind & here, (cells.label == t) & ~here, rng)
        return Cells(*(part[keep] for part in cells._replace(after=after)))
    return None


def spoiled(cells: Cells, rng: np.random.Generator) -> Iterator[tuple[str, Cells | None]]:
    """The same correction, spoiled in five ways."""
    yield "two types merged in all batches", merged(cells, rng)
    yield "private type laid onto a random one", private(cells, rng, nearest=False)
    yield "private type laid onto its nearest", private(cells, rng, nearest=True)
    yield "all structure lost", cells._replace(after=rng.normal(size=cells.after.shape).astype(np.float32))
    direction = rng.normal(size=(cells.batch.max() + 1, cells.after.shape[1]))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    push = 0.7 * np.sqrt(cells.after.var(0).sum()) * direction
    yield "batches pushed apart", cells._replace(after=(cells.after + push[cells.batch]).astype(np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sims", type=int, default=30, help="number of simulations")
    parser.add_argument("--data", type=Path, help="folder of .h5ad files with obs['batch'] and obs['cell_type']")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    sources = [(simulated, seed) for seed in range(args.sims)]
    sources += [(real, path) for path in sorted(args.data.glob("*.h5ad"))] if args.data else []
    rows = []
    for source, what in sources:
        name, well = source(what)
        rng = np.random.default_rng(len(rows))
        bad = [(how, cells) for how, cells in spoiled(well[0][1], rng) if cells is not None]
        for given, cases in (("well", well), ("spoiled", bad)):
            for how, cells in cases:
                truth = "not well" if given == "well" and types_kept(cells) < KEPT else given
                start = time.perf_counter()
                alarm = judge(cells.before, cells.after, cells.batch)
                where = "real" if args.data and what in args.data.glob("*") else "simulated"
                rows.append((name, where, truth, how, alarm.verdict, time.perf_counter() - start))
                if truth != "spoiled":
                    print(f"{name:34} {truth:9} {how:34} {alarm.verdict:16} {alarm.reason}", flush=True)
    frame = pd.DataFrame(rows, columns=["name", "where", "truth", "case", "verdict", "seconds"])
    frame["case"] = frame["case"].where(frame["truth"] != "spoiled", frame["where"] + ": " + frame["case"])
    counts = pd.crosstab([frame["truth"], frame["case"]], frame["verdict"])
    alarms = frame["verdict"].isin(["over-corrected", "under-corrected"])
    print(f"\n{counts.to_string()}\n")
    for truth, meaning in (("well", "false alarms"), ("not well", "alarms"), ("spoiled", "catches")):
        of = frame["truth"] == truth
        if not of.any():
            continue
        print(f"{meaning}: {alarms[of].sum()} of {of.sum()} ({alarms[of].mean():.1%})")
        for case, flags in alarms[of].groupby(frame["case"][of]):
            print(f"    {case:48} {flags.sum():3} of {len(flags):3} ({flags.mean():.0%})")
    print(f"median seconds of a judgement: {frame['seconds'].median():.2f}")


if __name__ == "__main__":
    main()
