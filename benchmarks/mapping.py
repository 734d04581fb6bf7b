"""How well a new batch is mapped into a trained model, beside training on everything and Harmony on everything.

    python benchmarks/mapping.py --data ../shared/data                     every set, its three largest batches
    python benchmarks/mapping.py --data ../shared/data pbmc_3tech_small --max-batches 1

One batch at a time is left out: a model is trained on the others, with genes chosen among them alone, and the batch is
mapped with the weights frozen, then again with some of its genes taken out at random. "frozen" is the batch with the
statistics that all share. "total" is the total of `cellnorm.metrics.table.score` over all cells of all batches,
"accuracy" the share of the new cells whose type is that of most of the 15 nearest cells of the other batches. Cell
types are used for these two alone. Sets whose rest is a single batch are left out. Time and memory are those of
10,000 cells made from those of the batch, with genes chosen: finding the statistics, and embedding with them.
"""

import argparse
import importlib.util
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm import CellNorm
from cellnorm.determinism import one_thread
from cellnorm.mapping import add_batch, shared_batch
from cellnorm.metrics.table import score
from cellnorm.pp import log_expression
from cellnorm.training import encode

MISSING = (0.1, 0.3, 0.5)
N_CELLS, MAX_SCORED, K = 10_000, 4000, 15
NEW = "new batch"
Cells = NDArray[np.float32]


def accuracy(z: Cells, kind: NDArray[Any], new: NDArray[np.bool_]) -> float:
    """Share of the new cells, of types that the others have, that are of the type of most cells near them."""
    names, codes = np.unique(kind, return_inverse=True)
    near = NearestNeighbors(n_neighbors=K, algorithm="brute", n_jobs=1).fit(z[~new]).kneighbors(z[new])[1]
    votes = np.zeros((int(new.sum()), len(names)))
    np.add.at(votes, (np.arange(len(votes))[:, None], codes[~new][near]), 1)
    shared = np.isin(kind[new], kind[~new])
    return float((votes.argmax(1) == codes[new])[shared].mean())


def scored(z: Cells, before: Cells, batch: NDArray[Any], kind: NDArray[Any], new: NDArray[np.bool_]) -> list[float]:
    """Batch correction, biology, total and accuracy, of MAX_SCORED cells at most; the same cells each time."""
    cells = np.sort(np.random.default_rng(0).permutation(len(z))[:MAX_SCORED])
    codes = [np.unique(of[cells], return_inverse=True)[1] for of in (batch, kind)]
    found = score(z[cells], *codes, before=before[cells], device="cpu")
    names = ("Batch correction", "Bio conservation", "Total")
    return [*(found[name].value for name in names), accuracy(z, kind, new)]


def mapped(model: CellNorm, pcs: Cells, *, own: bool) -> Cells:
    """The new batch's embedding, with statistics of its own or with those that all share."""
    x = pcs / model.scale_
    rng = np.random.default_rng(0)
    reference = model.sketch_, model.sketch_batch_
    net = add_batch(model.net_, *reference, x, model.n_neighbors, rng).net if own else shared_batch(model.net_)
    with one_thread():
        return encode(net, x, np.full(len(x), len(model.batches_))) * model.scale_


def harmony(pcs: Cells, batch: NDArray[Any]) -> Cells | None:
    if importlib.util.find_spec("harmonypy") is None:
        return None
    import harmonypy  # type: ignore[import-untyped, unused-ignore]
    import pandas as pd

    table = pd.DataFrame({"batch": batch.astype(str)})
    found = np.asarray(harmonypy.run_harmony(pcs, table, "batch", random_state=0, verbose=False).Z_corr)
    return np.asarray(found if found.shape == pcs.shape else found.T, np.float32)


def peak_mb(*, anew: bool = False) -> float:
    """Peak resident memory so far, or from now on (Linux alone can start anew)."""
    reset = Path("/proc/self/clear_refs")
    if anew and reset.exists():
        reset.write_text("5")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def cost(model: CellNorm, X: Any) -> str:
    """Seconds for N_CELLS different cells, and by how much the memory of the process grew for that."""
    rng = np.random.default_rng(0)
    cells = sp.csr_matrix(X[rng.integers(X.shape[0], size=N_CELLS)])
    cells.data *= rng.uniform(0.9, 1.1, cells.nnz).astype(np.float32)  # cells that come twice would count once
    before, start = peak_mb(anew=True), time.perf_counter()
    extended = model.add_batch(cells, NEW)
    between = time.perf_counter()
    extended.transform(cells, np.full(N_CELLS, NEW))
    end = time.perf_counter()
    grown = max(peak_mb() - before, 0)
    return f"{N_CELLS} cells: statistics {between - start:.1f} s, embedding {end - between:.1f} s, {grown:.0f} MB more"


def left_out(data: ad.AnnData, everything: dict[str, Any], out: str) -> dict[str, list[float]]:
    """All rows of the table for one batch left out."""
    batch, kind = (data.obs[key].astype(str).to_numpy() for key in ("batch", "cell_type"))
    new, order = batch == out, np.argsort(batch == out, kind="stable")
    rest = data[~new].copy()
    X, genes, _, _ = log_expression(rest, batch[~new])
    wanted = data.var_names.get_indexer(genes)
    query = everything["log"][new][:, wanted]
    model = CellNorm().fit(X, batch[~new])
    known = model.transform(X, batch[~new])
    front, truth = model.front_, new[order]
    if front is None:
        raise SystemExit("the model has no front")

    def row(z: Cells) -> list[float]:
        return scored(z, everything["pcs"][order], batch[order], kind[order], truth)

    rows = {"trained on everything": row(everything["z"][order])}
    if everything["harmony"] is not None:
        rows["Harmony on everything"] = row(everything["harmony"][order])
    pcs = front.project(query)
    rows["mapped"] = row(np.concatenate([known, mapped(model, pcs, own=True)]))
    rows["mapped, frozen"] = row(np.concatenate([known, mapped(model, pcs, own=False)]))
    for share in MISSING:
        there = np.random.default_rng(0).random(len(wanted)) >= share
        fewer = front.restricted(there).project(query[:, there])
        rows[f"mapped, {share:.0%} of genes missing"] = row(np.concatenate([known, mapped(model, fewer, own=True)]))
    everything["cost"] = cost(model, query)
    return rows


def prepare(data: ad.AnnData) -> dict[str, Any]:
    """What is the same for every batch left out: log-expression, and the model and Harmony on everything."""
    batch = data.obs["batch"].astype(str).to_numpy()
    X, _, _, _ = log_expression(data, batch)
    model = CellNorm().fit(X, batch)
    pcs = model.front_.project(X) if model.front_ is not None else X
    return {"z": model.transform(X, batch), "pcs": pcs, "harmony": harmony(pcs, batch), "log": all_log(data)}


def all_log(data: ad.AnnData) -> Any:
    """log1p of counts per 10,000 of all genes, or the matrix itself if it holds no counts."""
    import scanpy as sc

    plain = ad.AnnData(sp.csr_matrix(data.X, dtype=np.float32))
    if np.all(np.mod(plain.X.data[:10_000], 1) == 0):
        sc.pp.normalize_total(plain, target_sum=1e4)
        sc.pp.log1p(plain)
    return plain.X


def show(title: str, rows: dict[str, list[float]]) -> None:
    print(f"\n{title}\n  {'':<30}{'batch':>8}{'bio':>8}{'total':>8}{'accuracy':>10}")
    for name, (mixing, biology, total, right) in rows.items():
        print(f"  {name:<30}{mixing:8.3f}{biology:8.3f}{total:8.3f}{right:10.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--max-batches", type=int, default=3, help="batches left out, the largest first")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    means: list[dict[str, list[float]]] = []
    for name in args.sets or sorted(path.stem for path in args.data.glob("*.h5ad")):
        data = ad.read_h5ad(args.data / f"{name}.h5ad")
        batches, counts = np.unique(data.obs["batch"].astype(str), return_counts=True)
        if len(batches) < 3:
            print(f"\n{name}: {len(batches)} batches, so that the rest is one")
            continue
        everything = prepare(data)
        for out in batches[np.argsort(-counts, kind="stable")][: args.max_batches]:
            means.append(left_out(data, everything, out))
            show(f"{name} without {out} ({counts[batches == out][0]} of {data.n_obs} cells)", means[-1])
            print(f"  {everything['cost']}", flush=True)
    if means:
        show(f"mean of {len(means)}", {row: np.mean([m[row] for m in means], axis=0).tolist() for row in means[0]})


if __name__ == "__main__":
    main()
