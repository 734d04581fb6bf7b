"""Lay a corrected embedding out for a look."""

from __future__ import annotations

from anndata import AnnData

from cellnorm.adata import result_keys, umap_keys
from cellnorm.errors import DataError
from cellnorm.labels import listed

__all__ = ["umap"]


def umap(adata: AnnData, *, key_added: str | None = None, random_state: int = 0) -> None:
    """Lay a corrected embedding out in two dimensions (scanpy's neighbors and UMAP).

    Nothing that is there already is overwritten: neighbors and UMAP get names of their own.

    Parameters
    ----------
    adata
        After `cellnorm.tl.correct`.
    key_added
        As given to `cellnorm.tl.correct`.
    random_state
        Seed of the layout.

    Returns
    -------
    None
        Sets obsm['X_umap_cellnorm'] (n_cells, 2) and its parameters in uns, uns['cellnorm_neighbors'],
        obsp['cellnorm_neighbors_distances'] and obsp['cellnorm_neighbors_connectivities'].

    Raises
    ------
    DataError
        If there is no corrected embedding.

    Examples
    --------
    >>> import anndata as ad, numpy as np, scanpy as sc, cellnorm as cn
    >>> adata = ad.AnnData(np.random.default_rng(0).poisson(1.0, (60, 40)).astype("float32"))
    >>> adata.obs["batch"] = ["a", "b"] * 30
    >>> cn.tl.correct(adata, "batch", n_latent=5, n_steps=10)
    >>> cn.tl.umap(adata)
    >>> axes = sc.pl.embedding(adata, "X_umap_cellnorm", color="batch", show=False)
    """
    import scanpy as sc

    embedding, _ = result_keys(key_added)
    if embedding not in adata.obsm:
        raise DataError(
            f"The UMAP needs obsm[{embedding!r}], but obsm holds: {listed(adata.obsm)}. "
            "Run cellnorm.tl.correct first, with the same key_added."
        )
    picture, neighbors = umap_keys(key_added)
    # exact, and free of the approximate search, whose releases do not all work with scanpy's
    sc.pp.neighbors(adata, use_rep=embedding, key_added=neighbors, random_state=random_state, transformer="sklearn")
    sc.tl.umap(adata, neighbors_key=neighbors, key_added=picture, random_state=random_state)
