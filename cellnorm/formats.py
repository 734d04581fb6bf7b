"""The file formats of cells: tell them apart by what is inside, and read them without trusting them.

scanpy, which takes a second to import, is so where a format needs it.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import zarr
from anndata import AnnData
from anndata.io import read_h5ad, read_zarr

from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.output import is_zarr, reason, shown

__all__ = ["file_format", "open_root", "read"]

logger = logging.getLogger(__name__)

_KINDS = "cellnorm reads .h5ad, .zarr, 10x .h5 and 10x matrix folders"


def read(path: str | os.PathLike[str]) -> AnnData:
    """Read a file of cells; its content decides how, not its name.

    Nothing in a file is ever run: a store with a pickled array is refused.

    Parameters
    ----------
    path
        An .h5ad file, a .zarr folder, a 10x .h5 file (Cell Ranger 2 or later) or a folder with a 10x matrix.mtx,
        whose three files may share a prefix. Of 10x data the genes are kept, not antibodies or guides.

    Returns
    -------
    The cells, in the order of the file.

    Raises
    ------
    DataError
        There is no such file, or it is of another kind, truncated or damaged.

    Examples
    --------
    >>> from cellnorm.formats import read
    >>> read("none.h5ad")
    Traceback (most recent call last):
    ...
    cellnorm.errors.DataError: 'none.h5ad' cannot be read: no such file or directory. Check its name and folder.
    """
    path = Path(path)
    readers = {"h5ad": read_h5ad, "zarr": _read_zarr, "10x file": _read_10x_file, "10x folder": _read_10x_folder}
    reader = readers[file_format(path)]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated names and old formats are no news to whoever has the file
            return reader(path)
    except DataError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise DataError(f"{shown(path)} is damaged or incomplete: {reason(error)}. Copy or make it anew.") from error


def file_format(path: Path) -> str:
    """Tell what lies at a path by looking into it: "h5ad", "zarr", "10x file" or "10x folder".

    Raises
    ------
    DataError
        There is nothing, or something else.

    Examples
    --------
    >>> file_format(Path("none.h5ad"))
    Traceback (most recent call last):
    ...
    cellnorm.errors.DataError: 'none.h5ad' cannot be read: no such file or directory. Check its name and folder.
    """
    try:
        if path.is_dir():
            if is_zarr(path):
                return "zarr"
            if any(path.glob("*matrix.mtx*")):
                return "10x folder"
            raise DataError(f"{shown(path)} is a folder without a zarr store or a 10x matrix.mtx. {_KINDS}.")
        path.stat()
        if not path.is_file():
            raise DataError(f"{shown(path)} is neither a file nor a folder. {_KINDS}.")
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {reason(error)}. Check its name and folder.") from error
    if not h5py.is_hdf5(path):
        raise DataError(f"{shown(path)} is not an .h5ad file, nor any other HDF5 file. {_KINDS}.")
    try:
        with h5py.File(path, "r") as file:
            if "obs" in file and "var" in file:
                return "h5ad"
            if any(isinstance(group := file.get(key), h5py.Group) and "barcodes" in group for key in file):
                return "10x file"
            found = listed(file, 6)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{shown(path)} is truncated or damaged: {reason(error)}. Copy it anew.") from error
    raise DataError(f"{shown(path)} is an HDF5 file without cells (obs) and genes (var); it holds {found}. {_KINDS}.")


@contextmanager
def open_root(path: Path) -> Iterator[Any]:
    """The root of a file; whatever a library makes of a damaged one is told as that."""
    kind = file_format(path)
    if kind not in ("h5ad", "zarr"):
        raise DataError(f"{shown(path)} is a {kind}, which is read as a whole; only .h5ad and .zarr are streamed.")
    try:
        if kind == "zarr":
            yield _open_zarr(path)
        else:
            with h5py.File(path, "r") as file:
                yield file
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise DataError(f"{shown(path)} is damaged or incomplete: {reason(error)}. Copy or make it anew.") from error


def _open_zarr(path: Path) -> zarr.Group:
    """The root of a zarr store, of which reading runs no code.

    Raises
    ------
    DataError
        It holds a pickled array.
    """
    root = zarr.open_group(path, mode="r")
    for name, node in root.members(max_depth=None):
        codecs = [*(getattr(node.metadata, "filters", None) or ()), getattr(node.metadata, "compressor", None)]
        if any(getattr(codec, "codec_id", "") == "pickle" for codec in codecs):
            raise DataError(
                f"{shown(path)} holds a pickled array ({listed([name])}): it could run code and is not read."
            )
    return root


def _read_zarr(path: Path) -> AnnData:
    return read_zarr(_open_zarr(path))


def _read_10x_file(path: Path) -> AnnData:
    import scanpy as sc

    return _genes_only(sc.read_10x_h5(path, gex_only=False), path)


def _read_10x_folder(path: Path) -> AnnData:
    import scanpy as sc

    found = sorted(p.name for p in path.glob("*matrix.mtx*"))
    if len(found) > 1:
        raise DataError(f"{shown(path)} holds {len(found)} matrices ({listed(found, 4)}). Give each its own folder.")
    prefix = found[0].partition("matrix.mtx")[0]
    if not found[0].endswith(".gz") and not (path / f"{prefix}genes.tsv").is_file():
        raise DataError(f"{shown(path)} holds a plain matrix.mtx without genes.tsv. Run gzip on its three files.")
    return _genes_only(sc.read_10x_mtx(path, prefix=prefix, make_unique=False, gex_only=False), path)


def _genes_only(adata: AnnData, path: Path) -> AnnData:
    if "feature_types" not in adata.var:  # before Cell Ranger 3 there were only genes
        return adata
    genes = (adata.var["feature_types"] == "Gene Expression").to_numpy()
    if not genes.all():
        logger.warning("%s: %d features that are no genes are left out", shown(path), int((~genes).sum()))
    return adata if genes.all() else adata[:, genes].copy()
