"""Where a result goes: its name, whether it can be written there, and how it gets there whole or not at all."""

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cellnorm.errors import DataError

__all__ = ["check_embedding", "check_target", "default_output", "is_zarr", "names_file"]
__all__ += ["reason", "remove", "replacing", "shown", "sibling", "stem", "sweep"]

_SUFFIXES = (".h5ad", ".zarr", ".h5")
# A folder counts as gone when it is not there so many looks in a row; after so many seconds it is given up.
STAYS_GONE, LONGEST_TIDYING = 8, 20.0


def shown(path: str | os.PathLike[str]) -> str:
    """A path for a message: quoted, without control characters, the end of it if it is long.

    Examples
    --------
    >>> shown("lab1/cells.h5ad")
    "'lab1/cells.h5ad'"
    """
    text = os.fspath(path)
    return repr(text if len(text) <= 120 else "..." + text[-117:])


def reason(error: BaseException) -> str:
    """Why something failed, in a few words: what the system says, else the first line of the library's message.

    Examples
    --------
    >>> reason(FileNotFoundError(2, "No such file or directory"))
    'no such file or directory'
    """
    full = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT)]
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    if any(words in text for words in full):
        return "the disk is full"
    if isinstance(error, OSError) and error.errno:
        return text[:1].lower() + text[1:]
    text = next(iter(text.splitlines()), "").rstrip(". ") or type(error).__name__
    return repr(text[:150])[1:-1]


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a zarr store, of format 2 or 3."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def stem(path: str | os.PathLike[str]) -> str:
    """Name of a file or folder without .h5ad, .zarr or .h5; other dots stay.

    Examples
    --------
    >>> stem("labs/GSM1.rep2.h5ad")
    'GSM1.rep2'
    """
    name = Path(os.path.abspath(path)).name
    return next((name[: -len(s)] for s in _SUFFIXES if name.lower().endswith(s) and len(name) > len(s)), name)


def default_output(path: str | os.PathLike[str]) -> Path:
    """Name of the result of one input, beside it.

    Parameters
    ----------
    path
        The input.

    Returns
    -------
    x.cellnorm.zarr for x.zarr; x.cellnorm.h5ad for x.h5ad, the 10x file x.h5 and the 10x folder x.

    Examples
    --------
    >>> str(default_output("cells.h5ad"))
    'cells.cellnorm.h5ad'
    """
    path = Path(path)
    folder = path.parent if path.name not in ("", "..") else Path(os.path.abspath(path)).parent
    return folder / f"{stem(path)}.cellnorm{'.zarr' if path.suffix.lower() == '.zarr' else '.h5ad'}"


def check_target(
    path: str | os.PathLike[str],
    inputs: Sequence[str | os.PathLike[str]] = (),
    *,
    force: bool = False,
    suffixes: Sequence[str] = (".h5ad", ".zarr"),
) -> None:
    """Refuse, before any long work, a result that could not be written in the end or would harm an input.

    Parameters
    ----------
    path
        Where the result shall go.
    inputs
        What it is made from.
    force
        An existing result may be replaced.
    suffixes
        How its name may end.

    Raises
    ------
    DataError
        An input is missing, is the output, holds it or lies in it; the output has another suffix, exists and `force`
        is not set, is a folder or file that no result would be; its folder is missing or cannot be written to.

    Examples
    --------
    >>> check_target("result.csv")
    Traceback (most recent call last):
    ...
    cellnorm.errors.DataError: The output must end in .h5ad or .zarr, found 'result.csv'.
    """
    target = Path(path)
    for source in inputs:
        try:
            os.stat(source)
        except OSError as error:
            raise DataError(f"{shown(source)} cannot be read: {reason(error)}. Check its name and folder.") from error
    if target.suffix.lower() not in suffixes:
        raise DataError(f"The output must end in {' or '.join(suffixes)}, found {shown(target)}.")
    here = Path(os.path.realpath(target))
    for source in inputs:
        there = Path(os.path.realpath(source))
        same = os.path.exists(target) and os.path.samefile(source, target)
        if same or there == here or there in here.parents or here in there.parents:
            raise DataError(f"The output {shown(target)} would change the input {shown(source)}: choose another name.")
    if os.path.lexists(target):
        if not force:
            raise DataError(f"{shown(target)} exists. Choose another name or replace it (--force).")
        if target.suffix.lower() == ".zarr" and not is_zarr(target):
            raise DataError(f"{shown(target)} is no zarr store and is not replaced. Choose another name.")
        if target.suffix.lower() != ".zarr" and target.is_dir():
            raise DataError(f"{shown(target)} is a folder and is not replaced. Choose another name.")
    _check_folder(target)


def names_file(path: str | os.PathLike[str]) -> Path:
    """Where the names of the cells go, one in a line, beside an embedding that is written as .npy.

    Examples
    --------
    >>> str(names_file("lab/z.npy"))
    'lab/z.names.txt'
    """
    return Path(path).with_suffix(".names.txt")


def check_embedding(
    path: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]] = (), *, force: bool = False
) -> None:
    """Refuse, before any long work, a file of names and embedding that could not be written in the end.

    Parameters
    ----------
    path
        Where it shall go: .h5ad, .parquet, which needs pyarrow, or .npy, whose names go into another file beside it.
    inputs, force
        See `check_target`.

    Raises
    ------
    DataError
        As `check_target`, for the file of the names too; or pyarrow is wanted and not installed.

    Examples
    --------
    >>> check_embedding("z.csv")
    Traceback (most recent call last):
    ...
    cellnorm.errors.DataError: The output must end in .h5ad or .parquet or .npy, found 'z.csv'.
    """
    check_target(path, inputs, force=force, suffixes=(".h5ad", ".parquet", ".npy"))
    kind = Path(path).suffix.lower()
    if kind == ".npy":
        check_target(names_file(path), inputs, force=force, suffixes=(".txt",))
    if kind == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            f"{shown(path)} needs pyarrow, which is not installed. "
            'Install it (pip install "cellnorm[parquet]"), or choose a name that ends in .h5ad or .npy.'
        )


def _check_folder(target: Path) -> None:
    if not target.parent.is_dir():
        raise DataError(f"There is no folder {shown(target.parent)} to write into. Make it, or choose another one.")
    probe = sibling(target, "tmp")
    try:  # rights as listed can mislead (root, network disks): only writing tells
        remove(probe)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        text = f"{shown(target)} cannot be written: {reason(error)}. Choose another folder or name."
        raise DataError(text) from error


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of `target` that takes its name when the block ends, and is removed if the block fails.

    Whatever happens, even SIGKILL, `target` is either what it was, or absent, or complete. What killed processes left
    behind is removed.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(pathlib.Path(folder, "a.txt")) as temporary:
    ...         _ = temporary.write_text("whole")
    ...     sorted(p.name for p in pathlib.Path(folder).iterdir())
    ['a.txt']
    """
    temporary, aside = sibling(target, "tmp"), sibling(target, "old")
    sweep(target)
    try:
        yield temporary
        _sync(temporary)
        try:
            if temporary.is_dir() and os.path.lexists(target):  # a folder cannot be replaced in one go
                os.replace(target, aside)
            os.replace(temporary, target)
        except BaseException:
            if os.path.lexists(aside) and not os.path.lexists(target):
                os.replace(aside, target)
            raise
        _sync_folder(target.parent)
    finally:
        remove(temporary)
        remove(aside)


def sibling(target: Path, kind: str) -> Path:
    """A name beside `target` that this process alone uses: "tmp", "old" or "work"."""
    return target.with_name(f".{target.name}.{os.getpid()}.{kind}")


def sweep(target: Path) -> None:
    """Remove the temporary siblings of processes that are no more, and of an earlier one that had this one's number."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.(\d+)\.(tmp|old|work)")
    for name in os.listdir(target.parent):
        found = pattern.fullmatch(name)
        own = found is not None and int(found[1]) == os.getpid() and found[2] != "work"  # which may be in use
        if found and (own or not _alive(int(found[1]))):
            remove(target.with_name(name))


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True  # there os.kill would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        # zarr's other writers may be at work for a moment after one has failed, and make the folder anew
        gone, until = 0, time.monotonic() + LONGEST_TIDYING
        while gone < STAYS_GONE and time.monotonic() < until:
            gone = 0 if path.exists() else gone + 1
            shutil.rmtree(path, ignore_errors=True)
            time.sleep(0.05)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def _sync(path: Path) -> None:
    """Bring a file, or all files of a folder, to the disk before the name says that they are there."""
    files = [Path(top, name) for top, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    for file in files:
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every system can
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
