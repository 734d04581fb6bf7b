"""Seconds of each stage and peak memory of `cellnorm correct` as the number of cells grows, streamed and in memory.

    python benchmarks/scale.py --data FOLDER --sizes 10000 100000 1000000
    python benchmarks/scale.py --data FOLDER --sizes 10000 --format h5ad --in-memory-up-to 0

The data are made on the disk, 20,000 genes and about 1,000 stored values a cell (see scale_data.py), and kept in FOLDER
for the next time: 2 GB for a million cells, and as much again for a result, which is removed. Each run is a process of
its own, one after the other. "peak" is the most that was resident, as the system says at the end (wait4); "rest" is the
start of Python, and writing. "exponent" says how a stage grows from one size to the next: 1 is linear, 0 is constant.
"""

# Nothing heavy here: a child's peak memory begins with its parent's, so the parent has to stay small.
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

GB = 1e9
STAGES = ("read", "prepare", "survey", "values", "pca", "anchors", "strength", "train", "encode", "check", "rest")
LEAST = 0.5  # seconds: what takes less has no exponent to speak of
Run = dict[str, Any]


def child(*command: str) -> tuple[float, int]:
    """Run a command: its wall clock in seconds and its peak memory in bytes."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def make(folder: Path, n_cells: int, suffix: str) -> Path:
    """The file of so many cells, made in a process of its own if it is not there."""
    path = folder / f"cells{n_cells}{suffix}"
    if not path.exists():
        taken, peak = child(__file__, "--make", str(folder), str(n_cells), suffix)
        print(f"made {path.name} in {taken:.0f} s with {peak / GB:.2f} GB at the peak", file=sys.stderr)
    return path


def on_disk(path: Path) -> int:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def measure(path: Path, n_cells: int, how: str) -> Run:
    """One run of the command: seconds by stage, all in all, and the peak."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        target = str(Path(folder, f"result{path.suffix}"))
        command = ("-m", "cellnorm", "correct", str(path), how, "--batch-key", "batch", "--quiet", "--output", target)
        whole, peak = child(*command)
        answer = Path(folder, "seconds.json")
        child(__file__, "--seconds", target, str(answer))
        seconds = json.loads(answer.read_text())
    rest = whole - sum(seconds.values())
    return {
        "cells": n_cells,
        "GB": on_disk(path) / GB,
        "seconds": {**seconds, "rest": rest},
        "whole": whole,
        "peak": peak / GB,
    }


def read_seconds(path: str, answer: str) -> None:
    """What the result says of its stages."""
    import h5py
    import zarr

    root = zarr.open_group(path, mode="r") if path.endswith(".zarr") else h5py.File(path)
    stages = root["uns/cellnorm/seconds"]
    Path(answer).write_text(json.dumps({name: float(stages[name][()]) for name in stages}))


def exponents(runs: list[Run], name: str) -> list[str]:
    """How a stage grows from each size to the next."""
    shown = []
    for less, more in pairwise(runs):
        few, many = (run["seconds"].get(name, run.get(name, 0.0)) for run in (less, more))
        known = min(few, many) >= LEAST or many >= 10 * LEAST
        grows = math.log(many / max(few, 1e-3)) / math.log(more["cells"] / less["cells"]) if known else math.nan
        shown.append("" if math.isnan(grows) else f"{grows:.2f}")
    return shown


def table(title: str, runs: list[Run]) -> list[str]:
    """One table in Markdown: a row for each stage, a column for each size."""
    names = sorted({name for run in runs for name in run["seconds"]}, key=STAGES.index)
    steps = [f"exponent to {more['cells']:,}" for more in runs[1:]]
    rows = [
        [title, *(f"{run['cells']:,} cells" for run in runs), *steps],
        ["---"] * (1 + len(runs) + len(steps)),
        ["GB on disk", *(f"{run['GB']:.2f}" for run in runs), *[""] * len(steps)],
    ]
    for name in names:
        rows.append([f"{name}, s", *(f"{run['seconds'].get(name, 0):.1f}" for run in runs), *exponents(runs, name)])
    rows.append(["whole command, s", *(f"{run['whole']:.1f}" for run in runs), *exponents(runs, "whole")])
    rows.append(["peak memory, GB", *(f"{run['peak']:.2f}" for run in runs), *[""] * len(steps)])
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder for the data, kept")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], metavar="CELLS")
    parser.add_argument("--format", choices=["zarr", "h5ad"], default="zarr", help="of the data (default: zarr)")
    parser.add_argument(
        "--in-memory-up-to", type=int, default=100_000, metavar="CELLS", help="largest size to run in memory, too"
    )
    args = parser.parse_args()
    args.data.mkdir(parents=True, exist_ok=True)
    sizes = sorted(set(args.sizes))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}, {args.format}\n")
    for how, title in {"--stream": "streamed", "--no-stream": "in memory"}.items():
        chosen = [n for n in sizes if how == "--stream" or n <= args.in_memory_up_to]
        runs = [measure(make(args.data, n, f".{args.format}"), n, how) for n in chosen]
        if runs:
            print("\n".join(table(title, runs)), flush=True)
            print()
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        import scale_data

        scale_data.make(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    elif sys.argv[1:2] == ["--seconds"]:
        read_seconds(*sys.argv[2:])
    else:
        sys.exit(main())
