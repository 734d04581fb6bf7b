"""Small functions for the workers of a cluster, which must find them in a module."""

import os
import signal
import time
from pathlib import Path
from typing import NamedTuple

from cellnorm.errors import DataError

active = 0  # tasks that this process does at the moment


class Toy(NamedTuple):
    """A task: its number, a folder for traces, how long it takes."""

    number: int
    folder: Path = Path()
    seconds: float = 0.0


def square(toy: Toy) -> int:
    time.sleep(toy.seconds)
    return toy.number**2


def fails(toy: Toy) -> int:
    if toy.number == 2:
        raise DataError("the second part\nholds no cells")
    if toy.number == 5:
        raise TimeoutError("of the task")
    return square(toy)


def leaves_trace(toy: Toy) -> int:
    Path(toy.folder, str(toy.number)).touch()
    return square(toy)


def dies_once(toy: Toy) -> int:
    dead = Path(toy.folder, "dead")
    if toy.number == 3 and not dead.exists():
        dead.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return square(toy)


def dies(toy: Toy) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return toy.number


def side_by_side(toy: Toy) -> tuple[int, int]:
    """The process, and how many tasks it does at once."""
    global active
    active += 1
    time.sleep(toy.seconds)
    seen = active
    active -= 1
    return os.getpid(), seen


def added(offset: int, toy: Toy) -> int:
    return offset + toy.number
