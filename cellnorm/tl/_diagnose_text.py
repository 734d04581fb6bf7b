"""What a diagnosis says: sentences for people, the verdict, and the page for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from cellnorm.diagnosis import ALPHA
from cellnorm.labels import listed
from cellnorm.text import escaped

__all__ = ["advice", "batch_text", "column_text", "confounding_text", "format_diagnosis", "matrix_text"]
__all__ += ["warnings_of"]

TINY_BATCH = 30  # cells; of fewer hardly any statistics can be told
FEW_SHARED = 0.3  # of the genes found in any batch; between protocols half and more is usual
LEAST_JUDGED = 50  # cells; fewer find few genes, whatever the protocol
FEW_CELLS = 500  # of fewer, differences in composition alone are called mild in one of four cases
DEEPER = 10  # times the counts per cell
WIDTH = 110  # of lines on a terminal
MOST_SHOWN = 20  # lines of a table on a terminal; JSON has them all

Entry = Mapping[str, Any]


def matrix_text(matrix: Entry) -> str:
    """One sentence about the matrix."""
    size = f"{matrix['n_cells']:,} cells x {matrix['n_genes']:,} genes in {matrix['source']}"
    genes = f"{matrix['median_genes']:,.0f} genes per cell, {matrix['zeros']:.0%} zeros"
    if matrix["kind"] == "counts":
        return f"{size}: whole numbers, as raw counts are; median {matrix['median_counts']:,.0f} counts and {genes}"
    return f"{size}: fractional values, as log-normalised data are; median {genes}"


def column_text(column: Entry) -> str:
    """What a column does, in a few words."""
    if column["p"] > ALPHA:
        text = "no more than chance"
    elif column["follows_clusters"]:
        text = "follows the clusters, as cell types do"
    elif column["verdict"] == "none":
        text = "other shares of the same cell types, no effect on like cells"
    else:
        text = f"{column['verdict']} effect on like cells"
        if column["condition_name"]:
            text += "; by its name a condition, not an experiment"
    return text + (f"; missing for {column['n_missing']:,} cells" if column["n_missing"] else "")


def confounding_text(entry: Entry, batch: str, column: Entry) -> str:
    """How the batch lies to another column, in a few words."""
    if entry["relation"] == "same":
        return "parts the cells as the batch does" + (
            "" if column["usual_name"] else ": what is due to it and what to the batch, no method can separate"
        )
    if entry["relation"] == "confounded":
        if column["follows_clusters"]:
            return "each batch has one value of it: the batches hold different cells"
        return "each batch has one value of it: what is due to it and what to the batch, no method can separate"
    texts = {
        "nests": "coarser: each batch has one value of it",
        "nested": "finer: each of its values is in one batch",
        "crossed": "every batch has every value of it",
        "partly": "not every batch has every value of it",
    }
    hard = entry["cramers_v"] >= 0.7 and not column["usual_name"] and not column["follows_clusters"]
    return texts[entry["relation"]] + ("; hard to separate from the batch" if hard else "")


def batch_text(batch: Entry) -> str:
    """What is special about a batch, or nothing."""
    parts = [f"only {batch['n_cells']} cells"] if batch["n_cells"] < TINY_BATCH else []
    if batch["lacks"]:
        parts.append(
            f"seems to lack {'clusters' if len(batch['lacks']) > 1 else 'cluster'} {', '.join(batch['lacks'])}"
        )
    return "; ".join(parts)


def _inseparable(diagnosis: Entry) -> list[str]:
    """Columns other than experiments and cell types of which each batch has one value."""
    columns = {column["name"]: column for column in diagnosis["columns"]}
    return [
        entry["column"]
        for entry in diagnosis["confounding"]
        if entry["relation"] in ("confounded", "same")
        and not columns[entry["column"]]["usual_name"]
        and not columns[entry["column"]]["follows_clusters"]
    ]


def warnings_of(diagnosis: Entry) -> list[str]:
    """What to know before correcting, one sentence or two each."""
    matrix, batches = diagnosis["matrix"], diagnosis["batches"]
    found = []
    if matrix["n_empty"]:
        found.append(f"{matrix['n_empty']:,} cells have no counts at all: filter them out.")
    if names := _inseparable(diagnosis):
        found.append(
            f"Each batch has one value of {listed(names)}. If that is something you study: what differs between its "
            "values cannot be told from what differs between batches, by any method. A correction takes away both."
        )
    if tiny := [batch for batch in batches if batch["n_cells"] < TINY_BATCH]:
        sizes = listed(f"{batch['name']} ({batch['n_cells']})" for batch in tiny)
        found.append(f"Batches of fewer than {TINY_BATCH} cells say little of themselves: {sizes}.")
    most = max((batch["n_genes"] for batch in batches), default=0)
    large = [batch for batch in batches if batch["n_cells"] >= LEAST_JUDGED]
    if few := [batch for batch in large if batch["shared_genes"] < FEW_SHARED * most]:
        shared = listed(f"{batch['name']} ({batch['shared_genes']:,} of {most:,})" for batch in few)
        found.append(f"Batches that share few genes with the others: {shared}. Check that all name their genes alike.")
    depths = [batch["median_counts"] for batch in large if batch["median_counts"]]
    if depths and max(depths) > DEEPER * min(depths):
        found.append(f"Counts per cell differ {max(depths) / min(depths):,.0f}-fold between batches.")
    if lacking := [batch["name"] for batch in batches if batch["lacks"]]:
        found.append(
            f"Some batches seem to lack cells that others have: {listed(lacking)}. After a correction, check that no "
            "cells were laid upon cells of another kind."
        )
    return found


def advice(diagnosis: Entry) -> tuple[str, str]:
    """The verdict, and why."""
    key, columns = diagnosis["batch_key"], {column["name"]: column for column in diagnosis["columns"]}
    name = listed([key])
    if not key:
        return _without_batch(diagnosis)
    batch = columns[key]
    if batch["follows_clusters"]:
        return "cannot be separated", (
            f"The values of {name} hold different cells, as cell types do: they share too little to be laid upon each "
            "other, and correcting for it would merge cells that differ. If they are experiments, each measured other "
            "cells or its effect is stronger than the cell types: which of the two, the data cannot say."
        )
    if batch["verdict"] == "none":
        why = "explains no more than chance" if batch["p"] > ALPHA else "has no effect on cells of the same kind"
        return (
            "no correction needed",
            f"{name} ({batch['n_levels']} values) {why}. There is nothing to gain from a correction.",
        )
    share = f"{batch['within_clusters']:.0%} of the variation among like cells"
    conditions = [column for column in _inseparable(diagnosis) if columns[column]["condition_name"]]
    if conditions:
        return "cannot be separated", (
            f"{name} has a {batch['verdict']} effect ({share}), but each batch has one value of {listed(conditions)}: "
            "how much of it is technical, no method can say. `cellnorm correct` would take away both, and leave cell "
            "types to be compared, but not conditions. For these, compare batches as replicates on the original "
            "counts if there are several per condition."
        )
    text = f"{name} has a {batch['verdict']} effect: {share} is between its {batch['n_levels']} values."
    if batch["verdict"] == "mild":
        text += " Cells of one kind should lie together without a correction; with one, check that kinds stay apart."
        if diagnosis["n_examined"] < FEW_CELLS:
            text += " With so few cells it may also come from other shares of the same kinds."
    else:
        text += " Uncorrected, cells would be grouped by it."
    if not batch["usual_name"]:
        text += f" Make sure that {name} is an experiment (a lab, donor or run) and not what you study."
    return "correct", text


def _without_batch(diagnosis: Entry) -> tuple[str, str]:
    conditions = [c for c in diagnosis["columns"] if c["condition_name"] and c["verdict"] != "none"]
    gaps = [c for c in diagnosis["columns"] if c["n_missing"] and c["verdict"] != "none"]
    if conditions:
        names = listed(column["name"] for column in conditions)
        return "cannot be separated", (
            f"{names} has an effect, and no column says which experiment a cell is from. If each condition was "
            "measured in an experiment of its own, no method can separate the two. If not, add the column."
        )
    text = "No column of obs that could tell experiments apart has an effect on cells of the same kind."
    if gaps:
        text = f"{listed(c['name'] for c in gaps)} has an effect but misses values: fill them in and ask again."
    if apart := [c["name"] for c in diagnosis["columns"] if c["follows_clusters"]]:
        text += f" Taken for cell types: {listed(apart)}."
    return "no correction needed", f"{text} If the cells are from several experiments, add a column that says which."


def format_diagnosis(diagnosis: Entry) -> str:
    """A diagnosis as text for a terminal: verdict, what to type, then what it rests on.

    Parameters
    ----------
    diagnosis
        As `cellnorm.tl.diagnose` gives it.

    Returns
    -------
    Lines without a line break at the end; what does not print is written as an escape.

    Examples
    --------
    >>> import cellnorm as cn
    >>> adata = cn.datasets.simulate(300, 200, n_batches=2, batch_effect=1.0, random_state=0)
    >>> print(format_diagnosis(cn.tl.diagnose(adata)).splitlines()[0])
    Verdict: correct
    """
    lines = [f"Verdict: {diagnosis['verdict']}", *_wrapped(diagnosis["recommendation"])]
    if diagnosis["command"]:
        lines += ["", "Next:", f"  {diagnosis['command']}"]
    if diagnosis["warnings"]:
        lines += ["", "Mind:"]
        for warning in diagnosis["warnings"]:
            lines += _wrapped(warning, "- ")
    lines += ["", "Matrix:", *_wrapped(diagnosis["matrix"]["text"]), *_columns(diagnosis), *_beside(diagnosis)]
    return "\n".join([*lines, *_batches(diagnosis)])


def _wrapped(text: str, bullet: str = "") -> list[str]:
    indent = " " * (2 + len(bullet))
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {bullet}", subsequent_indent=indent, break_on_hyphens=False)


def _columns(diagnosis: Entry) -> list[str]:
    """The columns with the size of their effects, and those left out."""
    drawn = diagnosis["n_examined"] < diagnosis["matrix"]["n_cells"]
    where = f" (on {diagnosis['n_examined']:,} cells drawn at random)" if drawn else ""
    lines = ["", f"Columns: share of the variation that they explain, chance taken off{where}"]
    lines += ["  (like cells: within clusters that were found after laying the values of the column upon each other)"]
    rows = [
        (
            escaped(c["name"]),
            f"{c['n_levels']}",
            _share(c["strength"]),
            "-" if c["follows_clusters"] else _share(c["within_clusters"]),
            c["text"],
        )
        for c in diagnosis["columns"]
    ]
    lines += _table(("column", "values", "all cells", "like cells", ""), rows) if rows else ["  none that holds labels"]
    if diagnosis["left_out"]:
        names = ", ".join(f"{escaped(column['name'])} ({column['reason']})" for column in diagnosis["left_out"])
        lines += _wrapped(f"not looked at: {names}")
    return lines


def _beside(diagnosis: Entry) -> list[str]:
    """How the batch lies to the other columns."""
    rows = [(escaped(c["column"]), f"{c['cramers_v']:.2f}", c["text"]) for c in diagnosis["confounding"]]
    if not rows:
        return []
    title = f"Beside {listed([diagnosis['batch_key']])}: Cramer's V, 0 independent of the batch, 1 bound to it"
    return ["", title, *_table(("column", "V", ""), rows)]


def _batches(diagnosis: Entry) -> list[str]:
    rows = [
        (
            escaped(batch["name"]),
            f"{batch['n_cells']:,}",
            f"{batch['n_genes']:,}",
            f"{batch['shared_genes']:,}",
            "-" if batch["median_counts"] is None else f"{batch['median_counts']:,.0f}",
            batch["text"],
        )
        for batch in diagnosis["batches"]
    ]
    if not rows:
        return []
    title = f"Values of {listed([diagnosis['batch_key']])}: cells, genes found, of these in others too, counts per cell"
    return ["", title, *_table(("value", "cells", "genes", "shared", "counts", ""), rows)]


def _share(value: float) -> str:
    return f"{max(value, 0.0):.1%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns: the first and the last to the left, numbers to the right; the last is wrapped."""
    shown = [head, *rows[:MOST_SHOWN]]
    widths = [max(len(row[i]) for row in shown) for i in range(len(head) - 1)]
    lines = []
    for row in shown:
        numbers = [text.rjust(width) for text, width in zip(row[1:-1], widths[1:], strict=True)]
        start = "  " + "   ".join([row[0].ljust(widths[0]), *numbers]) + "   "
        room = max(WIDTH - len(start), 40)
        parts = textwrap.wrap(row[-1], room, break_on_hyphens=False) or [""]
        lines += [(start + parts[0]).rstrip(), *(" " * len(start) + part for part in parts[1:])]
    return [*lines, f"  and {len(rows) - MOST_SHOWN} more"] if len(rows) > MOST_SHOWN else lines
