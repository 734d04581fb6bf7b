"""Checks of what a user hands to the estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.errors import DataError

__all__ = ["check_matrix", "choose_device", "encode_labels"]


def encode_labels(batch: Any, n_cells: int) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Names of the batches, sorted, and the number of each cell's batch among them."""
    labels = np.asarray(batch)
    if labels.shape != (n_cells,):
        raise DataError(
            f"One batch label is needed for each of {n_cells} cells, found an array of shape {labels.shape}."
        )
    missing = int(sum(v is None or v != v for v in labels.tolist()))
    if missing:
        raise DataError(f"The batch is missing for {missing} of {n_cells} cells. Name it, or leave these cells out.")
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    if len(names) < 2:
        found = f"only {names[0]!r:.80}" if len(names) else "no cell"
        raise DataError(f"Correction needs at least two batches, found {found}. Check the batch labels.")
    return names, np.asarray(codes, np.int64)


def check_matrix(X: Any, n_latent: int) -> None:
    """Refuse a matrix with fewer cells than latent dimensions, or with values that are not finite."""
    if X.shape[0] < n_latent:
        raise DataError(
            f"An embedding of {n_latent} dimensions was asked for, found {X.shape[0]} cells. "
            "Give more cells than latent dimensions, or set n_latent lower."
        )
    values = np.asarray(X.data if hasattr(X, "tocsr") else X)
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise DataError(f"The matrix holds {bad} NaN or infinite values. Remove these cells or genes, or fill them in.")


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
