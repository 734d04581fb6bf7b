"""Put new cells into the embedding of a trained model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anndata import AnnData

from cellnorm.adata import write_cells, write_result
from cellnorm.estimator import CellNorm
from cellnorm.tl._embed_place import place_cells

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["embed"]


def embed(
    adata: AnnData,
    model: str | os.PathLike[str] | CellNorm,
    batch_key: str | Sequence[str] | None = None,
    *,
    layer: str | None = None,
    use_rep: str | None = None,
    frozen: bool = False,
    as_new: bool = False,
    batch_name: str = "new",
    transfer: str | Sequence[str] | None = None,
    reference: AnnData | None = None,
    save_model: str | os.PathLike[str] | None = None,
    force: bool = False,
    key_added: str | None = None,
    copy: bool = False,
    progress: Progress | None = None,
) -> AnnData | None:
    """Put new cells into the embedding of a trained model, without training.

    A batch that the model knows has its statistics, frozen. A new batch gets statistics of its own from its matches
    with the reference; weights and the embedding of the reference stay as they are. Genes are matched by name. Nothing
    else in `adata` changes, and nothing at all if an error is raised.

    Parameters
    ----------
    adata
        New cells x genes, with counts or log-normalised values in X, layers['counts'] or raw.X.
    model
        A model, or the folder that `cellnorm.tl.correct` or `CellNorm.save` wrote it to.
    batch_key
        Column of obs that tells experiments apart, or several, if the model was made with these: a combination that it
        knows has its statistics, a new one is a new batch. None: as in the model's training if obs has these columns,
        else all cells are one new batch.
    layer
        Use this layer instead of the matrix that would be found.
    use_rep
        For a model of a representation: that of the new cells in obsm. None: of the same name as in training.
    frozen
        Give new batches the statistics shared by all batches, without looking at their cells.
    as_new
        Map batches anew even if the model knows one of their name: names like "1" repeat between labs.
    batch_name
        Name of the batch if all cells are one.
    transfer
        Label the cells by this column of the reference, or by several.
    reference
        The cells of the reference after `cellnorm.tl.correct`, whose labels are taken. None: those kept in the model.
    save_model
        Folder for the model that knows the new batches too.
    force
        Replace a model that is there.
    key_added
        Name to write under in obsm, uns and obs. None: "X_cellnorm" and "cellnorm".
    copy
        Return a changed copy and leave `adata` as it is.
    progress
        Called with (stage, done, total, None); the stages are "prepare", "map", "encode" and "transfer".

    Returns
    -------
    None or AnnData
        Sets obsm['X_cellnorm'] (n_cells, n_latent; float32); obs['cellnorm_match'], 0 to 1: how well the reference
        supports a cell, where cells of a type that the reference lacks are low; and uns['cellnorm']: model (fingerprint
        of the one that knows all batches), reference (of the one given), batches (name, label in obs, n_cells,
        n_matched, treatment: "known", "new" or "frozen"), genes found and missing, parameters, versions, seconds. With
        `transfer`, for a column named "cell_type": obs['cellnorm_cell_type'] (the label or "unknown"),
        obs['cellnorm_cell_type_probability'], and obs['cellnorm_cell_type_radius']: the change of a cell's
        log-expression, relative to its length, within which the label is certain to stay.

    Raises
    ------
    DataError
        If the model cannot be read, or matrix, genes, batches or labels do not fit it.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import anndata as ad, numpy as np, cellnorm as cn
    >>> cells = ad.AnnData(np.random.default_rng(0).poisson(1.0, (90, 40)).astype("float32"))
    >>> cells.obs["batch"] = ["a", "b", "c"] * 30
    >>> atlas, new = cells[cells.obs["batch"] != "c"].copy(), cells[cells.obs["batch"] == "c"].copy()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = pathlib.Path(folder, "atlas.model")
    ...     cn.tl.correct(atlas, "batch", n_latent=5, n_steps=10, save_model=model)
    ...     cn.tl.embed(new, model)
    >>> new.obsm["X_cellnorm"].shape, new.uns["cellnorm"]["batches"]["treatment"].tolist()
    ((30, 5), ['new'])
    """
    found = place_cells(
        adata,
        model,
        batch_key,
        layer=layer,
        use_rep=use_rep,
        frozen=frozen,
        as_new=as_new,
        batch_name=batch_name,
        columns=[transfer] if isinstance(transfer, str) else list(dict.fromkeys(transfer or ())),
        reference=reference,
        save_model=save_model,
        force=force,
        key_added=key_added,
        progress=progress,
    )
    target = adata.copy() if copy else adata
    write_result(target, key_added, found.z, found.info)
    write_cells(target, found.cells)
    return target if copy else None
