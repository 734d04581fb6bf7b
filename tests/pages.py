"""What pages are made from in the tests: a small corrected AnnData, its scores and its diagnosis."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

import cellnorm as cn
from cellnorm.report import write_correction

VERDICTS = ("good", "look", "over-corrected", "under-corrected")
ATTACK = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "hr", "path", "circle", "input"}


def corrected(adata: ad.AnnData, verdict: str = "good", *, batch_key: str = "batch", n_steps: int = 20) -> ad.AnnData:
    """The same cells after a short training, with the verdict that is asked for."""
    cn.tl.correct(adata, batch_key, n_latent=5, n_steps=n_steps)
    adata.uns["cellnorm"]["alarm"] = alarm(adata.obs[batch_key], verdict)
    return adata


def alarm(batch: Any, verdict: str) -> dict[str, Any]:
    """A verdict in the shape in which `correct` leaves it; the first batch and cluster are to blame."""
    names, n_cells = np.unique(np.asarray(batch, dtype=str), return_counts=True)
    n = len(names)
    verdicts = np.array([verdict] + ["good"] * (n - 1), dtype=object)
    shares = np.linspace(0.5, 0.9, n)
    return {
        "verdict": verdict, "reason": f"the reason for {verdict}", "kept": 0.713, "matched": 0.884,
        "apart": 0.08, "apart_before": 0.97, "merged": int(verdict == "over-corrected"),
        "null_moved": 0.03, "null_separated": 0.01,
        "batches": {
            "name": names.astype(object), "n_cells": n_cells, "kept": shares, "matched": shares, "apart": 1 - shares,
            "verdict": verdicts,
        },
        "clusters": {
            "batch": names.astype(object), "cluster": np.array(["0"] * n, dtype=object), "n_cells": n_cells,
            "kept": shares, "matched": shares, "merged_with": np.array(["lab1: 2"] + [""] * (n - 1), dtype=object),
            "verdict": verdicts,
        },
    }  # fmt: skip


def scores_of(*columns: str, intervals: bool = True) -> pd.DataFrame:
    """Scores of representations, each better than the one before it."""
    rows = {"BRAS": 0.4, "iLISI": 0.1, "cLISI": 0.7, "Neighbors kept": 0.5, "Total": 0.31234}
    table: dict[Any, dict[str, float]] = {}
    for i, column in enumerate(columns):
        value = {name: start + 0.05 * i for name, start in rows.items()}
        parts = {"value": 0.0, "low": -0.01, "high": 0.01} if intervals else {"": 0.0}
        for part, shift in parts.items():
            table[(column, part) if intervals else column] = {name: v + shift for name, v in value.items()}
    return pd.DataFrame(table).rename_axis("metric")


def diagnosis_of(*columns: str) -> dict[str, Any]:
    """A diagnosis in the shape in which `diagnose` returns it: the first column is a strong batch effect."""
    verdicts = ["strong", "mild", *["none"] * len(columns)]
    return {
        "matrix": {"text": "300 cells x 200 genes in X: whole numbers"},
        "columns": [
            {"name": name, "n_levels": 3, "strength": 0.3 / (i + 1), "null": 0.001, "p": 0.005, "within_clusters": 0.25,
             "verdict": verdicts[i], "text": f"what {name} does"}
            for i, name in enumerate(columns)
        ],
        "batch_key": columns[0] if columns else "",
        "confounding": [{"column": n, "cramers_v": 0.21, "relation": "crossed", "text": "fine"} for n in columns[1:]],
        "batches": [{"name": "lab0", "lacks": ["cluster 2"], "text": "seems to lack cluster 2"}],
        "warnings": ["A warning about lab0."], "verdict": "correct", "recommendation": "Correct for it.", "command": "",
    }  # fmt: skip


def write(path: Path, adata: ad.AnnData, **changes: Any) -> Path:
    """A page about `corrected` cells."""
    options = {
        "batch_key": "batch", "label_key": "cell_type", "command": "cellnorm correct cells.h5ad",
        "scores": scores_of("X_pca", "X_cellnorm"), "diagnosis": diagnosis_of("batch", "cell_type"),
    }  # fmt: skip
    return write_correction(path, adata, **{**options, **changes})


class Document(HTMLParser):
    """The elements of a page with their attributes, its visible text, and whether all tags are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All visible text, with single spaces."""
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]
