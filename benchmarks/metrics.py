"""Seconds and peak memory of all scores, beside scib-metrics' Benchmarker, and the largest difference between the two.

    python benchmarks/metrics.py                        3,000, 12,000 and 50,000 cells
    python benchmarks/metrics.py --sizes 3000 --large   3,000, and 200,000 with our scores alone

The data are made of normal distributions: 30 dimensions, 5 batches, 10 types, before and after half of the shifts
between batches was taken away. Each side runs in a process of its own, one after the other; its imports are not
counted, nor is making the data. scib-metrics runs twice: as it comes, with approximate neighbours, which is what is
timed; and with our exact ones, for the differences. It computes ten scores and three
means; ours are these and all others.
"""

# Nothing heavy here: a child's peak memory begins with its parent's, so the parent has to stay small.
import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
from typing import Any

N_DIMS, N_BATCHES, N_TYPES = 30, 5, 10
LARGE = 200_000

Result = dict[str, Any]


# What runs in processes of its own -------------------------------------------------------------------------------


def peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def simulated(n_cells: int) -> tuple[Any, Any, Any, Any]:
    """Embedding before and after, batch and type of each cell."""
    import numpy as np

    rng = np.random.default_rng(0)
    label = rng.choice(N_TYPES, n_cells, p=np.arange(1, N_TYPES + 1) / sum(range(N_TYPES + 1)))
    batch = rng.integers(N_BATCHES, size=n_cells)
    cells = rng.normal(size=(n_cells, N_DIMS)) + 1.2 * rng.normal(size=(N_TYPES, N_DIMS))[label]
    shift = 0.4 * rng.normal(size=(N_BATCHES, N_DIMS))[batch]
    return (cells + shift).astype(np.float32), (cells + shift / 2).astype(np.float32), batch, label


def ours(n_cells: int) -> Result:
    from cellnorm.metrics.table import score

    before, after, batch, label = simulated(n_cells)
    idle = peak_bytes()
    start = time.perf_counter()
    scores = score(after, batch, label, before=before, device="cpu")
    seconds = time.perf_counter() - start
    values = {name: one.value for name, one in scores.items()}
    return {"seconds": seconds, "idle": idle, "peak": peak_bytes(), "scores": values}


def theirs(n_cells: int, exact: bool = False) -> Result:
    import warnings

    warnings.filterwarnings("ignore")
    import anndata as ad
    import numpy as np
    from scib_metrics.benchmark import Benchmarker, BioConservation
    from scib_metrics.nearest_neighbors import NeighborsResults

    from cellnorm.metrics.neighbors import nearest_neighbors

    def exactly(x: Any, k: int) -> NeighborsResults:
        table = nearest_neighbors(x, k)
        return NeighborsResults(indices=table.indices, distances=table.distances)

    before, after, batch, label = simulated(n_cells)
    adata = ad.AnnData(np.zeros((n_cells, 1), np.float32), obsm={"before": before, "after": after})
    adata.obs["batch"], adata.obs["type"] = batch.astype(str), label.astype(str)
    idle = peak_bytes()
    start = time.perf_counter()
    run = Benchmarker(
        adata,
        "batch",
        "type",
        ["after"],
        pre_integrated_embedding_obsm_key="before",
        bio_conservation_metrics=BioConservation(
            isolated_labels=True, nmi_ari_cluster_labels_leiden=True, nmi_ari_cluster_labels_kmeans=False
        ),
        n_jobs=os.cpu_count() or 1,
        progress_bar=False,
    )
    run.prepare(neighbor_computer=exactly if exact else None)
    run.benchmark()
    seconds = time.perf_counter() - start
    table = run.get_results(min_max_scale=False).drop(index="Metric Type").astype(float)
    return {"seconds": seconds, "idle": idle, "peak": peak_bytes(), "scores": table.loc["after"].to_dict()}


def theirs_exact(n_cells: int) -> Result:
    return theirs(n_cells, exact=True)


WORKERS = {"ours": ours, "theirs": theirs, "theirs_exact": theirs_exact}


# The parent ------------------------------------------------------------------------------------------------------


def run(worker: str, n_cells: int) -> Result | None:
    """What a worker answers, on the last line that it prints; None if it failed."""
    command = [sys.executable, __file__, "--worker", worker, str(n_cells)]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        print(f"{worker} with {n_cells} cells ended with {ran.returncode}: {ran.stderr[-300:]}", file=sys.stderr)
        return None
    answer: Result = json.loads(ran.stdout.splitlines()[-1])
    return answer


def row(name: str, result: Result | None) -> str:
    if result is None:
        return f"  {name:<34}{'failed':>10}"
    memory = f"{result['peak'] / 1e6:12.0f}{(result['peak'] - result['idle']) / 1e6:16.0f}"
    return f"  {name:<34}{result['seconds']:10.1f}{memory}"


def compare(n_cells: int, *, alone: bool) -> bool:
    """Measure and print one size; false if ours failed."""
    print(f"\n{n_cells} cells\n  {'':<34}{'seconds':>10}{'peak, MB':>12}{'above data, MB':>16}", flush=True)
    mine = run("ours", n_cells)
    print(row("cellnorm, all scores", mine), flush=True)
    if alone or mine is None:
        return mine is not None
    other = run("theirs", n_cells)
    print(row(f"scib-metrics {importlib.metadata.version('scib-metrics')}", other), flush=True)
    exact = run("theirs_exact", n_cells)
    print(row("scib-metrics, exact neighbours", exact), flush=True)
    if other is not None:
        print(f"  scib-metrics takes {other['seconds'] / mine['seconds']:.1f} times as long")
    if exact is not None:
        apart = {name: abs(value - mine["scores"][name]) for name, value in exact["scores"].items()}
        worst = max(apart, key=lambda name: apart[name])
        print(f"  largest difference of {len(apart)} scores with the same neighbours: {apart[worst]:.1e} ({worst})")
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", type=int, default=[3000, 12_000, 50_000], metavar="CELLS")
    parser.add_argument("--large", action="store_true", help=f"also {LARGE} cells, our scores alone")
    args = parser.parse_args()
    load = os.getloadavg()[0]  # on a machine that does other work, times mean little
    print(f"{os.cpu_count()} cores, load {load:.1f}, Python {sys.version.split()[0]}, {N_DIMS} dimensions")
    done = [compare(n_cells, alone=False) for n_cells in args.sizes]
    if args.large:
        done.append(compare(LARGE, alone=True))
    return 0 if all(done) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(WORKERS[sys.argv[2]](int(sys.argv[3]))))
    else:
        sys.exit(main())
