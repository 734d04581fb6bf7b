"""A small atlas, the model that was made with it, and the cells of a lab that came later."""

from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pytest

import cellnorm as cn
from cellnorm.estimator import CellNorm

QUICK: dict[str, Any] = {"n_steps": 60, "n_latent": 8, "device": "cpu"}


class Atlas(NamedTuple):
    """The reference after its correction (labs 0 and 1), the folder of its model, the model, and the later lab."""

    reference: ad.AnnData
    folder: Path
    model: CellNorm
    new: ad.AnnData

    def query(self) -> ad.AnnData:
        """The cells of the later lab, yours to change."""
        return self.new.copy()


@pytest.fixture(scope="session", name="atlas")
def make_atlas(simulated_once: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Labs 0 and 1 corrected, with a model that keeps the cell types; lab 2 is new."""
    late = (simulated_once.obs["batch"] == "lab2").to_numpy()
    reference, folder = simulated_once[~late].copy(), tmp_path_factory.mktemp("atlas") / "atlas.model"
    cn.tl.correct(reference, "batch", save_model=folder, label_key="cell_type", **QUICK)
    return Atlas(reference, folder, CellNorm.load(folder, device="cpu"), simulated_once[late].copy())


def without(adata: ad.AnnData, share: float, seed: int = 0) -> ad.AnnData:
    """The cells with a share of the genes left out."""
    keep = np.flatnonzero(np.random.default_rng(seed).random(adata.n_vars) >= share)
    return adata[:, keep].copy()
