"""The tables of a diagnosis: the matrix, the batches, and how the batch lies to the other columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellnorm.design import cramers_v, lacking, relation
from cellnorm.tl._diagnose_columns import Column
from cellnorm.tl._diagnose_text import batch_text, confounding_text, matrix_text

__all__ = ["Clustered", "batch_table", "confounding_table", "matrix_table"]

N_MARKERS = 2  # genes that name a cluster
LEAST_SEEN = 5  # cells of a cluster in a batch, to compare it with the rest of the batch


@dataclass(frozen=True)
class Clustered:
    """Clusters of the cells that were examined.

    Attributes
    ----------
    rows
        Which cells these are, shape (n_examined,).
    clusters
        Cluster of each, shape (n_examined,).
    expression
        Log-normalised, CSR, shape (n_examined, n_genes).
    genes
        Names of its genes, shape (n_genes,).
    """

    rows: NDArray[np.intp]
    clusters: NDArray[np.int64]
    expression: Any
    genes: NDArray[np.object_]


def matrix_table(matrix: Any, source: str, kind: str) -> dict[str, Any]:
    """Depth and sparsity of a CSR matrix."""
    n_genes = _found(matrix)
    counts = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    described: dict[str, Any] = {
        "source": source,
        "kind": kind,
        "n_cells": int(matrix.shape[0]),
        "n_genes": int(matrix.shape[1]),
        "median_counts": float(np.median(counts)) if kind == "counts" else None,
        "median_genes": float(np.median(n_genes)),
        "zeros": round(1 - float(n_genes.sum()) / (matrix.shape[0] * matrix.shape[1]), 4),
        "n_empty": int((n_genes == 0).sum()),
    }
    return {**described, "text": matrix_text(described)}


def _found(matrix: Any) -> NDArray[np.int64]:
    """Genes above zero in each cell."""
    return np.asarray((matrix > 0).getnnz(axis=1), np.int64)


def _sums(codes: NDArray[np.int64], n_levels: int) -> Any:
    """A matrix that adds up the cells of each level, shape (n_levels, n_cells)."""
    return sp.csr_matrix(
        (np.ones(len(codes), np.float32), (codes, np.arange(len(codes)))), shape=(n_levels, len(codes))
    )


def confounding_table(
    batch: Column, columns: Sequence[Column], judged: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """How the batch lies to each other column, the closest first."""
    entries = {entry["name"]: entry for entry in judged}
    table = []
    for column in columns:
        if column.name == batch.name:
            continue
        found = relation(batch.codes, column.codes)
        if found in ("nested", "nests"):
            coarser = "nests" if column.rank is not None else "confounded"
            found = coarser if found == "nested" else "nested"
        entry = {"column": column.name, "cramers_v": round(cramers_v(batch.codes, column.codes), 4), "relation": found}
        table.append({**entry, "text": confounding_text(entry, batch.name, entries[column.name])})
    return sorted(table, key=lambda entry: -entry["cramers_v"])


def batch_table(matrix: Any, labels: NDArray[Any], kind: str, seen: Clustered) -> list[dict[str, Any]]:
    """Size, genes, depth and lacking clusters of each batch, the largest batch first."""
    names, codes = np.unique(labels.astype(str), return_inverse=True)
    n_cells = np.bincount(codes)
    found = (_sums(codes, len(names)) @ (matrix > 0)).toarray() > 0
    shared = found & (found.sum(axis=0) > 1)
    depth = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    lacks = np.zeros((len(names), int(seen.clusters.max()) + 1), bool)
    present, examined = np.unique(codes[seen.rows], return_inverse=True)
    lacks[present] = lacking(seen.clusters, examined)
    titles = _titles(seen, examined)
    table = []
    for i in np.argsort(-n_cells, kind="stable"):
        entry: dict[str, Any] = {
            "name": str(names[i]),
            "n_cells": int(n_cells[i]),
            "n_genes": int(found[i].sum()),
            "shared_genes": int(shared[i].sum()),
            "median_counts": float(np.median(depth[codes == i])) if kind == "counts" else None,
            "lacks": [titles[cluster] for cluster in np.flatnonzero(lacks[i])],
        }
        table.append({**entry, "text": batch_text(entry)})
    return table


def _titles(seen: Clustered, batch: NDArray[np.int64]) -> list[str]:
    """Name of each cluster: its number and the genes that it has more of than the rest of the same batches has."""
    n_clusters, n_batches = int(seen.clusters.max()) + 1, int(batch.max()) + 1
    pairs = seen.clusters * n_batches + batch
    n_pair = np.bincount(pairs, minlength=n_clusters * n_batches).reshape(n_clusters, n_batches)
    sums = (_sums(pairs, n_clusters * n_batches) @ seen.expression).toarray().reshape(n_clusters, n_batches, -1)
    whole = sums.sum(axis=0)
    titles = []
    for cluster in range(n_clusters):
        inside, outside = n_pair[cluster], n_pair.sum(axis=0) - n_pair[cluster]
        usable = (inside >= LEAST_SEEN) & (outside >= LEAST_SEEN)
        if usable.any():
            means = sums[cluster, usable] / inside[usable, None]
            rest = (whole - sums[cluster])[usable] / outside[usable, None]
            more = (means - rest).mean(axis=0)
        else:
            more = sums[cluster].sum(axis=0) / max(inside.sum(), 1)
        best = np.argsort(-more, kind="stable")[:N_MARKERS]
        titles.append(f"{cluster + 1} ({', '.join(map(str, seen.genes[best]))})")
    return titles
