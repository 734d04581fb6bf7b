"""How the command line talks: exit codes, messages and bars on stderr, all of it one line of printable characters."""

import contextlib
import logging
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cellnorm.errors import DataError

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["exit_codes", "plain", "stage", "talk"]

LONGEST_LINE = 1500  # characters of a message; names in it may come from a file


@contextlib.contextmanager
def stage(name: str, seconds: dict[str, float], progress: "Progress") -> Iterator[None]:
    """Time a stage that cannot tell how far it is."""
    start = time.perf_counter()
    progress(name, 0, 1, None)
    yield
    progress(name, 1, 1, None)
    seconds[name] = time.perf_counter() - start


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turn an error in the data into one line and 1, and a stopped run into 128 and the signal's number."""
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except DataError as error:
        click.echo(f"cellnorm: {plain(str(error))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo("cellnorm: interrupted", err=True)
        sys.exit(128 + signal.SIGINT)
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # a second one must not disturb the tidying up
    sys.exit(128 + number)


@contextlib.contextmanager
def talk(quiet: bool, verbose: bool) -> Iterator["Progress"]:
    """Bring what the package logs to stderr, and draw a bar there for each stage.

    What is said before the computation starts is held back until it does, so that an error stands alone.
    """
    out = logging.StreamHandler(sys.stderr)
    out.addFilter(_harmless)
    held = MemoryHandler(1000, logging.DEBUG if verbose else sys.maxsize, target=out, flushOnClose=False)
    package = logging.getLogger("cellnorm")
    level = package.level
    package.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    package.addHandler(held)
    draw = _bars(sys.stderr.isatty() and not quiet)

    def release() -> None:
        held.flushLevel = logging.NOTSET
        held.flush()

    def progress(stage: str, done: int, total: int, loss: float | None) -> None:
        if stage not in ("read", "prepare"):
            release()
        draw(stage, done, total, loss)

    try:
        with warnings.catch_warnings():
            if not verbose:
                warnings.simplefilter("ignore")
            yield progress
        release()
    finally:
        draw("", 0, 0, None)
        package.removeHandler(held)
        package.setLevel(level)


def _bars(shown: bool) -> "Progress":
    """Draw one bar per stage; it stays on the screen if its stage took over a second."""
    bar: Any = None

    def draw(stage: str, done: int, total: int, loss: float | None) -> None:
        nonlocal bar
        if not shown:
            return
        if bar is not None and bar.desc != stage:
            bar.close()
            bar = None
        if bar is None and stage:
            from tqdm import tqdm

            style = "{desc:<8}{percentage:3.0f}% |{bar}| {elapsed}{postfix}"
            bar = tqdm(total=total, desc=stage, file=sys.stderr, leave=False, dynamic_ncols=True, bar_format=style)
        if loss is not None:
            bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        if bar is not None:
            bar.update(done - bar.n)
            if done == total:
                bar.leave = bar.format_dict["elapsed"] > 1
                bar.close()
                bar = None

    return draw


def _harmless(record: logging.LogRecord) -> bool:
    """Make a message one line of printable characters: names in it may come from a file."""
    warned = "warning: " if record.levelno >= logging.WARNING else ""
    record.msg, record.args = plain(warned + record.getMessage()), None
    return True


def plain(text: str) -> str:
    """The text in one line of printable characters, its middle left out where it is too long."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else repr(c)[1:-1] for c in text)
    return line if len(line) <= LONGEST_LINE else f"{line[: LONGEST_LINE // 2]} ... {line[-LONGEST_LINE // 2 :]}"
