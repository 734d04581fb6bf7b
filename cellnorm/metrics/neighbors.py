"""One table of exact nearest neighbours, which all measures of neighbourhoods share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.errors import DataError
from cellnorm.validation import choose_device

__all__ = ["Neighbors", "compact_codes", "count_codes", "nearest_neighbors", "row_chunks"]

IntArray = NDArray[np.integer[Any]]
# Numbers in the largest array of a step: few enough for the cache of a processor, many for an accelerator.
CPU_CHUNK, DEVICE_CHUNK = 2**22, 2**27
# Columns that share one minimum when the nearest are looked for.
BLOCK = 16


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbours of each cell, by Euclidean distance.

    Attributes
    ----------
    indices
        Cells, shape (n_cells, k). Column 0 is the cell itself; the others are sorted by distance, then by index.
    distances
        Distances to them in the unit of the coordinates, float32, shape (n_cells, k). Column 0 is 0.
    """

    indices: IntArray
    distances: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def k(self) -> int:
        """Neighbours of each cell, itself included."""
        return int(self.indices.shape[1])

    def first(self, k: int) -> Neighbors:
        """The table of the k nearest, the cell itself included; all of them where there are fewer."""
        return Neighbors(self.indices[:, :k], self.distances[:, :k])


def nearest_neighbors(x: Any, k: int, *, cells: IntArray | None = None, device: str = "cpu") -> Neighbors:
    """The k nearest cells of each cell, exactly; the cell itself counts as one of them and comes first.

    Candidates are found by matrix products, in single precision. Their distances are then taken from the differences
    of coordinates, in double precision, and a bound on the error of the products shows whether a cell may have been
    missed: those rows are done again in double precision and, where cells tie, by comparing with every cell. So the
    table is the same, bit for bit, whatever the device and the number of threads.

    Parameters
    ----------
    x
        Coordinates, shape (n_cells, n_dims); read as float32.
    k
        Neighbours wanted, at least 1; no more than n_cells are given.
    cells
        Cells whose neighbours are wanted, shape (n_rows,). None: all.
    device
        Where the products are done: cpu, cuda, mps or auto.

    Returns
    -------
    neighbors
        A row for each cell asked for.

    Raises
    ------
    DataError
        If the coordinates are no matrix of finite numbers, k is less than 1, or the device is not there.

    Notes
    -----
    Time grows with n_rows * n_cells; memory holds the table and a few chunks of a bounded size.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics import nearest_neighbors
    >>> found = nearest_neighbors(np.array([[0.0], [3.0], [4.0]]), k=2)
    >>> found.indices.tolist(), found.distances.tolist()
    ([[0, 1], [1, 2], [2, 1]], [[0.0, 3.0], [0.0, 1.0], [0.0, 1.0]])
    """
    x, device = _coordinates(x, k), choose_device(device)
    cells = np.arange(len(x)) if cells is None else np.asarray(cells)
    shape = (len(cells), min(k, len(x)))
    found = Neighbors(np.empty(shape, np.int32), np.empty(shape, np.float32))
    rows = np.arange(len(cells))
    # Apple's devices have no double precision
    for dtype, place in ((torch.float32, device), (torch.float64, "cpu" if device == "mps" else device)):
        if len(rows):
            rows = rows[~_search(x, cells, rows, found, dtype=dtype, device=place)]
    everyone = np.arange(len(x))[None]
    for row in rows:
        found.indices[row], found.distances[row] = _nearest(x, cells[row : row + 1], everyone, shape[1])
    return found


def _coordinates(x: Any, k: int) -> NDArray[np.float32]:
    """Coordinates as a matrix of float32, or the reason why they are none."""
    with np.errstate(over="ignore"):  # infinities are refused below
        x = np.ascontiguousarray(x, np.float32)
    if x.ndim != 2 or 0 in x.shape:
        raise DataError(f"Neighbours need coordinates of shape (n_cells, n_dims), found {x.shape}.")
    if bad := int(np.count_nonzero(~np.isfinite(x).all(axis=1))):
        raise DataError(
            f"The coordinates of {bad} of {len(x)} cells are NaN, infinite or beyond 32 bits. Leave these cells out."
        )
    if k < 1:
        raise DataError(f"{k} neighbours were asked for. Ask for at least 1: the cell itself.")
    return np.asarray(x)


def _search(
    x: NDArray[np.float32], cells: IntArray, rows: IntArray, found: Neighbors, *, dtype: torch.dtype, device: str
) -> NDArray[np.bool_]:
    """Fill in rows of `found` by products of the given type; which of them are surely right."""
    n, n_dims = x.shape
    k = found.k
    count = min(k - 1 + max(8, k // 8), n - 1)
    centred = x - x.mean(axis=0, dtype=np.float64)
    unit = float(np.abs(centred).max()) or 1.0  # squares of scaled coordinates neither overflow nor vanish
    centred /= unit
    length = np.linalg.norm(centred, axis=1)
    padding = -n % BLOCK
    points = torch.from_numpy(np.pad(centred, ((0, padding), (0, 0)))).to(dtype).to(device)
    squares = points.square().sum(dim=1)
    squares[n:] = torch.inf
    slack = (n_dims + 8) * _rounding(dtype)
    sure = np.empty(len(rows), bool)
    for part in row_chunks(len(rows), n, CPU_CHUNK if device == "cpu" else DEVICE_CHUNK):
        own = cells[rows[part]]
        on_device = torch.as_tensor(own, device=device)
        apart = torch.addmm(squares, points[on_device], points.T, alpha=-2)
        apart[torch.arange(len(own), device=device), on_device] = torch.inf  # the cell itself is known
        values, candidates = (t.cpu().numpy() for t in _smallest(apart, count))
        nearest = _nearest(x, own, np.sort(np.column_stack([own, candidates]), axis=1), k)
        found.indices[rows[part]], found.distances[rows[part]] = nearest
        # A cell that was left out is no nearer than the last candidate, up to rounding. A cell nearer than `reach`
        # would be no longer than length + reach, which bounds the error of its product.
        reach = nearest[1][:, -1] / unit * (1 + 1e-6)
        error = slack * (2 * length[own] + reach) ** 2 + 1e-36
        sure[part] = values.max(axis=1, initial=-np.inf) + length[own] ** 2 > reach**2 + error
    return np.asarray(sure | (count == n - 1))


def _rounding(dtype: torch.dtype) -> float:
    """Largest relative error of one product, also where the user lets torch multiply float32 in fewer bits."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return 2.0**-8
    return torch.finfo(dtype).eps / 2


def _smallest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` smallest numbers of each row and their columns, in any order.

    They lie in the `count` blocks of columns with the smallest minima, and a search among these is quicker.
    """
    rows, n = values.shape
    width = n // BLOCK
    if width < 2 * count:
        return torch.topk(values, count, largest=False, sorted=False)
    blocks = values.view(rows, BLOCK, width)
    near = torch.topk(blocks.amin(dim=1), count, largest=False, sorted=False).indices
    inside = blocks.gather(2, near[:, None, :].expand(rows, BLOCK, count)).view(rows, -1)
    smallest, place = torch.topk(inside, count, largest=False, sorted=False)
    return smallest, place // count * width + near.gather(1, place % count)


def _nearest(
    x: NDArray[np.float32], own: IntArray, candidates: IntArray, k: int
) -> tuple[IntArray, NDArray[np.float32]]:
    """The k nearest of the candidates (sorted by index, the cell itself among them), and their distances."""
    apart = np.subtract(x[candidates], x[own][:, None], dtype=np.float64)
    # Rounded before they are sorted: what ties in the table is in the order of the indices.
    distances = np.sqrt(np.einsum("ijk,ijk->ij", apart, apart)).astype(np.float32)
    distances[candidates == own[:, None]] = -1
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    nearest = np.take_along_axis(distances, order, axis=1)
    nearest[:, 0] = 0
    return np.take_along_axis(candidates, order, axis=1), nearest


def row_chunks(n_rows: int, width: int, size: int = CPU_CHUNK) -> Iterator[slice]:
    """Slices of rows that together hold about `size` numbers of `width` a row, and no more than 4096 rows.

    Examples
    --------
    >>> from cellnorm.metrics.neighbors import row_chunks
    >>> list(row_chunks(5, width=10, size=20))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    step = min(max(1, size // max(width, 1)), 4096)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def compact_codes(codes: Any, n_cells: int, what: str) -> tuple[NDArray[np.int64], int]:
    """Codes numbered from 0 without gaps, shape (n_cells,), and how many there are.

    Parameters
    ----------
    codes
        An integer for each cell, shape (n_cells,); none is negative.
    n_cells
        Cells that there are.
    what
        What the codes stand for, for the message of an error.

    Raises
    ------
    DataError
        If a cell has no code, or the codes are no integers.

    Examples
    --------
    >>> from cellnorm.metrics.neighbors import compact_codes
    >>> codes, n_codes = compact_codes([7, 2, 7], 3, "batch")
    >>> codes.tolist(), n_codes
    ([1, 0, 1], 2)
    """
    codes = np.asarray(codes)
    if codes.shape != (n_cells,):
        raise DataError(f"One {what} is needed for each of {n_cells} cells, found an array of shape {codes.shape}.")
    if codes.dtype.kind not in "iu":
        raise DataError(
            f"The {what} must be given as integer codes, found {codes.dtype}. "
            "numpy.unique(names, return_inverse=True)[1] makes them."
        )
    if missing := int(np.count_nonzero(codes < 0)):
        raise DataError(f"The {what} is missing (negative) for {missing} of {n_cells} cells. Leave these cells out.")
    values, compact = np.unique(codes, return_inverse=True)
    return compact.astype(np.int64), len(values)


def count_codes(codes: NDArray[np.int64], n_codes: int, weights: NDArray[Any] | None = None) -> NDArray[Any]:
    """How often, or with what weight, each code is found in each row.

    Parameters
    ----------
    codes
        Integers from 0 to n_codes - 1, shape (n_rows, k).
    n_codes
        Codes that there are.
    weights
        Weight of each of them, shape (n_rows, k). None: 1.

    Returns
    -------
    counts
        Shape (n_rows, n_codes).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.metrics.neighbors import count_codes
    >>> count_codes(np.array([[0, 1, 1], [2, 2, 2]]), 3).tolist()
    [[1, 2, 0], [0, 0, 3]]
    """
    n_rows = len(codes)
    flat = (codes + np.arange(n_rows)[:, None] * n_codes).ravel()
    found = np.bincount(flat, None if weights is None else weights.ravel(), minlength=n_rows * n_codes)
    return found.reshape(n_rows, n_codes)
