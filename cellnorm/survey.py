"""One look at all values of a matrix: what they are, which genes are found, their moments in each batch.

All that is found of two parts of the rows can be added up to what would be found of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellnorm.parts import BLOCK_ROWS, Rows, blocks

__all__ = ["LOG_MAX", "TARGET_SUM", "Seen", "Survey", "canonical", "count_scale", "log_block", "log_values"]
__all__ += ["stored_values", "survey"]

TARGET_SUM = 1e4
# Log-normalised values stay far below this in any base (10,000 counts per cell: 9.2 in base e, 13.3 in base 2).
LOG_MAX = 30.0


@dataclass
class Seen:
    """What was seen of the stored values of a matrix.

    Attributes
    ----------
    nan, infinite
        How many values are none.
    low, high
        The smallest and the largest of the others, or 0.
    whole
        All others are whole numbers.
    strange
        The type of values that are not numbers, or "".

    Examples
    --------
    >>> import numpy as np
    >>> seen = Seen()
    >>> seen.look(np.array([1.0, 2.5]))
    >>> seen.kind()
    ('log', 'fractional values')
    """

    nan: int = 0
    infinite: int = 0
    low: float = 0.0
    high: float = 0.0
    whole: bool = True
    strange: str = ""

    def look(self, values: NDArray[Any]) -> None:
        """Look at some values, of any shape."""
        if values.dtype.kind not in "biuf":
            self.strange = str(values.dtype)
            return
        low, high = float(values.min(initial=0)), float(values.max(initial=0))
        if values.dtype.kind == "f":
            if not np.isfinite([low, high]).all():
                finite = np.isfinite(values)
                n_nan = int(np.isnan(values).sum())
                self.nan, self.infinite = self.nan + n_nan, self.infinite + int((~finite).sum()) - n_nan
                values = values[finite]
                low, high = float(values.min(initial=0)), float(values.max(initial=0))
            self.whole = self.whole and bool((np.rint(values) == values).all())
        self.low, self.high = min(self.low, low), max(self.high, high)

    def add(self, other: Seen) -> None:
        """Add what was seen of other values."""
        self.nan, self.infinite = self.nan + other.nan, self.infinite + other.infinite
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.whole, self.strange = self.whole and other.whole, self.strange or other.strange

    def kind(self) -> tuple[str, str]:
        """What the values are: "counts", "log" or "other", and in words what speaks against the first two."""
        if self.strange:
            return "other", f"values of type {self.strange}, which are not numbers"
        if self.nan or self.infinite:
            return "other", f"{self.nan} NaN and {self.infinite} infinite values"
        if self.low < 0:
            return "other", f"negative values (down to {self.low:.3g}), as scaled or centred data do"
        if self.whole:
            return "counts", ""
        if self.high < LOG_MAX:
            return "log", "fractional values"
        return "other", f"fractional values up to {self.high:.6g}"


@dataclass
class Survey:
    """What one look at a matrix found.

    Attributes
    ----------
    n_cells
        Cells of each batch, shape (n_batches,).
    n_found
        In how many cells each gene is expressed, shape (n_genes,).
    total, squares
        Sums over the cells of each batch, of normalised counts and of their squares, both (n_batches, n_genes); not of
        logarithms.
    counts
        The values were taken for counts; else for logarithms.
    seen
        What the values are.
    """

    n_cells: NDArray[np.int64]
    n_found: NDArray[np.int64]
    total: NDArray[np.float64]
    squares: NDArray[np.float64]
    counts: bool = True
    seen: Seen = field(default_factory=Seen)

    @classmethod
    def empty(cls, n_batches: int, n_genes: int, *, counts: bool) -> Survey:
        """Of no cell yet."""
        total, squares = np.zeros((2, n_batches, n_genes))
        return cls(np.zeros(n_batches, np.int64), np.zeros(n_genes, np.int64), total, squares, counts)

    def add(self, other: Survey) -> None:
        """Add what was found of other cells."""
        for name in ("n_cells", "n_found", "total", "squares"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.seen.add(other.seen)

    def look(self, block: Any, codes: NDArray[np.integer[Any]]) -> None:
        """Look at some cells: CSR in canonical format, and the batch of each."""
        n_genes = len(self.n_found)
        per_cell = np.diff(block.indptr)
        self.n_cells += np.bincount(codes, minlength=len(self.n_cells))
        self.n_found += np.bincount(block.indices, minlength=n_genes)
        values = stored_values(block, count_scale(block)) if self.counts else np.expm1(stored_values(block, None))
        places = np.repeat(codes.astype(np.int64) * n_genes, per_cell) + block.indices
        # value after value in the order of the cells, however they are blocked
        np.add.at(self.total.reshape(-1), places, values)
        np.add.at(self.squares.reshape(-1), places, values * values)


def survey(
    matrix: Rows,
    span: slice,
    codes: NDArray[np.integer[Any]],
    n_batches: int,
    *,
    counts: bool = True,
    known: bool = False,
) -> Survey:
    """Look once at a part of the rows of a matrix.

    Parameters
    ----------
    matrix
        Cells x genes.
    span
        The part.
    codes
        Batch of each cell of the part, 0 to n_batches - 1.
    n_batches
        Number of batches.
    counts
        Take the values for counts; else for logarithms (base e). If they turn out not to be whole, the part is looked
        at again as logarithms.
    known
        It is known what they are, and not looked at.

    Returns
    -------
    Survey
        Without moments where the values are neither counts nor logarithms.

    Examples
    --------
    >>> import numpy as np, scipy.sparse as sp
    >>> counts = sp.csr_matrix(np.random.default_rng(0).poisson(1.0, (6, 4)))
    >>> found = survey(counts, slice(0, 6), np.array([0, 0, 0, 1, 1, 1]), 2)
    >>> found.seen.kind(), found.total.shape
    (('counts', ''), (2, 4))
    """
    found = Survey.empty(n_batches, matrix.shape[1], counts=counts)
    for rows, block in blocks(matrix, span):
        if not known:
            found.seen.look(block if isinstance(block, np.ndarray) else block.data)
            if found.seen.kind()[0] == "other":
                continue
            if found.counts and not found.seen.whole:
                return survey(matrix, span, codes, n_batches, counts=False)
        found.look(canonical(block), codes[rows.start - span.start : rows.stop - span.start])
    return found


def canonical(matrix: Any) -> Any:
    """CSR with sorted indices, no zeros stored and none twice; the matrix itself if it is so already."""
    if isinstance(matrix, np.ndarray):
        if matrix.dtype == np.float16:  # which scipy has no sparse matrix of
            matrix = matrix.astype(np.float32)
        step = max(1, BLOCK_ROWS * 1024 // matrix.shape[1])  # the places of all values at once would take 16 bytes each
        parts = [sp.csr_matrix(matrix[start : start + step]) for start in range(0, len(matrix), step)]
        return sp.vstack(parts, format="csr")
    csr = matrix.tocsr()
    if not csr.has_canonical_format or not csr.data.all():
        csr = csr.copy() if csr is matrix else csr
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def count_scale(matrix: Any) -> NDArray[np.float64]:
    """What each cell's counts are multiplied by, shape (n_cells,); 0 for a cell without counts."""
    ones = np.ones(matrix.shape[1])
    library: NDArray[np.float64] = np.concatenate([block @ ones for _, block in blocks(matrix)])
    return np.divide(TARGET_SUM, library, out=np.zeros_like(library), where=library > 0)


def stored_values(block: Any, scale: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """The stored values of a block as float64, times the scale of their cells."""
    values: NDArray[np.float64] = block.data.astype(np.float64)
    return values if scale is None else values * np.repeat(scale, np.diff(block.indptr))


def log_block(block: Any, positions: NDArray[np.intp], scale: NDArray[np.float64] | None) -> Any:
    """Log-normalised values of some genes of a block: CSR of float32.

    Parameters
    ----------
    block
        CSR in canonical format, shape (n_cells, n_genes).
    positions
        The genes.
    scale
        What each cell's counts are multiplied by; None: the values are logarithms already.
    """
    part = block[:, positions]
    values = stored_values(part, scale)
    data = np.asarray(values if scale is None else np.log1p(values, out=values), np.float32)
    return sp.csr_matrix((data, part.indices, part.indptr), shape=part.shape)


def log_values(matrix: Any, positions: NDArray[np.intp], scale: NDArray[np.float64] | None) -> Any:
    """Log-normalised values of some genes of a CSR matrix in canonical format: CSR of float32."""
    chosen = np.zeros(matrix.shape[1], bool)
    chosen[positions] = True
    n_values = sum(np.count_nonzero(chosen[block.indices]) for _, block in blocks(matrix))
    data, indices = np.empty(n_values, np.float32), np.empty(n_values, np.int32)
    indptr = np.zeros(matrix.shape[0] + 1, np.int64)
    filled = 0
    for rows, block in blocks(matrix):
        part = log_block(block, positions, None if scale is None else scale[rows])
        end = filled + part.nnz
        data[filled:end], indices[filled:end] = part.data, part.indices
        indptr[rows.start + 1 : rows.stop + 1] = filled + part.indptr[1:]
        filled = end
    return sp.csr_matrix((data, indices, indptr), shape=(matrix.shape[0], len(positions)))
