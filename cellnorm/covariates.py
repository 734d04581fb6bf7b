"""Several covariates at once, as donor and protocol: a batch is a combination of their levels that occurs in the data.

Crossing covariates makes many small batches, each of which would have to be learnt anew. Here what a batch adds is the
sum of what its levels add (as in Harmony with several variables, Korsunsky et al. 2019, Nature Methods 16), so that a
batch of a few cells is known by its donor's other cells and its protocol's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["columns_of", "design_of", "joined", "level_codes"]

SEPARATOR = " / "


def joined(levels: Sequence[str]) -> str:
    """Name of a batch from the names of its levels, one of each covariate; different levels never give one name.

    Parameters
    ----------
    levels
        A covariate's level each; a name that could be taken for two is quoted.

    Examples
    --------
    >>> joined(["donor1", "10x"]), joined(["a / b", "c"]), joined(["donor1"])
    ('donor1 / 10x', "'a / b' / c", 'donor1')
    """
    if len(levels) == 1:
        return levels[0]
    return SEPARATOR.join(repr(t) if SEPARATOR in f" {t} " or t.startswith(("'", '"')) else t for t in levels)


def columns_of(batch: Any, n_cells: int) -> list[Any]:
    """The covariates that are given as one column, a table or array of columns, or a list of columns.

    Parameters
    ----------
    batch
        Shape (n_cells,) or (n_cells, n_covariates); a list or tuple of columns, each of n_cells labels.
    n_cells
        Number of cells, which tells a list of columns from one of cells.

    Examples
    --------
    >>> len(columns_of(["a", "b", "a"], 3)), len(columns_of([["a", "b", "a"], [1, 1, 2]], 3))
    (1, 2)
    """
    if getattr(batch, "ndim", 1) == 2:
        # column by column, since a table as one array would write whole numbers beside fractions as fractions
        return [batch.iloc[:, i] if hasattr(batch, "iloc") else batch[:, i] for i in range(batch.shape[1])]
    if isinstance(batch, list | tuple) and batch and all(_is_column(item, n_cells) for item in batch):
        return list(batch)
    return [batch]


def _is_column(item: Any, n_cells: int) -> bool:
    return hasattr(item, "__len__") and not isinstance(item, str | bytes) and len(item) == n_cells


def design_of(columns: Sequence[Sequence[str]], codes: NDArray[np.int64]) -> NDArray[np.float32]:
    """Which levels each batch is made of.

    Parameters
    ----------
    columns
        Levels of each covariate, cell by cell.
    codes
        Batch of each cell, 0 to n_batches - 1, shape (n_cells,).

    Returns
    -------
    Zeros and ones, shape (n_batches, n_levels): one 1 in each row for each covariate, whose levels stand together. A
    covariate of one level says nothing and has no column; with a single covariate left, batches are its levels: the
    identity.

    Examples
    --------
    >>> design_of([["a", "a", "b"], ["x", "y", "y"]], np.array([0, 1, 2]))
    array([[1., 0., 1., 0.],
           [1., 0., 0., 1.],
           [0., 1., 0., 1.]], dtype=float32)
    """
    cells = np.unique(codes, return_index=True)[1]
    parts = []
    for column in columns:
        place = {level: i for i, level in enumerate(sorted(set(column)))}
        if len(place) > 1:
            parts.append(np.eye(len(place), dtype=np.float32)[[place[column[cell]] for cell in cells]])
    return np.hstack(parts) if len(parts) > 1 else np.eye(len(cells), dtype=np.float32)


def level_codes(design: NDArray[np.float32]) -> NDArray[np.int64]:
    """Number of each batch's level of each covariate, shape (n_batches, n_covariates), from `design_of`'s answer.

    Examples
    --------
    >>> level_codes(np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]], "float32"))
    array([[0, 2],
           [1, 2]])
    """
    return np.nonzero(design)[1].reshape(len(design), -1)
