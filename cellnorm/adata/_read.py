"""Read the expression matrix, a mask of genes, a representation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.survey import Seen

__all__ = ["choose_matrix", "first_usable", "gene_mask", "masked_genes", "places", "representation", "same_genes"]

CHUNK_VALUES = 1_000_000


def choose_matrix(adata: AnnData, layer: str | None = None) -> tuple[Any, NDArray[np.object_], str, str]:
    """Find the matrix that holds counts or log-normalised values.

    Without `layer` the first of these is taken: counts in X, layers['counts'], raw.X; then log-normalised values in X,
    raw.X. Counts are whole numbers from 0 up; log-normalised values are not all whole, from 0 up and below 30.
    All stored values are looked at.

    Parameters
    ----------
    adata
        Cells x genes; X may be on disk (backed) and is then loaded.
    layer
        Take this layer and nothing else.

    Returns
    -------
    matrix
        CSR, CSC or dense, shape (n_cells, n_genes), in memory; it may share memory with `adata`.
    genes
        Names of its genes, shape (n_genes,); raw.X may have others than `adata.var`.
    source
        "X", "layers['...']" or "raw.X".
    kind
        "counts" or "log".

    Raises
    ------
    DataError
        If there is no such layer, or nothing usable: negative values, NaN, infinite or large fractional values.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> matrix, genes, source, kind = choose_matrix(ad.AnnData(np.eye(3, dtype="float32")))
    >>> source, kind
    ('X', 'counts')
    """
    fetch: dict[str, Callable[[], Any]] = {"X": lambda: _loaded(adata.X), "raw.X": lambda: _loaded(adata.raw.X)}
    fetch |= {_of_layer(name): lambda name=name: _loaded(adata.layers[name]) for name in adata.layers}  # type: ignore[misc]
    wanted = places(layer, adata.layers, x=adata.X is not None, raw=adata.raw is not None)
    source, kind = first_usable(wanted, lambda source: _kind(fetch[source]()), layer)
    return fetch[source](), _gene_names(adata, source), source, kind


def first_usable(
    wanted: Iterable[str], look: Callable[[str], tuple[str, str]], layer: str | None = None
) -> tuple[str, str]:
    """The first of some matrices that holds counts, else the first that holds log-normalised values, and what it holds.

    Parameters
    ----------
    wanted
        Names of the matrices in order, see `places`.
    look
        Tells what a matrix holds as `Seen.kind` does; not asked about those after the first with counts.
    layer
        The layer that was asked for; without one log-normalised values in layers['counts'] do not count.

    Raises
    ------
    DataError
        If none is usable.

    Examples
    --------
    >>> first_usable(["X", "raw.X"], lambda source: ("counts" if source == "raw.X" else "log", ""))
    ('raw.X', 'counts')
    """
    found: dict[str, tuple[str, str]] = {}
    for source in wanted:
        kind, finding = look(source)
        if kind == "counts":
            return source, kind
        found[source] = (kind, finding)
    for source, (kind, _) in found.items():
        if kind == "log" and (layer is not None or source != _COUNTS):
            return source, kind
    raise DataError(_unusable(found))


_COUNTS = "layers['counts']"


def _of_layer(name: str) -> str:
    return f"layers[{name!r}]"


def places(layer: str | None, layers: Iterable[str], *, x: bool, raw: bool) -> list[str]:
    """Names of the matrices to look at, in order.

    Parameters
    ----------
    layer
        The only one, if it is given.
    layers
        Those that there are.
    x, raw
        Whether there are X and raw.X.

    Raises
    ------
    DataError
        If there is no such layer, or nothing at all.

    Examples
    --------
    >>> places(None, ["counts", "scaled"], x=True, raw=False)
    ['X', "layers['counts']"]
    """
    if layer is not None:
        if layer not in layers:
            raise DataError(f"layer {layer!r} was asked for, but the layers are: {listed(layers)}.")
        return [_of_layer(layer)]
    wanted = {"X": x, _COUNTS: "counts" in layers, "raw.X": raw}
    if not any(wanted.values()):
        raise DataError("An expression matrix is needed, but X, layers['counts'] and raw.X are all empty.")
    return [source for source, there in wanted.items() if there]


def _gene_names(adata: AnnData, source: str) -> NDArray[np.object_]:
    names = adata.raw.var_names if source == "raw.X" else adata.var_names
    return np.asarray(names.astype(str), dtype=object)


def _loaded(matrix: Any) -> Any:
    """The matrix in memory as a plain CSR, CSC or dense array: no view of an AnnData, no file behind it."""
    if hasattr(matrix, "to_memory"):
        matrix = matrix.to_memory()
    if not _is_sparse(matrix):
        return np.asarray(matrix)
    if matrix.format not in ("csr", "csc"):
        return sp.csr_matrix(matrix)
    plain = sp.csr_matrix if matrix.format == "csr" else sp.csc_matrix
    return plain((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape, copy=False)


def _is_sparse(matrix: Any) -> bool:
    return bool(sp.issparse(matrix))


def _kind(matrix: Any) -> tuple[str, str]:
    """What a matrix holds: "counts", "log" or "other", and in words what speaks against the first two."""
    if 0 in matrix.shape:
        return "other", f"no values ({matrix.shape[0]} cells x {matrix.shape[1]} genes)"
    seen = Seen()
    for values in _stored(matrix):
        seen.look(values)
    return seen.kind()


def _stored(matrix: Any) -> Iterator[NDArray[Any]]:
    """The stored values of a matrix, piece by piece."""
    if _is_sparse(matrix):
        rows, step = matrix.data, CHUNK_VALUES
    else:
        rows, step = matrix, max(1, CHUNK_VALUES // matrix.shape[1])
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _unusable(found: Mapping[str, tuple[str, str]]) -> str:
    seen = "; ".join(f"{source} holds {finding}" for source, (_, finding) in found.items())
    return (
        f"Counts or log-normalised values are needed, but {seen}. Put raw counts (whole numbers) into X, {_COUNTS} or "
        "raw.X, or log-normalised values (not scaled, no NaN) into X or raw.X, or name the layer that holds them."
    )


def gene_mask(adata: AnnData, mask_var: str | Any) -> NDArray[np.bool_]:
    """Genes that a mask names, shape (n_vars,): `mask_var` is a boolean column of var or a boolean array."""
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            raise DataError(f"mask_var {mask_var!r} was asked for, but the columns of var are: {listed(adata.var)}.")
        mask = adata.var[mask_var].to_numpy()
    else:
        mask = np.asarray(mask_var)
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        raise DataError(
            f"mask_var must hold True or False for each of the {adata.n_vars} genes, "
            f"found shape {mask.shape} of type {mask.dtype}."
        )
    if not mask.any():
        raise DataError("mask_var holds no gene: every value is False. Give a mask with the genes to use.")
    return np.asarray(mask)


def masked_genes(adata: AnnData, mask: NDArray[np.bool_], names: NDArray[np.object_], source: str) -> NDArray[np.intp]:
    """Places of the genes that a mask over var names in the matrix found, whose genes may be others."""
    if same_genes(adata, names):
        return np.flatnonzero(mask)
    wanted = set(adata.var_names[mask].astype(str))
    positions = np.flatnonzero([name in wanted for name in names])
    if not len(positions):
        raise DataError(f"mask_var names {len(wanted)} genes, but {source} has none of them. Name them as var does.")
    return positions


def same_genes(adata: AnnData, names: NDArray[np.object_]) -> bool:
    """Whether these are the names of var."""
    return np.array_equal(names, np.asarray(adata.var_names.astype(str), dtype=object))


def representation(adata: AnnData, use_rep: str) -> tuple[NDArray[np.float32], str]:
    """A representation in obsm, shape (n_cells, n_dims), and its name for messages."""
    if use_rep not in adata.obsm:
        raise DataError(f"use_rep {use_rep!r} was asked for, but obsm holds: {listed(adata.obsm)}.")
    values = adata.obsm[use_rep]
    source = f"obsm[{use_rep!r}]"
    values = np.asarray(values.toarray() if _is_sparse(values) else values)
    if values.dtype.kind not in "biuf" or values.ndim != 2:
        raise DataError(f"{source} must be a table of numbers, found shape {values.shape} of type {values.dtype}.")
    if not np.isfinite(values).all():
        raise DataError(f"{source} holds {int((~np.isfinite(values)).sum())} NaN or infinite values. Make it anew.")
    return values.astype(np.float32), source
