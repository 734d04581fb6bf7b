"""`map` on a cluster: answers in the order of the tasks, few tasks in flight, a dead worker's work done again."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from cellnorm import __version__
from cellnorm.cluster._connect import opened
from cellnorm.cluster._needs import PROBE, Needs, complaint, needs_of
from cellnorm.errors import DataError
from cellnorm.parts import Map

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["in_order", "on_cluster", "workers"]

logger = logging.getLogger(__name__)

IN_FLIGHT = 2  # tasks for each worker: one that it does and one that waits, so that no worker is idle
POLL = 5.0  # seconds between two looks at whether anybody still works
DESERTED = 120.0  # seconds that a run waits for a worker to come (back)

# Limits on the threads of numerics hold for a whole process: two tasks side by side would lift each other's.
_alone = threading.Lock()


@contextmanager
def workers(client: Client | str | None, source: Path, folder: Path) -> Iterator[Map]:
    """Who does the parts: a cluster, see `opened` and `on_cluster`, or the builtin `map`.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cellnorm.cluster import workers
    >>> with workers(None, Path(), Path()) as run:
    ...     list(run(abs, [-1, -2]))
    [1, 2]
    """
    if client is None:
        yield map
        return
    with opened(client) as connection, on_cluster(connection, source, folder) as run:
        yield run


@contextmanager
def on_cluster(client: Client, source: Path, folder: Path) -> Iterator[Map]:
    """`in_order` for work that reads a file and writes into a folder, both on storage that all workers share.

    All workers that are there are looked at before the work, and those that come later before their first task.

    Parameters
    ----------
    client
        From `opened`.
    source
        The file, or folder, that is read.
    folder
        The work folder, which exists; a small file is written there by which it is known, and removed at the end.

    Raises
    ------
    DataError
        Naming the worker that does not see the one or the other, or has other versions of cellnorm or of libraries that
        have a say in the result.
    """
    source, folder = Path(source).absolute(), Path(folder).absolute()
    probe = folder / PROBE
    probe.write_text(written := uuid4().hex)
    try:
        needs = needs_of(source, folder, written)
        _check(client, needs)
        threads = client.nthreads()
        logger.info("cluster %s: %d workers", client.scheduler.address, len(threads))
        if sum(threads.values()) > len(threads):
            logger.info("a worker does one part at a time, whatever its threads: start more with one thread each")
        yield in_order(client, needs)
    finally:
        probe.unlink(missing_ok=True)


def _check(client: Client, needs: Needs) -> None:
    """Refuse a cluster of which the scheduler or a worker lacks something."""
    unable = "The {} cannot load cellnorm ({}). Install cellnorm " + f"{__version__} there, as it is here."
    try:
        client.run_on_scheduler(complaint, needs)  # whatever it says: the scheduler reads tasks, but no files
    except ImportError as error:
        raise DataError(unable.format(f"scheduler {client.scheduler.address}", error)) from error
    for address, said in client.run(complaint, needs, on_error="return").items():
        if isinstance(said, Exception):
            raise DataError(unable.format(f"worker {address}", said)) from said
        if said:
            raise DataError(f"The worker {address} {said}.")


def in_order(client: Client, needs: Needs | None = None) -> Map:
    """Something like the builtin `map` that works on a cluster.

    Answers come in the order of the tasks. No more than two tasks for each worker are in flight, so that neither
    scheduler nor workers hold more answers than that. What a worker had that died is done again by another one. An
    error of a task is raised here as it is. Who stops asking, or is interrupted, cancels what has not begun.

    Parameters
    ----------
    client
        From `opened`.
    needs
        What each worker is looked at for before its first task, see `on_cluster`. None: nothing.

    Returns
    -------
    Map
        Called with a function, of a module that the workers have too, and tasks.

    Raises
    ------
    DataError
        From the iterator: if the scheduler is lost, no worker is left for two minutes, or several die of one task.
    """

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        waiting: deque[Future] = deque()
        rest = iter(tasks)
        try:
            while True:
                room = IN_FLIGHT * max(1, _n_workers(client)) - len(waiting)
                for task in islice(rest, max(0, room)):
                    key = f"{_name(function)}-{uuid4().hex}"
                    waiting.append(client.submit(partial(_do, needs, function, task), key=key, pure=False))
                if not waiting:
                    break
                answer = _answer(client, waiting[0])
                waiting.popleft()  # its worker forgets it, now that nobody here knows it
                yield answer
                del answer  # before the next one comes
            if needs is not None:
                os.listdir(needs.folder)  # NFS remembers for a while which files were not there, unless it is asked
        finally:
            if waiting and client.status == "running":
                client.cancel(list(waiting), force=True)

    return run


def _do(needs: Needs | None, function: Callable[[Any], Any], task: Any) -> Any:
    """What a worker does for a task."""
    from distributed import get_worker

    with _alone:
        if needs is not None and (lacking := complaint(needs)):
            raise DataError(f"The worker {get_worker().address} {lacking}.")
        return function(task)


def _answer(client: Client, future: Future) -> Any:
    """Wait for an answer as long as there is somebody to give it."""
    from distributed import KilledWorker

    deserted: float | None = None
    while True:
        try:
            return future.result(timeout=POLL)
        except CancelledError as error:
            raise _lost() from error
        except KilledWorker as error:
            raise DataError(
                "Workers of the cluster died, one after the other, while they worked on the same part. "
                "Give each more memory (dask worker --memory-limit), or look at what their logs say."
            ) from error
        except TimeoutError:
            if future.status == "error":
                return future.result()  # raises: the task itself ran out of time
        now = time.monotonic()
        deserted = None if _n_workers(client) else deserted or now
        if deserted is not None and now - deserted > DESERTED:
            raise DataError(
                f"No worker has been at the scheduler {client.scheduler.address} for {DESERTED:.0f} seconds. "
                "Start workers, and give the same command again."
            )


def _n_workers(client: Client) -> int:
    try:
        return len(client.nthreads())
    except (OSError, RuntimeError, AttributeError) as error:  # which one depends on how far dask has noticed
        raise _lost() from error


def _lost() -> DataError:
    return DataError(
        "The work on the cluster was cancelled, or the connection to its scheduler lost. Look whether it runs, and "
        "give the same command again."
    )


def _name(function: Any) -> str:
    """What a function is called on the scheduler's pages; of one that is handed another, that one's name."""
    while isinstance(function, partial):
        function = function.args[0] if function.args and callable(function.args[0]) else function.func
    return str(getattr(function, "__name__", "part")).strip("_")
