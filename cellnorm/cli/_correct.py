"""`cellnorm correct`."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cellnorm import __version__
from cellnorm.cli._shared import batch_key_option, found_batch_key, typed_command
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
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Where the result goes: a name that ends in .h5ad or .zarr. Left out: INPUT.cellnorm.h5ad.",
)
@batch_key_option(
    "Column of the cell table (obs) that says which experiment a cell is from, such as donor or batch. "
    "Give the option again to combine columns: each combination is then one batch."
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
    help="Number of dimensions of the corrected embedding (default: 30).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    metavar="N",
    help="Start of the random numbers (default: 0). The same seed gives the same result.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    help="Where to compute (default: auto, which takes a graphics card if there is one).",
)
@click.option("--umap", is_flag=True, help="Also add neighbors and a UMAP of the corrected embedding.")
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write a web page (.html) that shows what was done and whether it worked.",
)
@click.option(
    "--label-key", metavar="COLUMN", help="Column with cell types, for the report alone: never for correcting."
)
@click.option("-f", "--force", is_flag=True, help="Replace the output (and the report) if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors; no progress bars.")
@click.option("-v", "--verbose", is_flag=True, help="Say more, and as it happens.")
@click.version_option(__version__, prog_name="cellnorm")
def correct(
    inputs: tuple[Path, ...],
    output: Path | None,
    batch_keys: tuple[str, ...],
    layer: str | None,
    seed: int | None,
    umap: bool,
    report: Path | None,
    label_key: str | None,
    force: bool,
    quiet: bool,
    verbose: bool,
    **params: Any,
) -> None:
    """Bring the cells of several labs, donors or protocols into one embedding.

    INPUT is an .h5ad file, a .zarr folder, a 10x .h5 file or a folder with a 10x matrix. Several INPUTs are several
    labs: they are joined on the genes they share, and each file is one batch.

    The result holds everything INPUT holds, untouched, and the corrected embedding in obsm["X_cellnorm"]; what was done
    is in uns["cellnorm"]. INPUT itself is never changed. Go on in scanpy:

    \b
        adata = sc.read_h5ad("cells.cellnorm.h5ad")
        sc.pp.neighbors(adata, use_rep="X_cellnorm")

    Without options the counts (or log-normalised values) and the batch column are found, and what was chosen is said.

    \b
    Examples:
        cellnorm correct cells.h5ad
        cellnorm correct cells.h5ad --batch-key donor --umap
        cellnorm correct cells.h5ad --report report.html --label-key cell_type
        cellnorm correct lab1.h5ad lab2.h5ad -o merged.h5ad
    """  # noqa: D301 - click takes \b as "leave these lines as they are"
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    if output is None and len(inputs) > 1:
        raise click.UsageError("Several inputs need a name for their result: -o merged.h5ad")
    if label_key is not None and report is None:
        raise click.UsageError("--label-key is for the report: name one with --report FILE, or leave it out.")
    chosen = {name: value for name, value in {**params, "random_state": seed}.items() if value is not None}
    with exit_codes(), talk(quiet, verbose) as progress:
        page = None if report is None else Page(report, label_key, ", ".join(p.name for p in inputs))
        written = _correct(
            inputs, output, list(batch_keys), layer, chosen, page, umap=umap, force=force, progress=progress
        )
    click.echo(plain(str(written)) if sys.stdout.isatty() else os.fsencode(written))


def _correct(
    inputs: tuple[Path, ...],
    output: Path | None,
    batch_keys: list[str],
    layer: str | None,
    params: dict[str, Any],
    page: Page | None,
    *,
    umap: bool,
    force: bool,
    progress: "Progress",
) -> Path:
    from cellnorm.output import check_target, default_output

    start = time.perf_counter()
    target = default_output(inputs[0]) if output is None else output
    check_target(target, inputs, force=force)  # before the imports, which take seconds
    from cellnorm import io, tl
    from cellnorm.adata import result_keys, result_slots

    if page is not None:
        from cellnorm.report import check_report

        check_report(page.target, force=force)

    seconds: dict[str, float] = {}
    with stage("read", seconds, progress):
        if len(inputs) == 1:
            adata = io.read(inputs[0])
        else:
            adata, of_file = io.read_many(inputs, layer=layer)
            layer = None  # the joined matrix is the one
    logger.info("read %d cells x %d genes from %s", *adata.shape, ", ".join(map(str, inputs)))
    if not batch_keys and len(inputs) == 1:
        batch_keys = found_batch_key(adata.obs)
    elif not batch_keys:
        logger.info("batches: column %r (one batch per file)", of_file)
        batch_keys = [of_file]
    write_page = page and _page(adata, batch_keys, layer, page, force=force, progress=progress)
    tl.correct(adata, batch_keys, layer=layer, progress=progress, **params)
    if umap:
        with stage("umap", seconds, progress):
            tl.umap(adata, **{name: value for name, value in params.items() if name == "random_state"})
    info = adata.uns[result_keys()[1]]
    info["seconds"] = {"read": seconds.pop("read"), **info["seconds"], **seconds}
    logger.info("seconds: %s", ", ".join(f"{stage} {taken:.1f}" for stage, taken in info["seconds"].items()))
    with stage("write", seconds, progress):
        source = inputs[0] if len(inputs) == 1 else None
        io.write(adata, target, source=source, keys=result_slots(umap=umap), force=force)
    if write_page:  # last: what was computed is safe by now
        with stage("report", seconds, progress):
            write_page(result_keys()[0])
    logger.info("wrote %s after %.1f seconds", target, time.perf_counter() - start)
    return target


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
