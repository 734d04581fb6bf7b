"""Correct a file that is never held in memory as a whole."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm import io, parts
from cellnorm.adata import (
    Place,
    gene_mask,
    masked_genes,
    read_genes,
    read_shell,
    result_keys,
    result_slots,
    write_result,
)
from cellnorm.cluster import workers
from cellnorm.components import fit_components
from cellnorm.embedding_file import write_embedding
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.formats import file_format
from cellnorm.front import LinearFront
from cellnorm.hvg import N_TOP_GENES, choose_genes
from cellnorm.labels import batch_labels
from cellnorm.output import check_embedding, check_target, default_output, shown
from cellnorm.streaming import Passes
from cellnorm.tl._correct import (
    check_arguments,
    labels_to_keep,
    read_covariates,
    record,
    say,
    tell,
    tell_model,
    versions,
    warn_of_empty,
)
from cellnorm.training import stage as stage_of
from cellnorm.validation import choose_device, encode_labels
from cellnorm.work import work_folder

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["check_copy", "correct_file"]

logger = logging.getLogger(__name__)

MODEL = "model"  # of the work folder


def correct_file(
    source: str | os.PathLike[str],
    batch_key: str | Sequence[str],
    output: str | os.PathLike[str] | None = None,
    *,
    layer: str | None = None,
    mask_var: str | Any = None,
    n_top_genes: int | None = None,
    embedding_only: str | os.PathLike[str] | None = None,
    save_model: str | os.PathLike[str] | None = None,
    label_key: str | Sequence[str] | None = None,
    force: bool = False,
    key_added: str | None = None,
    work_dir: str | os.PathLike[str] | None = None,
    client: Any = None,
    progress: Progress | None = None,
    **params: Any,
) -> Path:
    """Bring the cells of all batches of a file into one embedding, in bounded memory.

    Gives what `cellnorm.tl.correct` gives of the same file, to the bit, and writes it; the matrix is read twice, part
    by part. What is in between lies in a work folder beside the output, about 8 bytes for each stored value of the
    chosen genes. Components and embedding are held in memory up to 256 MB each; larger ones are mapped from there.

    Parameters
    ----------
    source
        An .h5ad or .zarr, cells x genes. A matrix that is stored by genes (CSC) is first copied cell by cell into the
        work folder, which takes up to 20 bytes a value there.
    batch_key, layer, mask_var, n_top_genes, save_model, label_key, key_added
        As in `cellnorm.tl.correct`.
    output
        Where to write, in the format of the source. None: as `cellnorm correct` names it, beside the source.
    embedding_only
        Write names and embedding alone into this .h5ad, .parquet or .npy (see `cellnorm.embedding_file`): for files
        that are too large to copy.
    force
        Replace an output and a model that are there.
    work_dir
        Keep what was done in this folder, from which an interrupted run with the same arguments goes on; its result is
        the same to the bit. None: a temporary folder.
    client
        Who does the parts: address of a dask scheduler, as "tcp://host:8786", or a `distributed.Client`. Its workers
        must see the source and the work folder under the paths that they have here; training stays here, and the
        result is the same to the bit. None: this process.
    progress
        Called with (stage, done, total, loss or None); the stages are "survey", "values", "pca", those of
        `CellNorm.fit` after these, "encode" and "write".
    **params
        As in `cellnorm.tl.correct`.

    Returns
    -------
    Path
        The file that was written. The output holds all that the source holds, and what `cellnorm.tl.correct` adds.

    Raises
    ------
    DataError
        As `cellnorm.tl.correct`; the source cannot be streamed, the output cannot be written, the work folder is of
        another job or in use; nobody answers as `client`, or its workers lack what they need.
    TypeError
        If a parameter is not one of `cellnorm.CellNorm`.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pathlib, tempfile, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     adata.write_h5ad(pathlib.Path(folder, "cells.h5ad"))
    ...     path = cn.tl.correct_file(pathlib.Path(folder, "cells.h5ad"), "batch", n_latent=5, n_steps=10)
    ...     print(path.name, ad.read_h5ad(path).obsm["X_cellnorm"].shape)
    cells.cellnorm.h5ad (60, 5)
    """
    result_keys(key_added)
    n_top_genes = N_TOP_GENES if n_top_genes is None else n_top_genes
    asked: dict[str, Any] = {"n_top_genes": n_top_genes, "layer": layer, "use_rep": None}
    check_arguments(params, None)
    model = CellNorm(**params)
    _check_numbers(model, n_top_genes)
    path, slots = Path(source), result_slots(key_added)
    shell = read_shell(path)
    target = _target(path, output, embedding_only, slots, force=force)
    covariates = read_covariates(shell, [batch_key] if isinstance(batch_key, str) else batch_key)
    labels = batch_labels(shell, list(covariates))
    of_cells = labels_to_keep(shell, label_key, save_model, force=force)
    mask = None if mask_var is None else gene_mask(shell, mask_var)
    job = _job(path, {**asked, "batch_key": list(covariates), "label_key": list(of_cells)}, mask, model)
    with work_folder(work_dir, job, beside=target) as folder, workers(client, path, folder.path) as run:
        passes = Passes(folder, shell.n_obs, run, progress)
        place, kind, genes, front, pcs = _components(passes, path, shell, list(covariates.values()), mask, model, asked)
        tell(kind, place.source, len(genes), labels, covariates)
        if not (folder.path / MODEL).exists():
            fit_components(model, pcs, front, list(covariates.values()), progress=progress)
            tell_model(model, list(covariates), kind, genes, of_cells)
            model.save(folder.path / MODEL)
            for stage, taken in model.seconds_.items():
                folder.add_seconds(stage, taken)
        model = CellNorm.load(folder.path / MODEL, device=model.device)
        device = model.device if client is None else "cpu"  # what all workers have
        embedding = passes.embedding(folder.path / MODEL, device, model.n_latent)
        say(alarm := model.check(progress=progress), model.evidence_.why)
        if save_model is not None:
            model.save(save_model, force=force)
        seconds = {**folder.seconds, **model.seconds_}
        logger.info("seconds: %s", ", ".join(f"{stage} {taken:.1f}" for stage, taken in seconds.items()))
        info = record(model, {**asked, "mask_var": mask_var}, place.source, kind, genes, seconds, alarm)
        write_result(shell, key_added, embedding, info)
        with stage_of("write", {}, progress):
            if embedding_only is None:
                io.write(shell, target, source=path, keys=slots, force=force)
            else:
                write_embedding(shell, target, list(covariates), key_added=key_added, force=force)
    return target


def _target(
    source: Path,
    output: str | os.PathLike[str] | None,
    embedding_only: str | os.PathLike[str] | None,
    slots: list[tuple[str, str]],
    *,
    force: bool,
) -> Path:
    """What is to be written, if it can be."""
    if embedding_only is None:
        target = default_output(source) if output is None else Path(output)
        check_target(target, [source], force=force)
        check_copy(source, target, slots)
        return target
    if output is not None:
        raise DataError(
            f"output {shown(output)} was asked for together with embedding_only {shown(embedding_only)}. "
            "Give the one or the other."
        )
    check_embedding(embedding_only, [source], force=force)
    return Path(embedding_only)


def check_copy(source: Path, target: Path, slots: list[tuple[str, str]]) -> None:
    """Refuse a source to whose copy nothing could be added: it would have to be loaded."""
    kind = file_format(source)
    if target.suffix.lower() != f".{kind}":
        raise DataError(
            f"{shown(source)} is streamed into a file of its own format, found {shown(target)}. "
            f"Name an output that ends in .{kind}, or correct the file in memory."
        )
    if not io.can_grow(source, kind, slots):
        raise DataError(
            f"{shown(source)} was written by an old anndata or is spread over several files: it can be corrected "
            "in memory, not streamed. Read it and write it anew once."
        )


def _check_numbers(model: CellNorm, n_top_genes: int) -> None:
    """Refuse, before any long work, what could not be done."""
    choose_device(model.device)
    if n_top_genes < 1:
        raise DataError(f"n_top_genes must be 1 or more, found {n_top_genes}.")
    if model.n_comps is None:
        raise DataError("n_comps=None is for a representation, and a file is corrected from its expression.")


def _components(
    passes: Passes,
    path: Path,
    shell: AnnData,
    columns: list[NDArray[np.object_]],
    mask: NDArray[np.bool_] | None,
    model: CellNorm,
    asked: dict[str, Any],
) -> tuple[Place, str, NDArray[np.object_], LinearFront, NDArray[np.float32]]:
    """The matrix, its kind, the genes chosen, and the components."""
    levels, codes, _ = encode_labels(columns, shell.n_obs)
    place, found, kind = passes.survey(path, asked["layer"], codes, len(levels))
    names = read_genes(place)
    wanted = None if mask is None else masked_genes(shell, mask, names, place.source)
    positions = choose_genes(found, names, levels, place.source, n_top_genes=asked["n_top_genes"], wanted=wanted)
    front, n_empty = passes.front(place, positions, model.n_comps or 0, counts=kind == "counts")
    warn_of_empty(n_empty)
    return place, kind, names[positions], front, passes.components(front)


def _job(path: Path, asked: dict[str, Any], mask: NDArray[np.bool_] | None, model: CellNorm) -> dict[str, Any]:
    """All that decides the result."""
    files = [Path(top, name) for top, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    found = [file.stat() for file in files]
    return {
        "input": os.path.realpath(path),
        "input_bytes": sum(one.st_size for one in found),
        "input_changed": max(one.st_mtime_ns for one in found),
        **asked,
        "mask_var": None if mask is None else hashlib.sha256(mask.tobytes()).hexdigest(),
        **model.get_params(),
        "versions": versions(),
        "parts": [parts.SPAN_ROWS, parts.MOST_SPANS],
    }
