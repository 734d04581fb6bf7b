"""Geometries, tables of neighbours and the form in which scib-metrics takes them: for the tests of measures."""

from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from numpy.typing import NDArray

import cellnorm as cn
from cellnorm.metrics import Neighbors, nearest_neighbors

Codes = NDArray[np.int64]


def codes(names: Any) -> Codes:
    """Names as integers from 0 on, in their order."""
    return np.unique(np.asarray(names).astype(str), return_inverse=True)[1]


@cache
def real(path: Path) -> tuple[NDArray[np.float32], Codes, Codes]:
    """Uncorrected components of a public data set, batches and types; made once, not to be changed."""
    adata = ad.read_h5ad(path)
    cn.pp.prepare(adata, "batch")
    x = adata.obsm["X_pca"].astype(np.float32)
    return x, codes(adata.obs["batch"]), codes(adata.obs["cell_type"])


@cache
def real_table(path: Path) -> Neighbors:
    """The 90 nearest cells of each cell of a public data set."""
    return nearest_neighbors(real(path)[0], 90)


def as_scib(table: Neighbors) -> Any:
    """The same table for scib-metrics."""
    from scib_metrics.nearest_neighbors import NeighborsResults

    return NeighborsResults(indices=table.indices.astype(np.int64), distances=table.distances)


def two_types(n_cells: int, shift: float, seed: int = 0) -> tuple[NDArray[np.float32], Codes, Codes]:
    """Two types far apart, two batches that lie `shift` standard deviations apart: coordinates, batches, types."""
    rng = np.random.default_rng(seed)
    batch, label = rng.integers(2, size=n_cells), rng.integers(2, size=n_cells)
    x = rng.normal(size=(n_cells, 5))
    x[:, 0] += shift * batch
    x[:, 1] += 1000 * label
    return x.astype(np.float32), batch, label
