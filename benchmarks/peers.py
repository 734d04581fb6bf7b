"""Compare cellnorm with every installed method for batch correction, on a folder of .h5ad files, by scib-metrics.

    pip install -c constraints.txt -e '.[bench]'
    python benchmarks/peers.py --data FOLDER --output DIR                    all sets, all methods, three seeds
    python benchmarks/peers.py --data FOLDER --output DIR pancreas_5batches --methods cellnorm Harmony --seeds 1
    python benchmarks/peers.py --output DIR --readme                         only the table, the README and its figures

Files hold obs['batch'] and obs['cell_type']. All methods get the same preparation: genes in at least three cells,
log1p of counts per 10,000, 2,000 batch-aware variable genes, 50 components (if X holds no counts: the last two steps).
cellnorm gets a file, as from a user. Cell types and names of cells are taken out before: no method can see them.

Each method, set and seed runs in a process of its own, on the CPU, so that time and peak memory are its own. "seconds"
are the method's alone, without imports and reading (cellnorm's hold reading, choosing genes and PCA too); "peak" is the
resident memory of the whole process. Where other work takes the cores, OMP_NUM_THREADS=1 is faster: threads wait for
one another. Results are written to DIR as they come: run it again after an interruption, and it does what is missing,
or what has another version now. --again does methods anew, --retry what has failed. The runs behind the README are kept
in peers_runs.jsonl beside it: --readme replaces those of them that DIR has anew, and the rest stands.
"""

# Nothing heavy here: a child's peak memory begins with its parent's, so the parent has to stay small.
import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers_methods import BATCH, METHODS, UnfitError, checked, version

Record = dict[str, Any]
Key = tuple[str, str, int]
NOT_INSTALLED = "not installed"
README = Path(__file__).resolve().parent / "README.md"
PUBLISHED = README.with_name("peers_runs.jsonl")


# What runs in processes of its own -------------------------------------------------------------------------------


def prepare(source: str, batch_key: str, file: str, ready: str) -> None:
    import peers_scores

    peers_scores.prepare(Path(source), batch_key, Path(file), Path(ready))


def one(name: str, seed: str, file: str, ready: str, answer: str, result: str) -> None:
    """Run a method on a set: the answer to one file, seconds or what went wrong to another."""
    try:
        found = measured(name, int(seed), Path(file), Path(ready), Path(answer))
    except UnfitError as error:
        found = {"failed": str(error)}
    except Exception as error:
        traceback.print_exc()
        found = {"failed": f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]}
    Path(result).write_text(json.dumps(found))


def measured(name: str, seed: int, file: Path, ready: Path, answer: Path) -> Record:
    import importlib

    method = METHODS[name]
    start = time.perf_counter()
    for module in ("anndata", *method.modules):
        importlib.import_module(module)
    imports = time.perf_counter() - start
    import anndata as ad

    as_file = method.given == "file"
    adata = ad.read_h5ad(file, backed="r") if as_file else ad.read_h5ad(ready)
    cells = adata.obs[[BATCH]].copy()
    if method.given == "counts" and "counts" not in adata.layers:
        raise UnfitError("needs counts, and there are none")
    start = time.perf_counter()
    found = method.run(file if as_file else adata, seed)
    seconds = time.perf_counter() - start
    found = checked(found, len(cells))
    slots = {"obsp": found} if isinstance(found, dict) else {"obsm": {"Z": found}}
    ad.AnnData(obs=cells, **slots).write_h5ad(answer)
    return {"seconds": seconds, "imports": imports}


def score(source: str, ready: str, label_key: str, results: str, *answers: str) -> None:
    """Append the scores of a set's answers to the results, one by one."""
    from peers_scores import Judge

    judge = Judge(Path(source), Path(ready), label_key)
    for answer in answers:
        path, name, seed = answer.rsplit("|", 2)
        found: Record = {"set": Path(source).stem, "method": name, "seed": int(seed)}
        try:
            found["scores"] = judge.scores(Path(path))
        except Exception as error:
            traceback.print_exc()
            found["failed"] = f"scoring: {type(error).__name__}: {str(error).strip()}".partition("\n")[0][:200]
        append(Path(results), found)


WORKERS = {f.__name__: f for f in (prepare, one, score)}


# Processes and results -------------------------------------------------------------------------------------------


def child(log: Path, limit: float | None, worker: str, *arguments: object) -> Record:
    """Run a worker in a fresh process, what it says into a log: wall clock, peak memory, and why it failed."""
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", worker, *map(str, arguments)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
    late = threading.Event()
    with log.open("w") as said, tempfile.TemporaryDirectory() as folder:  # where methods may leave what they like
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=said, stderr=said, cwd=folder, env=environment, start_new_session=True
        )

        def stop() -> None:
            late.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the workers that it may have started

        timer = threading.Timer(limit, stop) if limit else None
        try:
            if timer:
                timer.start()
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            stop()
            raise
        finally:
            if timer:
                timer.cancel()
        whole = time.perf_counter() - start
    code = process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
    record: Record = {"whole": whole, "cpu": usage.ru_utime + usage.ru_stime, "peak": peak}
    if late.is_set():
        record["failed"] = f"stopped after {limit:.0f} s"
    elif code:
        record["failed"] = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return record


def append(results: Path, record: Record) -> None:
    with results.open("a") as file:
        file.write(json.dumps(record) + "\n")


def load(results: Path) -> dict[Key, Record]:
    """The results so far. A line with a version begins a record, a later one of the same key adds to it."""
    found: dict[Key, Record] = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):  # half a line, of a run that was cut
            record = json.loads(line)
            key = (record["set"], record["method"], record["seed"])
            found[key] = record if "version" in record else {**found.get(key, {}), **record}
    return found


def publish(found: dict[Key, Record], published: Path) -> dict[Key, Record]:
    """All runs behind the README: those that were published before, or in their place what was found."""
    everything = {**load(published), **found}
    published.write_text("".join(f"{json.dumps(everything[key])}\n" for key in sorted(everything)))
    return everything


def missing(args: argparse.Namespace, found: dict[Key, Record], name: str) -> Iterator[tuple[str, int]]:
    """Methods and seeds that are still to be run on a set."""
    for method in args.methods:
        for seed in range(args.seeds if METHODS[method].seeded else 1):
            record = found.get((name, method, seed))
            if (
                record is None
                or method in args.again
                or record["version"] != version(method)
                or ("failed" in record and args.retry)
            ):
                yield method, seed


def run_one(args: argparse.Namespace, name: str, method: str, seed: int) -> Record:
    """A record of one run, with seconds and memory or with what failed."""
    record: Record = {"set": name, "method": method, "seed": seed, "version": version(method)}
    record |= {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "python": platform.python_version()}
    if not record["version"]:
        return {**record, "failed": NOT_INSTALLED}
    answer = args.output / "answers" / f"{name}.{method}.{seed}.h5ad"
    log = args.output / "logs" / f"{name}.{method}.{seed}.txt"
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        file, ready = (args.output / kind / f"{name}.h5ad" for kind in ("files", "prepared"))
        record |= child(log, args.limit, "one", method, seed, file, ready, answer, result)
        return {**json.loads(result.read_text()), **record} if result.exists() else record


def run_set(args: argparse.Namespace, source: Path) -> bool:
    """All that is missing on a set; false if it could not be read or scored."""
    name, results = source.stem, args.output / "results.jsonl"
    todo = list(missing(args, load(results), name))
    file, ready = (args.output / kind / f"{name}.h5ad" for kind in ("files", "prepared"))
    if todo and not (ready.exists() and ready.stat().st_mtime > source.stat().st_mtime):
        made = child(args.output / "logs" / f"{name}.txt", None, "prepare", source, args.batch_key, file, ready)
        if "failed" in made:
            print(f"{name}: cannot be prepared, {made['failed']}: see {args.output / 'logs' / name}.txt", flush=True)
            return False
    for method, seed in todo:
        record = run_one(args, name, method, seed)
        append(results, record)
        said = record.get("failed") or f"{record['seconds']:.1f} s, {record['peak'] / 1e6:.0f} MB"
        print(f"{name}, {method}, seed {seed}: {said}", flush=True)
    unscored = [
        f"{args.output / 'answers' / f'{name}.{method}.{seed}.h5ad'}|{method}|{seed}"
        for (of, method, seed), record in load(results).items()
        if of == name and not {"failed", "scores"} & record.keys()
    ]
    if not unscored:
        return True
    log = args.output / "logs" / f"{name}.scores.txt"
    scored = child(log, None, "score", source, ready, args.label_key, results, *unscored)
    said = scored.get("failed", "done")
    print(f"{name}: scored {len(unscored)} answers in {scored['whole']:.0f} s: {said}", flush=True)
    return "failed" not in scored


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help="names of files without .h5ad (default: all in FOLDER)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="without it, nothing is run")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3); methods without: one run")
    parser.add_argument("--limit", type=float, default=1800, help="seconds for one run (default: 1800)")
    parser.add_argument("--again", nargs="+", choices=METHODS, default=[], metavar="METHOD")
    parser.add_argument("--retry", action="store_true", help="run again what has failed")
    parser.add_argument("--batch-key", default="batch")
    parser.add_argument("--label-key", default="cell_type")
    parser.add_argument("--figures", action="store_true", help="draw the figures in DIR")
    parser.add_argument("--readme", action="store_true", help="tables and figures into benchmarks/README.md")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the child ends, too
    args.output = args.output.resolve()
    for folder in ("answers", "files", "logs", "prepared"):
        (args.output / folder).mkdir(parents=True, exist_ok=True)
    sources = sorted(args.data.resolve().glob("*.h5ad"), key=lambda path: path.stat().st_size) if args.data else []
    if unknown := set(args.sets) - {path.stem for path in sources}:
        parser.error(f"no such sets in {args.data}: {', '.join(sorted(unknown))}")
    done = [run_set(args, path) for path in sources if not args.sets or path.stem in args.sets]

    import peers_table

    found = load(args.output / "results.jsonl")
    if args.readme:
        found = publish(found, PUBLISHED)
    if not found:
        print("no results yet: --data says where the sets are", file=sys.stderr)
        return 1
    runs = peers_table.runs_of(found.values())
    print(peers_table.text(runs))
    peers_table.means(runs).to_csv(args.output / "table.csv", index=False, float_format="%.4f")
    if args.figures or args.readme:
        import peers_figures

        peers_figures.draw(runs, README.parent if args.readme else args.output)
    if args.readme:
        peers_table.write_readme(runs, README)
    return 0 if all(done) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        WORKERS[sys.argv[2]](*sys.argv[3:])
    else:
        sys.exit(main())
