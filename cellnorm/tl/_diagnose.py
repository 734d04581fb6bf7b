"""Look at the data before correcting: whether there is a batch effect, what causes it, can it be told from biology."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import choose_matrix
from cellnorm.design import matched_clusters
from cellnorm.diagnosis import (
    Effect,
    aligned,
    effects,
    follows_clusters,
    shared_structure,
    strength_verdict,
)
from cellnorm.errors import DataError
from cellnorm.front import LinearFront
from cellnorm.labels import batch_labels
from cellnorm.pp import log_expression
from cellnorm.tl._diagnose_columns import Column, judged_columns
from cellnorm.tl._diagnose_command import shell_command
from cellnorm.tl._diagnose_tables import Clustered, batch_table, confounding_table, matrix_table
from cellnorm.tl._diagnose_text import advice, column_text, warnings_of

__all__ = ["diagnose"]

N_COMPS = 30
LEAST_CELLS = 20  # of fewer cells, neither components nor clusters say anything


def diagnose(
    adata: AnnData,
    batch_key: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    max_cells: int = 5000,
    random_state: int = 0,
    source: str | None = None,
) -> dict[str, Any]:
    """Say whether there is a batch effect, which column of obs causes it, and what to do next.

    Every column of labels is tested against shuffles of itself, over all cells and within clusters of like cells, on
    principal components of genes that were chosen without a look at any column. `adata` is only read.

    Parameters
    ----------
    adata
        Cells x genes, with counts or log-normalised values in X, layers['counts'] or raw.X.
    batch_key
        Column of obs to judge as the batch, or several, which are crossed. None: the best candidate.
    layer
        Use this layer instead of the matrix that would be found.
    max_cells
        Effects and clusters are computed on at most this many cells, drawn at random; all else on all cells.
    random_state
        Seed of the draw, the shuffles and the clusters.
    source
        Name of the file, for the recommended command. None: that of `adata`, or "cells.h5ad".

    Returns
    -------
    dict
        Of str, int, float, bool, None, list and dict, so that `json.dumps` takes it:

        - matrix: source, kind ("counts" or "log"), n_cells, n_genes, median_counts (None if not counts), median_genes,
          zeros (share), text
        - n_examined: cells that effects and clusters were computed on
        - columns, the best candidate for the batch first: name, n_levels, n_missing, strength (share of the variance of
          all cells, beyond chance), null (what chance explains), p, within_clusters (share of the variance among like
          cells, beyond chance), shared (how far the values hold the same structure: 1 all, near 0 cell types; None if
          they are too small), follows_clusters, usual_name, condition_name, verdict ("none", "mild", "strong"), text
        - left_out: name and reason of the other columns
        - batch_key: the column judged as the batch, "" if there is none
        - confounding: column, cramers_v, relation to the batch ("same"; "nested": finer than the batch; "nests":
          coarser, but with a usual name for batches; "confounded": coarser; "partly"; "crossed"), text
        - batches: name, n_cells, n_genes (found in it), shared_genes (also found in another batch), median_counts,
          lacks (names of clusters), text
        - warnings: sentences
        - verdict: "correct", "no correction needed" or "cannot be separated"
        - recommendation: why; command: what to type, "" if nothing

    Raises
    ------
    DataError
        If matrix or batch_key cannot be used, or there are fewer than 20 cells.

    Examples
    --------
    >>> import cellnorm as cn
    >>> adata = cn.datasets.simulate(300, 200, n_batches=2, batch_effect=1.0, random_state=0)
    >>> diagnosis = cn.tl.diagnose(adata)
    >>> diagnosis["batch_key"], diagnosis["verdict"]
    ('batch', 'correct')
    """
    keys = [] if batch_key is None else [batch_key] if isinstance(batch_key, str) else list(batch_key)
    batch = batch_labels(adata, keys) if batch_key is not None else None
    if adata.n_obs < LEAST_CELLS or max_cells < LEAST_CELLS:
        raise DataError(
            f"A diagnosis needs at least {LEAST_CELLS} cells, found {adata.n_obs} (max_cells={max_cells}). Give more."
        )
    matrix, genes, place, kind = choose_matrix(adata, layer)
    matrix = sp.csr_matrix(matrix)
    columns, left_out = judged_columns(adata.obs)
    given = None if batch is None else replace(Column.of(keys[0], batch), name=" x ".join(keys))
    if given is not None:
        columns = [given, *(column for column in columns if column.name != given.name)]
        left_out = [column for column in left_out if column["name"] != given.name]
    rng = np.random.default_rng(random_state)
    rows = np.sort(rng.permutation(adata.n_obs)[:max_cells])
    expression, chosen = _expression(matrix[rows], genes, rng)
    pcs = np.asarray(LinearFront.fit(expression, N_COMPS).project(expression), np.float64)
    judged = _judge(pcs, columns, rows, given, random_state)
    best = _batch(judged, columns, given)
    diagnosis: dict[str, Any] = {
        "matrix": matrix_table(matrix, place, kind),
        "n_examined": len(rows),
        "columns": judged,
        "left_out": left_out,
        "batch_key": "" if best is None else best.name,
        "confounding": [],
        "batches": [],
    }
    if best is not None:
        labels = batch_labels(adata, best.name) if batch is None else batch
        clusters = matched_clusters(pcs, np.unique(best.codes[rows], return_inverse=True)[1], random_state)
        diagnosis["confounding"] = confounding_table(best, columns, judged)
        diagnosis["batches"] = batch_table(matrix, labels, kind, Clustered(rows, clusters, expression, chosen))
    diagnosis["warnings"] = warnings_of(diagnosis)
    diagnosis["verdict"], diagnosis["recommendation"] = advice(diagnosis)
    file = source or (str(adata.filename) if adata.filename else "cells.h5ad")
    keys = keys or [diagnosis["batch_key"]]
    return {**diagnosis, "command": shell_command(file, keys, layer) if diagnosis["verdict"] == "correct" else ""}


def _expression(matrix: Any, genes: NDArray[Any], rng: np.random.Generator) -> tuple[Any, NDArray[np.object_]]:
    """Log-normalised values of the genes that vary, and their names.

    Genes vote in two random halves instead of in batches, so that the choice favours no column.
    """
    halves = (rng.permutation(matrix.shape[0]) % 2).astype(str)
    plain = AnnData(matrix, var=pd.DataFrame(index=pd.Index(genes.astype(str))))
    values, names, _, _ = log_expression(plain, halves)
    return values, names


def _judge(
    pcs: NDArray[np.float64], columns: list[Column], rows: NDArray[np.intp], given: Column | None, random_state: int
) -> list[dict[str, Any]]:
    """What is known of each column, the best candidate for the batch first."""
    codes = [np.unique(column.codes[rows], return_inverse=True)[1].astype(np.int64) for column in columns]
    found = effects(pcs, codes, random_state)
    shared = [effect.shared for effect in found]
    # A batch effect that is stronger than the cell types makes these look like experiments: take it off first.
    experiments = [
        (column is not given, column.rank is None, strength_verdict(effect) == "mild", column.rank, -effect.shared, i)
        for i, (column, effect) in enumerate(zip(columns, found, strict=True))
        if strength_verdict(effect) != "none"
        and effect.shared > 0
        and not follows_clusters(effect, effect.shared, named=column.rank is not None)
    ]
    if experiments:
        first = min(experiments)[-1]
        moved = aligned(pcs, codes[first], random_state)
        others = [i for i in range(len(columns)) if i != first]
        for i in others:
            shared[i] = min(shared[i], shared_structure(moved, codes[i]))
    entries = [_entry(*known) for known in zip(columns, found, shared, strict=True)]
    place = {column.name: column.rank for column in columns}

    def order(entry: dict[str, Any]) -> tuple[Any, ...]:
        verdict = ("strong", "mild", "none").index(entry["verdict"])
        rank = place[entry["name"]]
        is_given = given is not None and entry["name"] == given.name
        return not is_given, not _fit(entry), rank is None, verdict, rank or 0, -entry["within_clusters"]

    return sorted(entries, key=order)


def _entry(column: Column, effect: Effect, shared: float) -> dict[str, Any]:
    follows = follows_clusters(effect, shared, named=column.rank is not None)
    if follows:  # aligning its values would lay cell types upon each other: only the clusters as they are count
        effect = replace(effect, within=effect.blind)
    entry: dict[str, Any] = {
        "name": column.name,
        "n_levels": column.n_levels,
        "n_missing": column.n_missing,
        "strength": round(effect.strength, 4),
        "null": round(effect.null, 4),
        "p": round(effect.p, 4),
        "within_clusters": round(effect.within, 4),
        "shared": None if math.isnan(shared) else round(shared, 4),
        "follows_clusters": follows,
        "usual_name": column.rank is not None,
        "condition_name": column.condition,
        "verdict": "none" if follows else strength_verdict(effect),
    }
    return {**entry, "text": column_text(entry)}


def _fit(entry: dict[str, Any]) -> bool:
    """Whether a column can be recommended as the batch."""
    return entry["verdict"] != "none" and not entry["n_missing"] and not entry["condition_name"]


def _batch(judged: list[dict[str, Any]], columns: list[Column], given: Column | None) -> Column | None:
    """The column judged as the batch: the one given, the best candidate, or one with a usual name and no effect."""
    if given is not None:
        return given
    place = {column.name: column for column in columns}
    fit = [entry for entry in judged if _fit(entry)]
    usual = [entry for entry in judged if entry["usual_name"] and not entry["n_missing"]]
    return place[(fit or usual)[0]["name"]] if fit or usual else None
