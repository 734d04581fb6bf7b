"""Names and embedding alone, without the matrix: for files that are too large to copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from cellnorm import io
from cellnorm.adata import result_keys, result_slots
from cellnorm.errors import DataError
from cellnorm.labels import listed
from cellnorm.output import check_embedding, names_file, reason, replacing, shown

__all__ = ["write_embedding"]

ROWS = 2**17  # of a parquet row group: 25 MB of 50 dimensions


def write_embedding(
    adata: AnnData,
    path: str | os.PathLike[str],
    batch_key: str | Sequence[str],
    *,
    key_added: str | None = None,
    umap: bool = False,
    force: bool = False,
) -> None:
    """Write the names of the cells and their embedding; at every moment the file is complete or not there.

    Parameters
    ----------
    adata
        After `cellnorm.tl.correct`; the embedding may lie in a memory map. Its matrix is not looked at.
    path
        Where to, told by the suffix. .h5ad: an AnnData without X and genes: names, columns of the batches, embedding in
        obsm, what is known of it in uns. .parquet: a table of float32 whose index are the names, columns cellnorm_1 to
        cellnorm_50 (pandas.read_parquet). .npy: an array of float32, shape (n_cells, n_latent); the names go into
        `names_file(path)`, UTF-8, one in a line, in the same order.
    batch_key
        Column of obs, or several, to keep in an .h5ad.
    key_added
        As given to `cellnorm.tl.correct`; the columns of a .parquet are named after it.
    umap
        Keep neighbors and UMAP (see `cellnorm.tl.umap`) in an .h5ad, too.
    force
        Replace an existing file.

    Raises
    ------
    DataError
        As `output.check_embedding`; there is no embedding; a name does not fit in a line (.npy); the disk is full.

    Examples
    --------
    >>> import pathlib, tempfile, anndata as ad, numpy as np, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> cn.tl.correct(adata, "batch", n_latent=5, n_steps=10)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_embedding(adata, file := pathlib.Path(folder, "z.npy"), "batch")
    ...     np.load(file).shape, names_file(file).read_text().split()[:3]
    ((60, 5), ['0', '1', '2'])
    """
    target = Path(path)
    check_embedding(target, force=force)
    key, name = result_keys(key_added)
    if key not in adata.obsm:
        raise DataError(f"obsm[{key!r}] was to be written, but obsm holds: {listed(adata.obsm)}. Correct first.")
    kind = target.suffix.lower()
    if kind == ".h5ad":
        keys = [batch_key] if isinstance(batch_key, str) else list(batch_key)
        io.write(_shell(adata, keys, result_slots(key_added, umap=umap)), target, force=force)
        return
    names, values = adata.obs_names.astype(str), np.asarray(adata.obsm[key])
    try:
        with replacing(target) as temporary:
            if kind == ".parquet":
                _write_parquet(names, values, name, temporary)
            else:
                _write_npy(names, values, temporary, target)
    except OSError as error:
        raise DataError(f"{shown(target)} could not be written: {reason(error)}. Nothing was left there.") from error


def _shell(adata: AnnData, columns: Sequence[str], slots: Sequence[tuple[str, str]]) -> AnnData:
    """The same cells with these columns and elements alone."""
    shell = AnnData(obs=adata.obs[list(columns)])
    for slot, key in slots:
        value = getattr(adata, slot)[key]
        getattr(shell, slot)[key] = np.asarray(value) if isinstance(value, np.memmap) else value
    return shell


def _write_parquet(names: pd.Index, values: Any, name: str, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [f"{name}_{i + 1}" for i in range(values.shape[1])]
    schema = pa.Schema.from_pandas(pd.DataFrame(values[:1], names[:1], columns))
    with pq.ParquetWriter(target, schema) as writer:
        for start in range(0, len(values), ROWS):
            rows = slice(start, start + ROWS)
            table = pd.DataFrame(values[rows], names[rows], columns)
            writer.write_table(pa.Table.from_pandas(table, schema=schema))


def _write_npy(names: pd.Index, values: Any, temporary: Path, target: Path) -> None:
    """Both files: the array takes its name last, so that where it is the names are there and are its own."""
    broken = [name for name in names if len(name.splitlines()) != 1]
    if broken:
        raise DataError(
            f"{len(broken)} cell names do not fit in a line of their own ({listed(broken, 3)}). "
            "Choose a name that ends in .h5ad or .parquet."
        )
    with temporary.open("wb") as file:
        np.save(file, values)
    with replacing(names_file(target)) as of_names:
        of_names.write_text("".join(f"{name}\n" for name in names), encoding="utf-8", newline="\n")
        target.unlink(missing_ok=True)
