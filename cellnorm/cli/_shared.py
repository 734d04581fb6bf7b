"""What several commands have in common."""

import logging
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = [
    "batch_key_option",
    "device_option",
    "expression_layers",
    "expression_options",
    "expression_wanted",
    "found_batch_key",
    "output_option",
    "strength_option",
    "talk_options",
    "typed_command",
]

logger = logging.getLogger(__name__)


def batch_key_option(text: str) -> Callable[[Any], Any]:
    """The option -b, which may be given again; `text` is its help."""
    return click.option("-b", "--batch-key", "batch_keys", multiple=True, metavar="COLUMN", help=text)


def output_option(text: str) -> Callable[[Any], Any]:
    """The option -o; `text` says what holds without it."""
    path = click.Path(path_type=Path)
    text = f"Where the result goes: a name that ends in .h5ad or .zarr. Left out: {text}."
    return click.option("-o", "--output", type=path, metavar="FILE", help=text)


def device_option() -> Callable[[Any], Any]:
    """The option --device."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        help="Where to compute (default: auto, which takes a graphics card if there is one).",
    )


def strength_option() -> Callable[[Any], Any]:
    """The option --strength, a number or "auto", which is None."""
    return click.option(
        "--strength",
        metavar="FLOAT|auto",
        callback=_number_or_auto,
        help="How strongly to correct: from 0, the principal components as they are, to 1. Left out, or auto: as the "
        "data ask for, 0 if batches explain no more than chance.",
    )


def _number_or_auto(context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    if value in (None, "auto"):
        return None
    try:
        return float(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a number from 0 to 1 nor 'auto'.") from None


def expression_options(command: Any) -> Any:
    """The options --expression, whose value may be left out, --expression-counts and --expression-sparse."""
    sparse = click.option(
        "--expression-sparse",
        is_flag=True,
        help="Zeros stay zeros: a file as small as the input's, which keeps a little more of the batch effect.",
    )
    counts = click.option(
        "--expression-counts", is_flag=True, help="Corrected expression on the scale of counts: not below zero."
    )
    which = click.option(
        "--expression",
        is_flag=False,
        flag_value="corrected",
        metavar="[corrected|denoised]",
        callback=_known_kind,
        help="Also write corrected expression of all genes, as a layer: the input less what its batch adds (corrected: "
        "taken if nothing is said), or what the network expects of each cell (denoised).",
    )
    return which(counts(sparse(command)))


def _known_kind(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value not in (None, "corrected", "denoised"):
        raise click.BadParameter(
            f"{value!r} is neither 'corrected' nor 'denoised'. Write INPUT before --expression, "
            "or --expression=corrected."
        )
    return value


def expression_wanted(kind: str | None, counts: bool, sparse: bool) -> dict[str, Any]:
    """What the options of `expression_options` ask for; nothing if no expression is wanted."""
    if kind is None and (counts or sparse):
        name = "--expression-counts" if counts else "--expression-sparse"
        raise click.UsageError(f"{name} says how to write corrected expression: add --expression.")
    return {} if kind is None else {"kind": kind, "counts": counts, "sparse": sparse}


def expression_layers(adata: Any, model: Any, wanted: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Layers for `io.write` that are made while they are written; what they are is noted in uns."""
    from cellnorm.adata import layer_key, result_keys
    from cellnorm.tl._expression import expression_layer

    blocks, info = expression_layer(adata, model, **wanted, **options)
    adata.uns[result_keys()[1]]["expression"] = info
    return {layer_key(): blocks}


def talk_options(command: Any) -> Any:
    """The options -q and -v."""
    verbose = click.option("-v", "--verbose", is_flag=True, help="Say more, and as it happens.")
    quiet = click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors; no progress bars.")
    return quiet(verbose(command))


def found_batch_key(obs: Any) -> list[str]:
    """The column that looks like the batch, which is said."""
    from cellnorm.labels import guess_batch_key

    key, why = guess_batch_key(obs)
    logger.info("batches: column %r (%s)", key, why)
    return [key]


def typed_command() -> str:
    """What was typed, for a report."""
    return shlex.join(["cellnorm", *sys.argv[1:]])
