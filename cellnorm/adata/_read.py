"""Read the expression matrix, a mask of genes, a representation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.labels import listed

__all__ = ["choose_matrix", "gene_mask", "representation"]

# Log-normalised values stay far below this in any base (10,000 counts per cell: 9.2 in base e, 13.3 in base 2).
LOG_MAX = 30.0
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
    places = _places(adata, layer)
    found: dict[str, tuple[str, str]] = {}
    for source, fetch in places.items():
        matrix = fetch()
        kind, finding = _kind(matrix)
        if kind == "counts":
            return matrix, _gene_names(adata, source), source, kind
        found[source] = (kind, finding)
    for source, (kind, _) in found.items():
        if kind == "log" and (layer is not None or source != _COUNTS):
            return places[source](), _gene_names(adata, source), source, kind
    raise DataError(_unusable(found))


_COUNTS = "layers['counts']"


def _places(adata: AnnData, layer: str | None) -> dict[str, Callable[[], Any]]:
    """Names of the matrices to look at, in order, and how to get each."""
    if layer is not None:
        if layer not in adata.layers:
            raise DataError(f"layer {layer!r} was asked for, but the layers are: {listed(adata.layers)}.")
        return {f"layers[{layer!r}]": lambda: _loaded(adata.layers[layer])}
    places: dict[str, Callable[[], Any]] = {}
    if adata.X is not None:
        places["X"] = lambda: _loaded(adata.X)
    if "counts" in adata.layers:
        places[_COUNTS] = lambda: _loaded(adata.layers["counts"])
    if adata.raw is not None:
        places["raw.X"] = lambda: _loaded(adata.raw.X)
    if not places:
        raise DataError("An expression matrix is needed, but X, layers['counts'] and raw.X are all empty.")
    return places


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
    nan, infinite, low, high, whole = 0, 0, 0.0, 0.0, True
    if 0 in matrix.shape:
        return "other", f"no values ({matrix.shape[0]} cells x {matrix.shape[1]} genes)"
    for values in _stored(matrix):
        if values.dtype.kind not in "biuf":
            return "other", f"values of type {values.dtype}, which are not numbers"
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            if not finite.all():
                n_nan = int(np.isnan(values).sum())
                nan, infinite = nan + n_nan, infinite + int((~finite).sum()) - n_nan
                values = values[finite]
            whole = whole and bool((np.rint(values) == values).all())
        low = min(low, float(values.min(initial=0)))
        high = max(high, float(values.max(initial=0)))
    if nan or infinite:
        return "other", f"{nan} NaN and {infinite} infinite values"
    if low < 0:
        return "other", f"negative values (down to {low:.3g}), as scaled or centred data do"
    if whole:
        return "counts", ""
    return ("log", "fractional values") if high < LOG_MAX else ("other", f"fractional values up to {high:.6g}")


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
