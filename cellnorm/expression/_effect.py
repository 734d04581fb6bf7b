"""Corrected expression: what a batch adds to each gene is estimated and taken away; what is particular to a cell stays.

A cell's expression is taken apart as x = decoded(z, batch) + residual. The batch's part has two terms:

1. in what the components hold, the decoder told the cell's own batch less the decoder's mean over all batches that the
   model learnt from (the common frame), times the loadings;
2. in what they do not hold, the part of the residual that cells of one kind share within a batch but not between
   batches, gene by gene, shrunk by how sure it is.

Genes outside the front get loadings by regression on the decoded components, so that every gene is corrected. All of it
is estimated at full strength, and the model's share of it is taken away: none of it at strength 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from cellnorm.determinism import one_thread
from cellnorm.expression._offsets import Sums, shrunk_offsets
from cellnorm.training import at_full_strength, decode

__all__ = ["BatchEffect", "Cells", "at_values", "chunks", "counts_like", "learn_effect"]

FloatArray = NDArray[np.float32]
CHUNK_VALUES = 8_000_000  # values of a dense block: 32 MB
# Kinds of cells: fewer where batches have few cells, since a mean of some ten cells says little.
MAX_KINDS, CELLS_PER_KIND = 20, 30
MAX_SUMS = 20_000_000  # sums per batch, kind and gene that are held, 160 MB; beyond it there are fewer kinds
GENE_BLOCK = 1000
# Of a sparse layer: no value changes by more than this factor, and a gene that is hardly found changes less.
LARGEST_FACTOR, LEAST_LEVEL = 2.0, 0.03
MAX_CENTRE_CELLS = 5000


class Cells(NamedTuple):
    """Cells to learn from: `rows(slice)` gives their log-normalised expression, CSR or dense, (n, n_genes).

    `z` is their embedding as `CellNorm.transform` gives it, (n_cells, n_latent); `batch` their codes in `batches_`.
    """

    rows: Callable[[slice], Any]
    z: FloatArray
    batch: NDArray[np.int64]


@dataclass(frozen=True)
class BatchEffect:
    """What each batch adds to the expression of each gene, as a function of where a cell lies in the embedding.

    Attributes
    ----------
    model
        The fitted CellNorm.
    batches
        Codes of the batches that have offsets, ascending, shape (n_seen,).
    mean
        Expression at the centre of the common frame, shape (n_genes,), in the units of the expression.
    loadings
        Change of each gene per unit of the components, shape (n_genes, n_features).
    centres, width
        Centres of the kinds of cells in the embedding, shape (n_kinds, n_latent), and the typical squared distance of
        a cell to its own.
    offset
        What the residual of a batch's cells of a kind has in common, shape (n_seen, n_kinds, n_genes).
    """

    model: Any
    batches: NDArray[np.int64]
    mean: FloatArray
    loadings: FloatArray
    centres: FloatArray
    width: float
    offset: FloatArray

    def removed(self, z: FloatArray, batch: NDArray[np.int64]) -> FloatArray:
        """What is taken away from these cells, shape (n_cells, n_genes): dense, so give few cells at a time."""
        with one_thread():
            z = _unmixed(self.model, z, batch)
            difference = _decoded(self.model, z, batch) - _common(self.model, z)
            found = np.asarray(difference @ self.loadings.T, np.float32)
            share = _membership(z, self.centres, self.width)
            for row, code in enumerate(self.batches):
                own = np.flatnonzero(batch == code)
                if len(own):
                    found[own] += share[own] @ self.offset[row]
        return found * np.float32(self.model.strength_)

    def corrected(self, x: Any, z: FloatArray, batch: NDArray[np.int64]) -> FloatArray:
        """Expression less what the batch added, shape (n_cells, n_genes); small values can fall below zero."""
        dense = x.toarray() if hasattr(x, "toarray") else np.asarray(x)
        return np.asarray(dense - self.removed(z, batch), np.float32)

    def scaled(self, x: Any, z: FloatArray, batch: NDArray[np.int64]) -> Any:
        """Expression whose values are multiplied instead, CSR of x's shape: zeros stay zeros.

        Each value is multiplied by the level that its gene has in cells of this place without the batch, over that
        with it, and by LARGEST_FACTOR or its inverse at most.
        """
        removed = self.removed(z, batch)
        level = np.maximum(self.denoised(z, batch) + removed, 0) + LEAST_LEVEL
        factor = np.clip(1 - removed / level, 1 / LARGEST_FACTOR, LARGEST_FACTOR)
        x = sp.csr_matrix(x)
        return _with_values(x, x.data * factor[_rows(x), x.indices])

    def denoised(self, z: FloatArray, batch: NDArray[np.int64]) -> FloatArray:
        """What the decoder expects of these cells, (n_cells, n_genes): of their batches (strength 0) or of all (1)."""
        strength = np.float32(self.model.strength_)
        with one_thread():
            z = _unmixed(self.model, z, batch)
            pcs = _common(self.model, z)
            if strength < 1:
                pcs = strength * pcs + (1 - strength) * _decoded(self.model, z, batch)
            found = pcs @ self.loadings.T + self.mean
        return np.asarray(found, np.float32)


def learn_effect(model: Any, cells: Sequence[Cells], positions: NDArray[np.int64] | None = None) -> BatchEffect:
    """Estimate what each batch adds to each gene, in one pass over the cells.

    The residual of gene g in cell i is modelled as c[kind, g] + e[batch, g] + d[batch, kind, g] + noise. The offset of
    a batch is e + d, each shrunk by its share of signal, v / (v + s / n): v the variance of e (or d) over batches (and
    kinds) less what noise explains, s the variance of the noise, n the number of cells behind the value (empirical
    Bayes; Morris 1983). So nothing is taken from genes in which batches do not differ.

    Parameters
    ----------
    model
        A fitted CellNorm.
    cells
        The cells, of all batches that shall be made comparable; several files if they lie in several. All with the
        same genes.
    positions
        Column of each gene of the model's front, -1 where it is missing, shape (n_features_in_,). These genes keep the
        exact loadings; all others, and all genes of a model of a representation, get theirs by regression.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import CellNorm
    >>> from cellnorm.expression import Cells, learn_effect
    >>> rng = np.random.default_rng(0)
    >>> batch = np.repeat([0, 1], 100)
    >>> X = (rng.normal(size=(200, 20)) + 3.0 * batch[:, None]).astype("float32")
    >>> model = CellNorm(n_latent=5, n_steps=20).fit(X, batch)
    >>> z = model.transform(X, batch)
    >>> found = learn_effect(model, [Cells(lambda rows: X[rows], z, batch)], np.arange(20))
    >>> after = found.corrected(X, z, batch)
    >>> bool(np.abs(after[:100].mean() - after[100:].mean()) < 0.1)
    True
    """
    batches = np.unique(np.concatenate([c.batch for c in cells]))
    n_genes = next(part for _, part in chunks(cells[0].rows, 1)).shape[1]
    with one_thread():
        n_kinds = _n_kinds(sum(len(c.z) for c in cells), len(batches), n_genes)
        centres, width = _kinds(model.reference_embedding(strength=1.0), n_kinds)
        sums = Sums(len(batches), len(centres), n_genes, model.sketch_.shape[1])
        for part in cells:
            for rows, x in chunks(part.rows, len(part.z)):
                code = part.batch[rows]
                z = _unmixed(model, part.z[rows], code)
                sums.add(x, _decoded(model, z, code), _membership(z, centres, width), np.searchsorted(batches, code))
        return _solved(model, sums, batches, centres, width, positions)


def chunks(rows: Callable[[slice], Any], n_cells: int) -> Iterator[tuple[slice, Any]]:
    """Blocks of rows that are small even when dense, as (rows, expression)."""
    n_genes = rows(slice(0, 1)).shape[1]
    step = max(1, CHUNK_VALUES // max(1, n_genes))
    for start in range(0, n_cells, step):
        block = slice(start, min(start + step, n_cells))
        yield block, rows(block)


def at_values(x: Any, values: FloatArray) -> Any:
    """The values where x has one, CSR of x's shape: zeros stay zeros, and nothing falls below zero."""
    x = sp.csr_matrix(x)
    return _with_values(x, np.maximum(values[_rows(x), x.indices], 0))


def _rows(x: Any) -> NDArray[np.intp]:
    """Row of each stored value of a CSR matrix."""
    return np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))


def _with_values(x: Any, values: NDArray[Any]) -> Any:
    out = sp.csr_matrix((values.astype(np.float32), x.indices, x.indptr), shape=x.shape, copy=True)
    out.eliminate_zeros()
    return out


def counts_like(values: Any, total: NDArray[np.floating]) -> Any:
    """Log-normalised values on the scale of counts: exp(values) - 1, not below zero, each cell with its total.

    Parameters
    ----------
    values
        CSR or dense, shape (n_cells, n_genes).
    total
        What the counts of each cell shall add up to, shape (n_cells,). A cell without any positive value stays zero.
    """
    is_sparse = hasattr(values, "indptr")
    data = values.data if is_sparse else values
    np.expm1(np.maximum(data, 0, out=data), out=data)
    found = np.asarray(values.sum(axis=1), np.float64).ravel()
    factor = np.divide(total, found, out=np.zeros(len(found)), where=found > 0).astype(np.float32)
    if not is_sparse:
        return values * factor[:, None]
    values.data *= np.repeat(factor, np.diff(values.indptr))
    return values


def _unmixed(model: Any, z: FloatArray, batch: NDArray[np.int64]) -> FloatArray:
    """Where cells embedded at the model's strength would be at full strength, shape (n_cells, n_latent)."""
    if model.strength_ == 1:
        return z
    full = at_full_strength(model.net_, np.asarray(z, np.float32) / model.scale_, batch)
    return np.asarray(full * model.scale_, np.float32)


def _decoded(model: Any, z: FloatArray, batch: NDArray[np.int64]) -> FloatArray:
    """Components of cells embedded at full strength as the given batches show them, shape (n_cells, n_features).

    With one offset per batch: what differs from kind to kind is found gene by gene, and shrunk by how sure it is, which
    keeps differences between types better (pancreas_5batches: correlation .975 against .950).
    """
    pcs = decode(model.net_, np.asarray(z, np.float32) / model.scale_, batch, evenly=True)
    return np.asarray(pcs * model.scale_, np.float32)


def _common(model: Any, z: FloatArray) -> FloatArray:
    """Components of embedded cells in the common frame: the mean over the batches that the model learnt from.

    Batches added later have no say, so that what was corrected before stays comparable.
    """
    frame = np.unique(model.sketch_batch_)
    found = np.zeros((len(z), model.sketch_.shape[1]), np.float32)
    for code in frame:
        found += _decoded(model, z, np.full(len(z), code))
    return np.asarray(found / len(frame), np.float32)


def _n_kinds(n_cells: int, n_batches: int, n_genes: int) -> int:
    wanted = n_cells // (CELLS_PER_KIND * n_batches)
    return int(np.clip(min(wanted, MAX_SUMS // (n_batches * n_genes)), 1, MAX_KINDS))


def _kinds(z: FloatArray, n_kinds: int) -> tuple[FloatArray, float]:
    """Centres of kinds of cells in the reference's embedding, and the typical squared distance to the nearest."""
    z = z[:: -(-len(z) // MAX_CENTRE_CELLS)]
    centres = KMeans(min(n_kinds, len(z)), n_init=3, random_state=0).fit(z).cluster_centers_.astype(np.float32)
    width = float(np.median(_squared(z, centres).min(axis=1)))
    return centres, width if width > 0 else 1.0


def _squared(z: FloatArray, centres: FloatArray) -> NDArray[np.float64]:
    apart = z.astype(np.float64) @ centres.T.astype(np.float64)
    return np.asarray(np.square(z).sum(1, dtype=np.float64)[:, None] - 2 * apart + np.square(centres).sum(1))


def _membership(z: FloatArray, centres: FloatArray, width: float) -> FloatArray:
    """How much each cell is of each kind, shape (n_cells, n_kinds), rows that add up to 1: kinds have soft borders."""
    squared = _squared(z, centres)
    share = np.exp((squared.min(axis=1, keepdims=True) - squared) / width)
    return np.asarray(share / share.sum(axis=1, keepdims=True), np.float32)


def _solved(
    model: Any,
    sums: Sums,
    batches: NDArray[np.int64],
    centres: FloatArray,
    width: float,
    positions: NDArray[np.int64] | None,
) -> BatchEffect:
    loadings = sums.loadings()
    if model.front_ is not None and positions is not None:
        there = positions >= 0
        loadings[positions[there]] = model.front_.loadings[there]
    frame = np.isin(batches, model.sketch_batch_)
    n_genes = len(loadings)
    mean, offset = np.empty(n_genes), np.empty(sums.x.shape, np.float32)
    for start in range(0, n_genes, GENE_BLOCK):
        genes = slice(start, start + GENE_BLOCK)
        w = loadings[genes]
        residual = sums.x[:, :, genes] - sums.p @ w.T
        squares = sums.xx[genes] - 2 * (sums.xp[genes] * w).sum(1) + ((w @ sums.pp) * w).sum(1)
        mean[genes], offset[:, :, genes] = shrunk_offsets(residual, squares, sums.n, frame if frame.any() else ~frame)
    if model.front_ is not None and positions is not None:
        mean[positions[there]] = model.front_.mean[there]
    return BatchEffect(model, batches, mean.astype(np.float32), loadings.astype(np.float32), centres, width, offset)
