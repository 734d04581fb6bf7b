"""What 100 million cells would take on a cluster, on paper: from the slopes that scale.py measured, and from shapes.

    python benchmarks/scale.py --data FOLDER | tee scale.md
    python benchmarks/on_paper.py scale.md --workers 64

Nothing is run. Seconds, bytes on disk and memory of the two largest sizes of scale.md's first table give a line each,
which is drawn on: the slope is what a cell costs, what is left is what every run costs. A stage that the workers do is
divided by their number, and by the parts if these are fewer. Everything else is a shape times the bytes of a number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cellnorm.parts import spans

GENES, CHOSEN, COMPONENTS = 20_000, 2_000, 50
STORED = 143  # values of the chosen genes that scale.py's data store for a cell, 8 bytes each
ON_WORKERS = ("survey", "values", "pca", "encode")
GB = 1e9

Line = tuple[float, float]
Row = tuple[str, str, str]


def read_lines(text: str) -> dict[str, Line]:
    """For each row of the first table what every run costs, and what a cell costs; seconds, or GB."""
    rows = [[cell.strip() for cell in row.strip("| ").split("|")] for row in text.splitlines() if row.startswith("|")]
    sizes = [int(cell.split()[0].replace(",", "")) for cell in rows[0] if cell.endswith(" cells")]
    if len(sizes) < 2:
        raise SystemExit("a slope needs two sizes: run scale.py with two or more")
    lines = {}
    for name, *cells in rows[2:]:
        if cells[0].endswith(" cells"):
            break  # the second table, of another way
        (few, less), (many, more) = ((sizes[i], float(cells[i])) for i in (len(sizes) - 2, len(sizes) - 1))
        slope = max(0.0, (more - less) / (many - few))
        lines[name.partition(",")[0]] = max(0.0, more - slope * many), slope
    return lines


def at(line: Line, n_cells: int) -> float:
    return line[0] + line[1] * n_cells


def size(n_bytes: float) -> str:
    return next(
        f"{n_bytes / unit:.3g} {name}"
        for unit, name in ((1e12, "TB"), (GB, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
        if n_bytes >= unit or unit == 1
    )


def duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 300
        else f"{seconds / 60:.0f} min"
        if seconds < 10_800
        else f"{seconds / 3600:.1f} h"
    )


def stored(lines: dict[str, Line], n_cells: int, n_batches: int) -> list[Row]:
    """What lies on the shared storage."""
    parts, of_survey, of_gram = len(spans(n_cells)), 16 * n_batches * GENES + 8 * GENES, 8 * CHOSEN * (CHOSEN + 1)
    return [
        ("the input", f"{size(GB * lines['GB on disk'][1])} a cell", size(GB * at(lines["GB on disk"], n_cells))),
        ("values of the chosen genes", f"{8 * STORED} B a cell", size(8 * STORED * n_cells)),
        ("components", f"{4 * COMPONENTS} B a cell", size(4 * COMPONENTS * n_cells)),
        ("embedding", f"{4 * COMPONENTS} B a cell", size(4 * COMPONENTS * n_cells)),
        (f"survey, {n_batches} batches", f"{size(of_survey)} a part, {parts} parts", size(of_survey * parts)),
        ("covariances", f"{size(of_gram)} a part, {parts} parts", size(of_gram * parts)),
    ]


def moved(lines: dict[str, Line], n_cells: int, n_batches: int) -> list[Row]:
    """What goes between storage and machines, over all stages."""
    file, values, z = GB * at(lines["GB on disk"], n_cells), 8.0 * STORED * n_cells, 4.0 * COMPONENTS * n_cells
    small = len(spans(n_cells)) * (16 * n_batches * GENES + 8 * CHOSEN * (CHOSEN + 1))
    return [
        ("workers read", "input twice, values twice, components once", size(2 * file + 2 * values + z)),
        ("workers write", "values, components, embedding, sums", size(values + 2 * z + small)),
        ("client reads and writes", "sums once, components and embedding put together, result", size(small + 5 * z)),
    ]


def taken(lines: dict[str, Line], n_cells: int, workers: int) -> list[Row]:
    """Memory of the client and seconds."""
    at_once = min(workers, len(spans(n_cells)))
    memory = GB * at(lines["peak memory"], n_cells)
    rows = [("memory of the client, mapped files in it", f"{size(GB * lines['peak memory'][1])} a cell", size(memory))]
    total = 0.0
    for name, (fixed, slope) in lines.items():
        if name in ("GB on disk", "peak memory", "whole command"):
            continue
        seconds = fixed + slope * n_cells / (at_once if name in ON_WORKERS else 1)
        total += seconds
        how = f"{1e6 * slope:.1f} s a million cells" + (f", {at_once} at once" if name in ON_WORKERS else ", client")
        rows.append((name, how, duration(seconds)))
    return [*rows, ("all", "", duration(total))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, metavar="FILE", help="what scale.py printed")
    parser.add_argument("--cells", type=int, default=100_000_000)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--workers", type=int, default=64, help="processes (default: 64, as many as there are parts)")
    args = parser.parse_args(arguments)
    lines = read_lines(args.table.read_text())
    rows = [
        *stored(lines, args.cells, args.batches),
        *moved(lines, args.cells, args.batches),
        *taken(lines, args.cells, args.workers),
    ]
    print(f"| {args.cells:,} cells, {args.workers} workers | from | |\n| --- | --- | --- |")
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
