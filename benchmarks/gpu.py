"""What a GPU would gain: seconds of what is dense, beside the floors that arithmetic, memory and launches set.

    python benchmarks/gpu.py                             100k, 1M and 10M cells, on the CPU and on CUDA
    python benchmarks/gpu.py --sizes 100000 --devices cpu --steps 100

Principal components are made, not computed: 300 clusters and an offset for each of five batches, 50 columns, float32.
Every line is a process of its own. "launches", "arithmetic" and "traffic" are shares of a step: operations times the
cost of an empty one; floating-point operations of the products over the speed of a large product; bytes that operations
read and write, nothing fused, over the speed of a large copy. All three are measured in the same process. What is left
over on a CPU is arithmetic that is no product. The CPU has one thread, as in training, and its seconds are those that
this thread had, so that other work on the machine counts little. Training's share is that of the 600 steps of a usual
run in the seconds of sketch, anchors (searched twice), training and embedding.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cellnorm import CellNorm
from cellnorm.anchors import Anchors, cosine, level_anchors
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.determinism import one_thread
from cellnorm.fitting import choose_sketch
from cellnorm.kinds import n_kinds
from cellnorm.optimizer import AdamW
from cellnorm.training import REPORT_EVERY, TrainingConfig, _stream, encode, loss_terms, train

SIZES, DEVICES = (100_000, 1_000_000, 10_000_000), ("cpu", "cuda")
N_BATCHES, N_CLUSTERS, N_DIMS, BLOCK = 5, 300, 50, 100_000
SIDE, LONG = 2048, 2**26  # of the product and the copy that say how fast the machine is
USUAL = CellNorm()
MISSING = "not yet measured"
# Operations that give another view of the same numbers: no kernel is started for them.
VIEWS = {"alias", "as_strided", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t", "transpose"}
VIEWS |= {"unbind", "unsqueeze", "view"}
COLUMNS = {
    "sketch, s": "{sketch:.2f}",
    "anchors, s": "{anchors:.2f}",
    "steps/s": "{speed:.0f}",
    "ms a step": "{step:.2f}",
    "embedded, cells/s": "{cells:,.0f}",
    "peak, MB": "{peak:,.0f}",
    "operations a step": "{launches:.0f}",
    "launches": "{of_launches:.0%}",
    "arithmetic": "{of_arithmetic:.1%}",
    "traffic": "{of_traffic:.0%}",
    "training's share": "{share:.0%}",
}

Result = dict[str, float]


def components(n_cells: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cells of many clusters in five batches, each with its offset; columns shrink as those of components do."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(3, 0.3, N_DIMS, dtype=np.float32)
    centres = 3 * rng.standard_normal((N_CLUSTERS, N_DIMS), np.float32)
    shift = rng.standard_normal((N_BATCHES, N_DIMS), np.float32)
    batch = rng.integers(0, N_BATCHES, n_cells)
    x = np.empty((n_cells, N_DIMS), np.float32)
    for start in range(0, n_cells, BLOCK):
        own = batch[start : start + BLOCK]
        noise = rng.standard_normal((len(own), N_DIMS), np.float32)
        x[start : start + BLOCK] = (centres[rng.integers(0, N_CLUSTERS, len(own))] + shift[own] + noise) * scale
    return x, batch


# What runs in a process of its own -------------------------------------------------------------------------------


class Traffic(TorchDispatchMode):
    """Count operations that are no views, and the bytes of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") not in VIEWS:
            self.operations += 1
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, kwargs, out)) if torch.is_tensor(t)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        return out


def now(device: str) -> float:
    """Seconds, when the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(device: str, function: Callable[[], Any], times: int = 1) -> float:
    """Of one call."""
    start = now(device)
    for _ in range(times):
        function()
    return (now(device) - start) / times


def machine(device: str) -> Result:
    """FLOP/s of a large product, bytes/s of a large copy, and seconds of an operation on one number."""
    square = torch.randn(SIDE, SIDE, device=device)
    long, one = torch.zeros(LONG, device=device), torch.zeros(1, device=device)
    other = torch.empty_like(long)
    tasks = {"product": lambda: square @ square, "copy": lambda: other.copy_(long), "launch": lambda: one.add_(1)}
    times = {"product": 3, "copy": 3, "launch": 2000}
    for task in tasks.values():
        task()
    took = {name: seconds(device, task, times[name]) for name, task in tasks.items()}
    return {"flops": 2 * SIDE**3 / took["product"], "bytes": 8 * LONG / took["copy"], "launch": took["launch"]}


def settings(n_steps: int) -> TrainingConfig:
    names = ("n_pairs", "n_neighbors", "learning_rate", "weight_decay", "contrast", "geometry")
    return TrainingConfig(n_steps, n_others=USUAL.n_pairs // 4, **{name: getattr(USUAL, name) for name in names})


def of_a_step(net: Autoencoder, x: NDArray[np.float32], batch: NDArray[np.int64], anchors: Anchors) -> Result:
    """Operations, FLOPs of products and bytes of one step; kernels instead of operations on a GPU."""
    device = net.shift.device
    data, labels, optimizer = torch.from_numpy(x).to(device), torch.from_numpy(batch).to(device), AdamW(net, 0.0)
    stream = _stream(batch, anchors, settings(4), np.random.default_rng(0), 4, device)
    net.train()

    def step() -> None:
        contrast, kinship, reconstruction, geometry = loss_terms(net, data, labels, next(stream))
        optimizer.step(contrast + kinship + reconstruction + geometry, 0.0)

    step()
    with FlopCounterMode(display=False) as flops:
        step()
    with Traffic() as traffic:
        step()
    launches = traffic.operations
    if device.type == "cuda":
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            step()
            torch.cuda.synchronize()
        launches = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())
    return {"launches": launches, "arithmetic": flops.get_total_flops(), "traffic": traffic.bytes}


def trained(
    net: Autoencoder, x: NDArray[np.float32], batch: NDArray[np.int64], anchors: Anchors, n_steps: int
) -> float:
    """Train, and give the seconds of a step: of the median stretch between reports, so that no search is in it."""
    ticks: list[float] = []
    rng = np.random.default_rng(0)
    train(net, x, batch, anchors, settings(n_steps), rng, lambda *_: ticks.append(now(net.shift.device.type)))
    return float(np.median(np.diff(ticks))) / REPORT_EVERY


def peak_megabytes(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def measure(n_cells: int, device: str, n_steps: int) -> Result:
    """All figures of one line."""
    rng, found = np.random.default_rng(0), {}
    with one_thread():
        x, batch = components(n_cells)
        start = now(device)
        chosen, scale = choose_sketch(x, batch, rng)
        found["sketch"] = now(device) - start
        x /= scale
        near, codes = x[chosen], batch[chosen]
        level_anchors(near[:200], codes[:200, None], 5, device)  # a GPU loads its libraries in its first calls
        start = now(device)
        anchors = level_anchors(cosine(near), codes[:, None], USUAL.n_neighbors, device)
        found["anchors"] = now(device) - start
        sizes = N_DIMS, N_BATCHES, USUAL.n_latent, USUAL.n_hidden, n_kinds(len(near))
        net = Autoencoder(AutoencoderConfig(*sizes, USUAL.dropout)).to(device)
        counts = of_a_step(net, near, codes, anchors)
        step = trained(net, near, codes, anchors, n_steps)
        embedding = seconds(device, lambda: encode(net, x, batch))
        peak, speeds = peak_megabytes(device), machine(device)  # whose arrays are no part of the peak
    whole = found["sketch"] + 2 * found["anchors"] + USUAL.n_steps * step + embedding
    return found | {
        "speed": 1 / step,
        "step": 1e3 * step,
        "cells": n_cells / embedding,
        "peak": peak,
        "launches": counts["launches"],
        "of_launches": counts["launches"] * speeds["launch"] / step,
        "of_arithmetic": counts["arithmetic"] / speeds["flops"] / step,
        "of_traffic": counts["traffic"] / speeds["bytes"] / step,
        "share": USUAL.n_steps * step / whole,
        "gigaflops": counts["arithmetic"] / 1e9,
        "megabytes": counts["traffic"] / 1e6,
        **{f"machine_{name}": value for name, value in speeds.items()},
    }


# The table -------------------------------------------------------------------------------------------------------


def there(device: str) -> bool:
    return device == "cpu" or torch.cuda.is_available()


def run(n_cells: int, device: str, n_steps: int) -> Result | None:
    """The figures, from a fresh process, or None if the device is not there."""
    if not there(device):
        return None
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "answer.json")
        subprocess.run(
            [sys.executable, __file__, "--worker", str(answer), str(n_cells), device, str(n_steps)], check=True
        )
        found: Result = json.loads(answer.read_text())
        return found


def line(n_cells: int, device: str, found: Result | None) -> str:
    """A row of the table; empty but for its first figure where there is no such device."""
    cells = [MISSING] + [""] * (len(COLUMNS) - 1) if found is None else [c.format(**found) for c in COLUMNS.values()]
    return f"| {n_cells:,} | {device} | " + " | ".join(cells) + " |"


def note(device: str, found: Result) -> str:
    """What the shares rest on."""
    return (
        f"{device}: {found['machine_flops'] / 1e9:.0f} GFLOP/s in products, {found['machine_bytes'] / 1e9:.1f} GB/s in "
        f"copies, {found['machine_launch'] * 1e6:.1f} µs for an empty operation; a step has {found['gigaflops']:.2f} "
        f"GFLOP in products and moves {found['megabytes']:.0f} MB."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="cells (default: 100k, 1M, 10M)")
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=DEVICES, help="default: both")
    parser.add_argument("--steps", type=int, default=200, help="steps of training that are timed (default: 200)")
    args = parser.parse_args()
    if args.steps < 4 * REPORT_EVERY:
        parser.error(f"Steps are timed between reports, of which four are needed: at least {4 * REPORT_EVERY} steps.")
    print("| cells | device | " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * (len(COLUMNS) + 2), flush=True)
    notes = {}
    for n_cells in args.sizes:
        for device in args.devices:
            found = run(n_cells, device, args.steps)
            print(line(n_cells, device, found), flush=True)
            if found is not None:
                notes[device] = note(device, found)
    print("", *notes.values(), sep="\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        where, size, place, steps = sys.argv[2:]
        Path(where).write_text(json.dumps(measure(int(size), place, int(steps))))
    else:
        main()
