"""`cellnorm evaluate`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cellnorm.cli._shared import batch_key_option, found_batch_key, typed_command
from cellnorm.console import exit_codes, stage, talk
from cellnorm.errors import DataError

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["evaluate"]

logger = logging.getLogger(__name__)


@click.command(short_help="Score corrected and uncorrected embeddings: are batches mixed, are types kept?")
@click.argument("input_", metavar="INPUT", type=click.Path(path_type=Path))
@batch_key_option(
    "Column of the cell table (obs) that says which experiment a cell is from; give the option again to combine "
    "columns. Left out: it is looked for."
)
@click.option("--label-key", metavar="COLUMN", help="Column with cell types, for the scores that need them.")
@click.option(
    "--use-rep",
    "use_reps",
    multiple=True,
    metavar="NAME",
    help="Embedding in obsm to score; give the option again for more. Left out: all that can be.",
)
@click.option("--before", metavar="NAME", help="The uncorrected embedding in obsm. Left out: the PCA, or a new one.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    help="What to print: a table for people (default), or CSV or JSON for programs.",
)
@click.option("--intervals", is_flag=True, help="Add 95 % bootstrap intervals.")
@click.option("--report", type=click.Path(path_type=Path), metavar="FILE", help="Also write a web page (.html).")
@click.option(
    "--max-cells",
    type=click.IntRange(min=3),
    metavar="N",
    help="Score a random sample of this size if there are more cells (default: 50000).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    metavar="N",
    help="Start of the random numbers (default: 0). The same seed gives the same scores.",
)
@click.option("-f", "--force", is_flag=True, help="Replace the report if it exists.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but the scores, warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more, and as it happens.")
def evaluate(
    input_: Path,
    batch_keys: tuple[str, ...],
    use_reps: tuple[str, ...],
    format_: str,
    seed: int | None,
    quiet: bool,
    verbose: bool,
    **params: Any,
) -> None:
    """Score embeddings of any tool: are batches mixed, and is the biology kept? INPUT is never changed.

    Compares all embeddings in obsm with each other and with the uncorrected data. Scores have the names and definitions
    of scib-metrics. Without --label-key only those are printed that need no cell types.

    \b
    Examples:
        cellnorm evaluate cells.cellnorm.h5ad --label-key cell_type
        cellnorm evaluate cells.h5ad --use-rep X_pca --use-rep X_scVI --format csv
    """  # noqa: D301 - click takes \b as "leave these lines as they are"
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    with exit_codes(), talk(quiet, verbose) as progress:
        chosen = {name: value for name, value in {**params, "random_state": seed}.items() if value is not None}
        scores = _evaluate(input_, list(batch_keys), list(use_reps) or None, chosen, progress)
        from cellnorm.text import score_csv, score_json, score_table

        as_text = {"table": score_table, "csv": score_csv, "json": score_json}[format_]
    click.echo(as_text(scores))


def _evaluate(
    input_: Path, batch_keys: list[str], use_reps: list[str] | None, params: dict[str, Any], progress: "Progress"
) -> Any:
    from cellnorm.output import shown

    report, force, intervals = params.pop("report", None), params.pop("force"), params.pop("intervals")
    if report is not None and report.exists() and not force:  # before the imports, which take seconds
        raise DataError(f"{shown(report)} exists. Choose another name (--report) or replace it (--force).")
    from cellnorm import io, tl

    seconds: dict[str, float] = {}
    with stage("read", seconds, progress):
        adata = io.read(input_)
    logger.info("read %d cells x %d genes from %s", *adata.shape, input_)
    if not batch_keys:
        batch_keys = found_batch_key(adata.obs)
    if "label_key" not in params:
        logger.info("scores that need cell types are left out: --label-key names their column")
    with stage("evaluate", seconds, progress):
        scores = tl.evaluate(adata, batch_keys, use_rep=use_reps, intervals=intervals or report is not None, **params)
    if report is not None:
        from cellnorm.report import write_evaluation

        with stage("report", seconds, progress):
            write_evaluation(
                report,
                adata,
                batch_key=batch_keys,
                label_key=params.get("label_key"),
                command=typed_command(),
                scores=scores,
                name=input_.name,
                force=force,
            )
        logger.info("wrote %s", report)
    logger.info("seconds: %s", ", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items()))
    return scores if intervals or report is None else scores.xs("value", axis=1, level=1)
