"""New cells in the terms of a model: its genes, normalised as in training, and the model for those that are there."""

from __future__ import annotations

import copy
import logging
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import choose_matrix, representation
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.genes import GeneMatch, match_genes
from cellnorm.labels import listed
from cellnorm.parts import blocks
from cellnorm.survey import TARGET_SUM, canonical, count_scale, log_values, stored_values

__all__ = ["Features", "read_features"]

logger = logging.getLogger(__name__)

# Cells whose logarithms add up to the same total, but for so much, were scaled to it: what was done can be undone.
SAME_TOTAL = 0.05


class Features(NamedTuple):
    """What a model takes of a file.

    Attributes
    ----------
    X
        Log-normalised expression of the model's genes that are there, or a representation, shape (n_cells, n_columns).
    model
        The model for these columns.
    length
        Length of each cell's row of X, shape (n_cells,).
    source, kind
        Where it was found and what it was; see `cellnorm.adata.choose_matrix`.
    match
        Where the genes are; None for a representation.
    """

    X: Any
    model: CellNorm
    length: NDArray[np.float64]
    source: str
    kind: str
    match: GeneMatch | None


def read_features(adata: AnnData, model: CellNorm, *, layer: str | None = None, use_rep: str | None = None) -> Features:
    """Find the genes (or the representation) that a model was made with, normalised as in its training.

    Parameters
    ----------
    adata
        New cells; only read.
    model
        A fitted model with names of genes, or one of a representation.
    layer, use_rep
        See `cellnorm.tl.embed`.

    Raises
    ------
    DataError
        If matrix, representation or genes do not fit the model.
    """
    known = model.input_
    kind = str(known.get("kind", "representation" if model.front_ is None else "log"))
    if kind == "representation":
        return _of_representation(adata, model, layer, use_rep or known.get("use_rep") or None)
    if use_rep is not None:
        raise DataError(
            f"use_rep {use_rep!r} was asked for, but the model was made with the expression of genes. Leave it out."
        )
    if not hasattr(model, "feature_names_in_"):
        raise DataError(
            f"The model has no names of its {model.n_features_in_} genes, since it was made from an array. Make it "
            "with cellnorm.tl.correct(adata, batch_key, save_model=...), or embed an array by CellNorm.transform."
        )
    return _of_genes(adata, model, layer, kind)


def _of_representation(adata: AnnData, model: CellNorm, layer: str | None, use_rep: str | None) -> Features:
    if layer is not None:
        raise DataError(f"layer {layer!r} was asked for, but the model was made with a representation. Leave it out.")
    if use_rep is None:
        raise DataError(
            f"The model was made with a representation in obsm, {model.n_features_in_} columns wide: name that of the "
            f"new cells with use_rep (--use-rep). obsm holds: {listed(adata.obsm)}."
        )
    values, source = representation(adata, use_rep)
    if values.shape[1] != model.n_features_in_:
        raise DataError(
            f"{source} has {values.shape[1]} columns, the model was made with {model.n_features_in_}. Give the new "
            "cells the same representation as those of the reference, made by the same fitted transformation."
        )
    length = np.sqrt(np.square(values, dtype=np.float64).sum(axis=1))
    return Features(values, model, length, source, "representation", None)


def _of_genes(adata: AnnData, model: CellNorm, layer: str | None, kind_of_model: str) -> Features:
    found, names, source, kind = choose_matrix(adata, layer)
    front = model.front_
    weight = None if front is None else np.square(front.loadings) @ front.variance
    var = adata.raw.var if source == "raw.X" else adata.var
    match = match_genes(model.feature_names_in_, names, weight=weight, others=_named_columns(var))
    _say(match, model, source, kind, found.shape[1])
    matrix, scale = _as_in_training(canonical(found), kind, kind_of_model, source, _library_there(model, match.found))
    positions = match.positions[match.found]
    X = log_values(matrix, positions, scale)
    if empty := int((X.getnnz(axis=1) == 0).sum()):
        logger.warning("%d cells express none of the model's genes: kept, but where they lie means nothing.", empty)
    length = np.sqrt(np.asarray(X.multiply(X).sum(axis=1), np.float64).reshape(-1))
    return Features(X, _narrowed(model, match.found), length, source, kind, match)


def _named_columns(var: pd.DataFrame) -> dict[str, NDArray[Any]]:
    """Columns of var that hold text: other names of the genes may be among them."""
    text = {str(name): var.iloc[:, place] for place, name in enumerate(var.columns)}
    return {
        f"var[{name!r}]": column.astype(str).to_numpy()
        for name, column in text.items()
        if isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column.dtype)
    }


def _say(match: GeneMatch, model: CellNorm, source: str, kind: str, n_genes: int) -> None:
    n_found, n_wanted = int(match.found.sum()), len(match.positions)
    logger.info(
        "genes: %d of the model's %d are among the %d of %s (%s)%s",
        *(n_found, n_wanted, n_genes, source, kind, f"; {match.note}" if match.note else ""),
    )
    if n_found < n_wanted:
        missing = np.asarray(model.feature_names_in_)[~match.found]
        logger.log(
            logging.INFO if match.share > 0.9 else logging.WARNING,
            "%d genes are missing (%s), with %.0f %% of what the model sees: filled with what the others let expect",
            *(len(missing), listed(missing, limit=3), 100 * (1 - match.share)),
        )


def _library_there(model: CellNorm, present: NDArray[np.bool_]) -> float:
    """Share of the counts per cell that a file still has which lacks some of the model's genes.

    Its library is smaller by what these genes would have counted, and more likely than not by as large a share of the
    genes that the model does not use. What a gene counts is told from its mean in the reference.
    """
    counted = np.expm1(np.maximum(model.front_.mean, 0)) if model.front_ is not None else np.ones(len(present))
    return float(counted[present].sum() / max(float(counted.sum()), np.finfo(float).tiny))


def _as_in_training(
    matrix: Any, kind: str, kind_of_model: str, source: str, there: float
) -> tuple[Any, NDArray[np.float64] | None]:
    """Counts, or logarithms as they are, and what each cell's values are multiplied by before logarithms are taken."""
    if kind == "counts":
        return matrix, count_scale(matrix) * there
    if kind_of_model != "counts":
        return matrix, None
    totals = np.concatenate([_totals(block) for _, block in blocks(matrix)])
    filled = totals[totals > 0]
    middle = float(np.median(filled)) if len(filled) else TARGET_SUM
    as_trained = abs(middle / TARGET_SUM - 1) < SAME_TOTAL
    if as_trained and there == 1:
        return matrix, None
    if as_trained or (len(filled) > 1 and float(np.std(filled)) < SAME_TOTAL * middle):
        if not as_trained:
            logger.info("%s: scaled from %.6g to the model's %.6g counts per cell", source, middle, TARGET_SUM)
        undone = sp.csr_matrix((np.expm1(matrix.data, dtype=np.float64), matrix.indices, matrix.indptr), matrix.shape)
        return undone, count_scale(undone) * there
    logger.warning(
        "%s holds logarithms that are not log(1 + counts per %.0f) of all genes, which the model was made with (cells "
        "add up to %.3g typically): taken as they are, but doubtful. Give counts if there are any.",
        *(source, TARGET_SUM, middle),
    )
    return matrix, None


def _totals(block: Any) -> NDArray[np.float64]:
    linear = sp.csr_matrix((np.expm1(stored_values(block, None)), block.indices, block.indptr), block.shape)
    return np.asarray(linear.sum(axis=1), np.float64).reshape(-1)


def _narrowed(model: CellNorm, present: NDArray[np.bool_]) -> CellNorm:
    """The model for the genes that are there."""
    if present.all() or model.front_ is None:
        return model
    narrow = copy.copy(model)
    narrow.front_ = model.front_.restricted(present)
    narrow.n_features_in_ = int(present.sum())
    return narrow
