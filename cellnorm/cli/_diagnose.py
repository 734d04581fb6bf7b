"""`cellnorm diagnose`."""

import json
import logging
from pathlib import Path

import click

from cellnorm.cli._shared import batch_key_option
from cellnorm.console import exit_codes, stage, talk

__all__ = ["diagnose"]

logger = logging.getLogger(__name__)


@click.command(short_help="Say whether there is a batch effect, what causes it, and what to do.")
@click.argument("input_", metavar="INPUT", type=click.Path(path_type=Path))
@batch_key_option(
    "Judge this column of the cell table (obs) as the batch; give the option again to combine columns. "
    "Left out: every column of labels is looked at."
)
@click.option("--layer", metavar="NAME", help="Layer that holds the counts. Left out: they are looked for.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "json"]),
    default="text",
    help="What to print: text for people (default) or JSON for programs.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but the result, warnings and errors.")
@click.option("-v", "--verbose", is_flag=True, help="Say more, and as it happens.")
def diagnose(
    input_: Path, batch_keys: tuple[str, ...], layer: str | None, format_: str, quiet: bool, verbose: bool
) -> None:
    """Look at the data before correcting. INPUT is never changed, and nothing is written.

    Says whether there is a batch effect, which column of the cell table causes it, how strong it is, whether it can be
    told from what the study compares, and which command to type next. Exit code 0 whatever the verdict.

    \b
    Examples:
        cellnorm diagnose cells.h5ad
        cellnorm diagnose cells.h5ad --batch-key donor
        cellnorm diagnose cells.h5ad --format json | jq .verdict
    """  # noqa: D301 - click takes \b as "leave these lines as they are"
    if quiet and verbose:
        raise click.UsageError("-q and -v exclude each other.")
    with exit_codes(), talk(quiet, verbose) as progress:
        from cellnorm import io, tl
        from cellnorm.tl._diagnose_text import format_diagnosis

        seconds: dict[str, float] = {}
        with stage("read", seconds, progress):
            adata = io.read(input_)
        with stage("diagnose", seconds, progress):
            found = tl.diagnose(adata, batch_keys or None, layer=layer, source=str(input_))
        logger.info("seconds: %s", ", ".join(f"{name} {taken:.1f}" for name, taken in seconds.items()))
    click.echo(json.dumps(found, indent=2) if format_ == "json" else format_diagnosis(found))
