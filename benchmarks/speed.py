"""Seconds and peak memory of `cellnorm correct`, beside Harmony and scVI on the same data and machine.

    python benchmarks/speed.py                  pancreas_5batches and pbmc_8batches in $CELLNORM_DATA, 50000x2000
    python benchmarks/speed.py lab.h5ad --batch-key donor --sizes --no-scvi
    python benchmarks/speed.py --sizes 50000x2000 200000x2000

Everything runs in a process of its own, one after the other: peak memory is its own, and times do not disturb each
other. "whole" is the wall clock of that process, from the start of Python to its end. "method" is the method without
what all share, which is reading, choosing genes and PCA: Harmony starts from the PCs of `cellnorm.pp.prepare`, scVI
from the counts of the same genes. Memory is resident memory; a stage's peak is the highest so far.
"""

# Nothing heavy here: a child's peak memory begins with its parent's, so the parent has to stay small.
import argparse
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cellnorm import __version__

REAL = ("pancreas_5batches", "pbmc_8batches")
METHOD_STAGES = ("anchors", "train", "encode")
SCVI_EPOCHS = 50
GB = 1e9

Result = dict[str, Any]


# What runs in processes of its own -------------------------------------------------------------------------------


def peak_bytes() -> int:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def simulate(path: str, n_cells: str, n_genes: str) -> Result:
    from cellnorm.datasets import simulate

    simulate(int(n_cells), int(n_genes)).write_h5ad(path)
    return {}


def describe(path: str, batch_key: str) -> Result:
    """Cells, genes, batches and size in memory of a data set."""
    import anndata as ad

    adata = ad.read_h5ad(path)
    return {"shape": adata.shape, "batches": int(adata.obs[batch_key].nunique()), "bytes": adata.__sizeof__()}


def cellnorm(path: str, batch_key: str, output: str) -> Result:
    """Run the command itself, and note the peak at the end of each stage."""
    from cellnorm import cli, tl

    correct, peaks = tl.correct, {}
    written = 0.0

    def watched(*args: Any, progress: Callable[..., None], **params: Any) -> Any:
        nonlocal written
        peaks["read"] = peak_bytes()

        def note(stage: str, *state: Any) -> None:
            progress(stage, *state)
            peaks[stage] = peak_bytes()

        result = correct(*args, progress=note, **params)
        written = time.perf_counter()
        return result

    tl.correct = watched
    cli.main(["correct", path, "--batch-key", batch_key, "--output", output, "--quiet"], standalone_mode=False)
    write = time.perf_counter() - written
    peaks["write"] = peak_bytes()

    import h5py

    with h5py.File(output) as file:
        stages = file["uns/cellnorm/seconds"]
        seconds = {name: float(stages[name][()]) for name in stages}
    return {"seconds": {**seconds, "write": write}, "peaks": peaks}


def prepared(path: str, batch_key: str) -> Any:
    from cellnorm import io, pp

    adata = io.read(Path(path))
    pp.prepare(adata, batch_key)
    return adata


def harmony(path: str, batch_key: str) -> Result:
    import harmonypy

    adata = prepared(path, batch_key)
    pcs, batches = adata.obsm["X_pca"], adata.obs[[batch_key]].astype(str)
    start = time.perf_counter()
    corrected = harmonypy.run_harmony(pcs, batches, batch_key, random_state=0).Z_corr
    seconds = time.perf_counter() - start
    if pcs.shape not in (corrected.shape, corrected.shape[::-1]):  # older versions have cells in columns
        raise SystemExit(f"Harmony gave {corrected.shape} for PCs of {pcs.shape}")
    return {"method": seconds}


def scvi(path: str, batch_key: str) -> Result:
    import scvi

    adata = prepared(path, batch_key)
    adata = adata[:, adata.var["highly_variable"]].copy()
    adata.obs[batch_key] = adata.obs[batch_key].astype(str).astype("category")
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
    model = scvi.model.SCVI(adata)
    model.train(max_epochs=SCVI_EPOCHS, enable_progress_bar=False)
    model.get_latent_representation()
    return {"method": time.perf_counter() - start}


WORKERS: dict[str, Callable[..., Result]] = {f.__name__: f for f in (simulate, describe, cellnorm, harmony, scvi)}


def run(worker: str, *args: str | Path) -> Result:
    """Run a worker in a fresh process: its result, and the wall clock ("whole") and peak ("peak") of the process."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        command = [sys.executable, __file__, "--worker", worker, str(answer), *map(str, args)]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=sys.stderr)
        _, status, usage = os.wait4(process.pid, 0)
        whole = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            return {"failed": f"failed with exit code {process.returncode}"}
        peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
        return {**json.loads(answer.read_text()), "whole": whole, "peak": peak}


# The tables ------------------------------------------------------------------------------------------------------


def stage_table(ours: Result, size: int) -> list[str]:
    """Seconds, share and peak so far of each stage, and how the whole stands to its limits."""
    whole, seconds, peaks = ours["whole"], ours["seconds"], ours["peaks"]
    order = [s for s in peaks if s in seconds and s != "write"]
    order += [s for s in seconds if s not in (*order, "write")] + ["write"]
    rest = whole - sum(seconds.values())
    lines = [f"  {'stage':<22}{'seconds':>9}{'share':>8}{'peak so far, MB':>18}"]
    for name in order:
        lines.append(row(name, seconds[name], whole, peaks.get(name)))
    lines.append(row("imports and the rest", rest, whole, None))
    lines.append(row("whole command", whole, whole, ours["peak"]))
    limit = 4 * size + GB
    lines.append(f"  training is {seconds.get('train', 0) / whole:.0%} of the whole")
    lines.append(f"  peak memory is {ours['peak'] / limit:.2f} of 4 x size + 1 GB = {limit / 1e6:.0f} MB")
    return lines


def row(name: str, seconds: float, whole: float, peak: int | None) -> str:
    shown = "" if peak is None else f"{peak / 1e6:18.0f}"
    return f"  {name:<22}{seconds:9.2f}{seconds / whole:8.0%}{shown}"


def method_table(results: dict[str, Result]) -> list[str]:
    """Each method's seconds and memory, and its seconds relative to ours."""
    ours = results["cellnorm"]
    head = ("method, s", "whole, s", "peak, MB", "method / ours", "whole / ours")
    lines = [f"  {'':<22}" + "".join(f"{title:>15}" for title in head)]
    for name, result in results.items():
        if "failed" in result:
            lines.append(f"  {name:<22}  {result['failed']}")
            continue
        values = (result["method"], result["whole"], result["peak"] / 1e6)
        ratios = (result["method"] / ours["method"], result["whole"] / ours["whole"])
        lines.append(
            f"  {name:<22}{values[0]:15.2f}{values[1]:15.2f}{values[2]:15.0f}{ratios[0]:15.2f}{ratios[1]:15.2f}"
        )
    return lines


def measure(name: str, path: Path, batch_key: str, *, with_scvi: bool) -> bool:
    """Measure all methods on one data set and print the tables; false if our command failed."""
    data = run("describe", path, batch_key)
    if "failed" in data:
        print(f"\n{name}: cannot be read")
        return False
    n_cells, n_genes = data["shape"]
    print(f"\n{name}: {n_cells} cells x {n_genes} genes, {data['batches']} batches, {data['bytes'] / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        ours = run("cellnorm", path, batch_key, Path(folder, "corrected.h5ad"))
    if "failed" in ours:
        print(f"  cellnorm correct {ours['failed']}")
        return False
    ours["method"] = sum(ours["seconds"].get(stage, 0.0) for stage in METHOD_STAGES)
    print("\n".join(stage_table(ours, data["bytes"])), flush=True)
    results = {"cellnorm": ours}
    wanted = {"harmony": ("harmonypy", "harmonypy", ""), "scvi": ("scvi", "scvi-tools", f", {SCVI_EPOCHS} epochs")}
    for worker, (module, package, note) in wanted.items():
        if worker == "scvi" and not with_scvi:
            continue
        if importlib.util.find_spec(module) is None:
            results[package] = {"failed": "not installed"}
        else:
            results[f"{package} {importlib.metadata.version(package)}{note}"] = run(worker, path, batch_key)
    print("\n" + "\n".join(method_table(results)), flush=True)
    return True


def real_data() -> list[Path]:
    folder = os.environ.get("CELLNORM_DATA")
    if not folder:
        print("CELLNORM_DATA names no folder of data sets: only simulated data", file=sys.stderr)
        return []
    return [Path(folder, f"{name}.h5ad") for name in REAL]


def size(text: str) -> tuple[str, str]:
    cells, cross, genes = text.partition("x")
    if not (cells.isdecimal() and cross and genes.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 50000x2000 (cells x genes)")
    return cells, genes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="*", type=Path, help="h5ad files with counts (default: two sets of $CELLNORM_DATA)"
    )
    parser.add_argument("--batch-key", default="batch", help="column of obs with the batches (default: batch)")
    parser.add_argument(
        "--sizes", nargs="*", type=size, metavar="CELLSxGENES", help="simulated data (default: 50000x2000)"
    )
    parser.add_argument("--no-scvi", action="store_true", help="leave scVI out, which takes longest")
    args = parser.parse_args()
    sizes = [("50000", "2000")] if args.sizes is None else args.sizes
    load = os.getloadavg()[0]  # on a machine that does other work, times mean little
    print(f"{os.cpu_count()} cores, load {load:.1f}, Python {sys.version.split()[0]}, cellnorm {__version__}")
    done = [measure(path.stem, path, args.batch_key, with_scvi=not args.no_scvi) for path in args.files or real_data()]
    for cells, genes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, f"simulated_{cells}x{genes}.h5ad")
            made = run("simulate", path, cells, genes)
            done.append("failed" not in made and measure(path.stem, path, "batch", with_scvi=not args.no_scvi))
    return 0 if all(done) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        name, answer, *arguments = sys.argv[2:]
        Path(answer).write_text(json.dumps(WORKERS[name](*arguments)))
    else:
        sys.exit(main())
