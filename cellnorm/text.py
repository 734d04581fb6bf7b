"""Tables for a terminal: plain characters in aligned columns, the best value of each row marked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from cellnorm.metrics.table import METRICS

__all__ = ["escaped", "score_csv", "score_json", "score_table", "table"]

LONGEST_NAME = 40
BEST = "*"
GAP = 3  # spaces between columns
HEADINGS = {
    "batch": "Are batches mixed?",
    "bio": "Are cell types kept apart?",
    "kept": "Is the structure within batches kept?",
    "total": "Means, as in scib-metrics",
}
NOTICEABLE = 0.02  # a smaller difference of means is not worth a word


def table(
    frame: pd.DataFrame,
    *,
    higher_is_better: Mapping[str, bool] | None = None,
    sections: Mapping[str, str] | None = None,
    digits: int = 3,
) -> str:
    """A frame of numbers as text for a terminal.

    Every row's best value is followed by a star, and so are others that look the same when rounded; no star where all
    do, or where there is nothing to compare. Names are made printable: they may come from a file.

    Parameters
    ----------
    frame
        Numbers, rows and columns named. If its columns have two levels (name; value, low, high), an interval is
        shown as "0.51 (0.49 to 0.53)".
    higher_is_better
        Row name to whether the largest value is the best one; rows that are not named get no star. None: no stars.
    sections
        Row name to the heading that it stands under; rows of one section follow each other.
    digits
        Digits after the point.

    Returns
    -------
    Lines without trailing spaces, no line break at the end. A missing value is shown as "-".

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"before": [0.1, 0.93], "after": [0.8, float("nan")]}, index=["iLISI", "cLISI"])
    >>> print(table(frame, higher_is_better={"iLISI": True, "cLISI": True}))
            before    after
    iLISI    0.100    0.800*
    cLISI    0.930        -
    """
    columns = list(dict.fromkeys(frame.columns.get_level_values(0)))
    better, headings = higher_is_better or {}, sections or {}
    indent = "  " if headings else ""
    lines: list[list[str]] = [["", *(escaped(column) + " " for column in columns)]]
    shown = ""
    for row, name in enumerate(map(str, frame.index)):
        if (heading := headings.get(name, "")) != shown:
            lines += [[""], [escaped(heading)]]
            shown = heading
        cells = [_cell(frame, row, column, digits) for column in columns]
        stars = _best([value for value, _ in cells], better.get(name), digits)
        lines.append([indent + escaped(name), *(text + star for (_, text), star in zip(cells, stars, strict=True))])
    return "\n".join(_aligned(lines))


def score_table(scores: pd.DataFrame) -> str:
    """What `cellnorm.tl.evaluate` gives, for people: a table by question, and each correction in a sentence.

    Parameters
    ----------
    scores
        With or without intervals.

    Returns
    -------
    Lines without a line break at the end.

    Examples
    --------
    >>> import pandas as pd
    >>> scores = pd.DataFrame({"X_pca": [0.1], "X_new": [0.7]}, index=["iLISI"])
    >>> print(score_table(scores))
              X_pca    X_new
    <BLANKLINE>
    Are batches mixed?
      iLISI   0.100    0.700*
    <BLANKLINE>
    * best of its row; higher is better
    """
    known = [metric for metric in METRICS if metric.name in scores.index]
    text = table(
        scores,
        higher_is_better={metric.name: metric.higher_is_better for metric in known},
        sections={metric.name: HEADINGS[metric.kind] for metric in known},
    )
    values = (scores if scores.columns.nlevels == 1 else scores.xs("value", axis=1, level=1)).to_dict()
    notes = [f"{BEST} best of its row; higher is better"] if BEST in text else []
    before = scores.attrs.get("before")
    if before in values:
        notes += [_sentence(escaped(name), values[name], values[before]) for name in values if name != before]
    return "\n".join([text, "", *notes]).rstrip()


def score_csv(scores: pd.DataFrame) -> str:
    """What `cellnorm.tl.evaluate` gives, for programs: CSV with a row per score; empty where it could not be computed.

    Parameters
    ----------
    scores
        With or without intervals, whose ends are in columns such as "X_pca low".

    Returns
    -------
    Lines without a line break at the end; numbers in full.

    Examples
    --------
    >>> import pandas as pd
    >>> print(score_csv(pd.DataFrame({"X_pca": [0.1]}, index=pd.Index(["iLISI"], name="metric"))))
    metric,X_pca
    iLISI,0.1
    """
    flat = scores.copy()
    if scores.columns.nlevels > 1:
        names, parts = (scores.columns.get_level_values(level) for level in (0, 1))
        pairs = zip(names, parts, strict=True)
        flat.columns = pd.Index([name if part == "value" else f"{name} {part}" for name, part in pairs])
    return flat.to_csv(lineterminator="\n").rstrip("\n")


def score_json(scores: pd.DataFrame) -> str:
    """What `cellnorm.tl.evaluate` gives, for programs: JSON; a score that could not be computed is null.

    Parameters
    ----------
    scores
        With or without intervals.

    Returns
    -------
    An object with "before" (name of the uncorrected embedding, or "") and "scores": embedding to score to its value, or
    with intervals to an object with value, low and high.

    Examples
    --------
    >>> import pandas as pd
    >>> print(score_json(pd.DataFrame({"X_pca": [0.1, float("nan")]}, index=["iLISI", "KBET"])))
    {
      "before": "",
      "scores": {
        "X_pca": {
          "iLISI": 0.1,
          "KBET": null
        }
      }
    }
    """
    plain: dict[str, dict[str, Any]] = {}
    for column, values in scores.items():
        name, part = column if isinstance(column, tuple) else (column, "")
        of_name = plain.setdefault(str(name), {})
        for metric, value in values.items():
            known = None if math.isnan(value) else float(value)
            if part:
                of_name.setdefault(str(metric), {})[part] = known
            else:
                of_name[str(metric)] = known
    return json.dumps({"before": scores.attrs.get("before", ""), "scores": plain}, indent=2)


def _sentence(name: str, after: Mapping[str, float], before: Mapping[str, float]) -> str:
    """How a correction compares with what it started from."""
    if not math.isnan(after.get("Total", math.nan)):
        mixed, kept = (
            f"{verb} {_change(after[mean] - before[mean])} ({before[mean]:.2f} to {after[mean]:.2f})"
            for verb, mean in (("mixes batches", "Batch correction"), ("keeps types apart", "Bio conservation"))
        )
        return f"{name} {mixed} and {kept}."
    entropy, kept = "Batch entropy adjusted", "Neighbors kept"
    mixed = f"mixes batches {_change(after[entropy] - before[entropy])} ({before[entropy]:.2f} to {after[entropy]:.2f})"
    return f"{name} {mixed} and keeps {after[kept]:.0%} of the neighbours within batches."


def _change(difference: float) -> str:
    return "about as before" if abs(difference) < NOTICEABLE else "better" if difference > 0 else "worse"


def escaped(name: object) -> str:
    r"""A name in printable characters, its middle left out if it is long.

    Examples
    --------
    >>> escaped("donor\n1")
    'donor\\n1'
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(name))
    half = LONGEST_NAME // 2 - 2
    return text if len(text) <= LONGEST_NAME else f"{text[:half]}...{text[-half:]}"


def _cell(frame: pd.DataFrame, row: int, column: object, digits: int) -> tuple[float, str]:
    """The value of a cell and how it is written."""
    if frame.columns.nlevels == 1:
        value = float(frame[column].iloc[row])
        return value, _number(value, digits)
    value, low, high = (float(frame[column, part].iloc[row]) for part in ("value", "low", "high"))
    text = _number(value, digits)
    return value, text if math.isnan(low) else f"{text} ({_number(low, digits)} to {_number(high, digits)})"


def _number(value: float, digits: int) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.{digits}f}".replace(f"-{0:.{digits}f}", f"{0:.{digits}f}")  # no minus before a zero


def _best(values: Sequence[float], higher: bool | None, digits: int) -> list[str]:
    """A star or nothing for each value of a row."""
    rounded = [round(value, digits) for value in values]
    known = {value for value in rounded if not math.isnan(value)}
    if higher is None or len(known) < 2:
        return [" "] * len(values)
    best = max(known) if higher else min(known)
    return [BEST if value == best else " " for value in rounded]


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Names to the left, numbers to the right. Headings, which stand alone in their lines, do not widen the names."""
    widths = [max(len(line[i]) for line in lines if len(line) > max(i, 1)) for i in range(max(map(len, lines)))]
    return [
        "".join(
            text.rjust(width + GAP) if place else text.ljust(width)
            for place, (text, width) in enumerate(zip(line, widths, strict=False))
        ).rstrip()
        for line in lines
    ]
