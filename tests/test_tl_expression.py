"""Corrected expression of an AnnData: the layer, what is said of it, new batches; and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
import scipy.sparse as sp
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.errors import DataError
from cellnorm.expression import _effect as numerics
from cellnorm.tl._expression import expression_layer

QUICK: dict[str, Any] = {"n_steps": 80, "n_latent": 12, "device": "cpu"}


@pytest.fixture(scope="module")
def reference(simulated_once: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[ad.AnnData, Path]:
    """Corrected cells of two batches with 120 of 200 genes chosen, and their model."""
    folder = tmp_path_factory.mktemp("reference") / "model"
    adata = simulated_once[simulated_once.obs["batch"] != "lab2"].copy()
    cn.tl.correct(adata, "batch", n_top_genes=120, save_model=folder, **QUICK)
    return adata, folder


@pytest.fixture
def cells(reference: tuple[ad.AnnData, Path]) -> ad.AnnData:
    return reference[0].copy()


@pytest.fixture
def model(reference: tuple[ad.AnnData, Path]) -> Path:
    return reference[1]


def dense(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.toarray() if sp.issparse(matrix) else matrix)


def log(adata: ad.AnnData) -> np.ndarray:
    """Log-normalised expression, by scanpy."""
    other = ad.AnnData(adata.X.copy())
    sc.pp.normalize_total(other, target_sum=1e4)
    sc.pp.log1p(other)
    return dense(other.X)


def between(x: np.ndarray, adata: ad.AnnData) -> float:
    """Variance between batches within types, over all genes."""
    batch, kind = adata.obs["batch"].astype(str), adata.obs["cell_type"].astype(str)
    means = [[x[(batch == b) & (kind == k)].mean(0) for b in np.unique(batch)] for k in np.unique(kind)]
    return float(np.var(means, axis=1).mean())


def test_the_layer_is_there_and_says_what_it_is(cells: ad.AnnData, model: Path) -> None:
    before = snapshot(cells)
    assert cn.tl.expression(cells, model) is None
    added = changes(before, snapshot(cells))
    assert {name for name in added if not name.startswith("/uns/cellnorm/expression")} == {"/layers/cellnorm"}
    layer, info = cells.layers["cellnorm"], cells.uns["cellnorm"]["expression"]
    assert layer.shape == cells.shape
    assert layer.dtype == np.float32
    assert info["kind"] == "corrected"
    assert info["scale"] == "log(1 + counts per 10,000)"
    assert (info["sparse"], info["matrix"]) == (False, "X")
    assert "Not for differential expression tests with batch ignored" in info["purpose"]
    assert "verdict" in cells.uns["cellnorm"]["alarm"]  # what was known of the correction is still there
    assert between(layer, cells) < 0.35 * between(log(cells), cells)
    own = log(cells)
    kept = np.corrcoef(layer.ravel(), own.ravel())[0, 1]
    assert kept > 0.9


def test_all_genes_are_corrected_not_only_those_chosen(cells: ad.AnnData, model: Path) -> None:
    others = ~np.isin(cells.var_names, cells.uns["cellnorm"]["genes"])
    assert others.sum() == 80
    cn.tl.expression(cells, model)
    assert between(cells.layers["cellnorm"][:, others], cells) < 0.4 * between(log(cells)[:, others], cells)


def test_what_is_written_can_be_stored_and_read(cells: ad.AnnData, model: Path, tmp_path: Path) -> None:
    cn.tl.expression(cells, model, sparse=True)
    cells.write_h5ad(tmp_path / "out.h5ad")
    again = ad.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(dense(again.layers["cellnorm"]), dense(cells.layers["cellnorm"]))
    assert again.uns["cellnorm"]["expression"]["purpose"] == cells.uns["cellnorm"]["expression"]["purpose"]
    assert "zeros" in again.uns["cellnorm"]["expression"]["cost"].lower()


@pytest.mark.parametrize("kind", ["corrected", "denoised"])
def test_a_sparse_layer_has_the_zeros_of_the_input(cells: ad.AnnData, model: Path, kind: str) -> None:
    cn.tl.expression(cells, model, kind=kind, sparse=True)
    layer = cells.layers["cellnorm"]
    assert isinstance(layer, sp.csr_matrix)
    assert not dense(layer)[dense(cells.X) == 0].any()
    assert (layer.data > 0).all()
    assert between(dense(layer), cells) < between(log(cells), cells)


@pytest.mark.parametrize("sparse", [False, True])
def test_counts_keep_the_library_of_each_cell(cells: ad.AnnData, model: Path, sparse: bool) -> None:
    cn.tl.expression(cells, model, counts=True, sparse=sparse)
    layer = dense(cells.layers["cellnorm"])
    assert (layer >= 0).all()
    np.testing.assert_allclose(layer.sum(1), dense(cells.X).sum(1), rtol=1e-4)
    assert "counts" in cells.uns["cellnorm"]["expression"]["scale"]


def test_denoised_is_smoother_than_corrected(cells: ad.AnnData, model: Path) -> None:
    cn.tl.expression(cells, model, kind="denoised")
    smooth = cells.layers["cellnorm"]
    within = [np.var(x[cells.obs["cell_type"] == "type0"], axis=0).mean() for x in (smooth, log(cells))]
    assert within[0] < 0.3 * within[1]
    assert "Not for any test" in cells.uns["cellnorm"]["expression"]["purpose"]


def test_how_the_matrix_is_stored_has_no_say(cells: ad.AnnData, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(change: Callable[[ad.AnnData], None]) -> np.ndarray:
        adata = cells.copy()
        change(adata)
        return dense(cn.tl.expression(adata, model, copy=True).layers["cellnorm"])  # type: ignore[union-attr]

    def set_x(adata: ad.AnnData, x: Any) -> None:
        adata.X = x

    def to_raw(adata: ad.AnnData) -> None:
        """Counts in raw, with further genes and in another order; X is scaled."""
        more = ad.AnnData(sp.hstack([adata.X[:, ::-1], sp.csr_matrix((adata.n_obs, 3), dtype=np.float32)], "csr"))
        more.var_names = [*adata.var_names[::-1], "x1", "x2", "x3"]
        more.obs_names = adata.obs_names
        adata.raw = more
        adata.X = dense(adata.X) - 1.5

    def to_layer(adata: ad.AnnData) -> None:
        adata.layers["counts"] = adata.X.copy()
        adata.X = sp.csr_matrix(log(adata))

    expected = layer(lambda adata: None)
    for change in (
        lambda adata: set_x(adata, adata.X.tocsc()),
        lambda adata: set_x(adata, dense(adata.X)),
        lambda adata: set_x(adata, sp.csr_matrix(log(adata))),
        to_raw,
        to_layer,
    ):
        np.testing.assert_allclose(layer(change), expected, atol=2e-4)
    monkeypatch.setattr(numerics, "CHUNK_VALUES", 17 * cells.n_vars)
    np.testing.assert_allclose(layer(lambda adata: None), expected, atol=2e-4)


def test_no_more_than_a_chunk_is_dense(cells: ad.AnnData, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "CHUNK_VALUES", 20 * cells.n_vars)
    rows = []
    removed = numerics.BatchEffect.removed
    monkeypatch.setattr(
        numerics.BatchEffect, "removed", lambda self, z, batch: (rows.append(len(z)), removed(self, z, batch))[1]
    )
    made, _ = expression_layer(cells, model)
    assert rows == []  # nothing is made before it is written
    blocks = [len(block) for block in made.make()]
    assert blocks == rows == [20] * 10
    assert made.shape == cells.shape


def test_progress_comes_to_its_end(cells: ad.AnnData, model: Path) -> None:
    seen: list[tuple[str, int, int, float | None]] = []
    cn.tl.expression(cells, model, progress=lambda *args: seen.append(args))
    assert seen[-1] == ("expression", 200, 200, None)


def test_a_copy_leaves_the_cells_alone_and_a_key_names_all(cells: ad.AnnData, model: Path) -> None:
    cells.obsm["mine"], cells.uns["mine"] = cells.obsm.pop("X_cellnorm"), cells.uns.pop("cellnorm")
    before = snapshot(cells)
    result = cn.tl.expression(cells, model, key_added="mine", copy=True)
    assert changes(before, snapshot(cells)) == set()
    assert result is not None
    assert "mine" in result.layers
    assert result.uns["mine"]["expression"]["kind"] == "corrected"


# -- new batches ------------------------------------------------------------------------------------------------------


@pytest.fixture
def new(simulated_once: ad.AnnData, model: Path, tmp_path: Path) -> tuple[ad.AnnData, Path]:
    """Cells of a third batch in the embedding, and the model that knows them."""
    adata = simulated_once[simulated_once.obs["batch"] == "lab2"].copy()
    cn.tl.embed(adata, model, "batch", save_model=tmp_path / "grown")
    return adata, tmp_path / "grown"


def apart(x: np.ndarray, adata: ad.AnnData, level: np.ndarray, reference: ad.AnnData) -> float:
    """Mean squared difference of the types' means to those of the corrected reference."""
    kinds = [f"type{k}" for k in range(4)]
    differences = [
        x[adata.obs["cell_type"] == k].mean(0) - level[reference.obs["cell_type"] == k].mean(0) for k in kinds
    ]
    return float(np.square(differences).mean())


def test_a_new_batch_comes_to_the_level_of_the_reference(
    new: tuple[ad.AnnData, Path], cells: ad.AnnData, model: Path
) -> None:
    adata, grown = new
    level = cn.tl.expression(cells, model, copy=True).layers["cellnorm"]  # type: ignore[union-attr]
    alone, beside = (
        cn.tl.expression(adata, grown, reference=reference, copy=True).layers["cellnorm"]  # type: ignore[union-attr]
        for reference in (None, cells)
    )
    before = apart(log(adata), adata, level, cells)
    assert apart(beside, adata, level, cells) < 0.5 * before
    seen = np.isin(adata.var_names, cells.uns["cellnorm"]["genes"])
    assert apart(alone[:, seen], adata, level[:, seen], cells) < 0.7 * apart(
        log(adata)[:, seen], adata, level[:, seen], cells
    )
    assert apart(beside, adata, level, cells) < apart(alone, adata, level, cells)


def test_genes_that_the_reference_lacks_stay_as_they_are(new: tuple[ad.AnnData, Path], cells: ad.AnnData) -> None:
    adata, grown = new
    lacking = [name for name in cells.var_names if name not in set(cells.uns["cellnorm"]["genes"])][:10]
    less = cells[:, ~cells.var_names.isin(lacking)].copy()
    cn.tl.expression(adata, grown, reference=less)
    own = adata.var_names.isin(lacking)
    np.testing.assert_allclose(adata.layers["cellnorm"][:, own], log(adata)[:, own], atol=1e-4)
    assert np.abs(adata.layers["cellnorm"][:, ~own] - log(adata)[:, ~own]).mean() > 0.01


def test_a_model_that_does_not_know_the_batch_is_refused(new: tuple[ad.AnnData, Path], model: Path) -> None:
    with pytest.raises(DataError, match="for new batches, give the model that knows them"):
        cn.tl.expression(new[0], model)


# -- what is refused ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_and_nothing_changes(cells: ad.AnnData, model: Path, tmp_path: Path) -> None:
    plain = cells.copy()
    del plain.obsm["X_cellnorm"]
    with pytest.raises(DataError, match=r"12 columns in obsm\['X_cellnorm'\], but obsm holds: none\. Run cellnorm\.tl"):
        cn.tl.expression(plain, model)
    before = snapshot(cells)
    with pytest.raises(DataError, match="'corrected' or 'denoised', found 'smooth'"):
        cn.tl.expression(cells, model, kind="smooth")
    with pytest.raises(DataError, match="layer 'no' was asked for"):
        cn.tl.expression(cells, model, layer="no")
    with pytest.raises(DataError, match="'nothing' was asked for"):
        cn.tl.expression(cells, model, "nothing")
    with pytest.raises(DataError):
        cn.tl.expression(cells, tmp_path / "no model")
    assert changes(before, snapshot(cells)) == set()
    other = cells.copy()
    cn.tl.correct(other, "batch", random_state=3, **QUICK)
    with pytest.raises(DataError, match="there is another model's"):
        cn.tl.expression(other, model)


def test_a_large_layer_is_said(
    cells: ad.AnnData, model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cellnorm.tl._expression.LARGE", 1000)
    expression_layer(cells, model)
    assert "a sparse layer, in which zeros stay zeros, takes less" in caplog.text


# -- real data --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pbmc_3tech_small", "dendritic_villani"])
def test_on_real_data_batches_lose_most_of_their_variance_and_types_keep_their_markers(
    data_dir: Path, tmp_path: Path, name: str
) -> None:
    adata = ad.read_h5ad(data_dir / f"{name}.h5ad")
    cn.tl.correct(adata, "batch", n_steps=200, device="cpu", save_model=tmp_path / "model")
    before = log(adata) if name == "pbmc_3tech_small" else dense(adata.X)
    cn.tl.expression(adata, tmp_path / "model")
    after = adata.layers["cellnorm"]
    batch, kind = adata.obs["batch"].astype(str).to_numpy(), adata.obs["cell_type"].astype(str).to_numpy()
    sizes = {(b, k): int(((batch == b) & (kind == k)).sum()) for b in set(batch) for k in set(kind)}
    shared = [k for k in sorted(set(kind)) if sum(n >= 20 for (_, x), n in sizes.items() if x == k) > 1]
    of = {
        key: [x[(batch == key[0]) & (kind == key[1])].mean(0) for x in (before, after)]
        for key, n in sizes.items()
        if n >= 20
    }
    spread = [sum(np.var([m[i] for (_, x), m in of.items() if x == k], axis=0).sum() for k in shared) for i in (0, 1)]
    assert spread[1] < 0.6 * spread[0]  # of which sampling is a part
    changed = [
        np.corrcoef(of[b, k][0] - of[b, j][0], of[b, k][1] - of[b, j][1])[0, 1] for b, k in of for j in shared
        if (b, j) in of and j != k
    ]  # fmt: skip
    assert np.mean(changed) > 0.98
    assert min(changed) > 0.95
