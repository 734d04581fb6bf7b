"""Correct an AnnData in one line."""

from __future__ import annotations

import inspect
import logging
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm import __version__
from cellnorm.adata import representation, result_keys, write_result
from cellnorm.alarm import Alarm
from cellnorm.checkpoint import check_folder, fingerprint
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.hvg import N_TOP_GENES
from cellnorm.labels import batch_labels, kept_labels, listed
from cellnorm.pp import log_expression
from cellnorm.validation import check_strength, choose_device

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["check_arguments", "correct", "labels_to_keep", "read_covariates", "record", "say", "tell", "tell_model"]
__all__ += ["versions", "warn_of_empty"]

logger = logging.getLogger(__name__)

SMALL_BATCH = 10  # cells; fewer have hardly any statistics of their own
LIBRARIES = ("torch", "scanpy", "anndata", "numpy", "scikit-learn")


def correct(
    adata: AnnData,
    batch_key: str | Sequence[str],
    *,
    layer: str | None = None,
    mask_var: str | Any = None,
    use_rep: str | None = None,
    n_top_genes: int | None = None,
    save_model: str | os.PathLike[str] | None = None,
    label_key: str | Sequence[str] | None = None,
    force: bool = False,
    key_added: str | None = None,
    copy: bool = False,
    progress: Progress | None = None,
    **params: Any,
) -> AnnData | None:
    """Bring the cells of all batches into one embedding.

    Finds counts or log-normalised values, chooses genes, trains a `cellnorm.CellNorm` and writes the corrected
    embedding. `scanpy.pp.neighbors(adata, use_rep="X_cellnorm")` follows. Nothing else in `adata` changes, and nothing
    at all if an error is raised.

    Parameters
    ----------
    adata
        Cells x genes, with counts or log-normalised values in X, layers['counts'] or raw.X.
    batch_key
        Column of obs that tells experiments apart, any type of labels. Several, as ["donor", "protocol"]: batches are
        the combinations that occur, and what a batch adds is the sum of what its donor and its protocol add, so that
        small combinations do no harm. To let each combination have an effect of its own, cross them in a column.
    layer
        Use this layer instead of the matrix that would be found.
    mask_var
        Use exactly these genes: a boolean column of var or a boolean array, shape (n_vars,).
    use_rep
        Correct this representation in obsm, shape (n_cells, n_dims), instead of the expression; no genes are chosen.
    n_top_genes
        Number of genes to choose. None: as `cellnorm.pp.prepare` does.
    save_model
        Folder to save the trained model in, for `cellnorm.tl.embed`.
    label_key
        Column of obs, or several, whose labels the saved model keeps, so that `cellnorm.tl.embed` can transfer them;
        the correction never sees them.
    force
        Replace a model that is there.
    key_added
        Name to write under in obsm and uns. None: "X_cellnorm" and "cellnorm".
    copy
        Return a changed copy and leave `adata` as it is.
    progress
        Called with (stage, done, total, loss or None); the stages are "prepare" and those of `CellNorm.fit`.
    **params
        Parameters of `cellnorm.CellNorm`, such as `strength`, `n_latent`, `device` or `random_state`.

    Returns
    -------
    None or AnnData
        Sets obsm['X_cellnorm'] (n_cells, n_latent; float32) and uns['cellnorm']: parameters, random_state, versions,
        batch_key, batches (name, n_cells, n_matched), alarm (see `cellnorm.alarm.Alarm`: verdict, reason, numbers, by
        batch and by cluster), history, matrix, matrix_kind, genes, seconds, device,
        strength (value, within, p, why: see `cellnorm.strength.Strength`; NaN where it was given),
        model (its fingerprint, by which `cellnorm.tl.embed` knows it again).

    Raises
    ------
    DataError
        If matrix, batches, genes or representation cannot be used, or arguments exclude each other.
    TypeError
        If a parameter is not one of `cellnorm.CellNorm`.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> cn.tl.correct(adata, "batch", n_latent=5, n_steps=10)
    >>> adata.obsm["X_cellnorm"].shape
    (60, 5)
    """
    result_keys(key_added)
    check_arguments(params, use_rep, layer=layer, mask_var=mask_var, n_top_genes=n_top_genes)
    choose_device(params.get("device", "auto"))  # before any long work
    covariates = read_covariates(adata, [batch_key] if isinstance(batch_key, str) else batch_key)
    labels = batch_labels(adata, keys := list(covariates))
    of_cells = labels_to_keep(adata, label_key, save_model, force=force)
    start = time.perf_counter()
    genes: NDArray[Any] = np.empty(0, dtype=object)
    if use_rep is not None:
        params, kind = {**params, "n_comps": None}, "representation"
        X, source = representation(adata, use_rep)
    else:
        n_top_genes = N_TOP_GENES if n_top_genes is None else n_top_genes
        X, genes, source, kind = log_expression(
            adata, labels, layer=layer, n_top_genes=n_top_genes, mask_var=mask_var, progress=progress
        )
        warn_of_empty(int((X.getnnz(axis=1) == 0).sum()))
    seconds = {"prepare": time.perf_counter() - start}
    tell(kind, source, X.shape[1], labels, covariates)
    model = CellNorm(**params)
    embedding = model.fit_transform(X, list(covariates.values()), progress=progress)
    tell_model(model, keys, kind, genes, of_cells, use_rep)
    say(alarm := model.check(progress=progress), model.evidence_.why)
    asked = {"n_top_genes": n_top_genes, "layer": layer, "use_rep": use_rep, "mask_var": mask_var}
    info = record(model, asked, source, kind, genes, {**seconds, **model.seconds_}, alarm)
    if save_model is not None:
        model.save(save_model, force=force)
    target = adata.copy() if copy else adata
    write_result(target, key_added, embedding, info)
    return target if copy else None


def tell_model(
    model: CellNorm,
    keys: Sequence[str],
    kind: str,
    genes: NDArray[Any],
    of_cells: Mapping[str, NDArray[np.object_]],
    use_rep: str | None = None,
) -> None:
    """Tell a fitted model what it was made from, for those who use it later."""
    model.input_ = {"kind": kind, "batch_key": list(keys), "use_rep": use_rep}
    model.labels_ = {column: values[model.sketch_cells_] for column, values in of_cells.items()}
    if len(genes):
        model.feature_names_in_ = np.asarray(genes, object)


def record(
    model: CellNorm,
    asked: Mapping[str, Any],
    source: str,
    kind: str,
    genes: NDArray[Any],
    seconds: Mapping[str, float],
    alarm: Alarm,
) -> dict[str, Any]:
    """What is written of a correction beside the embedding."""
    mask = asked["mask_var"]
    return {
        "parameters": {**model.get_params(), **asked, "mask_var": mask if isinstance(mask, str) else None},
        "batch_key": model.input_["batch_key"],
        "matrix": source,
        "matrix_kind": kind,
        "genes": genes,
        "seconds": dict(seconds),
        "alarm": alarm.to_dict(),
        **_of_model(model),
    }


def _of_model(model: CellNorm) -> dict[str, Any]:
    """What is recorded of a fitted model."""
    found = {name: np.nan if value is None else value for name, value in asdict(model.evidence_).items()}
    return {
        "random_state": model.random_state,
        "versions": versions(),
        "batches": {"name": model.batches_, "n_cells": model.counts_, "n_matched": model.matched_},
        "history": model.history_.to_dict(),
        "device": model.device_,
        "strength": {**found, "why": model.evidence_.why},
        "model": fingerprint(model),
    }


def versions() -> dict[str, str]:
    """Versions of the package and of the libraries that have a say in the result."""
    return {"cellnorm": __version__, **{name: version(name) for name in LIBRARIES}}


def labels_to_keep(
    adata: AnnData, label_key: str | Sequence[str] | None, save_model: Any, *, force: bool
) -> dict[str, NDArray[np.object_]]:
    """Labels that a saved model shall keep, checked before any long work."""
    if save_model is not None:
        check_folder(save_model, force=force)
    elif label_key is not None:
        raise DataError(
            "label_key is for a saved model, which keeps the labels for later transfer. Name a folder with save_model."
        )
    keys = [label_key] if isinstance(label_key, str) else list(label_key or ())
    return {key: kept_labels(adata, key) for key in keys}


def say(alarm: Alarm, strength: str) -> None:
    """Give strength and verdict; where nobody listens to the log, as in a notebook, a warning says what is not good."""
    logger.info("%s", strength)
    text = f"verdict {alarm.verdict}: {alarm.reason}"
    good = alarm.verdict == "good"
    logger.log(logging.INFO if good else logging.WARNING, "%s", text)
    if not good and all(isinstance(h, logging.NullHandler) for h in logging.getLogger("cellnorm").handlers):
        warnings.warn(text, stacklevel=3)


def check_arguments(params: dict[str, Any], use_rep: str | None, **of_genes: Any) -> None:
    """Refuse names that CellNorm does not know, and choices of genes where there are none."""
    check_strength(params.get("strength"))
    valid = inspect.signature(CellNorm).parameters
    if unknown := [name for name in params if name not in valid]:
        raise TypeError(
            f"correct() got unknown parameters: {listed(unknown)}. Those of CellNorm are: {', '.join(valid)}."
        )
    if use_rep is not None:
        of_genes["n_comps"] = params.get("n_comps")
        if given := [name for name, value in of_genes.items() if value is not None]:
            raise DataError(
                f"use_rep {use_rep!r} was asked for together with {listed(given)}, which say something about genes. "
                "Give the one or the other."
            )


def read_covariates(adata: AnnData, keys: Sequence[str]) -> dict[str, NDArray[np.object_]]:
    """Labels of each cell in each of the columns that tell batches apart."""
    found = {key: batch_labels(adata, key, several=False) for key in keys}
    if len(found) > 1:
        sizes = [f"{key} ({len(set(labels))} values)" for key, labels in found.items()]
        logger.info("batches: combinations of %s, whose effects are added up", ", ".join(sizes))
    return found


def tell(
    kind: str, source: str, n_columns: int, labels: NDArray[np.object_], covariates: dict[str, NDArray[np.object_]]
) -> None:
    """Say what is used, and which batches are too small."""
    logger.info("using %s in %s: %d columns, %d batches", kind, source, n_columns, len(np.unique(labels)))
    _warn_of_small(covariates)


def _warn_of_small(covariates: dict[str, NDArray[np.object_]]) -> None:
    """Say which batches, or levels that batches are made of, are too small to have statistics of their own."""
    for labels in covariates.values():
        names, n_cells = np.unique(labels, return_counts=True)
        if (small := n_cells < SMALL_BATCH).any():
            logger.warning(
                "Corrected with the statistics of all batches, since they have fewer than %d cells: %s.",
                SMALL_BATCH,
                listed(f"{name} ({n})" for name, n in zip(names[small], n_cells[small], strict=True)),
            )


def warn_of_empty(empty: int) -> None:
    """Say how many cells show nothing of themselves."""
    if empty:
        logger.warning("%d cells express none of the chosen genes: kept, but where they lie means nothing.", empty)
