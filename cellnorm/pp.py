"""From whatever an AnnData holds to log-normalised expression of the genes that vary, and to principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import choose_matrix, gene_mask, write_pca
from cellnorm.errors import DataError
from cellnorm.front import LinearFront
from cellnorm.hvg import BLOCK_ROWS, blocks, highly_variable, stored_values
from cellnorm.labels import batch_labels, listed

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["log_expression", "prepare"]

N_TOP_GENES = 2000
TARGET_SUM = 1e4
MIN_CELLS = 3  # a gene found in fewer cells says nothing about them

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
    found, names, source, kind = choose_matrix(adata, layer)
    matrix = canonical(found)
    del found
    n_found = cells_per_gene(matrix)
    usable = n_found >= MIN_CELLS
    if not usable.any():
        raise DataError(
            f"{source} has no gene with a value above zero in {MIN_CELLS} or more of its {matrix.shape[0]} cells. "
            "Check that it holds the expression."
        )
    scale = count_scale(matrix) if kind == "counts" else None
    levels, codes = np.unique(batch, return_inverse=True)
    members = [np.flatnonzero(codes == code) for code in range(len(levels))]

    def tick(done: int) -> None:
        if progress is not None:
            progress("prepare", done, len(members) + 1, None)

    if mask is not None:
        positions = _masked(adata, mask, names, source)
    elif usable.sum() <= n_top_genes:
        positions = np.flatnonzero(usable)
    else:
        positions = highly_variable(matrix, names, usable, members, n_top_genes=n_top_genes, scale=scale, tick=tick)
    chosen = log_values(matrix, positions, scale, int(n_found[positions].sum()))
    _check_shared(chosen, members, levels)
    tick(len(members) + 1)
    return chosen, positions, names, source, kind


def canonical(matrix: Any) -> Any:
    """CSR with sorted indices, no zeros stored and none twice; the matrix itself if it is so already."""
    if isinstance(matrix, np.ndarray):
        if matrix.dtype == np.float16:  # which scipy has no sparse matrix of
            matrix = matrix.astype(np.float32)
        step = max(1, BLOCK_ROWS * 1024 // matrix.shape[1])  # the places of all values at once would take 16 bytes each
        parts = [sp.csr_matrix(matrix[start : start + step]) for start in range(0, len(matrix), step)]
        return sp.vstack(parts, format="csr")
    csr = matrix.tocsr()
    if not csr.has_canonical_format or not csr.data.all():
        csr = csr.copy() if csr is matrix else csr
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def cells_per_gene(matrix: Any) -> NDArray[np.intp]:
    """In how many cells each gene is expressed, shape (n_genes,)."""
    found = np.zeros(matrix.shape[1], np.intp)
    for _, block in blocks(matrix):
        found += np.bincount(block.indices, minlength=len(found))
    return found


def count_scale(matrix: Any) -> NDArray[np.float64]:
    """What each cell's counts are multiplied by, shape (n_cells,); 0 for a cell without counts."""
    ones = np.ones(matrix.shape[1])
    library: NDArray[np.float64] = np.concatenate([block @ ones for _, block in blocks(matrix)])
    return np.divide(TARGET_SUM, library, out=np.zeros_like(library), where=library > 0)


def log_values(matrix: Any, positions: NDArray[np.intp], scale: NDArray[np.float64] | None, n_values: int) -> Any:
    """Log-normalised values of the chosen genes, CSR of float32."""
    data, indices = np.empty(n_values, np.float32), np.empty(n_values, np.int32)
    indptr = np.zeros(matrix.shape[0] + 1, np.int64)
    filled = 0
    for rows, block in blocks(matrix):
        part = block[:, positions]
        end = filled + part.nnz
        values = stored_values(part, None if scale is None else scale[rows])
        data[filled:end] = values if scale is None else np.log1p(values)
        indices[filled:end] = part.indices
        indptr[rows.start + 1 : rows.stop + 1] = filled + part.indptr[1:]
        filled = end
    return sp.csr_matrix((data, indices, indptr), shape=(matrix.shape[0], len(positions)))


def _check_shared(chosen: Any, members: list[NDArray[np.intp]], levels: NDArray[Any]) -> None:
    """Refuse a batch with expressed genes of which no other batch expresses any: nothing could be compared."""
    expressed = np.stack([chosen[rows].getnnz(axis=0) > 0 for rows in members])
    common = expressed.sum(axis=0) > 1
    if len(apart := levels[expressed.any(axis=1) & ~(expressed & common).any(axis=1)]):
        raise DataError(
            f"No gene is expressed both in batch {listed(apart)} and in another batch. "
            "Check that all batches name their genes alike (symbols or Ensembl ids, one species)."
        )


def _same_names(adata: AnnData, names: NDArray[np.object_]) -> bool:
    return np.array_equal(names, np.asarray(adata.var_names.astype(str), dtype=object))


def _masked(adata: AnnData, mask: NDArray[np.bool_], names: NDArray[np.object_], source: str) -> NDArray[np.intp]:
    """Places of the genes that a mask over var names in the matrix found, whose genes may be others."""
    if _same_names(adata, names):
        return np.flatnonzero(mask)
    wanted = set(adata.var_names[mask].astype(str))
    positions = np.flatnonzero([name in wanted for name in names])
    if not len(positions):
        raise DataError(f"mask_var names {len(wanted)} genes, but {source} has none of them. Name them as var does.")
    return positions


def _positions_in_var(
    adata: AnnData, names: NDArray[np.object_], positions: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Places in var of the chosen genes, and which of the chosen they are; genes that var lacks are left out."""
    if _same_names(adata, names):
        return positions, np.arange(len(positions))
    place = {name: i for i, name in reversed(list(enumerate(adata.var_names.astype(str))))}
    pairs = {place[name]: row for row, name in enumerate(names[positions]) if name in place}
    return np.array(list(pairs), dtype=np.intp), np.array(list(pairs.values()), dtype=np.intp)
