"""Write one self-contained HTML page about a correction or an evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from cellnorm.adata import representation, result_keys, umap_keys
from cellnorm.errors import DataError
from cellnorm.fitting import SKETCH_ALL, SKETCH_BATCH
from cellnorm.kinds import MOST_KINDS
from cellnorm.labels import batch_labels, obs_column
from cellnorm.output import reason, replacing, shown
from cellnorm.pl._style import levels_of, numeric_obsm, sample_cells
from cellnorm.report._content import batch_rows, before_and_after, cluster_rows, common, curves, pictures
from cellnorm.report._render import plain, render

__all__ = ["check_report", "write_correction", "write_evaluation"]

MAX_LAYOUTS = 3  # of an evaluation's page, which stays below 5 MB


def write_correction(
    path: str | os.PathLike[str],
    adata: AnnData,
    *,
    batch_key: str | Sequence[str],
    label_key: str | None,
    command: str,
    scores: pd.DataFrame,
    diagnosis: Mapping[str, Any],
    key_added: str | None = None,
    max_points: int = 20_000,
    name: str | None = None,
    force: bool = False,
) -> Path:
    """Write the page about a correction: did it work, what does it look like, how was it made.

    Parameters
    ----------
    path
        Where to: .html.
    adata
        After `cellnorm.tl.correct`; is only read.
    batch_key, label_key
        Columns of obs with the batches, and with the cell types or None.
    command
        What was typed, for the record.
    scores
        What `cellnorm.tl.evaluate` returned, with intervals or without.
    diagnosis
        What `cellnorm.tl.diagnose` returned before the correction.
    key_added
        As given to `cellnorm.tl.correct`.
    max_points
        The pictures show a seeded sample of this many cells, each batch in proportion.
    name
        What the data are called, for the title. None: the name of the page.
    force
        Replace an existing page.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        If there was no correction, a column is missing, or the page cannot be written there.

    Examples
    --------
    >>> import cellnorm as cn, pathlib, tempfile
    >>> adata = cn.datasets.simulate(90, 60, n_batches=2)
    >>> cn.tl.correct(adata, "batch", n_latent=5, n_steps=10)
    >>> found = cn.tl.diagnose(adata, "batch")
    >>> scores = cn.tl.evaluate(adata, "batch", use_rep="X_cellnorm")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_correction(pathlib.Path(folder, "report.html"), adata, batch_key="batch", label_key=None,
    ...                             command="cellnorm correct cells.h5ad", scores=scores, diagnosis=found)
    ...     page.name, "<script" in page.read_text()
    ('report.html', False)
    """
    target = check_report(path, force=force)
    obsm_key, uns_key = result_keys(key_added)
    if uns_key not in adata.uns:
        raise DataError(f"A report needs uns[{uns_key!r}], which is not there. Run cellnorm.tl.correct first.")
    info = plain(adata.uns[uns_key])
    seed = int(info.get("random_state") or 0)
    batch = levels_of(batch_labels(adata, batch_key))
    label = None if label_key is None else levels_of(obs_column(adata, label_key))
    cells = sample_cells(batch.codes, max_points, seed)
    layouts, missing = before_and_after(adata, cells, info, batch_key, obsm_key, umap_keys(key_added)[0], seed)
    page = {
        **common(target, adata, batch_key, label_key, command, scores, batch, label, name),
        "kind": "correction",
        "alarm": info.get("alarm") or None,
        "batches": batch_rows(info, batch),
        "clusters": cluster_rows(info),
        "pictures": pictures(layouts, batch, label, cells),
        "pictures_missing": missing,
        "diagnosis": plain(diagnosis),
        "curves": curves(info),
        "info": info,
        "embedding": obsm_key,
        "sketch": {"batch": SKETCH_BATCH, "all": SKETCH_ALL, "kinds": MOST_KINDS},
    }
    return _save(target, page)


def write_evaluation(
    path: str | os.PathLike[str],
    adata: AnnData,
    *,
    batch_key: str | Sequence[str],
    label_key: str | None,
    command: str,
    scores: pd.DataFrame,
    max_points: int = 20_000,
    name: str | None = None,
    force: bool = False,
) -> Path:
    """Write the page about an evaluation: the scores, and the layouts that are there already (at most three).

    Parameters
    ----------
    path, adata, batch_key, label_key, command, scores, max_points, name, force
        As in `write_correction`.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    DataError
        If a column is missing, or the page cannot be written there.

    Examples
    --------
    >>> import cellnorm as cn, pandas as pd, pathlib, tempfile
    >>> adata = cn.datasets.simulate(90, 60, n_batches=2)
    >>> scores = pd.DataFrame({"X_pca": [0.2], "X_cellnorm": [0.6]}, index=["iLISI"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_evaluation(pathlib.Path(folder, "scores.html"), adata, batch_key="batch", label_key=None,
    ...                             command="cellnorm evaluate cells.h5ad", scores=scores)
    ...     page.name
    'scores.html'
    """
    target = check_report(path, force=force)
    batch = levels_of(batch_labels(adata, batch_key))
    label = None if label_key is None else levels_of(obs_column(adata, label_key))
    cells = sample_cells(batch.codes, max_points, 0)
    keys = numeric_obsm(adata, lambda width: width == 2)[:MAX_LAYOUTS]
    layouts = {key: (representation(adata, key)[0][cells], key) for key in keys}
    about = common(target, adata, batch_key, label_key, command, scores, batch, label, name)
    return _save(target, {**about, "kind": "evaluation", "pictures": pictures(layouts, batch, label, cells)})


def check_report(path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Refuse, before any long work, a page that could not be written in the end.

    Parameters
    ----------
    path
        Where the page shall go.
    force
        An existing page may be replaced.

    Returns
    -------
    Path

    Raises
    ------
    DataError
        The name does not end in .html, there is a folder of that name or a file and not `force`, or no folder for it.

    Examples
    --------
    >>> check_report("report.pdf")
    Traceback (most recent call last):
    ...
    cellnorm.errors.DataError: A report must end in .html, found 'report.pdf'.
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise DataError(f"A report must end in .html, found {shown(target)}.")
    if target.is_dir():
        raise DataError(f"{shown(target)} is a folder and is not replaced. Choose another name.")
    if os.path.lexists(target) and not force:
        raise DataError(f"{shown(target)} exists. Choose another name or replace it (--force).")
    if not target.parent.is_dir():
        raise DataError(f"There is no folder {shown(target.parent)} to write into. Make it, or choose another one.")
    return target


def _save(target: Path, page: Mapping[str, Any]) -> Path:
    text = render(page)
    try:
        with replacing(target) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{shown(target)} cannot be written: {reason(error)}. Choose another folder.") from error
    return target
