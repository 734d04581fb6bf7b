"""The work folder: what a long job has done so far, each piece complete or not there, so that it can be taken up again.

A job is a few stages; a stage is one file, or one file for each part of the rows until these are put together. Whoever
does a part writes its file, here or on another machine that sees the folder; done twice it does no harm.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cellnorm.determinism import one_thread
from cellnorm.errors import DataError
from cellnorm.output import reason, remove, shown, sibling, sweep
from cellnorm.parts import Map

try:
    import fcntl
except ImportError:  # Windows; there nobody is kept from starting a job twice at the same time
    fcntl = None  # type: ignore[assignment]

__all__ = ["WorkFolder", "atomic", "load_arrays", "load_rows", "work_folder"]

FORMAT, VERSION = "cellnorm work folder", 1
JOB, LOCK, SECONDS = "job.json", "lock", "seconds.json"
IN_MEMORY = 2**28  # bytes of an array that is read into memory; a larger one is mapped
Write = Callable[[Any, IO[bytes]], None]
T = TypeVar("T")


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that has its name only when it is complete and on the disk; several may write it at once."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


class WorkFolder:
    """A folder with the stages of one job.

    Attributes
    ----------
    path
        Where it is.
    seconds
        What each stage took, in all runs together.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as place, work_folder(pathlib.Path(place, "work"), {"asked": 1}) as folder:
    ...     with atomic(folder.path / "pcs.npy") as handle:
    ...         np.save(handle, np.arange(3))
    ...     load_rows(folder.path / "pcs.npy").tolist()
    [0, 1, 2]
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()  # for processes elsewhere
        self.seconds: dict[str, float] = _read_json(path / SECONDS) if (path / SECONDS).exists() else {}

    def add_seconds(self, stage: str, taken: float) -> None:
        """Write down what a stage took."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + taken
        with atomic(self.path / SECONDS) as handle:
            handle.write(json.dumps(self.seconds).encode())

    def parts(
        self,
        name: str,
        write: Write,
        tasks: Sequence[Any],
        run: Map = map,
        tick: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Path]:
        """Have the parts of a stage done that are not there yet.

        Parameters
        ----------
        name
            Of the stage.
        write
            Does a task and writes its answer into an open file; for other processes it must be a function of a module,
            or a `functools.partial` of one.
        tasks
            What is done: spans of rows.
        run
            How, see `cellnorm.parts.Map`.
        tick
            Called with the number of parts done and their number.

        Returns
        -------
        The files of all parts, in order.
        """
        files = [self.path / f"{name}-{i:04d}" for i in range(len(tasks))]
        missing = [(task, str(file)) for task, file in zip(tasks, files, strict=True) if not file.exists()]
        done = len(files) - len(missing)
        tick(done, len(files))
        for more, _ in enumerate(run(partial(_written, write), missing), done + 1):
            tick(more, len(files))
        return files

    def drop(self, name: str) -> None:
        """Remove the parts of a stage, which have been put together or are needed no more."""
        for file in self.path.glob(f"{name}-[0-9][0-9][0-9][0-9]"):
            file.unlink()

    def join_rows(self, name: str, parts: Sequence[Path], shape: tuple[int, ...]) -> Path:
        """Put arrays of rows, .npy each, one below the other into one .npy; the parts are removed."""
        file = self.path / f"{name}.npy"
        with atomic(file) as handle:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(handle, header)
            for part in parts:
                load_rows(part).astype("<f4", copy=False).tofile(handle)
        self.drop(name)
        return file


def _written(write: Write, task: tuple[Any, str]) -> None:
    """Do one task and write its file."""
    given, file = task
    with one_thread(), atomic(Path(file)) as handle:
        write(given, handle)


def load_rows(path: Path) -> NDArray[Any]:
    """An array of a stage: in memory, or mapped if it is large."""

    def read() -> NDArray[Any]:
        return np.asarray(np.load(path, "r" if path.stat().st_size > IN_MEMORY else None, allow_pickle=False))

    return _checked(path, read)


def load_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays that `numpy.savez` wrote."""

    def read() -> dict[str, NDArray[Any]]:
        with np.load(path, allow_pickle=False) as found:
            return dict(found)

    return _checked(path, read)


def _checked(path: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except (OSError, ValueError, EOFError) as error:
        text = f"{shown(path)} of the work folder cannot be read: {reason(error)}. Remove that file and start again."
        raise DataError(text) from error


@contextmanager
def work_folder(
    path: str | os.PathLike[str] | None, job: Mapping[str, Any], *, beside: Path | None = None
) -> Iterator[WorkFolder]:
    """Open the work folder of a job, new or begun; nobody else can until it is closed or this process is no more.

    Parameters
    ----------
    path
        The folder; made if it is not there. None: one that is removed in the end.
    job
        What is done: strings and numbers that decide the result, by name.
    beside
        Where a folder that is removed is made: beside this file.

    Raises
    ------
    DataError
        The folder is of another job or no work folder, somebody is at work in it, or it cannot be made.
    """
    if path is None:
        with temporary_folder(Path("work") if beside is None else beside) as folder:
            yield WorkFolder(folder)
        return
    path = Path(path)
    _make(path)
    with open(path / LOCK, "a") as lock:
        if fcntl is not None:
            try:  # is given back when the process ends, however it does
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                text = f"Another run is at work in {shown(path)}. Wait for it, or choose another work folder."
                raise DataError(text) from error
        _check(path, json.loads(json.dumps(dict(job), default=str)))
        for left in path.glob(".*.tmp"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield WorkFolder(path)


@contextmanager
def temporary_folder(target: Path) -> Iterator[Path]:
    """Give an empty folder beside `target` that is removed in the end; those of processes that are no more go, too.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with temporary_folder(pathlib.Path(folder, "a.txt")) as temporary:
    ...         _ = (temporary / "part").write_text("half")
    ...     list(pathlib.Path(folder).iterdir())
    []
    """
    folder = sibling(target, "work")
    sweep(target)
    remove(folder)
    try:
        folder.mkdir()
        yield folder
    finally:
        remove(folder)


def _make(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
        mine = (path / JOB).exists() or not set(os.listdir(path)) - {LOCK}
    except OSError as error:
        raise DataError(f"The work folder {shown(path)} cannot be made: {reason(error)}. Choose another.") from error
    if not mine:
        raise DataError(f"{shown(path)} is not empty and no work folder of cellnorm. Choose another name.")


def _check(path: Path, job: dict[str, Any]) -> None:
    """Refuse the folder of another job; write down what a new one is for."""
    asked = {"format": FORMAT, "format_version": VERSION, **job}
    if not (path / JOB).exists():
        with atomic(path / JOB) as handle:
            handle.write((json.dumps(asked, indent=1) + "\n").encode())
        return
    found = _read_json(path / JOB)
    for name in [*asked, *sorted(set(found) - set(asked))]:
        if found.get(name) != asked.get(name):
            now, then = (repr(str(job.get(name)))[:200] for job in (asked, found))
            raise DataError(
                f"The work folder {shown(path)} was begun for another job: {name} is {now} and was {then}. "
                "Ask for the same again, or choose another work folder."
            )


def _read_json(path: Path) -> dict[str, Any]:
    def read() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_text())
        if not isinstance(found, dict):
            raise ValueError("it is not as it was written")
        return found

    return _checked(path, read)
