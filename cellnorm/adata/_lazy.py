"""Cells whose matrix stays in its file: their annotations, and rows of the matrix when they are asked for."""

from __future__ import annotations

import warnings
from ast import literal_eval
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from anndata.io import read_elem
from numpy.typing import NDArray

from cellnorm.adata._read import places
from cellnorm.errors import DataError
from cellnorm.formats import open_root
from cellnorm.output import shown

__all__ = ["Place", "Stretch", "file_places", "open_rows", "opened", "read_genes", "read_shell", "storage"]

READ_VALUES = 2**21  # read at once: 8 MB of values and as much of places


class Place(NamedTuple):
    """Where a matrix lies.

    Attributes
    ----------
    path
        The file.
    source
        The name that messages give it: "X", "layers['counts']", "raw.X".
    copy
        The file of its copy by cells, see `by_cells`; "" if there is none.
    """

    path: str
    source: str
    copy: str = ""

    @property
    def slot(self) -> str:
        """Where it is in the file."""
        if self.source.startswith("layers["):
            return f"layers/{literal_eval(self.source[len('layers[') : -1])}"
        return self.source.replace(".", "/")


def read_shell(path: Path) -> AnnData:
    """The cells and genes of an .h5ad or .zarr, obs and var, without any matrix.

    Raises
    ------
    DataError
        There is no such file, it is of another kind, or damaged.
    """
    with open_root(path) as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # repeated names and old formats are no news to whoever has the file
        return AnnData(obs=read_elem(root["obs"]), var=read_elem(root["var"]))


def file_places(path: Path, layer: str | None = None) -> list[Place]:
    """The matrices to look at for counts or log-normalised values, in order; see `choose_matrix`."""
    with open_root(path) as root:
        layers = list(root["layers"]) if "layers" in root else []
        found = places(layer, layers, x="X" in root, raw="raw" in root and "X" in root["raw"])
        return [Place(str(path), source) for source in found]


def read_genes(place: Place) -> NDArray[np.object_]:
    """Names of the genes of a matrix, shape (n_genes,)."""
    with open_root(Path(place.path)) as root:
        var = read_elem(root["raw/var" if place.source == "raw.X" else "var"])
    return np.asarray(var.index.astype(str), dtype=object)


@contextmanager
def open_rows(place: Place, span: slice | None = None) -> Iterator[FileRows]:
    """Open a matrix to read rows of it, those of a span if one is given, from first to last.

    Parameters
    ----------
    place
        Where it lies.
    span
        Nothing beyond it is read.

    Raises
    ------
    DataError
        The matrix is stored by genes, or damaged.

    Examples
    --------
    >>> import anndata, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = str(pathlib.Path(folder, "cells.h5ad"))
    ...     anndata.AnnData(np.eye(3, dtype="float32")).write_h5ad(path)
    ...     with open_rows(Place(path, "X")) as rows:
    ...         print(rows.shape, rows[1:3].tolist())
    (3, 3) [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    with opened(place) as element:
        yield FileRows(element, place, span)


@contextmanager
def opened(place: Place) -> Iterator[Any]:
    """A matrix, or its copy by cells, as its library gives it."""
    if place.copy:
        with h5py.File(place.copy, "r") as file:
            yield file["X"]
    else:
        with open_root(Path(place.path)) as root:
            yield root[place.slot]


def storage(element: Any) -> str:
    """How a matrix is stored: "csr_matrix", "csc_matrix", "array" or what else it says of itself."""
    kind = str(element.attrs.get("encoding-type", element.attrs.get("h5sparse_format", "array")))
    return f"{kind}_matrix" if kind in ("csr", "csc") else kind


class FileRows:
    """Rows of a matrix in a file, see `cellnorm.parts.Rows`; those asked for one after the other are read once.

    Attributes
    ----------
    shape
        Cells and genes.
    """

    def __init__(self, element: Any, place: Place, span: slice | None) -> None:
        kind = storage(element)
        self._sparse = kind == "csr_matrix"
        if not self._sparse and kind != "array":
            raise DataError(
                f"{place.source} of {shown(place.path)} is stored as {kind}, not by cells, and cannot be read part by "
                "part. Store it by cells once (adata.X = adata.X.tocsr()), or correct it in memory."
            )
        shape = element.attrs.get("shape", element.attrs.get("h5sparse_shape")) if self._sparse else element.shape
        self.shape = int(shape[0]), int(shape[1])
        first, last = (0, self.shape[0]) if span is None else (span.start, span.stop)
        if self._sparse:
            self._first = first
            self._indptr = np.asarray(element["indptr"][first : last + 1], np.int64)
            if len(self._indptr) <= last - first or (np.diff(self._indptr) < 0).any():
                raise ValueError(f"{place.slot} has no place for each of its rows")
            end = int(self._indptr[-1])
            self._data, self._indices = (Stretch(element[name], end) for name in ("data", "indices"))
        else:
            self._rows = Stretch(element, last)

    def __getitem__(self, rows: slice) -> Any:
        """Some rows of the span: CSR or dense."""
        if not self._sparse:
            return self._rows.take(rows.start, rows.stop)
        indptr = self._indptr[rows.start - self._first : rows.stop - self._first + 1]
        start, stop = int(indptr[0]), int(indptr[-1])
        data, indices = self._data.take(start, stop), self._indices.take(start, stop)
        if len(indices) and not 0 <= indices.min() <= indices.max() < self.shape[1]:
            raise ValueError("a value lies beyond the last gene")
        # a block has few values, and one type for both saves scipy a copy
        places = indices.astype(np.int32, copy=False), (indptr - start).astype(np.int32)
        return sp.csr_matrix((data, *places), shape=(rows.stop - rows.start, self.shape[1]))


class Stretch:
    """An array on disk that is read from its start to its end: whole chunks, and none of them twice."""

    def __init__(self, array: Any, end: int) -> None:
        self.array, self.end = array, min(end, array.shape[0])
        if end > array.shape[0]:
            raise ValueError("an array is shorter than it should be")
        width = int(np.prod(array.shape[1:]))
        self.chunk = (getattr(array, "shards", None) or array.chunks or (1,))[0]
        self.step = -(-max(1, READ_VALUES // max(1, width)) // self.chunk) * self.chunk
        self.start, self.held = 0, self._read(0, 0)

    def take(self, start: int, stop: int) -> NDArray[Any]:
        held = self.start + len(self.held)
        if not self.start <= start <= held:
            self.start, self.held, held = start, self.held[:0], start
        if stop > held:
            goal = -(-max(stop, held + self.step) // self.chunk) * self.chunk
            more = self._read(held, min(goal, self.end))
            self.held = more if start == held else np.concatenate([self.held[start - self.start :], more])
            self.start = start
        return self.held[start - self.start : stop - self.start]

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        values = np.asarray(self.array[start:stop])
        native = np.float32 if values.dtype == np.float16 else values.dtype.newbyteorder("=")
        return values.astype(native, copy=False)
