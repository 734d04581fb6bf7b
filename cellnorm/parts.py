"""Work in passes over parts of the rows, so that its cost in memory does not grow with their number.

A part is a fixed span of rows. What is found of each is added up in the order of the parts: sums have the same bits in
memory, from a file, after an interruption and on several machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

__all__ = ["BLOCK_ROWS", "Map", "Rows", "blocks", "spans"]

SPAN_ROWS, MOST_SPANS = 65_536, 64
BLOCK_ROWS = 1024  # of a block, which is what is held in memory

# Like the builtin `map`: what a function gives for each task, in the order of the tasks.
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


class Rows(Protocol):
    """A matrix, cells x genes, in memory or in a file, of which some rows can be had in memory: CSR or dense."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes."""

    def __getitem__(self, rows: slice, /) -> Any:
        """These rows."""


def spans(n_rows: int) -> list[slice]:
    """The parts of so many rows, at least one; they depend on nothing else.

    Examples
    --------
    >>> spans(100_000)
    [slice(0, 65536, None), slice(65536, 100000, None)]
    """
    size = max(SPAN_ROWS, -(-n_rows // MOST_SPANS))
    return [slice(start, min(start + size, n_rows)) for start in range(0, max(1, n_rows), size)]


def blocks(matrix: Rows, span: slice | None = None, size: int | None = None) -> Iterator[tuple[slice, Any]]:
    """Pieces of a matrix, or of a span of it: which rows, and these rows.

    Parameters
    ----------
    matrix
        Cells x genes.
    span
        From which row to which; None: all.
    size
        Rows of a piece; None: BLOCK_ROWS.

    Examples
    --------
    >>> import numpy as np
    >>> [(rows.start, len(block)) for rows, block in blocks(np.zeros((7, 2)), slice(2, 7), size=3)]
    [(2, 3), (5, 2)]
    """
    first, last = (0, matrix.shape[0]) if span is None else (span.start, span.stop)
    size = BLOCK_ROWS if size is None else size
    for start in range(first, last, size):
        rows = slice(start, min(start + size, last))
        yield rows, matrix[rows]
