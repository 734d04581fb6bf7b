"""The methods that `peers.py` compares: what each is given, with which settings, and how it is run.

A method is given cells without their types: the prepared set (`peers_scores.prepare`) or, like a user of the command
line, a file. Its answer is an embedding, or two graphs of neighbours where it makes no embedding. Nothing heavy is
imported before a method runs: the process that starts the others has to stay small.
"""

import contextlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Embedding = NDArray[np.floating[Any]]
Graphs = dict[str, Any]  # connectivities and distances, sparse, cells x cells
BATCH = "batch"


class UnfitError(ValueError):
    """The set has not what the method needs, or the answer is not one: said in the table, no bug of ours."""


class Method(NamedTuple):
    """One row of the comparison.

    package is what pip calls it; modules are imported before the clock starts; given is "file" or what of the prepared
    set is used ("components", "log", "counts"); a method that is not seeded gives one answer, so that it runs once.
    """

    package: str
    modules: tuple[str, ...]
    given: str
    seeded: bool
    run: Callable[[Any, int], Embedding | Graphs]
    settings: str


def cellnorm(path: Path, seed: int) -> Embedding:
    """The command, as a user gives it; the answer is read from the file it writes."""
    import anndata as ad

    from cellnorm import cli

    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "corrected.h5ad")
        options = ["--batch-key", BATCH, "--seed", str(seed), "--device", "cpu", "--quiet", "--output", str(output)]
        cli.main(["correct", str(path), *options], standalone_mode=False)
        corrected = ad.read_h5ad(output)
    return np.asarray(corrected.obsm["X_cellnorm"])


def unintegrated(adata: Any, seed: int) -> Embedding:
    return np.asarray(adata.obsm["X_pca"])


def harmony(adata: Any, seed: int) -> Embedding:
    import harmonypy

    pcs = np.asarray(adata.obsm["X_pca"])
    found = np.asarray(harmonypy.run_harmony(pcs, adata.obs, BATCH, random_state=seed, verbose=False).Z_corr)
    if pcs.shape[0] == pcs.shape[1]:
        raise UnfitError("as many cells as components: which way round Harmony's answer lies cannot be told")
    return found if found.shape == pcs.shape else found.T  # releases before 2 had cells in columns


def combat(adata: Any, seed: int) -> Embedding:
    import scanpy as sc

    sc.pp.combat(adata, key=BATCH)
    sc.pp.pca(adata, n_comps=adata.obsm["X_pca"].shape[1])
    return np.asarray(adata.obsm["X_pca"])


def scanorama(adata: Any, seed: int) -> Embedding:
    """Batches are taken apart, integrated, and their cells put back where they were."""
    import scanorama as package

    batch = adata.obs[BATCH].to_numpy()
    places = [np.flatnonzero(batch == name) for name in adata.obs[BATCH].unique()]
    parts = [adata[cells].copy() for cells in places]
    package.integrate_scanpy(parts, seed=seed)
    found = np.concatenate([part.obsm["X_scanorama"] for part in parts])
    embedding = np.empty_like(found)
    embedding[np.concatenate(places)] = found
    return embedding


def scvi(adata: Any, seed: int) -> Embedding:
    import scvi as package

    package.settings.seed = seed
    package.model.SCVI.setup_anndata(adata, layer="counts", batch_key=BATCH)
    model = package.model.SCVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    model.train(accelerator="cpu", enable_progress_bar=False)
    return np.asarray(model.get_latent_representation())


def concord(adata: Any, seed: int) -> Embedding:
    import concord as package
    import torch

    names = adata.obs_names.copy()
    model = package.Concord(
        adata, domain_key=BATCH, seed=seed, device=torch.device("cpu"), preload_dense=True, save_dir=None
    )
    model.fit_transform(output_key="Concord", save_model=False)
    if not adata.obs_names.equals(names):
        raise UnfitError("cells changed their order")
    found = np.asarray(adata.obsm["Concord"])
    unit: Embedding = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit


def scalex(adata: Any, seed: int) -> Embedding:
    from scalex import SCALEX

    vars(np)["Inf"] = np.inf  # which it still uses, and NumPy 2 has no more
    names = adata.obs_names.copy()
    with tempfile.TemporaryDirectory() as folder:  # from which it takes its best epoch back
        result = SCALEX(
            adata, batch_name=BATCH, processed=True, seed=seed, outdir=folder, ignore_umap=True, num_workers=0
        )
    if not result.obs_names.equals(names):
        raise UnfitError("cells were dropped or changed their order")
    return np.asarray(result.obsm["latent"])


def bbknn(adata: Any, seed: int) -> Graphs:
    import bbknn as package

    package.bbknn(adata, batch_key=BATCH, n_pcs=adata.obsm["X_pca"].shape[1])
    return {name: adata.obsp[name] for name in ("connectivities", "distances")}


METHODS = {
    "cellnorm": Method(
        "cellnorm", ("cellnorm.cli", "cellnorm.tl"), "file", True, cellnorm,
        "`cellnorm correct --batch-key batch`, defaults; seconds hold reading, genes, PCA, verdict and writing too",
    ),
    "unintegrated": Method("scanpy", ("scanpy",), "components", False, unintegrated, "the 50 components"),
    "Harmony": Method("harmonypy", ("harmonypy",), "components", True, harmony, "run_harmony, defaults"),
    "Scanorama": Method(
        "scanorama", ("scanorama",), "log", True, scanorama, "integrate_scanpy on one AnnData for each batch, defaults",
    ),
    "ComBat": Method("scanpy", ("scanpy",), "log", False, combat, "scanpy.pp.combat, then PCA"),
    "scVI": Method(
        "scvi-tools", ("scvi",), "counts", True, scvi,
        "n_layers=2, n_latent=30, gene_likelihood='nb' (its integration tutorial); epochs by its own rule",
    ),
    "CONCORD": Method(
        "concord-sc", ("concord",), "log", True, concord,
        "domain_key, preload_dense=True, defaults; rows of unit length, since its authors ask for cosine distance",
    ),
    "SCALEX": Method(
        "scalex", ("scalex",), "log", True, scalex,
        "processed=True, which keeps genes and cells (its own preparation drops cells of few genes); defaults",
    ),
    "BBKNN": Method(
        "bbknn", ("bbknn",), "components", False, bbknn,
        "defaults; a graph without an embedding: only Leiden NMI and ARI and graph connectivity can be scored",
    ),
}  # fmt: skip
LEFT_OUT = {"scCRAFT": "in no package registry"}


def version(method: str) -> str:
    """The installed version of a method's package, or "" where it is not installed."""
    package, modules = METHODS[method].package, METHODS[method].modules
    if importlib.util.find_spec(modules[0].partition(".")[0]) is None:
        return ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return "?"


def checked(answer: Embedding | Graphs, n_cells: int) -> Embedding | Graphs:
    """The answer, if it has a row of finite numbers for every cell."""
    parts = answer if isinstance(answer, dict) else {"embedding": answer}
    for name, part in parts.items():
        values = part.data if isinstance(answer, dict) else part
        if part.ndim != 2 or part.shape[0] != n_cells:
            raise UnfitError(f"{name} of shape {part.shape} for {n_cells} cells")
        if not np.isfinite(values).all():
            raise UnfitError(f"values of the {name} that are not finite")
    return answer
