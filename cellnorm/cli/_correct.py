"""`cellnorm correct`."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cellnorm import __version__
from cellnorm.cli._shared import (
    batch_key_option,
    device_option,
    expression_layers,
    expression_options,
    expression_wanted,
    found_batch_key,
    output_option,
    strength_option,
    talk_options,
    typed_command,
)
from cellnorm.cli._stream import How, how_to_read, is_streamed, result_of, stream, stream_options, write
from cellnorm.console import exit_codes, plain, stage, talk

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["correct"]

logger = logging.getLogger(__name__)


class Page(NamedTuple):
    """The report that is wanted: where to, the column of cell types or None, what the data are called."""

    target: Path
    label_key: str | None
    name: str


@click.command(short_help="Bring the cells of several labs, donors or protocols into one embedding.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@output_option("INPUT.cellnorm.h5ad")
@batch_key_option(
    "Column of the cell table (obs) that says which experiment a cell is from, such as donor or batch. "
    "Give the option again for a second column, such as protocol: the effects of both are taken away, and added up."
)
@click.option("--layer", metavar="NAME", help="Layer that holds the counts. Left out: they are looked for.")
@click.option(
    "--n-top-genes",
    type=click.IntRange(min=1),
    metavar="N",
    help="How many of the most variable genes to use (default: 2000).",
)
@click.option(
    "--n-latent",
    type=click.IntRange(min=1),
    metavar="N",
    help="Number of dimensions of the corrected embedding (default: 50).",
)
@strength_option()
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    metavar="N",
    help="Start of the random numbers (default: 0). The same seed gives the same result.",
)
@device_option()
@click.option("--umap", is_flag=True, help="Also add neighbors and a UMAP of the corrected embedding.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a web page (.html) that shows what was done and whether it worked.",
)
@click.option(
    "--save-model",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also save the trained model, in a new folder: cellnorm embed puts later samples in with it.",
)
@click.option(
    "--label-key",
    metavar="COLUMN",
    help="Column with cell types: for the report, and kept in the saved model so that they can be transferred to later "
    "samples. Never for correcting.",
)
@expression_options
@stream_options
@click.option("-f", "--force", is_flag=True, help="Replace the output (and the report and the model) if it exists.")
@talk_options
@click.version_option(__version__, prog_name="cellnorm")
def correct(
    inputs: tuple[Path, ...],
    output: Path | None,
    batch_keys: tuple[str, ...],
    layer: str | None,
    seed: int | None,
    umap: bool,
    report: Path | None,
    save_model: Path | None,
    label_key: str | None,
    expression: str | None,
    expression_counts: bool,
    expression_sparse: bool,
    force: bool,
    quiet: bool,
    verbose: bool,
    **params: Any,
) -> None:
    """Bring the cells of several labs, donors or protocols into one embedding.

    INPUT is an .h5ad file, a .zarr folder, a 10x .h5 file or a folder with a 10x matrix. Several INPUTs are several
    labs: they are joined on the genes they share, and each file is one batch.

    The result holds everything INPUT holds, untouched, and the corrected embedding in obsm["X_cellnorm"]; what was done
    is in uns["cellnorm"]. INPUT itself is never changed. A file that would not fit into memory is streamed: the result
    is the same. Go on in scanpy:

    \b
        adata = sc.read_h5ad("cells.cellnorm.h5ad")
        sc.pp.neighbors(adata, use_rep="X_cellnorm")

    Without options the counts (or log-normalised values) and the batch column are found, and what was chosen is said.

    \b
    Examples:
        cellnorm correct cells.h5ad
        cellnorm correct cells.h5ad --batch-key donor --umap
        cellnorm correct cells.h5ad --batch-key donor --batch-key protocol
        cellnorm correct cells.h5ad --report report.html --label-key cell_type
        cellnorm correct cells.h5ad --expression
        cellnorm correct lab1.h5ad lab2.h5ad -o merged.h5ad
        cellnorm correct atlas.h5ad --save-model atlas.model --label-key cell_type
        cellnorm correct big.zarr --work-dir work --embedding-only embedding.h5ad
        cellnorm correct big.zarr --work-dir work --scheduler tcp://node1:8786
    """  # noqa: D301 - click takes \b as "leave these lines as they are"
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    wanted = expression_wanted(expression, expression_counts, expression_sparse)
    how = how_to_read(inputs, output, umap, {"--expression": wanted, "--report": report}, params)
    if output is None and how.embedding_only is None and len(inputs) > 1:
        raise click.UsageError("Several inputs need a name for their result: -o merged.h5ad")
    if label_key is not None and report is None and save_model is None:
        raise click.UsageError("--label-key is for the report or the model: add --report FILE or --save-model DIR.")
    kept = {} if save_model is None else {"save_model": save_model, "label_key": label_key, "force": force}
    chosen = {name: value for name, value in {**params, "random_state": seed}.items() if value is not None}
    with exit_codes(), talk(quiet, verbose) as progress:
        page = None if report is None else Page(report, label_key, ", ".join(p.name for p in inputs))
        written = _correct(
            inputs,
            output,
            list(batch_keys),
            layer,
            chosen,
            page,
            kept,
            wanted,
            how,
            umap=umap,
            force=force,
            progress=progress,
        )
    click.echo(plain(str(written)) if sys.stdout.isatty() else os.fsencode(written))


def _correct(
    inputs: tuple[Path, ...],
    output: Path | None,
    batch_keys: list[str],
    layer: str | None,
    params: dict[str, Any],
    page: Page | None,
    kept: dict[str, Any],
    wanted: dict[str, Any],
    how: How,
    *,
    umap: bool,
    force: bool,
    progress: "Progress",
) -> Path:
    start = time.perf_counter()
    target = result_of(inputs, output, how, force=force)  # before the imports, which take seconds
    from cellnorm import tl
    from cellnorm.adata import result_keys

    _check(kept, page, force=force)
    if is_streamed(inputs, batch_keys, params.get("n_top_genes"), how):
        asked = {**params, **kept, "layer": layer}
        stream(inputs[0], target, batch_keys, asked, how, umap=umap, force=force, progress=progress)
        logger.info("wrote %s after %.1f seconds", target, time.perf_counter() - start)
        return target
    seconds: dict[str, float] = {}
    with stage("read", seconds, progress):
        adata, batch_keys = _read(inputs, layer, batch_keys)
        layer = layer if len(inputs) == 1 else None  # the joined matrix is the one
    write_page = page and _page(adata, batch_keys, layer, page, force=force, progress=progress)
    layers = {}
    with TemporaryDirectory() as folder:  # the model is handed on as a file where nobody wants to keep it
        model = kept or ({"save_model": Path(folder, "model")} if wanted else {})
        tl.correct(adata, batch_keys, layer=layer, progress=progress, **model, **params)
        if wanted:
            with stage("expression", seconds, progress):
                layers = expression_layers(adata, model["save_model"], wanted, layer=layer, progress=progress)
    if kept:
        logger.info("saved the model in %s", kept["save_model"])
    if umap:
        with stage("umap", seconds, progress):
            tl.umap(adata, **{name: value for name, value in params.items() if name == "random_state"})
    info = adata.uns[result_keys()[1]]
    info["seconds"] = {"read": seconds.pop("read"), **info["seconds"], **seconds}
    logger.info("seconds: %s", ", ".join(f"{stage} {taken:.1f}" for stage, taken in info["seconds"].items()))
    with stage("write", seconds, progress):
        source = inputs[0] if len(inputs) == 1 else None
        write(adata, target, batch_keys, how, umap=umap, source=source, layers=layers, force=force)
    if write_page:  # last: what was computed is safe by now
        with stage("report", seconds, progress):
            write_page(result_keys()[0])
    logger.info("wrote %s after %.1f seconds", target, time.perf_counter() - start)
    return target


def _check(kept: dict[str, Any], page: Page | None, *, force: bool) -> None:
    """Refuse, before any long work, a model or a report that could not be written in the end."""
    if kept:
        from cellnorm.checkpoint import check_folder

        check_folder(kept["save_model"], force=force)
    if page is not None:
        from cellnorm.report import check_report

        check_report(page.target, force=force)


def _read(inputs: tuple[Path, ...], layer: str | None, batch_keys: list[str]) -> tuple[Any, list[str]]:
    """The cells of all files, and the columns that say which batch they are of."""
    from cellnorm import io

    if len(inputs) == 1:
        adata, of_file = io.read(inputs[0]), None
    else:
        adata, of_file = io.read_many(inputs, layer=layer)
    logger.info("read %d cells x %d genes from %s", *adata.shape, ", ".join(map(str, inputs)))
    if batch_keys:
        return adata, batch_keys
    if of_file is None:
        return adata, found_batch_key(adata.obs)
    logger.info("batches: column %r (one batch per file)", of_file)
    return adata, [of_file]


def _page(
    adata: Any, batch_keys: list[str], layer: str | None, page: Page, *, force: bool, progress: "Progress"
) -> Callable[[str], None]:
    """Diagnose before the correction; what comes back writes the report after it."""
    from cellnorm import tl
    from cellnorm.labels import obs_column
    from cellnorm.report import write_correction

    if page.label_key is not None:
        obs_column(adata, page.label_key)  # a wrong name is refused before any long work
    with stage("diagnose", {}, progress):
        diagnosis = tl.diagnose(adata, batch_keys, layer=layer)

    def write(embedding: str) -> None:
        scores = tl.evaluate(adata, batch_keys, page.label_key, use_rep=["uncorrected", embedding], intervals=True)
        write_correction(
            page.target,
            adata,
            batch_key=batch_keys,
            label_key=page.label_key,
            command=typed_command(),
            scores=scores,
            diagnosis=diagnosis,
            name=page.name,
            force=force,
        )
        logger.info("wrote %s", page.target)

    return write
