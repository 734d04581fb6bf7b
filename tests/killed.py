"""Run `cellnorm correct` again and again, and kill it: a process that has imported everything once, and forks.

    python killed.py FOLDER MOMENT...

FOLDER holds in.h5ad. The command first runs undisturbed into FOLDER/whole; then, for each MOMENT, a share of the time
that this took, into a folder of its own: killed at that moment, or earlier if it was done before, and started again
until it is done. What was seen is printed as JSON, a list with an entry for each moment.
"""

import json
import os
import shutil
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

from cellnorm import parts
from cellnorm.cli import main
from cellnorm.estimator import CellNorm

# What a run imports, before the first fork: each run would import it for itself.
for module in ("cellnorm.tl", "cellnorm.io", "cellnorm.contents", "cellnorm.embedding_file", "torch._dynamo"):
    import_module(module)

TRIES = 4  # to kill a run while it runs
RUNS = 3  # more than two are not needed: the second is not disturbed

parts.SPAN_ROWS = 100  # several parts of a small file
CellNorm.__init__.__kwdefaults__["n_steps"] = 30


def start(folder: Path) -> int:
    """Start the command in a process of its own: the process's number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        with open(folder / "log", "a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        source, target = str(folder.parent / "in.h5ad"), str(folder / "out.h5ad")
        options = ["-b", "batch", "-f", "-o", target, "--stream", "--work-dir", str(folder / "work")]
        main(["correct", source, *options], standalone_mode=False)
        code = 0
    finally:
        os._exit(code)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def stages(folder: Path) -> dict[str, int]:
    """What is complete in the work folder, and when it was written."""
    work = folder / "work"
    names = [p for p in work.rglob("*") if p.is_file() and not p.name.startswith(".")] if work.exists() else []
    return {str(p.relative_to(work)): p.stat().st_mtime_ns for p in names}


def trial(folder: Path, wait: float) -> dict[str, object]:
    """Kill a run after some seconds, and start it again until it is done."""
    for _ in range(TRIES):
        pid = start(folder)
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
        if killed := finish(pid) == -signal.SIGKILL:
            break
        shutil.rmtree(folder)  # done before its time: the machine has less to do than when it was measured
        folder.mkdir()
        wait *= 0.7
    seen = {"killed": killed, "stages": stages(folder), "output": (folder / "out.h5ad").exists()}
    codes: list[int] = []
    while 0 not in codes and len(codes) < RUNS:
        codes.append(finish(start(folder)))
    return {**seen, "codes": codes, "later": stages(folder)}


if __name__ == "__main__":
    place, moments = Path(sys.argv[1]), [float(share) for share in sys.argv[2:]]
    for name in ["whole", *map(str, range(len(moments)))]:
        (place / name).mkdir()
    begun = time.perf_counter()
    if code := finish(start(place / "whole")):
        sys.exit(f"undisturbed it failed with {code}: {(place / 'whole' / 'log').read_text()}")
    taken = time.perf_counter() - begun
    sys.stdout.write(json.dumps([trial(place / str(i), share * taken) for i, share in enumerate(moments)]))
