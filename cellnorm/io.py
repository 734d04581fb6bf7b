"""Files in and out: read one, join those of several labs, write a result whole or not at all."""

import logging
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import zarr
from anndata import AnnData
from anndata.io import write_elem, write_h5ad, write_zarr

from cellnorm.adata import choose_matrix
from cellnorm.blocks import RowBlocks, write_blocks
from cellnorm.errors import DataError
from cellnorm.formats import file_format, read
from cellnorm.labels import listed
from cellnorm.output import check_target, default_output, reason, replacing, shown, stem

__all__ = ["MIN_SHARED_GENES", "can_grow", "check_target", "default_output", "read", "read_many", "write"]

logger = logging.getLogger(__name__)

MIN_SHARED_GENES = 100  # with fewer than twice the number of principal components, noise decides what is alike
_SLACK = 2**20  # bytes that HDF5 may add around new elements: tables of groups, alignment


def read_many(paths: Sequence[str | os.PathLike[str]], *, layer: str | None = None) -> tuple[AnnData, str]:
    """Read one file per lab and join them on the genes they share.

    Parameters
    ----------
    paths
        Files as `read` takes them.
    layer
        The layer that holds the expression in every file; None: found in each (`cellnorm.adata.choose_matrix`).

    Returns
    -------
    adata
        X: the counts or log expression of all cells, file after file (CSR). obs: all columns of all files and the name
        of the file. var: the shared genes, in the order of the first file. A cell name that occurs twice gets the
        file's name appended. Embeddings and other matrices of single files do not fit together and are left out.
    batch_key
        The column of obs with the file's name (without suffix): "batch" or, if a file already has one, "file".

    Raises
    ------
    DataError
        A file cannot be read or is given twice, fewer than `MIN_SHARED_GENES` genes are shared, or some files hold
        counts and others log values.
    """
    files = [Path(path) for path in paths]
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise DataError("One file was given twice. Give each lab once.")
    matrices, frames, genes, kinds = [], [], [], []
    for file in files:
        lab = read(file)
        try:
            matrix, names, source, kind = choose_matrix(lab, layer)
        except DataError as error:
            raise DataError(f"{shown(file)}: {error}") from error
        unique = ad.utils.make_index_unique(pd.Index(names))
        if n_renamed := int((unique != names).sum()):
            logger.warning("%s: %d gene names occurred before and got a number", shown(file), n_renamed)
        logger.info("%s: %d cells, %d genes, %s in %s", shown(file), lab.n_obs, lab.n_vars, kind, source)
        matrices.append(sp.csr_matrix(matrix))
        frames.append(lab.obs)
        genes.append(unique)
        kinds.append(kind)
    if len(set(kinds)) > 1:
        found = ", ".join(f"{kind} in {shown(file)}" for file, kind in zip(files, kinds, strict=True))
        raise DataError(f"Files to be joined must hold the same kind of values, found {found}. Give counts in all.")
    shared = genes[0][np.logical_and.reduce([genes[0].isin(other) for other in genes])]
    if len(shared) < MIN_SHARED_GENES:
        raise DataError(_few_shared(files, genes, len(shared)))
    obs, batch_key = _join_obs(frames, _stems(files))
    X = sp.vstack([m[:, g.get_indexer(shared)] for m, g in zip(matrices, genes, strict=True)], format="csr")
    return AnnData(X, obs=obs, var=pd.DataFrame(index=shared)), batch_key


def _few_shared(files: Sequence[Path], genes: Sequence[pd.Index], n_shared: int) -> str:
    """Show some names of each file: symbols against Ensembl numbers is the usual cause."""
    pairs = list(zip(files, genes, strict=True))[:4]
    seen = "; ".join(f"{shown(file)} has {len(names)} genes: {listed(names[:2])}" for file, names in pairs)
    ensembl = {names.str.match(r"ENS[A-Z]*G\d+").mean() > 0.5 for names in genes}
    cause = "some name genes by symbol, others by Ensembl number" if len(ensembl) > 1 else "the names do not match"
    return (
        f"{n_shared} genes are shared, at least {MIN_SHARED_GENES} are needed to join files ({seen}): {cause}. "
        "Name genes alike in all files."
    )


def _stems(files: Sequence[Path]) -> list[str]:
    """Names of files without suffix; where two are alike, with as many folders as tell them apart."""
    parts = [[*Path(os.path.abspath(file)).parent.parts, stem(file)] for file in files]
    for depth in range(1, max(map(len, parts))):
        stems = ["/".join(part[-depth:]) for part in parts]
        if len(set(stems)) == len(files):
            return stems
    return [str(file) for file in files]  # lab.h5ad beside lab.zarr


def _join_obs(frames: Sequence[pd.DataFrame], stems: Sequence[str]) -> tuple[pd.DataFrame, str]:
    batch_key = "file" if any("batch" in frame for frame in frames) else "batch"
    while any(batch_key in frame for frame in frames):
        batch_key += "_"
    obs = pd.concat(frames, join="outer")
    for column in obs.select_dtypes(object).columns:  # mixed types and gaps cannot be stored as they are
        obs[column] = pd.Categorical(obs[column].astype(str).where(obs[column].notna()))
    origin = np.repeat(np.asarray(stems, dtype=object), [len(frame) for frame in frames])
    names = obs.index.astype(str)
    distinct = np.where(names.duplicated(keep=False), names + "-" + origin, names)
    obs.index = ad.utils.make_index_unique(pd.Index(distinct))
    obs[batch_key] = pd.Categorical(origin, categories=list(stems))
    return obs, batch_key


def write(
    adata: AnnData,
    path: str | os.PathLike[str],
    *,
    source: str | os.PathLike[str] | None = None,
    keys: Sequence[tuple[str, str]] = (),
    layers: Mapping[str, RowBlocks] | None = None,
    force: bool = False,
) -> None:
    """Write a result; at every moment it is complete or not there.

    Parameters
    ----------
    adata
        The cells with their results.
    path
        Where to: .h5ad or .zarr.
    source
        The file that `adata` was read from. If it is of the same format its bytes are copied and only `keys` are added,
        so that everything else stays as it was, known to anndata or not.
    keys
        The new elements as (slot, key): ("obsm", "X_cellnorm").
    layers
        Layers by name that are made while they are written; `adata` does not hold them.
    force
        Replace an existing result.

    Raises
    ------
    DataError
        As `check_target`; or the disk is full, or something in `adata` cannot be stored.

    Examples
    --------
    >>> import anndata, numpy, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "cells.h5ad")
    ...     write(anndata.AnnData(numpy.eye(3)), file)
    ...     read(file).shape
    (3, 3)
    """
    target, layers = Path(path), layers or {}
    check_target(target, [] if source is None else [source], force=force)
    suffix = target.suffix.lower()
    new = [*keys, *(("layers", name) for name in layers)]
    try:
        with replacing(target) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about coming changes of anndata's and zarr's formats
            if source is not None and suffix == ".h5ad" and can_grow(Path(source), "h5ad", new):
                _add_to_h5ad(adata, Path(source), temporary, keys)
            elif source is not None and suffix == ".zarr" and can_grow(Path(source), "zarr", new):
                _add_to_zarr(adata, Path(source), temporary, keys)
            else:
                _write_whole(adata, temporary, suffix)
            _add_layers(temporary, suffix, layers)
    except OSError as error:
        raise DataError(f"{shown(target)} could not be written: {reason(error)}. Nothing was left there.") from error


def can_grow(source: Path, kind: str, keys: Sequence[tuple[str, str]]) -> bool:
    """Whether elements can be added to a copy: of this format, not of an old one, and no slot lies in another file."""
    if file_format(source) != kind:
        return False
    if kind == "zarr":
        return zarr.open_group(source, mode="r").attrs.get("encoding-type") == "anndata"
    with h5py.File(source, "r") as file:
        links = [file.get(slot, getlink=True) for slot, _ in keys if file.get(slot, getlink=True) is not None]
        own = all(isinstance(link, h5py.HardLink) for link in links)
        return own and file.attrs.get("encoding-type") == "anndata"


def _add_to_h5ad(adata: AnnData, source: Path, target: Path, keys: Sequence[tuple[str, str]]) -> None:
    with h5py.File(target.name, "w", driver="core", backing_store=False) as memory:
        for slot, key in keys:
            write_elem(memory.require_group(slot), key, _element(adata, slot, key))
        memory.flush()
        shutil.copyfile(source, target)
        # HDF5 does not survive a full disk: it crashes when the program ends. So the room is taken before; what
        # stays unused is given back when the file is closed.
        _take_room(target, memory.id.get_filesize() + _SLACK)
        with h5py.File(target, "r+") as file:
            for slot, key in keys:
                group = _slot(file, slot)
                if group.get(key, getlink=True) is not None:
                    del group[key]
                memory.copy(memory[slot][key], group, name=key)
                _enrol(group, slot, key)


def _add_to_zarr(adata: AnnData, source: Path, target: Path, keys: Sequence[tuple[str, str]]) -> None:
    consolidated = zarr.open_group(source, mode="r").metadata.consolidated_metadata is not None
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for folder, _, _ in os.walk(target):
        os.chmod(folder, os.stat(folder).st_mode | 0o700)  # copies of read-only folders are read-only
    root = zarr.open_group(target, mode="r+", use_consolidated=False)
    for slot, key in keys:
        write_elem(_slot(root, slot), key, _element(adata, slot, key))
        _enrol(root[slot], slot, key)
    if consolidated:
        zarr.consolidate_metadata(root.store)


def _add_layers(target: Path, suffix: str, layers: Mapping[str, RowBlocks]) -> None:
    """Add layers to a file block by block; it is no larger in memory than a block."""
    if not layers:
        return
    if suffix == ".zarr":
        root = zarr.open_group(target, mode="r+", use_consolidated=False)
        consolidated = zarr.open_group(target, mode="r").metadata.consolidated_metadata is not None
        for name, blocks in layers.items():
            write_blocks(_slot(root, "layers"), name, blocks)
        if consolidated:
            zarr.consolidate_metadata(root.store)
        return
    _take_room(target, sum(blocks.n_bytes for blocks in layers.values()) + _SLACK)
    with h5py.File(target, "r+") as file:
        for name, blocks in layers.items():
            write_blocks(_slot(file, "layers"), name, blocks)


def _element(adata: AnnData, slot: str, key: str) -> Any:
    """An element as anndata stores it; of a table that is a column's categories or values."""
    value = getattr(adata, slot)[key]
    if slot != "obs":
        return value
    return value.array if isinstance(value.dtype, pd.CategoricalDtype) else value.to_numpy()


def _enrol(group: Any, slot: str, key: str) -> None:
    """A table lists its columns; without that a new one would not be read."""
    if slot == "obs" and key not in (order := list(group.attrs["column-order"])):
        names = np.array([*order, key], dtype=object)
        group.attrs["column-order"] = names if isinstance(group, h5py.Group) else names.tolist()


def _slot(root: Any, slot: str) -> Any:
    if slot not in root:
        root.create_group(slot).attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
    return root[slot]


def _write_whole(adata: AnnData, target: Path, suffix: str) -> None:
    try:
        with ad.settings.override(allow_write_nullable_strings=True):
            if suffix == ".zarr":
                write_zarr(target, adata, convert_strings_to_categoricals=False)
                return
            _take_room(target, adata.__sizeof__() + _SLACK)
            write_h5ad(target, adata, convert_strings_to_categoricals=False)
    except (OSError, DataError):
        raise
    except Exception as error:  # what anndata can hold but not store
        raise DataError(f"These cells cannot be stored as {suffix}: {reason(error)}. Try the other format.") from error


def _take_room(path: Path, size: int) -> None:
    """Append zeros to a file, so that a full disk is found by us."""
    with path.open("ab") as handle:
        for start in range(0, size, _SLACK):
            handle.write(bytes(min(_SLACK, size - start)))
        handle.flush()
        os.fsync(handle.fileno())
