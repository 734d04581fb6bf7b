"""Every score as a function of cells, so that it can be taken on all of them and on resamples.

What is slow (neighbours, distances, clusters) is computed once, when the functions are made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from cellnorm.errors import DataError
from cellnorm.metrics.conservation import distance_moments, moments_correlation, neighbor_overlap
from cellnorm.metrics.graph import best_leiden, in_largest_component
from cellnorm.metrics.kbet import accepted_within, kbet
from cellnorm.metrics.mixing import entropy, lisi_within
from cellnorm.metrics.neighbors import Neighbors, compact_codes, nearest_neighbors
from cellnorm.metrics.silhouette import batch_silhouette, bras, isolated_labels, label_mean, label_silhouette
from cellnorm.metrics.simpson import lisi
from cellnorm.metrics.variance import pcr_comparison

__all__ = ["of_batches", "of_change", "of_types"]

# Neighbours that each score looks at, the cell itself included: those of scib-metrics' Benchmarker.
K_LISI, K_KBET, K_GRAPH = 90, 50, 15

NAN = float("nan")
Cells = NDArray[np.intp]
OfCells = Callable[[Cells], float]


def of_batches(neighbors: Neighbors, batch: NDArray[Any]) -> dict[str, OfCells]:
    """Scores that need the batches only, as functions of cells."""
    n_batches = int(batch.max()) + 1
    of_lisi = lisi(neighbors, batch)
    return {
        "iLISI": lambda cells: _median(of_lisi[cells], n_batches),
        "KBET overall": _mean(kbet(neighbors.first(K_KBET), batch).accepted),
        "Batch entropy": _mean(entropy(neighbors, batch)),
        "Batch entropy adjusted": _mean(entropy(neighbors, batch, adjust=True)),
    }


def of_change(
    x: NDArray[Any], before: NDArray[Any], batch: NDArray[Any], random_state: int, device: str
) -> dict[str, OfCells]:
    """Scores that compare with the uncorrected embedding."""
    moments = distance_moments(before, x, batch, random_state=random_state)
    return {
        "PCR comparison": lambda cells: pcr_comparison(before, x, batch, cells=cells),
        "Neighbors kept": _mean(neighbor_overlap(before, x, batch, device=device)),
        "Distances kept": lambda cells: moments_correlation(moments, batch, cells=cells),
    }


def of_types(x: NDArray[Any], batch: NDArray[Any], label: Any, neighbors: Neighbors, device: str) -> dict[str, OfCells]:
    """Scores that need types: of the cells whose type is known, as functions of all cells."""
    label = np.asarray(label)
    if label.shape != batch.shape or label.dtype.kind not in "iu":
        compact_codes(label, len(batch), "type")  # says what is wrong
    known = label >= 0
    if not known.any():
        raise DataError(f"Types were given, but the type of none of the {len(x)} cells is known. Leave them out.")
    if not known.all():
        x, batch, label = x[known], batch[known], label[known]
        neighbors = nearest_neighbors(x, K_LISI, device=device)
    place = np.where(known, np.cumsum(known) - 1, -1)

    def of_all(metric: OfCells) -> OfCells:
        return lambda cells: metric(place[cells][known[cells]])

    label, n_types = compact_codes(label, len(x), "type")
    metrics = _of_types_mixed(x, batch, label, neighbors, device)
    if n_types > 1:
        metrics |= _of_types_apart(x, batch, label, neighbors, device)
    return {name: of_all(metric) for name, metric in metrics.items()}


def _of_types_mixed(
    x: NDArray[Any], batch: NDArray[Any], label: NDArray[np.int64], neighbors: Neighbors, device: str
) -> dict[str, OfCells]:
    """Scores of batches within types."""
    return {
        "BRAS": _mean_of_types(bras(x, label, batch), label),
        "KBET": _mean_of_types(accepted_within(neighbors.first(K_KBET), batch, label), label),
        "Graph connectivity": _mean_of_types(in_largest_component(neighbors.first(K_GRAPH), label), label),
        "CiLISI": _mean(lisi_within(x, batch, label, k=K_LISI, device=device)),
        "Batch entropy within types": _mean(entropy(neighbors, batch, within=label, adjust=True)),
        "Silhouette batch": _mean_of_types(batch_silhouette(x, label, batch, device=device), label),
    }


def _of_types_apart(
    x: NDArray[Any], batch: NDArray[Any], label: NDArray[np.int64], neighbors: Neighbors, device: str
) -> dict[str, OfCells]:
    """Scores of two or more types."""
    width = (label_silhouette(x, label, device=device) + 1) / 2
    of_lisi, n_types = lisi(neighbors, label), int(label.max()) + 1
    clusters = best_leiden(neighbors.first(K_GRAPH), label).clusters
    return {
        "Isolated labels": _mean_of_types(np.where(isolated_labels(label, batch), width, NAN), label),
        "Leiden NMI": lambda cells: float(normalized_mutual_info_score(label[cells], clusters[cells])),
        "Leiden ARI": lambda cells: float(adjusted_rand_score(label[cells], clusters[cells])),
        "Silhouette label": _mean(width),
        "cLISI": lambda cells: 1 - _median(of_lisi[cells], n_types),
    }


def _mean(values: NDArray[Any]) -> OfCells:
    """The mean of per-cell values, without NaN."""

    def metric(cells: Cells) -> float:
        chosen = values[cells]
        chosen = chosen[~np.isnan(chosen)]
        return float(chosen.mean()) if len(chosen) else NAN

    return metric


def _mean_of_types(values: NDArray[Any], label: NDArray[np.int64]) -> OfCells:
    values = np.asarray(values, np.float64)
    return lambda cells: label_mean(values[cells], label[cells])


def _median(values: NDArray[Any], n_codes: int) -> float:
    """The median of LISI, scaled from the range 1 to n_codes to 0 to 1."""
    return float((np.median(values) - 1) / (n_codes - 1)) if len(values) else NAN
