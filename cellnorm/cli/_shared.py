"""What several commands have in common."""

import logging
import shlex
import sys
from collections.abc import Callable
from typing import Any

import click

__all__ = ["batch_key_option", "found_batch_key", "typed_command"]

logger = logging.getLogger(__name__)


def batch_key_option(text: str) -> Callable[[Any], Any]:
    """The option -b, which may be given again; `text` is its help."""
    return click.option("-b", "--batch-key", "batch_keys", multiple=True, metavar="COLUMN", help=text)


def found_batch_key(obs: Any) -> list[str]:
    """The column that looks like the batch, which is said."""
    from cellnorm.labels import guess_batch_key

    key, why = guess_batch_key(obs)
    logger.info("batches: column %r (%s)", key, why)
    return [key]


def typed_command() -> str:
    """What was typed, for a report."""
    return shlex.join(["cellnorm", *sys.argv[1:]])
