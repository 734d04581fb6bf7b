"""Measures of a correction: pure functions of a geometry, its table of neighbours, batches and types.

Every function takes arrays and gives numbers; none knows of AnnData. One table of exact nearest neighbours
(:func:`nearest_neighbors`) serves all that look at neighbourhoods. Batches and types are integer codes from 0 on, as
``numpy.unique(names, return_inverse=True)[1]`` gives them.
"""

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
from cellnorm.metrics.simpson import lisi

__all__ = [
    "BestLeiden",
    "Kbet",
    "Neighbors",
    "accepted_within",
    "best_leiden",
    "cilisi",
    "clisi",
    "connectivities",
    "entropy",
    "entropy_scalex",
    "graph_connectivity",
    "ilisi",
    "in_largest_component",
    "kbet",
    "kbet_per_label",
    "leiden",
    "lisi",
    "lisi_within",
    "nearest_neighbors",
]
