"""Which columns of obs can be asked whether they cause a batch effect, and what their names say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cellnorm.labels import BATCH_NAMES, bare_name

__all__ = ["Column", "judged_columns"]

# Names of what a study compares. Its effect is what is looked for: a correction must not take it away unasked.
CONDITION_NAMES = re.compile(
    r"(condition|disease|diagnosis|status|treat(ed|ment)?|stim(ulat(ed|ion))?|perturb(ed|ation)?|drug|compound|dose|group"
    r"|genotype|mutant|knockout|phenotype|tissue|organ|timepoint|time|day|stage|age|agegroup|sex|gender|infect(ed|ion)?"
    r"|response|responder|outcome)(id|name|label|status|group|type)?"
)
# Names of what scanpy, Seurat and their kin compute from the expression.
DERIVED_NAMES = re.compile(
    r"(n|log1pn|ncount|nfeature|log10)?(genes|counts|umis?|features|cells)(bycounts)?|n(count|feature|umi|gene|read)s?\w*"
    r"|(log1p)?(total|pct|percent|n)(counts|mito|mt|ribo|rb|genes|umi)\w*|(s|g2m|doublet)scores?|sizefactors?|librarysize"
)
MOST_NUMBERS, MOST_FRACTIONS = 30, 20  # different values of a column of numbers; with more it is a measurement


@dataclass(frozen=True)
class Column:
    """A column of labels.

    Attributes
    ----------
    name
        As in obs.
    codes
        Level of each cell, shape (n_cells,), all levels occurring; missing is a level of its own.
    n_missing
        Cells without a value.
    rank
        Place of the name among the usual ones for batches, or None.
    condition
        Whether the name is that of a condition that studies compare.
    """

    name: str
    codes: NDArray[np.int64]
    n_missing: int
    rank: int | None
    condition: bool

    @classmethod
    def of(cls, name: str, values: Any) -> Column:
        """A column from its values; raises TypeError if they are no labels."""
        codes = pd.factorize(pd.Series(values), use_na_sentinel=False)[0]
        rank = next((place for place, usual in enumerate(BATCH_NAMES) if bare_name(usual) == bare_name(name)), None)
        condition = CONDITION_NAMES.fullmatch(bare_name(name)) is not None
        return cls(name, np.asarray(codes, np.int64), int(pd.isna(pd.Series(values)).sum()), rank, condition)

    @property
    def n_levels(self) -> int:
        """Number of values, missing not counted."""
        return int(self.codes.max(initial=-1)) + 1 - (self.n_missing > 0)


def judged_columns(obs: pd.DataFrame) -> tuple[list[Column], list[dict[str, str]]]:
    """The columns that hold labels, and the others with the reason why they are left out.

    Parameters
    ----------
    obs
        Annotations of the cells, shape (n_cells, n_columns).

    Returns
    -------
    columns
        Those with 2 to n_cells / 10 values that are no measurement.
    left_out
        {"name": ..., "reason": ...} for each other column.

    Examples
    --------
    >>> obs = pd.DataFrame({"donor": ["a", "b"] * 20, "n_genes": range(40), "lab": "x"})
    >>> columns, left_out = judged_columns(obs)
    >>> [column.name for column in columns], [column["name"] for column in left_out]
    (['donor'], ['n_genes', 'lab'])
    """
    columns, left_out = [], []
    names = [str(name) for name in obs.columns]
    for place, name in enumerate(names):
        values = obs.iloc[:, place]
        try:
            column = Column.of(name, values)
            reason = "its name occurs twice" if names.count(name) > 1 else _unfit(column, values)
        except TypeError:
            reason = "values that are no labels"
        if reason:
            left_out.append({"name": name, "reason": reason})
        else:
            columns.append(column)
    return columns, left_out


def _unfit(column: Column, values: pd.Series[Any]) -> str:
    """Why a column cannot be the batch, or nothing."""
    n = column.n_levels
    if n < 2:
        return "one value only" if n else "no values"
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number:
        whole = bool((values.dropna() % 1 == 0).all())
        many = n > (MOST_NUMBERS if whole else MOST_FRACTIONS) and column.rank is None
        if many or DERIVED_NAMES.fullmatch(bare_name(column.name)):
            return "a measurement"
    if n == len(values):
        return "different for every cell"
    return f"{n:,} values in {len(values):,} cells" if n > len(values) / 10 else ""
