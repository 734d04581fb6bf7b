"""What corrected expression is made from: expression of all genes, the embedding, and which genes are the model's."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import choose_matrix, result_keys
from cellnorm.checkpoint import fingerprint, fingerprints
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.genes import match_genes
from cellnorm.labels import batch_labels, listed
from cellnorm.survey import count_scale
from cellnorm.validation import known_codes

__all__ = ["GeneMatrix", "model_genes", "read_embedding", "read_matrix"]

logger = logging.getLogger(__name__)


class GeneMatrix(NamedTuple):
    """An expression matrix and which of its columns is which gene.

    `scale` brings the counts of each cell to 10,000, shape (n_cells,); None: it holds logarithms.
    """

    values: Any
    scale: NDArray[np.float64] | None
    pick: Any  # None: all, in their order; else 0 or 1, shape (n_columns, n_genes)
    source: str

    def linear(self, rows: slice) -> Any:
        """Values as they were found, CSR, shape (n, n_genes)."""
        block = sp.csr_matrix(self.values[rows], dtype=np.float32)
        return block if self.pick is None else sp.csr_matrix(block @ self.pick)

    def log(self, rows: slice) -> Any:
        """Log-normalised values, CSR of float32, shape (n, n_genes)."""
        block = self.linear(rows)
        if self.scale is None:
            return block
        scaled = block.data * np.repeat(self.scale[rows], np.diff(block.indptr))
        return sp.csr_matrix((np.log1p(scaled).astype(np.float32), block.indices, block.indptr), block.shape)

    def total(self, rows: slice) -> NDArray[np.float64]:
        """What the counts (or exp of the logarithms - 1) of each cell add up to, shape (n,)."""
        block = self.linear(rows)
        if self.scale is None:
            block.data = np.expm1(block.data)
        return np.asarray(block.sum(axis=1), np.float64).ravel()


def read_matrix(adata: AnnData, layer: str | None, genes: NDArray[np.object_]) -> GeneMatrix:
    """The expression of these genes; one that the matrix lacks has zeros throughout."""
    values, names, source, kind = choose_matrix(adata, layer)
    values = values.tocsr() if hasattr(values, "tocsr") else values
    scale = count_scale(values) if kind == "counts" else None
    if np.array_equal(names, genes):
        return GeneMatrix(values, scale, None, source)
    positions = match_genes(genes, names).positions
    there = np.flatnonzero(positions >= 0)
    if len(there) < len(genes):
        logger.warning(
            "%d of %d genes are not in %s and have no corrected values: %s.",
            *(len(genes) - len(there), len(genes), source, listed(genes[positions < 0], limit=3)),
        )
    ones = np.ones(len(there), np.float32)
    pick = sp.csr_matrix((ones, (positions[there], there)), shape=(len(names), len(genes)))
    return GeneMatrix(values, scale, pick, source)


def read_embedding(
    adata: AnnData, model: CellNorm, batch_key: str | Sequence[str] | NDArray[Any] | None, key_added: str | None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embedding and batch of each cell as the model has them."""
    place, uns = result_keys(key_added)
    info = adata.uns.get(uns, {})
    width = np.shape(adata.obsm[place])[1:] if place in adata.obsm else None
    own = fingerprints(model)
    if width != (model.n_latent,) or str(info.get("model") or fingerprint(model)) not in own:
        found = f"obsm holds: {listed(adata.obsm)}" if width is None else "that there is another model's"
        raise DataError(
            f"Corrected expression needs the model's own embedding, {model.n_latent} columns in obsm[{place!r}], but "
            f"{found}. Run cellnorm.tl.correct or cellnorm.tl.embed with this model first; for new batches, give the "
            "model that knows them (save_model)."
        )
    labels = batch_key if isinstance(batch_key, np.ndarray) else _labels(adata, info, batch_key)
    z = np.asarray(adata.obsm[place], np.float32)
    return z, known_codes(labels, model.batches_, len(z))


def _labels(adata: AnnData, info: Mapping[str, Any], batch_key: str | Sequence[str] | None) -> NDArray[Any]:
    """Batch of each cell by the name that it was embedded under, which has an addition if the model knew the name."""
    key = info.get("batch_key", ()) if batch_key is None else batch_key
    keys = [key] if isinstance(key, str) else [str(name) for name in key]
    names = [str(name) for name in info.get("batches", {}).get("name", ())]
    if not keys and len(names) == 1:
        return np.full(adata.n_obs, names[0], dtype=object)
    if not keys:
        raise DataError("It is not recorded which column of obs is the batch. Name it with batch_key.")
    labels = batch_labels(adata, keys, several=False)
    renamed = {label: [n for n in names if n.startswith(f"{label} (")] for label in set(labels) - set(names)}
    return np.array([renamed[b][0] if len(renamed.get(b, ())) == 1 else b for b in labels], dtype=object)


def model_genes(model: CellNorm, genes: NDArray[np.object_]) -> NDArray[np.int64] | None:
    """Where the model's genes are; None for a model of a representation."""
    if model.front_ is None:
        return None
    if hasattr(model, "feature_names_in_"):
        return match_genes(model.feature_names_in_, genes).positions
    if model.n_features_in_ != len(genes):
        raise DataError(
            f"The model was made from an array of {model.n_features_in_} genes without names, here are {len(genes)}: "
            "which is which cannot be told. Give the same genes, or make it with cellnorm.tl.correct."
        )
    return np.arange(len(genes))
