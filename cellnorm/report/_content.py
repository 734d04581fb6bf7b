"""What a report says, as values without any markup: pictures, scores, tables, curves."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm import __version__
from cellnorm.adata import representation
from cellnorm.errors import DataError
from cellnorm.metrics.table import METRICS, Metric
from cellnorm.pl._history import WINDOW, terms_of
from cellnorm.pl._picture import badges, curve_image, layout, point_image, same_level
from cellnorm.pl._scores import direction, split_scores
from cellnorm.pl._style import Levels, natural
from cellnorm.tl._evaluate import uncorrected

__all__ = ["batch_rows", "before_and_after", "cluster_rows", "common", "curves", "pictures", "score_table"]

SEVERITY = ("over-corrected", "under-corrected", "look")
TIE = 5e-4  # scores are shown with three digits: what looks alike is marked alike


def common(
    target: Path,
    adata: AnnData,
    batch_key: str | Sequence[str],
    label_key: str | None,
    command: str,
    scores: pd.DataFrame,
    batch: Levels,
    label: Levels | None,
    name: str | None,
) -> dict[str, Any]:
    """What both pages say."""
    return {
        "name": target.stem if name is None else name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "version": __version__,
        "n_cells": adata.n_obs,
        "n_genes": adata.n_vars,
        "batch_key": batch_key if isinstance(batch_key, str) else " × ".join(map(str, batch_key)),
        "label_key": label_key,
        "n_batches": len(batch.names),
        "n_labels": 0 if label is None else len(label.names),
        "command": command,
        "scores": score_table(scores),
    }


def before_and_after(
    adata: AnnData,
    cells: NDArray[np.intp],
    info: Mapping[str, Any],
    batch_key: str | Sequence[str],
    embedding: str,
    picture: str,
    seed: int,
) -> tuple[dict[str, tuple[NDArray[Any], str]], str]:
    """Layouts of the sampled cells by name, and why one is missing ("" if none is): it is no reason to fail."""
    parameters, layouts, missing = info.get("parameters", {}), {}, ""
    try:
        if use_rep := parameters.get("use_rep"):
            before = representation(adata, use_rep)[0][cells]
        else:
            sample, layer = adata[cells], parameters.get("layer")
            source = AnnData(sample.layers[layer], obs=sample.obs, var=sample.var) if layer else sample
            before = uncorrected(source, batch_key)
        layouts["before correction"] = layout(before, seed)
    except DataError as error:
        missing = str(error)
    if picture in adata.obsm:
        layouts["after correction"] = (representation(adata, picture)[0][cells], "UMAP")
    elif embedding in adata.obsm:
        layouts["after correction"] = layout(representation(adata, embedding)[0][cells], seed)
    return layouts, missing


def pictures(
    layouts: Mapping[str, tuple[NDArray[Any], str]], batch: Levels, label: Levels | None, cells: NDArray[np.intp]
) -> list[dict[str, Any]]:
    """One row of pictures for the batches, one for the types, with their legends."""
    rows = []
    for what, levels in (("batch", batch), ("type", label)):
        if levels is None or not levels.names or not layouts:
            continue
        part = Levels(levels.names, levels.codes[cells], levels.colors, levels.distinct)
        panels = []
        for when, (xy, kind) in layouts.items():
            share, chance = same_level(xy, part)
            numbers = badges(xy, part) if what == "type" else []
            panels.append(
                {"uri": point_image(xy, part), "when": when, "kind": kind, "share": share, "chance": chance,
                 "badges": numbers}
            )  # fmt: skip
        rows.append({"what": what, "levels": part, "panels": panels, "n_points": len(cells)})
    return rows


def score_table(scores: pd.DataFrame) -> dict[str, Any]:
    """Metrics by kind, the aggregates first; a cell for each representation, and which of them is the best.

    Examples
    --------
    >>> table = score_table(pd.DataFrame({"X_pca": [0.2], "X_cellnorm": [0.6]}, index=["Total"]))
    >>> [cell["best"] for cell in table["groups"]["total"][0]["cells"]]
    [False, True]
    """
    frames = split_scores(scores)
    known = {metric.name: metric for metric in METRICS}
    groups: dict[str, list[dict[str, Any]]] = {"total": []}
    for position, metric in enumerate(map(str, frames.value.index)):
        values, lows, highs = (frame.to_numpy()[position] for frame in (frames.value, frames.low, frames.high))
        about = known.get(metric, Metric(metric, "other", "", ""))
        towards = direction(metric)
        top = np.nanmax(towards * values) if np.isfinite(values).any() else np.inf
        cells = [
            {"value": value, "low": low, "high": high, "best": len(values) > 1 and bool(towards * value >= top - TIE),
             "track": [_place(x, about.low, about.high) for x in (value, low, high)]}
            for value, low, high in zip(values.tolist(), lows.tolist(), highs.tolist(), strict=True)
        ]  # fmt: skip
        groups.setdefault(about.kind, []).append(
            {"name": metric, "about": about.about, "higher": towards > 0, "cells": cells}
        )
    return {
        "columns": [str(c) for c in frames.value.columns],
        "names": [str(name) for name in frames.value.index],
        "groups": {kind: rows for kind, rows in groups.items() if rows},
        "intervals": bool(np.isfinite(frames.low.to_numpy()).any()),
    }


def _place(value: float, low: float, high: float) -> float | None:
    """Where a value lies on a scale, in per cent; None where there is none."""
    if not np.isfinite([value, low, high]).all() or high <= low:
        return None
    return round(100 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def batch_rows(info: Mapping[str, Any], batch: Levels) -> list[dict[str, Any]]:
    """One row for each batch, what needs a look first: from the alarm, else from the numbers of matched cells."""
    alarm = info.get("alarm") or {}
    place = {name: i for i, name in enumerate(batch.names)}
    n_cells = np.bincount(batch.codes[batch.codes >= 0], minlength=len(place)).tolist()
    rows = _rows(alarm.get("batches") or info.get("batches") or {})
    for row in rows:
        at = place.get(str(row.get("name")))
        row["color"] = "" if at is None or not batch.distinct else batch.colors[at]
        row["n_cells"] = row.get("n_cells") if at is None else n_cells[at]  # the alarm has looked at some of them
    return sorted(rows, key=lambda row: (_severity(row), natural(str(row.get("name")))))


def cluster_rows(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each cluster of a batch, what needs a look first; nothing without an alarm."""
    rows = _rows((info.get("alarm") or {}).get("clusters") or {})
    return sorted(rows, key=lambda row: (_severity(row), natural(str(row["batch"])), natural(str(row["cluster"]))))


def _rows(table: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]


def _severity(row: Mapping[str, Any]) -> int:
    verdict = str(row.get("verdict", ""))
    return SEVERITY.index(verdict) if verdict in SEVERITY else len(SEVERITY)


def curves(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Training curves: a picture each, and where they start and end (means over 25 steps)."""
    return [
        {"name": name, "uri": curve_image(values), "n_steps": len(values), "start": float(values[:WINDOW].mean()),
         "end": float(values[-WINDOW:].mean())}
        for name, values in terms_of(info).items()
    ]  # fmt: skip
