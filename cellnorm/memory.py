"""How much memory is free, and how much a correction will take: in memory, and streamed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Contents", "Matrix", "free_memory", "in_memory_peak", "streamed_peak"]

ROOT = Path("/")  # where the system tells of itself

# What does not depend on the file: Python and its libraries, then network and sketch. Measured as peaks of small files.
LIBRARIES, TRAINING = 500e6, 60e6
COMPONENTS_PER_GENE = 1.5  # values of a gene that is chosen, in those of an average one: 1.0 to 1.4 on public sets
GRAMS = 4  # matrices of genes x genes that finding the components holds at a time
DENSE_ROWS = 4096  # of the chosen genes at a time: `front.CHUNK_ROWS`
SKETCH, PER_SKETCH = 15_000, 12_000  # cells that are learnt from at most, and bytes for each
PER_CELL = 1_400  # bytes of components and embedding, with what is computed from one to the other
STREAMED_PER_CELL = 600  # the same where they lie in memory maps, batches and names
BLOCK_VALUES = 2**22  # that streaming reads at a time
# A matrix that is stored by genes is copied by cells in piles (`adata._by_cells`), of which each is sorted in memory.
PILE_CELLS, MOST_PILES, PER_PILED = 8192, 64, 48
SLACK = 1.1  # the system's allocator, what was overlooked
ASSUMED = 8e9  # where the system does not say how much it has


@dataclass(frozen=True)
class Matrix:
    """What a file says of one of its matrices.

    Attributes
    ----------
    n_stored
        Values that are stored; of a dense matrix those that are not zero, as far as a sample tells.
    value_bytes, index_bytes
        Bytes of a stored value and, in a sparse matrix, of its place; 0 in a dense one.
    by_rows
        Its rows lie together (CSR or dense); else its columns (CSC).
    """

    n_stored: int
    value_bytes: int
    index_bytes: int
    by_rows: bool


@dataclass(frozen=True)
class Contents:
    """What a file says of itself without being read.

    Attributes
    ----------
    n_cells, n_genes
        Its shape.
    n_bytes
        What all that it holds takes in memory.
    matrices
        Those that may hold the expression.
    n_batches
        Batches, as far as known.
    """

    n_cells: int
    n_genes: int
    n_bytes: int
    matrices: tuple[Matrix, ...]
    n_batches: int = 1


def in_memory_peak(contents: Contents, n_top_genes: int) -> int:
    """Bytes that correcting a file takes at its peak if the file is read as a whole.

    That is all that the file holds, what of its matrix is copied on the way to rows with places of 32 bits, the values
    of the chosen genes, their covariance, components and embedding.

    Examples
    --------
    >>> cells = Contents(100_000, 20_000, 800_000_000, (Matrix(100_000_000, 4, 4, True),))
    >>> f"{in_memory_peak(cells, 2000) / 1e9:.1f} GB"
    '2.2 GB'
    """
    n_top = min(n_top_genes, contents.n_genes)
    copied = max((_copied(matrix) for matrix in contents.matrices), default=0)
    share = min(1.0, COMPONENTS_PER_GENE * n_top / max(1, contents.n_genes))
    chosen = 8 * share * max((matrix.n_stored for matrix in contents.matrices), default=0)
    cells = PER_CELL * contents.n_cells
    return int(SLACK * (LIBRARIES + _fixed(contents.n_cells, n_top) + contents.n_bytes + copied + chosen + cells))


def _copied(matrix: Matrix) -> float:
    """Bytes of the copies of a matrix that become CSR with places as short as they can be."""
    short = 4 if matrix.n_stored < 2**31 else 8
    if not matrix.index_bytes:  # in pieces, which are put together
        return 2 * matrix.n_stored * (matrix.value_bytes + short)
    copied = 0 if matrix.index_bytes == short else matrix.n_stored * short
    return copied if matrix.by_rows else copied + matrix.n_stored * (matrix.value_bytes + short)


def streamed_peak(contents: Contents, n_top_genes: int) -> int:
    """Bytes that correcting a file takes at its peak if it is read block by block.

    Examples
    --------
    >>> cells = Contents(1_000_000, 20_000, 8_000_000_000, (Matrix(1_000_000_000, 4, 4, True),), n_batches=5)
    >>> f"{streamed_peak(cells, 2000) / 1e9:.1f} GB"
    '1.8 GB'
    """
    n_top = min(n_top_genes, contents.n_genes)
    moments = 4 * 8 * contents.n_batches * contents.n_genes
    widest = max((matrix.value_bytes + 2 * matrix.index_bytes + 8 for matrix in contents.matrices), default=0)
    share = min(1.0, max(PILE_CELLS / max(1, contents.n_cells), 1 / MOST_PILES))
    pile = max((PER_PILED * share * one.n_stored for one in contents.matrices if not one.by_rows), default=0)
    cells = STREAMED_PER_CELL * contents.n_cells
    passes = max(pile, _fixed(contents.n_cells, n_top) + moments + cells)  # the copy comes first, and is given back
    return int(SLACK * (LIBRARIES + widest * BLOCK_VALUES + passes))


def _fixed(n_cells: int, n_top: int) -> float:
    """Bytes that both ways take for training, the sketch and the components of some genes."""
    components = 8 * GRAMS * n_top**2 + 8 * min(n_cells, DENSE_ROWS) * n_top
    return TRAINING + components + PER_SKETCH * min(n_cells, SKETCH)


def free_memory() -> int:
    """Bytes that this process may still take: the least of what the machine, its container and its limits leave.

    On Linux MemAvailable, the limits of the control groups (version 1 and 2) less what they use and cannot give back,
    and RLIMIT_AS less what is mapped. Elsewhere half of the machine's memory, and 8 GB where nothing tells.
    """
    found = [value for value in (_available(), *_of_groups(), _of_limit()) if value is not None]
    return max(0, min(found)) if found else _half()


def _half() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):  # Windows has no such call
        return int(ASSUMED)


def _available() -> int | None:
    """What the kernel takes for available: free, or held for files that can be read again."""
    value = _field("proc/meminfo", "MemAvailable:")
    return None if value is None else 1024 * value


def _of_groups() -> Iterator[int]:
    """What the control groups of this process, and those that they lie in, leave."""
    for line in (_text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            names = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            names = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        top, limit, use, cache = names
        # in a container the path is that of the host, and the group's own files lie at the top
        places = [top, *(f"{top}/{'/'.join(parts)}" for parts in _heads(path))]
        for place in places:
            most, used = _number(f"{place}/{limit}"), _number(f"{place}/{use}")
            if most is not None and used is not None:
                yield most - used + (_field(f"{place}/memory.stat", cache) or 0)


def _heads(path: str) -> Iterator[list[str]]:
    """A path's first part, its first two, and so on."""
    parts = [part for part in path.split("/") if part]
    yield from (parts[: i + 1] for i in range(len(parts)))


def _of_limit() -> int | None:
    """What RLIMIT_AS leaves of the address space."""
    if sys.platform == "win32":
        return None
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    pages = (_text("proc/self/statm") or "").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return None
    return limit - int(pages[0]) * os.sysconf("SC_PAGE_SIZE")


def _text(path: str) -> str | None:
    try:
        return (ROOT / path).read_text()
    except OSError:
        return None


def _number(path: str) -> int | None:
    """The number that a file holds; none in a group without a limit, whose file says "max"."""
    text = (_text(path) or "").strip()
    return int(text) if text.isdecimal() else None


def _field(path: str, name: str) -> int | None:
    """The number after a name in a file of lines."""
    rows = (line.split() for line in (_text(path) or "").splitlines())
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == name), None)
