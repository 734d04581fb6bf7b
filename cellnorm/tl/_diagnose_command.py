"""The command that a diagnosis recommends, safe to paste into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

__all__ = ["shell_command"]


def shell_command(source: str, keys: Sequence[str], layer: str | None) -> str:
    """The command that corrects, quoted for a shell.

    Examples
    --------
    >>> shell_command("my cells.h5ad", ["donor"], None)
    "cellnorm correct 'my cells.h5ad' --batch-key donor"
    """
    options = [("--batch-key", key) for key in keys] + ([("--layer", layer)] if layer is not None else [])
    words = [_quoted(f"./{source}" if source.startswith("-") else source)]
    for option, value in options:
        words.append(f"{option}={_quoted(value)}" if value.startswith("-") else f"{option} {_quoted(value)}")
    return " ".join(["cellnorm", "correct", *words])


def _quoted(word: str) -> str:
    """A word for a shell; characters that do not print are written as escapes, which bash and zsh read."""
    if word.isprintable():
        return shlex.quote(word)
    escapes = {"\\": "\\\\", "'": "\\'"}
    return "$'" + "".join(escapes.get(c, c if c.isprintable() else _octal(c)) for c in word) + "'"


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "surrogateescape"))
