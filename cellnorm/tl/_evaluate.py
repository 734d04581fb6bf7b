"""Score embeddings: whether batches are mixed, and whether the biology is still there."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import representation
from cellnorm.errors import DataError
from cellnorm.front import LinearFront
from cellnorm.labels import batch_labels, listed
from cellnorm.metrics.table import METRICS, Score, score
from cellnorm.pp import log_expression
from cellnorm.validation import choose_device

__all__ = ["evaluate", "uncorrected"]

logger = logging.getLogger(__name__)

UNCORRECTED = "uncorrected"  # the column of components that are in no slot
MOST_LAYOUT_DIMS = 3  # UMAP, t-SNE and places in a tissue have no more: their distances are not those of the cells
SMALLEST_SAMPLE = 50  # cells of a batch that a sample keeps, if the batch has them

Representations = dict[str, NDArray[np.float32]]


def evaluate(
    adata: AnnData,
    batch_key: str | Sequence[str],
    label_key: str | None = None,
    *,
    use_rep: str | Sequence[str] | None = None,
    before: str | None = None,
    max_cells: int = 50_000,
    intervals: bool = False,
    n_bootstrap: int = 100,
    random_state: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Score embeddings of any tool: how well batches mix, and how much of the biology is kept.

    `cellnorm.metrics.METRICS` says of each score what it means, its range and its direction. Those that scib-metrics
    has equal its values, but KBET (and so the means) may differ: see `cellnorm.metrics.table.score`. Nothing is
    written into `adata`.

    Parameters
    ----------
    adata
        Cells x genes, with embeddings in obsm.
    batch_key
        Column of obs that tells experiments apart, or several, which are crossed. After a correction for several
        columns, one at a time says which of them are mixed; combinations of few cells say little.
    label_key
        Column of obs with cell types. Cells without one are left out of the scores that need types. None: these
        scores are left out.
    use_rep
        Embeddings in obsm to score, one or several; "uncorrected" among them stands for the one of `before`. None: the
        uncorrected one and all others that have more than three dimensions and hold finite numbers only.
    before
        The uncorrected embedding in obsm. None: the PCA if there is one ("X_pca"), else principal components as
        `cellnorm.pp.prepare` makes them, named "uncorrected".
    max_cells
        Of more cells a random sample of this size is scored, with each batch's share of it (but 50 cells or all of
        each batch).
    intervals
        Add 95 % bootstrap intervals. They say how exactly a score is known for these batches, not how much it would
        differ with others: see `cellnorm.metrics.resampling.resample`.
    n_bootstrap
        Resamples for the intervals.
    random_state
        Seed of all that is random.
    device
        "auto" (CUDA when there is one, else the CPU), "cpu", "cuda" or "mps".

    Returns
    -------
    pandas.DataFrame
        Rows are scores (index "metric", in the order of METRICS), columns are embeddings, the uncorrected one first;
        with `intervals` columns are (embedding, "value", "low" or "high"). What cannot be computed is NaN, and a
        warning is logged that says why. `attrs["before"]` names the uncorrected embedding.

    Raises
    ------
    DataError
        If a column or embedding is missing or cannot be used, if there are fewer than two batches, or nothing to score.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> scores = cn.tl.evaluate(adata, "batch")
    >>> scores.columns.tolist(), bool(scores.loc["Batch entropy", "uncorrected"] > 0.9)
    (['uncorrected'], True)
    """
    device = choose_device(device)
    if max_cells < 3 or n_bootstrap < 1:
        raise DataError(f"max_cells must be 3 or more and n_bootstrap 1 or more, found {max_cells} and {n_bootstrap}.")
    batches, batch = np.unique(batch_labels(adata, batch_key), return_inverse=True)
    types, label = _types(adata, label_key)
    chosen, key, baseline = _representations(adata, batch_key, use_rep, before)
    cells = _sample(batch, max_cells, random_state)
    if len(cells) < adata.n_obs:
        logger.info("scoring a random sample of %d of %d cells (max_cells, seeded)", len(cells), adata.n_obs)
    batch, label = batch[cells], None if label is None else label[cells]
    _say_of_types(types, batch, label)
    counted = "" if label is None else f", {len(np.unique(label[label >= 0]))} cell types"
    logger.info("scoring %s: %d cells, %d batches%s", listed(chosen), len(cells), len(batches), counted)
    scores = {
        name: score(
            x[cells],
            batch,
            label,
            before=None if baseline is None else baseline[cells],
            n_bootstrap=n_bootstrap if intervals else 0,
            random_state=random_state,
            device=device,
        )
        for name, x in chosen.items()
    }
    _say_what_is_missing(scores)
    frame = _frame(scores, intervals)
    frame.attrs["before"] = key
    return frame


def uncorrected(adata: AnnData, batch_key: str | Sequence[str], *, n_comps: int = 50) -> NDArray[np.float32]:
    """Principal components of the expression as it is, those of `cellnorm.pp.prepare`; `adata` is only read.

    Parameters
    ----------
    adata
        Cells x genes, with counts or log-normalised values in X, layers['counts'] or raw.X.
    batch_key
        Column of obs that tells experiments apart, or several: genes are chosen that vary within batches.
    n_comps
        Number of components; fewer if there are fewer cells or genes.

    Returns
    -------
    Shape (n_cells, n_comps).

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> uncorrected(adata, "batch", n_comps=5).shape
    (60, 5)
    """
    expression, _, source, kind = log_expression(adata, batch_labels(adata, batch_key))
    logger.info("uncorrected: principal components of the %s in %s", kind, source)
    return LinearFront.fit(expression, n_comps).project(expression)


def _types(adata: AnnData, label_key: str | None) -> tuple[NDArray[Any], NDArray[np.int64] | None]:
    """Names of the cell types, sorted, and each cell's number among them, -1 where it has none."""
    if label_key is None:
        return np.empty(0, object), None
    found = list(adata.obs.columns).count(label_key)
    if found != 1:
        problem = "is the name of several columns" if found else "was asked for, but is no column"
        raise DataError(f"label_key {label_key!r} {problem} of obs, which has: {listed(adata.obs)}.")
    column = adata.obs[label_key]
    known = column.notna().to_numpy()
    label = np.full(len(column), -1)
    names, label[known] = np.unique(column[known].astype(str).to_numpy(dtype=object), return_inverse=True)
    if not known.any():
        logger.warning("obs[%r] holds no cell type: scores that need types are left out.", label_key)
        return names, None
    if not known.all():
        logger.warning(
            "%d of %d cells have no value in obs[%r]: left out of the scores that need types.",
            (~known).sum(), len(known), label_key,
        )  # fmt: skip
    return names, label


def _representations(
    adata: AnnData, batch_key: str | Sequence[str], use_rep: str | Sequence[str] | None, before: str | None
) -> tuple[Representations, str, NDArray[np.float32] | None]:
    """The embeddings to score, by name, and the uncorrected one and its name, if there is any."""
    if before is not None and before not in adata.obsm:
        raise DataError(f"before {before!r} was asked for, but obsm holds: {listed(adata.obsm)}.")
    wanted = [use_rep] if isinstance(use_rep, str) else use_rep
    if wanted is not None and not len(wanted):
        raise DataError(f"use_rep names no embedding; obsm holds: {listed(adata.obsm)}.")
    beside = wanted is None or (UNCORRECTED in wanted and UNCORRECTED not in adata.obsm)
    named = (
        None
        if wanted is None
        else {key: representation(adata, key)[0] for key in wanted if not (beside and key == UNCORRECTED)}
    )
    others = _usable(adata) if named is None else named
    key = before or next((key for key in adata.obsm if key.lower().removeprefix("x_") == "pca"), None)
    if key is not None:
        baseline = representation(adata, key)[0]
        logger.info("uncorrected: obsm[%r]", key)
    else:
        try:
            key, baseline = UNCORRECTED, uncorrected(adata, batch_key)
        except DataError as error:
            if not others:
                raise
            logger.warning("There is no uncorrected embedding to compare with. %s", error)
            return others, "", None
    return ({key: baseline} | others if beside else others), key, baseline


def _usable(adata: AnnData) -> Representations:
    """All of obsm that can be scored; what is left out is said."""
    found: Representations = {}
    for key in adata.obsm:
        if adata.obsm[key].shape[1] <= MOST_LAYOUT_DIMS:
            logger.info("left out: obsm[%r], a layout of %d dimensions", key, adata.obsm[key].shape[1])
            continue
        try:
            found[key] = representation(adata, key)[0]
        except DataError as error:
            logger.warning("Left out: %s", error)
    return found


def _sample(batch: NDArray[Any], max_cells: int, random_state: int) -> NDArray[np.intp]:
    """All cells, or a random sample with each batch's share of `max_cells`, in the order of the cells."""
    if len(batch) <= max_cells:
        return np.arange(len(batch))
    rng = np.random.default_rng(random_state)
    chosen = []
    for code in np.unique(batch):
        members = np.flatnonzero(batch == code)
        share = round(max_cells * len(members) / len(batch))
        chosen.append(rng.choice(members, min(len(members), max(share, SMALLEST_SAMPLE)), replace=False))
    return np.sort(np.concatenate(chosen))


def _say_of_types(types: NDArray[Any], batch: NDArray[Any], label: NDArray[Any] | None) -> None:
    """Say which types are too small or too alone for some scores."""
    if label is None:
        return
    known = label >= 0
    n_cells = np.bincount(label[known], minlength=len(types))
    pairs = np.unique(np.stack([label[known], batch[known]]), axis=1)
    n_batches = np.bincount(pairs[0], minlength=len(types))
    if (alone := n_batches == 1).any():
        logger.info("in one batch only, so without a say in how batches of a type mix: %s", listed(types[alone]))
    if (single := n_cells == 1).any():
        logger.info("of one cell only, which counts as a silhouette of 0: %s", listed(types[single]))


def _say_what_is_missing(scores: dict[str, dict[str, Score]]) -> None:
    reasons: dict[str, list[str]] = {}
    for metric in METRICS:
        if any(metric.name in of and np.isnan(of[metric.name].value) for of in scores.values()):
            reasons.setdefault(metric.undefined, []).append(metric.name)
    for reason, names in reasons.items():
        logger.warning("Not computed, since %s: %s.", reason, ", ".join(names))


def _frame(scores: dict[str, dict[str, Score]], intervals: bool) -> pd.DataFrame:
    parts: Iterable[str] = ("value", "low", "high") if intervals else ("value",)
    columns = {
        (name, part): [getattr(one, part) for one in of.values()] for name, of in scores.items() for part in parts
    }
    index = pd.Index(list(next(iter(scores.values()))), name="metric")
    frame = pd.DataFrame(list(columns.values()), index=pd.MultiIndex.from_tuples(columns), columns=index).T
    frame.columns.names = ["representation", "score"]
    return frame if intervals else frame.droplevel("score", axis=1)
