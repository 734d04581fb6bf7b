"""Corrected expression of an AnnData: every gene, less what its batch adds."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import layer_key, result_keys
from cellnorm.blocks import RowBlocks
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.expression import BatchEffect, Cells, at_values, chunks, counts_like, learn_effect
from cellnorm.tl._expression_input import GeneMatrix, model_genes, read_embedding, read_matrix

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["expression", "expression_layer"]

logger = logging.getLogger(__name__)

LARGE = 2e9  # bytes of a layer of which people are told
PURPOSE = {
    "corrected": "Input less the estimated batch effect, gene by gene; what is particular to a cell stays. For plots, "
    "signatures, imputation and models that take a matrix. Not for differential expression tests with batch ignored: "
    "test on the original counts, with the batch in the model.",
    "denoised": "What the decoder expects of each cell in the common frame, without the noise of the measurement. For "
    "plots and for following a gene along the embedding. Not for any test: cells that are alike have got the same "
    "values, so that differences look far surer than they are.",
}
BELOW_ZERO = "Zeros of the input become small values of either sign."
OF_SPARSE = (
    "Zeros of the input stay zeros and its other values are multiplied (by 1/2 to 2), so that how often a gene is "
    "found still differs between batches: a little less of the batch effect is taken away than from a dense layer, and "
    "which genes vary most changes more. Choose variable genes on the input."
)


def expression(
    adata: AnnData,
    model: str | os.PathLike[str] | CellNorm,
    batch_key: str | Sequence[str] | None = None,
    *,
    kind: str = "corrected",
    counts: bool = False,
    sparse: bool = False,
    layer: str | None = None,
    reference: AnnData | None = None,
    key_added: str | None = None,
    copy: bool = False,
    progress: Progress | None = None,
) -> AnnData | None:
    """Write corrected expression of all genes into a layer.

    From each cell's log-expression the part is taken that its batch adds: the model's decoder told this batch less its
    mean over the batches of the reference, and what the cells of a kind in a batch share beyond that; see
    `cellnorm.expression`. The input itself stays as it is.

    Parameters
    ----------
    adata
        Cells x genes after `cellnorm.tl.correct` or `cellnorm.tl.embed` with this model.
    model
        The model, or the folder that it was saved to; for new batches the model that knows them (`save_model`).
    batch_key
        Column of obs that tells experiments apart, or several. None: as in the correction.
    kind
        "corrected" or "denoised" (what the decoder expects: smoother, without what is particular to a cell).
    counts
        On the scale of counts: not below zero, each cell with its total. Else log-normalised.
    sparse
        Zeros stay zeros and other values are multiplied: a layer as small as the input, which keeps a little more of
        the batch effect.
    layer
        Use this layer instead of the matrix that would be found.
    reference
        For new batches: the cells that the model learnt from, after `cellnorm.tl.correct`. What the model does not know
        of a new batch, above all the genes that it does not use, is learnt by comparing with them.
    key_added
        As given to the correction; also the name of the layer. None: "cellnorm".
    copy
        Return a changed copy and leave `adata` as it is.
    progress
        Called with ("expression", done, total, None).

    Returns
    -------
    None or AnnData
        Sets layers['cellnorm'] (n_cells, n_vars; float32, dense or CSR) and uns['cellnorm']['expression']: kind, scale,
        sparse, matrix, what it is for and what it costs.

    Raises
    ------
    DataError
        If there is no embedding, matrix, genes or batches do not fit the model, or `kind` is neither of the two.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> cells = cn.pp.log_expression(adata, adata.obs["batch"])[0]
    >>> model = cn.CellNorm(n_latent=5, n_steps=10)
    >>> adata.obsm["X_cellnorm"] = model.fit_transform(cells, adata.obs["batch"])
    >>> cn.tl.expression(adata, model, "batch")
    >>> adata.layers["cellnorm"].shape, adata.uns["cellnorm"]["expression"]["scale"]
    ((60, 40), 'log(1 + counts per 10,000)')
    """
    made, info = expression_layer(
        adata, model, batch_key, kind=kind, counts=counts, sparse=sparse, layer=layer, reference=reference,
        key_added=key_added, progress=progress,
    )  # fmt: skip
    values = made.whole()
    target = adata.copy() if copy else adata
    uns = result_keys(key_added)[1]
    target.layers[layer_key(key_added)] = values
    target.uns[uns] = {**target.uns.get(uns, {}), "expression": info}
    return target if copy else None


def expression_layer(
    adata: AnnData,
    model: str | os.PathLike[str] | CellNorm,
    batch_key: str | Sequence[str] | NDArray[Any] | None = None,
    *,
    kind: str = "corrected",
    counts: bool = False,
    sparse: bool = False,
    layer: str | None = None,
    reference: AnnData | None = None,
    key_added: str | None = None,
    progress: Progress | None = None,
) -> tuple[RowBlocks, dict[str, Any]]:
    """The layer that `expression` writes, not made yet: for files, which take it block by block.

    Parameters
    ----------
    adata, model, kind, counts, sparse, layer, reference, key_added, progress
        As in `expression`. The layer is made from `adata` when it is written.
    batch_key
        As in `expression`, or the batch of each cell, shape (n_cells,).

    Returns
    -------
    The layer, and what `expression` writes into uns.
    """
    if kind not in PURPOSE:
        raise DataError(f"Expression can be 'corrected' or 'denoised', found {kind!r:.80}.")
    known = model if isinstance(model, CellNorm) else CellNorm.load(model)
    genes = np.asarray(adata.var_names.astype(str), dtype=object)
    matrix = read_matrix(adata, layer, genes)
    z, codes = read_embedding(adata, known, batch_key, key_added)
    positions = model_genes(known, genes)
    cells = [Cells(matrix.log, z, codes)]
    if reference is not None:
        others = read_matrix(reference, layer if layer in reference.layers else None, genes)
        cells.append(Cells(others.log, *read_embedding(reference, known, None, key_added)))
    effect = learn_effect(known, cells, positions)
    if reference is not None:
        effect = _kept(effect, others)
    n_stored = int(matrix.values.nnz if hasattr(matrix.values, "nnz") else np.count_nonzero(matrix.values))
    shape = (adata.n_obs, adata.n_vars)
    made = RowBlocks(
        shape,
        sparse,
        n_stored if sparse else shape[0] * shape[1],
        lambda: _blocks(effect, matrix, z, codes, kind, counts, sparse, progress),
    )
    if made.n_bytes > LARGE:
        advice = "" if sparse else "; a sparse layer, in which zeros stay zeros, takes less"
        logger.warning("The layer of %s expression takes %.1f GB%s.", kind, made.n_bytes / 1e9, advice)
    info = _info(effect, matrix, kind, counts, sparse)
    logger.info("%s expression of %d genes in layers[%r]: %s", kind, adata.n_vars, layer_key(key_added), info["scale"])
    return made, info


def _kept(effect: BatchEffect, reference: GeneMatrix) -> BatchEffect:
    """Leave genes as they are that the reference lacks: zeros there are no measurement."""
    if reference.pick is None:
        return effect
    there = np.asarray(reference.pick.sum(axis=0)).ravel().astype(np.float32)
    return dataclasses.replace(effect, loadings=effect.loadings * there[:, None], offset=effect.offset * there)


def _blocks(
    effect: BatchEffect,
    matrix: GeneMatrix,
    z: NDArray[np.float32],
    codes: NDArray[np.int64],
    kind: str,
    counts: bool,
    sparse: bool,
    progress: Progress | None,
) -> Iterator[Any]:
    for rows, x in chunks(matrix.log, len(z)):
        where = z[rows], codes[rows]
        if kind == "denoised":
            values: Any = at_values(x, effect.denoised(*where)) if sparse else effect.denoised(*where)
        else:
            values = effect.scaled(x, *where) if sparse else effect.corrected(x, *where)
        yield counts_like(values, matrix.total(rows)) if counts else values
        if progress is not None:
            progress("expression", rows.stop, len(z), None)


def _info(effect: BatchEffect, matrix: GeneMatrix, kind: str, counts: bool, sparse: bool) -> dict[str, Any]:
    frame = len(np.unique(effect.model.sketch_batch_))
    log = "log(1 + counts per 10,000)" if matrix.scale is not None else "as the input, which was taken for logarithms"
    return {
        "kind": kind,
        "scale": "counts: each cell has the total of its input" if counts else log,
        "sparse": sparse,
        "matrix": matrix.source,
        "purpose": PURPOSE[kind],
        "cost": OF_SPARSE if sparse else "" if counts or kind == "denoised" else BELOW_ZERO,
        "frame": f"mean of the {frame} batches that the model learnt from",
        "n_kinds": len(effect.centres),
    }
