"""The command line: parse, call, write, exit code. What is talked about goes to stderr, results go to stdout."""

import click

from cellnorm import __version__
from cellnorm.cli._correct import correct
from cellnorm.cli._diagnose import diagnose
from cellnorm.cli._embed import embed
from cellnorm.cli._evaluate import evaluate

__all__ = ["main"]

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="cellnorm")
def main() -> None:
    """Remove batch effects from single-cell data.

    `cellnorm correct cells.h5ad` writes cells.cellnorm.h5ad: your file and a corrected embedding of every cell.
    """


for command in (diagnose, correct, embed, evaluate):  # in the order of use
    main.add_command(command)
