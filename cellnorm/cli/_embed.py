"""`cellnorm embed`."""

import logging
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from cellnorm import __version__
from cellnorm.cli._shared import (
    batch_key_option,
    device_option,
    expression_layers,
    expression_options,
    expression_wanted,
    output_option,
    talk_options,
)
from cellnorm.console import exit_codes, plain, stage, talk
from cellnorm.errors import DataError

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["embed"]

logger = logging.getLogger(__name__)


@click.command(short_help="Put new cells into the embedding of a saved model, in seconds; label them.")
@click.argument("input_", metavar="NEW", type=click.Path(path_type=Path))
@click.option(
    "--model",
    "model",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="The folder that cellnorm correct --save-model wrote.",
)
@output_option("NEW.cellnorm.h5ad")
@batch_key_option(
    "Column of the cell table (obs) that says which experiment a cell is from; for a model of several, give the option "
    "again. Left out: as in the model's training; if there is no such column, all cells are one new batch."
)
@click.option("--frozen", is_flag=True, help="Give new batches the statistics shared by all, not their own.")
@click.option("--as-new", is_flag=True, help="Take batches for new even if the model knows one of the same name.")
@click.option(
    "--transfer",
    "columns",
    multiple=True,
    metavar="COLUMN",
    help="Label the cells by this column of the reference, such as cell_type; give the option again for more.",
)
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What cellnorm correct wrote together with the model: to take labels from that the model does not hold, and "
    "with --expression to correct genes beyond what the components hold.",
)
@click.option(
    "--save-model",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also save the model that knows the new batches, in a new folder.",
)
@click.option("--layer", metavar="NAME", help="Layer that holds the counts. Left out: they are looked for.")
@click.option("--use-rep", metavar="NAME", help="For a model of a representation: its name in obsm.")
@click.option("--umap", is_flag=True, help="Also add neighbors and a UMAP of the new cells.")
@expression_options
@device_option()
@click.option("-f", "--force", is_flag=True, help="Replace the output (and the saved model) if it exists.")
@talk_options
@click.version_option(__version__, prog_name="cellnorm")
def embed(
    input_: Path,
    model: Path,
    output: Path | None,
    umap: bool,
    device: str | None,
    quiet: bool,
    verbose: bool,
    batch_keys: tuple[str, ...],
    columns: tuple[str, ...],
    expression: str | None,
    expression_counts: bool,
    expression_sparse: bool,
    **params: Any,
) -> None:
    """Put new cells into the embedding of a saved model, without training.

    NEW is an .h5ad file, a .zarr folder, a 10x .h5 file or a folder with a 10x matrix. Genes are matched by name. The
    result holds everything NEW holds, untouched, the embedding in obsm["X_cellnorm"], beside the cells of the
    reference, and in obs["cellnorm_match"] how well the reference supports each cell (0 to 1; near 0: it may be of a
    type that the reference lacks). With --transfer cell_type there are also

    \b
        obs["cellnorm_cell_type"]              the label, or "unknown"
        obs["cellnorm_cell_type_probability"]  how probable it is that the label is right
        obs["cellnorm_cell_type_radius"]       relative change of the expression that cannot change the label

    \b
    Examples:
        cellnorm correct atlas.h5ad --save-model atlas.model --label-key cell_type
        cellnorm embed march.h5ad --model atlas.model --transfer cell_type
        cellnorm embed march.h5ad --model atlas.model --save-model atlas_march.model
    """  # noqa: D301 - click takes \b as "leave these lines as they are"
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    wanted = expression_wanted(expression, expression_counts, expression_sparse)
    if params["reference"] is not None and not columns and not wanted:
        raise click.UsageError("--reference is for labels or genes: add --transfer COLUMN or --expression.")
    chosen = {**params, "batch_key": list(batch_keys) or None, "transfer": columns}
    with exit_codes(), talk(quiet, verbose) as progress:
        written = _embed(input_, model, output, chosen, wanted, umap=umap, device=device, progress=progress)
    click.echo(plain(str(written)) if sys.stdout.isatty() else os.fsencode(written))


def _embed(
    input_: Path,
    folder: Path,
    output: Path | None,
    chosen: dict[str, Any],
    wanted: dict[str, Any],
    *,
    umap: bool,
    device: str | None,
    progress: "Progress",
) -> Path:
    from cellnorm.output import check_target, default_output, shown, stem

    start = time.perf_counter()
    target, force, reference = (
        default_output(input_) if output is None else output,
        chosen["force"],
        chosen["reference"],
    )
    if not folder.is_dir():
        raise DataError(f"There is no model {shown(folder)}. Give the folder that --save-model wrote.")
    sources = [path for path in (input_, folder, reference) if path is not None]
    check_target(target, sources, force=force)  # before the imports, which take seconds
    from cellnorm import io, tl
    from cellnorm.adata import result_keys, result_slots
    from cellnorm.checkpoint import check_folder
    from cellnorm.estimator import CellNorm

    if chosen["save_model"] is not None:
        check_folder(chosen["save_model"], force=force)
    seconds: dict[str, float] = {}
    with stage("read", seconds, progress):
        model = CellNorm.load(folder, device=device or "auto")
        adata = io.read(input_)
        if reference is not None:
            chosen["reference"] = io.read(reference)
    logger.info("read %d cells x %d genes from %s", *adata.shape, input_)
    with TemporaryDirectory() as folder_of_grown:
        grown: Path | None = chosen["save_model"] or (Path(folder_of_grown, "model") if wanted else None)
        tl.embed(adata, model, progress=progress, batch_name=stem(input_), **{**chosen, "save_model": grown})
        layers = _layers(adata, grown, chosen, wanted, progress) if wanted and grown else {}
        if umap:
            with stage("umap", seconds, progress):
                tl.umap(adata, random_state=model.random_state)
        info = adata.uns[result_keys()[1]]
        info["seconds"] = {"read": seconds.pop("read"), **info["seconds"], **seconds}
        logger.info("seconds: %s", ", ".join(f"{name} {taken:.1f}" for name, taken in info["seconds"].items()))
        with stage("write", seconds, progress):
            slots = result_slots(umap=umap, cells=True, transfer=chosen["transfer"])
            io.write(adata, target, source=input_, keys=slots, layers=layers, force=force)
    if chosen["save_model"] is not None:
        logger.info("saved the model that knows the new batches in %s", chosen["save_model"])
    logger.info("wrote %s after %.1f seconds", target, time.perf_counter() - start)
    return target


def _layers(
    adata: Any, model: Path, chosen: dict[str, Any], wanted: dict[str, Any], progress: "Progress"
) -> dict[str, Any]:
    """Corrected expression of the new cells, by the model that knows their batches."""
    options = {name: chosen[name] for name in ("layer", "reference")}
    if chosen["reference"] is None:
        logger.info("without --reference new batches are corrected in what the embedding sees, not in single genes")
    return expression_layers(adata, model, wanted, progress=progress, **options)
