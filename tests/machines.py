"""Schedulers and workers of dask on loopback, for tests; all of them are gone at the end."""

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def local_cluster(n_workers: int, **options: Any) -> Any:
    import distributed

    options = {
        "processes": True,
        "threads_per_worker": 2,
        "dashboard_address": "127.0.0.1:0",
        "memory_limit": 0,
        **options,
    }
    return distributed.LocalCluster(n_workers=n_workers, silence_logs=logging.CRITICAL, **options)


def eventually(condition: Any, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def started_by_hand(folder: Path, *commands: list[str]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start programs as a user does, in a folder of their own; they are dead at the end."""
    with contextlib.ExitStack() as stack, Path(folder, "log").open("wb") as log:
        processes = []
        for command in commands:
            processes.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        yield processes


def dask_program(*arguments: str, first: str = "pass") -> list[str]:
    """What the command `dask` does, with our search path."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; {first}; from dask.__main__ import main; main()"
    return [sys.executable, "-c", code, *arguments, "--no-dashboard"]


def scheduler_program(port: int, first: str = "pass") -> list[str]:
    return dask_program("scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-show", first=first)


def worker_program(port: int, folder: Path, first: str = "pass") -> list[str]:
    address = f"tcp://127.0.0.1:{port}"
    options = ["--nthreads", "1", "--no-nanny", "--local-directory", str(folder)]
    return dask_program("worker", address, *options, first=first)


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
