"""A fingerprint of every part of an AnnData, to see what a call changed."""

import hashlib
from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def snapshot(adata: ad.AnnData) -> dict[str, str]:
    """Path of each part to a hash of its type, shape and bytes."""
    parts: dict[str, Any] = {"X": adata.X, "obs": adata.obs, "var": adata.var, "uns": dict(adata.uns)}
    for slot in ("layers", "obsm", "varm", "obsp", "varp"):
        parts[slot] = dict(getattr(adata, slot))
    if adata.raw is not None:
        parts["raw"] = {"X": adata.raw.X, "var": adata.raw.var, "varm": dict(adata.raw.varm)}
    return dict(_flat(parts, ""))


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """Paths that were added, removed or changed."""
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _flat(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        yield path, "mapping"
        for key, inner in value.items():
            yield from _flat(inner, f"{path}/{key}")
    else:
        yield path, hashlib.sha256(repr(_described(value)).encode()).hexdigest()


def _described(value: Any) -> Any:
    if isinstance(value, pd.DataFrame):
        columns = [(name, value[name].dtype, value[name].tolist()) for name in value]
        return "frame", columns, value.index.dtype, value.index.tolist(), value.index.name
    if sp.issparse(value):
        parts = [_described(part) for part in (value.data, value.indices, value.indptr)]
        return type(value).__name__, value.shape, parts
    if isinstance(value, np.ndarray):
        content = value.tolist() if value.dtype == object else hashlib.sha256(value.tobytes()).hexdigest()
        return "array", value.dtype, value.shape, content
    return type(value).__name__, repr(value)
