"""Names of what is written into an AnnData, and the writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.errors import DataError

__all__ = [
    "cell_keys",
    "layer_key",
    "result_keys",
    "result_slots",
    "umap_keys",
    "write_cells",
    "write_pca",
    "write_result",
]


def result_keys(key_added: str | None = None) -> tuple[str, str]:
    """Where a correction lies: its keys in obsm and uns, ("X_cellnorm", "cellnorm") or `key_added` for both.

    Examples
    --------
    >>> result_keys(), result_keys("foo")
    (('X_cellnorm', 'cellnorm'), ('foo', 'foo'))
    """
    if key_added is None:
        return "X_cellnorm", "cellnorm"
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise DataError(f"key_added must be a name without '/' (files split names there), found {key_added!r}.")
    return key_added, key_added


def umap_keys(key_added: str | None = None) -> tuple[str, str]:
    """Where the UMAP of a correction lies: its key in obsm and uns, and the key of its neighbors in uns and obsp."""
    _, name = result_keys(key_added)
    return f"X_umap_{name}", f"{name}_neighbors"


def cell_keys(key_added: str | None = None, label: str | None = None) -> tuple[str, ...]:
    """Columns of obs that an embedding writes: the match, or for a transferred label its name, probability and radius.

    Examples
    --------
    >>> cell_keys(), cell_keys(label="cell_type")
    (('cellnorm_match',), ('cellnorm_cell_type', 'cellnorm_cell_type_probability', 'cellnorm_cell_type_radius'))
    """
    _, name = result_keys(key_added)
    if label is None:
        return (f"{name}_match",)
    column = f"{name}_{label.replace('/', '_')}"  # files split names at "/"
    return column, f"{column}_probability", f"{column}_radius"


def layer_key(key_added: str | None = None) -> str:
    """Layer that corrected expression is written into: "cellnorm" or `key_added`."""
    return result_keys(key_added)[1]


def result_slots(
    key_added: str | None = None,
    *,
    umap: bool = False,
    cells: bool = False,
    transfer: Sequence[str] = (),
    expression: bool = False,
) -> list[tuple[str, str]]:
    """Everything that a correction or an embedding (and its UMAP) writes, as (slot, key).

    Parameters
    ----------
    key_added
        See `result_keys`.
    umap, cells, transfer, expression
        Whether a UMAP, the match of each cell, labels of these columns, and corrected expression are there too.

    Examples
    --------
    >>> result_slots("foo")
    [('obsm', 'foo'), ('uns', 'foo')]
    """
    embedding, info = result_keys(key_added)
    slots = [("obsm", embedding), ("uns", info)]
    if cells:
        slots += [("obs", key) for label in (None, *transfer) for key in cell_keys(key_added, label)]
    if expression:
        slots.append(("layers", layer_key(key_added)))
    if umap:
        picture, neighbors = umap_keys(key_added)
        slots += [("obsm", picture), ("uns", picture), ("uns", neighbors)]
        slots += [("obsp", f"{neighbors}_distances"), ("obsp", f"{neighbors}_connectivities")]
    return slots


def write_result(adata: AnnData, key_added: str | None, embedding: NDArray[Any], info: Mapping[str, Any]) -> None:
    """Write a corrected embedding into obsm (float32) and what is known of it into uns.

    Parameters
    ----------
    adata
        Is changed in these two places only.
    key_added
        See `result_keys`.
    embedding
        Shape (n_cells, n_latent).
    info
        Numbers, strings, arrays, None (written as "") and mappings thereof, with keys that are no user's text.

    Raises
    ------
    DataError
        If `key_added` cannot be a key in a file.
    """
    obsm_key, uns_key = result_keys(key_added)
    values, stored = np.asarray(embedding, dtype=np.float32), _storable(info)
    adata.obsm[obsm_key] = values
    adata.uns[uns_key] = stored


def write_cells(adata: AnnData, columns: Mapping[str, Any]) -> None:
    """Write values of cells into columns of obs: numbers as float32, text as categories.

    Parameters
    ----------
    adata
        Is changed in these columns only.
    columns
        Name (see `cell_keys`) and values, shape (n_cells,), of each.
    """
    for name, values in columns.items():
        array = np.asarray(values)
        text = array.dtype.kind in "OUS"
        adata.obs[name] = pd.Categorical(array) if text else array.astype(np.float32)


def write_pca(
    adata: AnnData,
    key_added: str | None,
    pcs: NDArray[Any],
    loadings: NDArray[Any],
    chosen: NDArray[np.bool_],
    info: Mapping[str, Any],
) -> None:
    """Write principal components where scanpy does: obsm, varm and uns, and the chosen genes into var.

    Shapes: `pcs` (n_cells, k), `loadings` (n_vars, k; zero where a gene was not chosen), `chosen` (n_vars,).
    """
    obsm_key, varm_key, uns_key = ("X_pca", "PCs", "pca") if key_added is None else (result_keys(key_added)[0],) * 3
    stored = _storable(info)
    adata.obsm[obsm_key] = pcs
    adata.varm[varm_key] = loadings
    adata.var["highly_variable"] = chosen
    adata.uns[uns_key] = stored


def _storable(value: Any) -> Any:
    """The same value in types that h5ad and zarr take and give back."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return {key: _storable(inner) for key, inner in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | np.ndarray):
        return np.asarray(value)
    return value
