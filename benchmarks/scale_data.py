"""Sparse synthetic cells on disk, as many as wanted, never more of them in memory than a chunk.

`cellnorm.datasets.simulate` draws every entry of a cell, stored or not: some milliseconds for 20,000 genes, hours for a
million cells. So it draws a pool of cells, and each cell of the file is made of two of the pool, of one batch and one
type: every molecule of either is kept with a chance of a half (binomial thinning), and what is left is added up. Depth,
batch effect and type stay; the noise of a cell beyond Poisson's is that of the mean of two. Only stored values are
touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import sparse_dataset, write_elem

from cellnorm.datasets import simulate

N_GENES, N_BATCHES, N_TYPES = 20_000, 5, 12
DEPTH = 2300.0  # molecules: about 1,000 stored values
POOL = 10_000  # cells
CHUNK_CELLS = 5_000
CHUNK_VALUES = 2**20  # of the file
WORD = 32  # bits


def make_pool(path: Path, n_cells: int = POOL, n_genes: int = N_GENES) -> None:
    """Simulate the cells that all others are made of; they lie batch by batch and type by type."""
    pool = simulate(n_cells, n_genes, n_batches=N_BATCHES, n_types=N_TYPES, depth=DEPTH, random_state=0)
    order = np.lexsort((pool.obs["cell_type"].cat.codes, pool.obs["batch"].cat.codes))
    pool = pool[order].copy()
    ad.AnnData(pool.X, obs=pool.obs[["batch", "cell_type"]], var=pool.var[[]]).write_h5ad(path)


def halved(counts: Any, rng: np.random.Generator) -> Any:
    """Every molecule kept with a chance of a half: as many of n random bits as are set (CSR of whole numbers)."""
    kept = counts.copy()
    few = counts.data <= WORD
    bits = rng.integers(0, 2**WORD, len(few), dtype=np.uint32)
    n = np.minimum(counts.data, WORD).astype(np.uint32)
    kept.data[:] = np.bitwise_count(bits & (np.uint64(2) ** n - 1).astype(np.uint32))
    kept.data[~few] = rng.binomial(counts.data[~few].astype(np.int64), 0.5)
    return kept


def chunks(pool: ad.AnnData, n_cells: int, seed: int = 0) -> Iterator[tuple[np.ndarray, Any]]:
    """Pieces of CHUNK_CELLS cells: which cell of the pool each has batch and type from, and its counts (CSR)."""
    group = pool.obs.groupby(["batch", "cell_type"], observed=True, sort=False).ngroup().to_numpy()
    first, size = np.unique(group, return_index=True, return_counts=True)[1:]
    rng = np.random.default_rng(seed)
    for start in range(0, n_cells, CHUNK_CELLS):
        one = rng.integers(0, pool.n_obs, min(CHUNK_CELLS, n_cells - start))
        other = first[group[one]] + rng.integers(0, size[group[one]])
        counts = (halved(pool.X[one], rng) + halved(pool.X[other], rng)).tocsr()
        counts.eliminate_zeros()
        yield one, counts


def write_cells(path: Path, pool: ad.AnnData, n_cells: int) -> None:
    """Write a file of cells as anndata would, .zarr or .h5ad by its suffix, chunk by chunk."""
    temporary = path.with_name(f".{path.name}")
    if temporary.is_dir():
        shutil.rmtree(temporary)
    of_zarr = path.suffix == ".zarr"
    root = zarr.open_group(temporary, mode="w", zarr_format=2) if of_zarr else h5py.File(temporary, "w")
    storage = {"chunks": (CHUNK_VALUES,)} | ({} if of_zarr else {"compression": "lzf"})
    origin = []
    for cells, counts in chunks(pool, n_cells):
        if origin:
            sparse_dataset(root["X"]).append(counts)
        else:  # with room for more than 2**31 values in all
            write_elem(root, "X", counts, dataset_kwargs={**storage, "indptr_dtype": np.int64})
        origin.append(cells)
    obs = pool.obs.iloc[np.concatenate(origin)]
    obs.index = pd.Index([f"cell{i + 1}" for i in range(n_cells)])
    for slot, value in {"obs": obs, "var": pool.var, "obsm": {}, "uns": {}, "layers": {}}.items():
        write_elem(root, slot, value)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    if not of_zarr:
        root.close()
    os.replace(temporary, path)


def make(folder: Path, n_cells: int, suffix: str) -> Path:
    """A file of so many cells in the folder; one that is there is used again."""
    pool, path = folder / "pool.h5ad", folder / f"cells{n_cells}{suffix}"
    if not path.exists():
        if not pool.exists():
            make_pool(unfinished := folder / ".pool.h5ad")
            os.replace(unfinished, pool)
        write_cells(path, ad.read_h5ad(pool), n_cells)
    return path
