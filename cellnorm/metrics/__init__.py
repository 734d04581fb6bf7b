"""Measures of a correction: pure functions of a geometry, its table of neighbours, batches and types.

Every function takes arrays and gives numbers; none knows of AnnData. One table of exact nearest neighbours
(:func:`nearest_neighbors`) serves all that look at neighbourhoods. Batches and types are integer codes from 0 on, as
``numpy.unique(names, return_inverse=True)[1]`` gives them.
"""

from cellnorm.metrics.conservation import distance_correlation, neighbor_overlap
from cellnorm.metrics.graph import (
    BestLeiden,
    best_leiden,
    connectivities,
    graph_connectivity,
    in_largest_component,
    leiden,
)
from cellnorm.metrics.kbet import Kbet, accepted_within, kbet, kbet_per_label
from cellnorm.metrics.mixing import cilisi, clisi, entropy, entropy_scalex, ilisi, lisi_within
from cellnorm.metrics.neighbors import Neighbors, nearest_neighbors
from cellnorm.metrics.resampling import interval, resample
from cellnorm.metrics.silhouette import batch_silhouette, bras, isolated_labels, label_mean, label_silhouette
from cellnorm.metrics.simpson import lisi
from cellnorm.metrics.table import METRICS, Metric, Score, score
from cellnorm.metrics.variance import pcr, pcr_comparison

__all__ = [
    "METRICS",
    "BestLeiden",
    "Kbet",
    "Metric",
    "Neighbors",
    "Score",
    "accepted_within",
    "batch_silhouette",
    "best_leiden",
    "bras",
    "cilisi",
    "clisi",
    "connectivities",
    "distance_correlation",
    "entropy",
    "entropy_scalex",
    "graph_connectivity",
    "ilisi",
    "in_largest_component",
    "interval",
    "isolated_labels",
    "kbet",
    "kbet_per_label",
    "label_mean",
    "label_silhouette",
    "leiden",
    "lisi",
    "lisi_within",
    "nearest_neighbors",
    "neighbor_overlap",
    "pcr",
    "pcr_comparison",
    "resample",
    "score",
]
