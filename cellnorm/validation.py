"""Checks of what a user hands to the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.covariates import columns_of, design_of, joined
from cellnorm.errors import DataError

__all__ = ["check_cells", "check_matrix", "check_strength", "check_width", "choose_device", "encode_labels"]
__all__ += ["known_codes"]


def encode_labels(batch: Any, n_cells: int) -> tuple[NDArray[np.object_], NDArray[np.int64], NDArray[np.float32]]:
    """Names of the batches, sorted, the number of each cell's batch among them, and the levels they are made of.

    With several covariates (see `covariates.columns_of`) batches are the combinations of their levels that occur; the
    last result is that of `covariates.design_of`.
    """
    columns = columns_of(batch, n_cells)
    if not columns:
        raise DataError(f"One batch label is needed for each of {n_cells} cells, found a table without columns.")
    levels = [_checked_texts(column, n_cells) for column in columns]
    texts = _joined_texts(levels)
    names = sorted(set(texts))
    if len(names) < 2:
        found = f"only {names[0]!r:.80}" if names else "no cell"
        raise DataError(f"Correction needs at least two batches, found {found}. Check the batch labels.")
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([place[t] for t in texts], dtype=np.int64)
    # Objects, not fixed-width text, in which one long name would make all of them long.
    return np.array(names, dtype=object), codes, design_of(levels, codes)


def _checked_texts(column: Any, n_cells: int) -> list[str]:
    """One covariate's levels as texts, none of which is missing."""
    labels = np.asarray(column)
    if labels.shape != (n_cells,):
        raise DataError(
            f"One batch label is needed for each of {n_cells} cells, found an array of shape {labels.shape}."
        )
    values = labels.tolist()
    if missing := sum(_is_missing(v) for v in values):
        raise DataError(f"The batch is missing for {missing} of {n_cells} cells. Name it, or leave these cells out.")
    return [str(v) for v in values]


def _joined_texts(levels: list[list[str]]) -> list[str]:
    """Name of each cell's batch."""
    if len(levels) == 1:
        return levels[0]
    cells = list(zip(*levels, strict=True))
    name = {combination: joined(combination) for combination in set(cells)}
    return [name[cell] for cell in cells]


def known_codes(batch: Any, names: NDArray[np.object_], n_cells: int) -> NDArray[np.int64]:
    """The number of each cell's batch among the batches of a model; several covariates or the names that they make."""
    place = {name: i for i, name in enumerate(names)}
    texts = _joined_texts([[str(v) for v in np.asarray(column).tolist()] for column in columns_of(batch, n_cells)])
    if unknown := sorted(set(texts) - set(place)):
        raise DataError(
            f"Batch {unknown[0]!r:.80} is unknown to the model, which knows {list(names[:10])!s:.300}. "
            "Give one of these, or fit again with the new batch."
        )
    if len(texts) != n_cells:
        raise DataError(f"One batch label is needed for each of {n_cells} cells, found {len(texts)}.")
    return np.array([place[t] for t in texts], dtype=np.int64)


def _is_missing(value: Any) -> bool:
    """None, NaN, NaT or pandas' NA, which refuses to be compared."""
    try:
        return value is None or bool(value != value)
    except TypeError:
        return True


def check_matrix(X: Any, n_latent: int) -> None:
    """Refuse a matrix with fewer cells than latent dimensions, or with values that are not finite."""
    check_cells(X.shape[0], n_latent)
    values = np.asarray(X.data if hasattr(X, "tocsr") else X)
    bad = int(values.size - np.count_nonzero(np.abs(values) <= np.finfo(np.float32).max))
    if bad:
        raise DataError(
            f"The matrix holds {bad} values that are NaN, infinite or beyond 32 bits. "
            "Remove these cells or genes, or fill them in."
        )


def check_cells(n_cells: int, n_latent: int) -> None:
    """Refuse fewer cells than latent dimensions."""
    if n_cells < n_latent:
        raise DataError(
            f"An embedding of {n_latent} dimensions was asked for, found {n_cells} cells. "
            "Give more cells than latent dimensions, or set n_latent lower."
        )


def choose_device(device: str) -> str:
    """The device that "auto" means, or the one asked for if it is there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if device not in there:
        raise DataError(f"Device {device!r:.80} is unknown. Choose auto, cpu, cuda or mps.")
    if not there[device]:
        raise DataError(f"Device {device!r} was asked for and is not there. Choose auto or cpu.")
    return device


def check_strength(strength: Any) -> None:
    """Refuse a strength that is no number from 0 to 1; None leaves the choice to others."""
    try:
        known = strength is None or 0 <= float(strength) <= 1
    except (TypeError, ValueError):
        known = False
    if not known:
        raise DataError(
            f"A strength of {strength!r:.80} was asked for. Give a number from 0 (the principal components as they "
            "are) to 1 (the full correction), or leave it out to have it chosen from the data."
        )


def check_width(x: Any, width: int) -> None:
    """Refuse a matrix that has not as many columns as the model was made with."""
    if x.ndim != 2 or x.shape[1] != width:
        raise DataError(
            f"The model was made with {width} genes or dimensions and got a matrix of shape {x.shape}. "
            "Give it the same ones in the same order."
        )
