"""Public data sets of several labs or protocols: batches mix, and types stay as pure as they were, within a margin."""

from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from neighborhoods import mixing, purity

import cellnorm as cn

# Least gain in mixing and largest loss of purity against uncorrected components of the same genes. In the first set
# each batch has a type of dendritic cells that the other lacks, and these two are close kin: some purity is lost.
SETS = {
    "dendritic_villani": (0.25, 0.13),
    "pbmc_3tech_small": (0.4, 0.02),
    "mixology_5cl_6batches": (0.25, 0.02),
}


@cache
def corrected(path: Path) -> ad.AnnData:
    """A data set with uncorrected components and the embedding; made once, not to be changed."""
    adata = ad.read_h5ad(path)
    cn.pp.prepare(adata, "batch")
    cn.tl.correct(adata, "batch", device="cpu")
    return adata


@pytest.mark.parametrize("name", SETS)
def test_batches_mix_and_types_stay(name: str, data_dir: Path) -> None:
    adata = corrected(data_dir / f"{name}.h5ad")
    batch, kind = (adata.obs[key].to_numpy().astype(str) for key in ("batch", "cell_type"))
    plain, z = adata.obsm["X_pca"], adata.obsm["X_cellnorm"]
    assert z.shape[0] == adata.n_obs
    assert np.isfinite(z).all()
    assert (adata.uns["cellnorm"]["batches"]["n_matched"] > 0).all()

    gain, margin = SETS[name]
    assert mixing(plain, batch) < 0.6  # before, the batches do lie apart
    assert mixing(z, batch) > mixing(plain, batch) + gain
    assert purity(z, kind) > purity(plain, kind) - margin


def test_types_that_no_batch_shares_are_not_merged_whole(data_dir: Path) -> None:
    """CD141 and CD1C cells are in one batch each. Among themselves, half of the neighbours would be kin by chance."""
    adata = corrected(data_dir / "dendritic_villani.h5ad")
    kind = adata.obs["cell_type"].to_numpy().astype(str)
    alone = np.isin(kind, ["CD141", "CD1C"])
    assert alone.sum() == 192
    assert purity(adata.obsm["X_cellnorm"][alone], kind[alone]) > 0.6
