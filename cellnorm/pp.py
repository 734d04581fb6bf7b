"""From whatever an AnnData holds to log-normalised expression of the genes that vary, and to principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import choose_matrix, gene_mask, masked_genes, same_genes, write_pca
from cellnorm.errors import DataError
from cellnorm.front import LinearFront
from cellnorm.hvg import N_TOP_GENES, choose_genes
from cellnorm.labels import batch_labels
from cellnorm.parts import spans
from cellnorm.survey import Survey, canonical, count_scale, log_values, survey

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["log_expression", "prepare"]

Chosen = tuple[Any, NDArray[np.intp], NDArray[np.object_], str, str]


def prepare(
    adata: AnnData,
    batch_key: str | Sequence[str],
    *,
    layer: str | None = None,
    n_top_genes: int = N_TOP_GENES,
    mask_var: str | Any = None,
    n_comps: int = 50,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Log-normalise, choose the genes that vary within batches, and find the principal components.

    These are the components that `cellnorm.tl.correct` starts from: what the data look like before the correction.
    Counts are scaled to 10,000 per cell and log(1 + x) is taken; log-normalised values are used as they are. Nothing of
    this is written into the matrix.

    Parameters
    ----------
    adata
        Cells x genes, with counts or log-normalised values in X, layers['counts'] or raw.X.
    batch_key
        Column of obs that tells experiments apart, or several, which are crossed.
    layer
        Use this layer instead of the matrix that would be found.
    n_top_genes
        Number of genes to choose.
    mask_var
        Use exactly these genes, whatever `n_top_genes`: a boolean column of var or a boolean array, shape (n_vars,).
    n_comps
        Number of principal components; fewer if there are fewer cells or genes.
    key_added
        Name to write under in obsm, varm and uns. None: "X_pca", "PCs" and "pca", as scanpy does.
    copy
        Return a changed copy and leave `adata` as it is.

    Returns
    -------
    None or AnnData
        Sets obsm['X_pca'] (n_cells, n_comps), varm['PCs'] (n_vars, n_comps), var['highly_variable'] and uns['pca'].

    Raises
    ------
    DataError
        If matrix, batches or genes cannot be used; `adata` is then as it was.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> cn.pp.prepare(adata, "batch", n_comps=5)
    >>> adata.obsm["X_pca"].shape
    (60, 5)
    """
    labels = batch_labels(adata, batch_key)
    matrix, positions, names, source, kind = _choose(adata, labels, layer, n_top_genes, mask_var, None)
    front = LinearFront.fit(matrix, n_comps)
    pcs = front.project(matrix)
    columns, rows = _positions_in_var(adata, names, positions)
    loadings = np.zeros((adata.n_vars, front.loadings.shape[1]))
    loadings[columns] = front.loadings[rows]
    chosen = np.zeros(adata.n_vars, dtype=bool)
    chosen[columns] = True
    info = {
        "params": {
            "batch_key": [batch_key] if isinstance(batch_key, str) else list(batch_key),
            "matrix": source,
            "matrix_kind": kind,
        },
        "variance": front.variance,
        "variance_ratio": front.variance_ratio,
        "genes": names[positions],
    }
    target = adata.copy() if copy else adata
    write_pca(target, key_added, pcs, loadings, chosen, info)
    return target if copy else None


def log_expression(
    adata: AnnData,
    batch: NDArray[Any],
    *,
    layer: str | None = None,
    n_top_genes: int = N_TOP_GENES,
    mask_var: str | Any = None,
    progress: Progress | None = None,
) -> tuple[Any, NDArray[np.object_], str, str]:
    """Log-normalised expression of the chosen genes; `adata` is only read.

    Counts become log(1 + 10,000 x count / library size); the library is made of all genes, so that a cell has the same
    values alone and among others, and a cell without any stays zero. Log-normalised values are kept. The genes are
    those that `scanpy.pp.highly_variable_genes(flavor="seurat", batch_key=...)` chooses after filtering those in fewer
    than three cells; batches of fewer than ten cells have no say.

    Parameters
    ----------
    adata
        Cells x genes.
    batch
        Batch of each cell, shape (n_cells,).
    layer, n_top_genes, mask_var
        See `prepare`.
    progress
        Called with ("prepare", done, total, None).

    Returns
    -------
    matrix
        CSR of float32 with sorted indices, shape (n_cells, n_chosen); the same to the bit however the input is stored.
    genes
        Names of the chosen genes in the order of the input, shape (n_chosen,).
    source, kind
        Where the values were found and what they are, see `cellnorm.adata.choose_matrix`.

    Raises
    ------
    DataError
        If there is no usable matrix, no gene in three or more cells, or a batch without a gene that others express too.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> matrix, genes, source, kind = log_expression(adata, np.array(["a", "b"] * 30), n_top_genes=25)
    >>> matrix.shape, len(genes), source, kind
    ((60, 25), 25, 'X', 'counts')
    """
    matrix, positions, names, source, kind = _choose(adata, batch, layer, n_top_genes, mask_var, progress)
    return matrix, names[positions], source, kind


def _choose(
    adata: AnnData,
    batch: NDArray[Any],
    layer: str | None,
    n_top_genes: int,
    mask_var: str | Any,
    progress: Progress | None,
) -> Chosen:
    """Expression of the chosen genes, their places in the matrix found, all its gene names, where and what it is."""
    if n_top_genes < 1:
        raise DataError(f"n_top_genes must be 1 or more, found {n_top_genes}.")
    mask = None if mask_var is None else gene_mask(adata, mask_var)
    loaded, names, source, kind = choose_matrix(adata, layer)
    matrix = canonical(loaded)
    del loaded
    wanted = None if mask is None else masked_genes(adata, mask, names, source)
    levels, codes = np.unique(batch, return_inverse=True)
    parts = spans(matrix.shape[0])
    found = Survey.empty(len(levels), matrix.shape[1], counts=kind == "counts")

    def tick(done: int) -> None:
        if progress is not None:
            progress("prepare", done, len(parts) + 1, None)

    for done, span in enumerate(parts):
        tick(done)
        found.add(survey(matrix, span, codes[span], len(levels), counts=found.counts, known=True))
    positions = choose_genes(found, names, levels, source, n_top_genes=n_top_genes, wanted=wanted)
    tick(len(parts))
    chosen = log_values(matrix, positions, count_scale(matrix) if kind == "counts" else None)
    tick(len(parts) + 1)
    return chosen, positions, names, source, kind


def _positions_in_var(
    adata: AnnData, names: NDArray[np.object_], positions: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places in var of the chosen genes, and which of the chosen they are; genes that var lacks are left out."""
    if same_genes(adata, names):
        return positions, np.arange(len(positions))
    place = {name: i for i, name in reversed(list(enumerate(adata.var_names.astype(str))))}
    pairs = {place[name]: row for row, name in enumerate(names[positions]) if name in place}
    return np.array(list(pairs), dtype=np.intp), np.array(list(pairs.values()), dtype=np.intp)
