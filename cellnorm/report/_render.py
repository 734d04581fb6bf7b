"""From values to HTML: the templates, and how numbers and names are written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jinja2
import numpy as np

__all__ = ["plain", "render"]

LONGEST_NAME = 120  # characters of a name; a page must stay readable whatever a file holds


def render(page: Mapping[str, Any]) -> str:
    """Fill the page's template; all text is escaped, and what cannot be seen is spelled out."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cellnorm"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_visible,
    )  # fmt: skip
    environment.filters.update(number=number, percent=percent, short=short)
    return environment.get_template("report.html").render(page)


def plain(value: Any) -> Any:
    """The same value with lists in place of arrays and Python's numbers in place of numpy's; keys are strings.

    Examples
    --------
    >>> plain({"n_cells": np.array([3, 4]), "seed": np.int64(0)})
    {'n_cells': [3, 4], 'seed': 0}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def number(value: Any, digits: int = 3) -> str:
    """A number with thousands apart; a fraction with `digits` digits; a dash for what is not known.

    Examples
    --------
    >>> number(11640), number(0.51234), number(None), number(-0.25, 2)
    ('11,640', '0.512', '–', '−0.25')
    """
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    text = f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"
    return text.replace("-", "−")


def percent(value: Any) -> str:
    """A share as a whole percentage; never 0 % or 100 % for what is not quite that.

    Examples
    --------
    >>> [percent(share).split() for share in (0.523, 0.999, 0.001, 1.0, float("nan"))]
    [['52', '%'], ['>99', '%'], ['<1', '%'], ['100', '%'], ['–']]
    """
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return "–"
    rounded = f"{100 * value:.0f}"
    if rounded == "100" and value < 1:
        rounded = ">99"
    elif rounded == "0" and value > 0:
        rounded = "<1"
    return f"{rounded}\u202f%"


def short(name: Any, longest: int = LONGEST_NAME) -> str:
    """A name from the data, its middle left out where it is too long."""
    text = str(name)
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[-half:]}"


def _visible(value: Any) -> Any:
    """Spell control characters out: names come from files, and half a surrogate pair cannot be written at all."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if value.isprintable():
        return value
    return "".join(c if c.isprintable() or c in "\n\u202f" else repr(c)[1:-1] for c in value)
