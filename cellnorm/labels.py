"""Batch labels from the columns of obs: read them, cross several, guess the column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.covariates import joined
from cellnorm.errors import DataError

__all__ = ["BATCH_NAMES", "bare_name", "batch_labels", "guess_batch_key", "kept_labels", "listed", "obs_column"]

# What a column that tells experiments apart is usually called, the likeliest first. Capitals and separators do not
# count: "Batch ID", "batch-id" and "batchID" are all "batch_id".
BATCH_NAMES = (
    *("batch", "batch_id", "batch_name", "batch_label", "sample", "sample_id", "sample_name", "orig.ident"),
    *("donor", "donor_id", "patient", "patient_id", "subject", "subject_id", "individual", "individual_id"),
    *("library", "library_id", "lab", "laboratory", "study", "study_id", "dataset", "dataset_id"),
    *("tech", "technology", "protocol", "platform", "assay", "method", "chemistry"),
    *("experiment", "experiment_id", "run", "run_id", "lane", "plate", "plate_id", "channel", "replicate", "site"),
)


def listed(names: Iterable[Any], limit: int = 12) -> str:
    """Names for a message: quoted, each cut to 60 characters, the first `limit` of them.

    Examples
    --------
    >>> listed(["a", "b", "c"], limit=2)
    "'a', 'b' and 1 more"
    """
    texts = [str(name) for name in names]
    shown = ", ".join(repr(text if len(text) <= 60 else text[:57] + "...") for text in texts[:limit])
    rest = f" and {len(texts) - limit} more" if len(texts) > limit else ""
    return (shown or "none") + rest


def obs_column(adata: AnnData, key: str) -> pd.Series[Any]:
    """A column of obs, or an error that lists what there is.

    Raises
    ------
    DataError
        If there is no such column.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> obs_column(ad.AnnData(np.ones((2, 1)), obs={"day": [1, 2]}), "day").tolist()
    [1, 2]
    """
    if key not in adata.obs:
        raise DataError(f"Column {key!r} was asked for, but the columns of obs are: {listed(adata.obs)}.")
    column: pd.Series[Any] = adata.obs[key]
    return column


def kept_labels(adata: AnnData, key: str) -> NDArray[np.object_]:
    """A column of obs as text, shape (n_cells,), "" where it is missing.

    Raises
    ------
    DataError
        If there is no such column, or nothing in it.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> kept_labels(ad.AnnData(np.ones((2, 1)), obs={"type": ["T", None]}), "type").tolist()
    ['T', '']
    """
    column = obs_column(adata, key)
    missing = column.isna().to_numpy()
    if missing.all():
        raise DataError(f"Column {key!r} of obs was asked for, but no cell has a value there. Name another column.")
    return np.where(missing, "", column.astype(str).to_numpy(object)).astype(object)


def batch_labels(adata: AnnData, batch_key: str | Sequence[str], *, several: bool = True) -> NDArray[np.object_]:
    """Batch of each cell as a string, from one column of obs or from several that are crossed.

    Values that are written alike are one batch (1 and "1", 1 and 1.0). Several columns give one batch per combination
    that occurs, shown as "a / b" (see `covariates.joined`).

    Parameters
    ----------
    adata
        Cells x genes.
    batch_key
        Column of obs, or several; of any type that can be written out.
    several
        There must be several batches, one of them with several cells: what a correction needs. Cells that are put into
        a reference may be of one batch.

    Returns
    -------
    ndarray of str
        Shape (n_cells,), of type object: fixed-width strings would take as much memory per cell as the longest name.

    Raises
    ------
    DataError
        If a column is missing, holds missing values, or if there are not `several` batches.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> obs = pd.DataFrame({"lab": [1, 1, 2], "day": ["a", "b", "a"]}, index=["c1", "c2", "c3"])
    >>> batch_labels(ad.AnnData(np.ones((3, 2)), obs=obs), "lab").tolist()
    ['1', '1', '2']
    """
    keys = [batch_key] if isinstance(batch_key, str) else list(dict.fromkeys(batch_key))
    if not keys:
        raise DataError(f"batch_key names no column; the columns of obs are: {listed(adata.obs)}.")
    columns = [_codes(adata.obs, key) for key in keys]
    codes, names = columns[0] if len(columns) == 1 else _crossed(columns)
    if several:
        _check_several(adata, keys, names, np.bincount(codes, minlength=1))
    return np.asarray(names, dtype=object)[codes]


def _check_several(adata: AnnData, keys: list[str], names: list[str], n_cells: NDArray[np.intp]) -> None:
    """Refuse one batch, and cells that are each a batch of its own."""
    if len(names) < 2:
        raise DataError(
            f"batch_key {listed(keys)} has one batch only ({listed(names)}): "
            f"there is nothing to correct. Name a column with two or more; obs has: {listed(adata.obs)}."
        )
    if n_cells.max() == 1:
        raise DataError(
            f"batch_key {listed(keys)} has {len(names)} values for {n_cells.sum()} cells: "
            "every cell is a batch of its own. Name a column that tells experiments apart."
        )


Codes = tuple[NDArray[np.intp], list[str]]


def _codes(obs: pd.DataFrame, key: str) -> Codes:
    """A column as codes and the name of each code."""
    if key not in obs:
        raise DataError(f"batch_key {key!r} was asked for, but the columns of obs are: {listed(obs)}.")
    if (n_columns := list(obs.columns).count(key)) > 1:
        raise DataError(f"batch_key {key!r} is the name of {n_columns} columns of obs. Give each its own name.")
    column = obs[key]
    if missing := int(column.isna().sum()):
        raise DataError(
            f"Every cell needs a batch, but obs[{key!r}] is missing (NaN) for {missing} of {len(column)} cells. "
            "Fill these in, or leave the cells out."
        )
    try:
        codes, values = pd.factorize(column)
    except TypeError as error:
        raise DataError(f"obs[{key!r}] holds values that are no labels ({error}). Write them as strings.") from error
    names, which = np.unique(np.asarray([_text(value) for value in values], dtype=object), return_inverse=True)
    return which[codes], names.tolist()


def _text(value: Any) -> str:
    """How a label is written: whole floats like integers, since a column with gaps once filled stays float."""
    is_whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if is_whole else str(value)


def _crossed(columns: list[Codes]) -> Codes:
    """One code per combination that occurs."""
    combinations, codes = np.unique(np.stack([codes for codes, _ in columns], axis=1), axis=0, return_inverse=True)
    names = [joined([texts[code] for code, (_, texts) in zip(c, columns, strict=True)]) for c in combinations]
    return codes.reshape(-1), names


def guess_batch_key(obs: pd.DataFrame) -> tuple[str, str]:
    """Find the column of obs that tells experiments apart, if exactly one can be meant.

    A column is plausible if its name is one of `BATCH_NAMES` (capitals and separators do not count) and it has 2 to
    n_cells / 10 values. Columns that part the cells in the same way count as one.

    Parameters
    ----------
    obs
        Annotations of the cells, shape (n_cells, n_columns).

    Returns
    -------
    key
        Name of the column.
    reason
        Why it was chosen, for people.

    Raises
    ------
    DataError
        If no column is plausible, or columns that part the cells differently are.

    Examples
    --------
    >>> import pandas as pd
    >>> guess_batch_key(pd.DataFrame({"Donor ID": ["a", "b"] * 10, "age": 0}))[0]
    'Donor ID'
    """
    rank = {bare_name(name): place for place, name in reversed(list(enumerate(BATCH_NAMES)))}
    columns = {str(name): _partition(obs.iloc[:, place]) for place, name in enumerate(obs.columns)}
    levels = {name: int(codes.max(initial=-1)) + 1 for name, codes in columns.items()}
    sized = [name for name in columns if 2 <= levels[name] <= len(obs) / 10]
    usual = sorted((name for name in sized if bare_name(name) in rank), key=lambda name: rank[bare_name(name)])
    different = [name for name in usual if not np.array_equal(columns[name], columns[usual[0]])]
    advice = "Say which one with --batch-key (in Python: batch_key)."
    if usual and not different:
        alike = f"; {listed(usual[1:])} would part the cells alike" if usual[1:] else ""
        return usual[0], f"the only column of obs with a usual name for batches, {levels[usual[0]]} values{alike}"
    if usual:
        raise DataError(f"Several columns of obs can mean the batch: {_counted(usual, levels)}. {advice}")
    if sized:
        candidates = _counted(sized, levels)
        raise DataError(f"No column of obs has a usual name for batches. Candidates: {candidates}. {advice}")
    raise DataError(
        f"No column of obs can mean the batch, which has 2 to {len(obs) // 10} values in {len(obs)} cells; "
        f"obs has: {_counted(list(columns), levels)}. Add a column that says which experiment a cell is from. {advice}"
    )


def bare_name(name: str) -> str:
    """The name of a column without capitals and separators.

    Examples
    --------
    >>> bare_name("Batch-ID")
    'batchid'
    """
    return re.sub(r"[\W_]", "", name.lower())


def _partition(column: pd.Series[Any]) -> NDArray[np.intp]:
    """Codes in order of appearance: the same for two columns that part the cells alike. Missing is a value."""
    try:
        return np.asarray(pd.factorize(column, use_na_sentinel=False)[0], dtype=np.intp)
    except TypeError:  # lists and the like are no labels
        return np.empty(0, np.intp)


def _counted(names: list[str], levels: dict[str, int], limit: int = 12) -> str:
    shown = ", ".join(f"{listed([name])} ({levels[name]} values)" for name in names[:limit])
    return (shown or "no column") + (f" and {len(names) - limit} more" if len(names) > limit else "")
