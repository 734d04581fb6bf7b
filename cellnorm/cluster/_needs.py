"""What a worker must have before it may do a part: the versions, the input and the work folder that the client has."""

from __future__ import annotations

import socket
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from cellnorm import __version__

__all__ = ["PROBE", "Needs", "complaint", "needs_of"]

LIBRARIES = ("numpy", "scipy", "torch")  # have a say in the last bits
PROBE = "cluster.probe"  # in the work folder: who can read it sees this very folder, and none of the same name


class Needs(NamedTuple):
    """What the client has, and what its workers must find.

    Attributes
    ----------
    versions
        Names and versions, of cellnorm first.
    source, size
        Path of the input and its bytes; -1 for a folder, -2 for nothing.
    folder, written
        Path of the work folder, and what is written in the probe there.
    """

    versions: tuple[tuple[str, str], ...]
    source: str
    size: int
    folder: str
    written: str


def needs_of(source: Path, folder: Path, written: str) -> Needs:
    """What the workers need for a run that starts here.

    Examples
    --------
    >>> from pathlib import Path
    >>> from cellnorm.cluster._needs import complaint, needs_of
    >>> needs = needs_of(Path("/"), Path("/"), "")
    >>> needs.size, complaint(needs)
    (-1, '')
    """
    return Needs(tuple(_versions().items()), str(source), _size(source), str(folder), written)


@lru_cache(maxsize=8)
def complaint(needs: Needs) -> str:
    """What this process lacks, to be said of the worker that it is; nothing if it lacks nothing."""
    host, mine = socket.gethostname(), _versions()
    others = [f"{name} {mine[name]} instead of {wanted}" for name, wanted in needs.versions if mine[name] != wanted]
    if others:
        return f"on {host} has {', '.join(others)}. Install the versions that the client has"
    for what, seen in (
        (f"the input {needs.source}", _size(Path(needs.source)) == needs.size),
        (f"the work folder {needs.folder}", _text(Path(needs.folder, PROBE)) == needs.written),
    ):
        if not seen:
            return f"on {host} does not see {what} as the client does. Put both on storage that all machines share"
    return ""


def _versions() -> dict[str, str]:
    """Versions without what says for which processor a library was built."""
    return {"cellnorm": __version__, **{name: version(name).partition("+")[0] for name in LIBRARIES}}


def _size(path: Path) -> int:
    try:
        return -1 if path.is_dir() else path.stat().st_size
    except OSError:
        return -2


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
