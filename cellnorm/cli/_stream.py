"""`cellnorm correct` on files that are too large to be read as a whole."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from cellnorm.cli._shared import found_batch_key
from cellnorm.console import stage
from cellnorm.errors import DataError

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["How", "how_to_read", "is_streamed", "result_of", "stream", "stream_options", "write"]

logger = logging.getLogger(__name__)

SHARE = 0.7  # of the free memory that a correction may be expected to take before it is streamed
EMBEDDING = "embedding.h5ad"


class How(NamedTuple):
    """How the input is read and what is written of the result.

    `stream` is None where it depends on the memory; `whole` names an option that needs the whole file, or is "".
    """

    stream: bool | None
    work_dir: Path | None
    embedding_only: Path | None
    scheduler: str | None
    whole: str


def stream_options(command: Any) -> Any:
    """The options --stream, --work-dir, --embedding-only and --scheduler."""
    streamed = click.option(
        "--stream/--no-stream",
        "stream",
        default=None,
        help="Read the file part by part, in bounded memory, or as a whole. Left out: by its size and the free memory.",
    )
    work = click.option(
        "--work-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Stream, and keep what is done in this folder: an interrupted run goes on from there when started again.",
    )
    only = click.option(
        "--embedding-only",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write names and embedding alone, without the matrix: .h5ad, .parquet, or .npy with the names "
        "beside it (z.npy: z.names.txt).",
    )
    scheduler = click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Stream, and have the parts of the file done by the workers of a dask cluster: tcp://host:8786. INPUT and "
        "the work folder (beside the output, or --work-dir) must lie on storage that they share.",
    )
    return streamed(work(only(scheduler(command))))


def how_to_read(
    inputs: tuple[Path, ...], output: Path | None, umap: bool, whole: dict[str, Any], params: dict[str, Any]
) -> How:
    """Take what `stream_options` asked for out of `params`, and refuse what excludes each other.

    `whole` holds the options that need the whole file, by name.
    """
    taken = {name: params.pop(name) for name in ("stream", "work_dir", "embedding_only", "scheduler")}
    how = How(**taken, whole=next((name for name, value in whole.items() if value), ""))
    if how.work_dir is not None or how.scheduler is not None:
        if how.stream is False:
            name = "--work-dir" if how.scheduler is None else "--scheduler"
            raise click.UsageError(f"{name} is for streaming: leave --no-stream out.")
        how = how._replace(stream=True)
    if how.embedding_only is not None:
        if output is not None:
            raise click.UsageError("--embedding-only FILE is the result: leave --output out.")
        if how.whole.startswith("--expression"):
            raise click.UsageError("--expression is written beside the matrix: leave --embedding-only out.")
        if umap and how.embedding_only.suffix.lower() != ".h5ad":
            raise click.UsageError("--umap has no place in such a file: let --embedding-only end in .h5ad.")
    if how.stream and len(inputs) > 1:
        raise click.UsageError("Several INPUTs are joined in memory. Join them once, or stream one INPUT.")
    if how.stream and how.whole:
        raise click.UsageError(f"{how.whole} needs the whole file in memory. {_remedy(how)}")
    return how


def _remedy(how: How) -> str:
    if how.whole.startswith("--expression"):
        return "Save the model and correct the expression of a part of the cells with cellnorm embed --expression."
    return "Leave it out, and call cellnorm evaluate on a part of the cells of the result."


def result_of(inputs: tuple[Path, ...], output: Path | None, how: How, *, force: bool) -> Path:
    """Where the result goes, checked before any long work."""
    if how.embedding_only is not None:
        from cellnorm.output import check_embedding

        check_embedding(how.embedding_only, inputs, force=force)
        return how.embedding_only
    from cellnorm.output import check_target, default_output

    target = default_output(inputs[0]) if output is None else output
    check_target(target, inputs, force=force)
    return target


def is_streamed(inputs: tuple[Path, ...], batch_keys: list[str], n_top_genes: int | None, how: How) -> bool:
    """Whether to stream: as asked, or if reading the file as a whole would take too much of the free memory."""
    from cellnorm.contents import file_contents
    from cellnorm.hvg import N_TOP_GENES
    from cellnorm.memory import free_memory, in_memory_peak, streamed_peak
    from cellnorm.output import shown

    contents = file_contents(inputs[0], batch_keys) if len(inputs) == 1 else None
    if contents is None:
        if how.stream:
            raise DataError(f"{shown(inputs[0])} is of a format that is read as a whole: leave --stream out.")
        return False
    n_top = N_TOP_GENES if n_top_genes is None else n_top_genes
    whole, streamed, free = in_memory_peak(contents, n_top), streamed_peak(contents, n_top), free_memory()
    expected = f"{_size(whole)} expected in memory, {_size(free)} free"
    if how.stream:
        logger.info("streaming: about %s expected", _size(streamed))
        return True
    if whole <= SHARE * free:
        return False
    if how.stream is False:
        logger.warning("%s: --no-stream was asked for.", expected)
        return False
    if how.whole:
        raise DataError(
            f"{expected}: the file would be streamed, but {how.whole} needs all of it. {_remedy(how)} "
            "Or take the risk with --no-stream."
        )
    logger.info("streaming: %s; streamed about %s", expected, _size(streamed))
    return True


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes < 10e9 else f"{n_bytes / 1e9:.0f} GB"


def stream(
    source: Path,
    target: Path,
    batch_keys: list[str],
    params: dict[str, Any],
    how: How,
    *,
    umap: bool,
    force: bool,
    progress: "Progress",
) -> None:
    """Correct a file part by part and write the result; `params` are those of `cellnorm.tl.correct_file`."""
    from cellnorm import io, tl
    from cellnorm.adata import read_shell, result_slots
    from cellnorm.tl._correct_file import check_copy
    from cellnorm.work import temporary_folder

    keys = batch_keys or found_batch_key(read_shell(source).obs)
    params = {**params, "work_dir": how.work_dir, "client": how.scheduler}
    params |= {"force": force, "progress": progress}
    if not umap:
        place: dict[str, Any] = {"output": target} if how.embedding_only is None else {"embedding_only": target}
        tl.correct_file(source, keys, **place, **params)
        return
    if how.embedding_only is None:
        check_copy(source, target, result_slots(umap=True))
    with temporary_folder(target) as folder:  # what the UMAP needs; the file itself is copied once
        tl.correct_file(source, keys, embedding_only=folder / EMBEDDING, **params)
        cells = io.read(folder / EMBEDDING)
        with stage("umap", {}, progress):
            tl.umap(cells, **{name: value for name, value in params.items() if name == "random_state"})
        with stage("write", {}, progress):
            write(cells, target, keys, how, source=source, umap=umap, force=force)


def write(adata: Any, target: Path, batch_keys: list[str], how: How, *, umap: bool, **options: Any) -> None:
    """Write a result: a copy of the source with it, or the embedding alone."""
    from cellnorm import io
    from cellnorm.adata import result_slots
    from cellnorm.embedding_file import write_embedding

    if how.embedding_only is not None:
        write_embedding(adata, target, batch_keys, umap=umap, force=options["force"])
    else:
        io.write(adata, target, keys=result_slots(umap=umap), **options)
