"""Small fitted models, and saved ones with something in them changed as if the change had been there from the start."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load, save

from cellnorm import CellNorm
from cellnorm.checkpoint import save as save_model
from cellnorm.checkpoint._file import CONFIG, WEIGHTS, _checksum, _rendered, _sha256


@cache
def cells(n_genes: int = 12) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
    """60 cells of two labs."""
    batch = np.array(["lab1", "laboratoire é"], object)[np.arange(60) % 2]
    x = np.random.default_rng(0).normal(size=(60, n_genes)) + (batch == "lab1")[:, None]
    return x.astype(np.float32), batch


@cache
def fitted(n_comps: int | None = 5) -> CellNorm:
    """A model of `cells()`, with names of genes, what they were made from, and a label; not to be changed."""
    x, batch = cells()
    model = CellNorm(n_latent=3, n_comps=n_comps, n_hidden=4, n_steps=4, n_pairs=16, device="cpu").fit(x, batch)
    model.feature_names_in_ = np.array([f"GENE-{i}" for i in range(x.shape[1])], object)
    model.input_ = {"kind": "log", "batch_key": ["lab"]}
    model.labels_ = {"cell type / α": np.array(["T", "B", ""], object)[np.arange(60) % 3]}
    return model


@pytest.fixture(scope="module", name="original")
def make_original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `fitted()`, not to be changed."""
    path = tmp_path_factory.mktemp("models") / "model"
    save_model(fitted(), path)
    return path


@pytest.fixture(name="folder")
def make_folder(original: Path, tmp_path: Path) -> Path:
    """A saved model, yours to break."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def reseal(
    folder: Path,
    config: Callable[[dict[str, Any]], Any] | None = None,
    arrays: Callable[[dict[str, NDArray[Any]]], Any] | None = None,
    content: bytes | None = None,
) -> None:
    """Change the config, the arrays or the bytes of the weights of a saved model, and make all checksums fit."""
    found = json.loads((folder / CONFIG).read_bytes())
    weights = (folder / WEIGHTS).read_bytes() if content is None else content
    if arrays is not None:
        held = load(weights)
        arrays(held)
        weights = save(held)
    found["weights"] = {"bytes": len(weights), "sha256": _sha256(weights)}
    if config is not None:
        config(found)
    if "checksum" in found:
        found["checksum"] = _checksum(found)
    (folder / CONFIG).write_bytes(_rendered(found))
    (folder / WEIGHTS).write_bytes(weights)
