"""A file of names and embedding holds what the AnnData holds, in its order, and is whole or not there."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import embedding_file
from cellnorm.adata import write_result
from cellnorm.embedding_file import write_embedding
from cellnorm.errors import DataError
from cellnorm.output import check_embedding, names_file

ALL = ["z.h5ad", "z.parquet", "z.npy"]


@pytest.fixture
def corrected() -> ad.AnnData:
    """Seven cells of two batches as `tl.correct` leaves them."""
    obs = pd.DataFrame(
        {"batch": pd.Categorical(list("abababa")), "day": np.arange(7), "kind": ["T", None] * 3 + ["T"]},
        index=[f"cell {i}é" for i in range(7)],
    )
    adata = ad.AnnData(np.ones((7, 3), np.float32), obs=obs)
    values = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    write_result(adata, None, values, {"genes": np.array(["g1", "g2"], object), "seconds": {"train": 1.0}})
    return adata


def needs_pyarrow(name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")


def content(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and embedding, read as a user would."""
    if path.suffix == ".h5ad":
        adata = ad.read_h5ad(path)
        return adata.obs_names.tolist(), adata.obsm["X_cellnorm"]
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return table.index.tolist(), table.to_numpy()
    return names_file(path).read_text(encoding="utf-8").split("\n")[:-1], np.load(path)


@pytest.mark.parametrize("name", ALL)
def test_it_holds_names_and_embedding_in_their_order(corrected: ad.AnnData, tmp_path: Path, name: str) -> None:
    needs_pyarrow(name)
    write_embedding(corrected, tmp_path / name, "batch")
    names, values = content(tmp_path / name)
    assert names == corrected.obs_names.tolist()
    assert values.dtype == np.float32
    assert np.array_equal(values, corrected.obsm["X_cellnorm"])
    beside = {"z.names.txt"} if name == "z.npy" else set()
    assert {p.name for p in tmp_path.iterdir()} == {name} | beside  # nothing temporary is left


@pytest.mark.parametrize("name", ALL)
def test_an_embedding_in_a_memory_map_is_written_alike(corrected: ad.AnnData, tmp_path: Path, name: str) -> None:
    needs_pyarrow(name)
    values = corrected.obsm["X_cellnorm"]
    mapped = np.lib.format.open_memmap(tmp_path / "map.npy", "w+", np.float32, values.shape)
    mapped[:] = values
    corrected.obsm["X_cellnorm"] = mapped
    write_embedding(corrected, tmp_path / name, "batch")
    assert np.array_equal(content(tmp_path / name)[1], values)


def test_an_h5ad_keeps_the_batches_and_what_is_known_and_nothing_else(corrected: ad.AnnData, tmp_path: Path) -> None:
    write_embedding(corrected, tmp_path / "z.h5ad", ["batch", "day"])
    adata = ad.read_h5ad(tmp_path / "z.h5ad")
    assert adata.X is None
    assert adata.n_vars == 0
    assert list(adata.obs) == ["batch", "day"]
    pd.testing.assert_frame_equal(adata.obs, corrected.obs[["batch", "day"]])
    assert list(adata.obsm) == ["X_cellnorm"]
    assert adata.uns["cellnorm"]["genes"].tolist() == ["g1", "g2"]
    assert adata.uns["cellnorm"]["seconds"] == {"train": 1.0}


def test_an_h5ad_keeps_a_umap_where_there_is_one(corrected: ad.AnnData, tmp_path: Path) -> None:
    picture, graph = np.arange(14.0).reshape(7, 2), sp.eye_array(7, format="csr")
    corrected.obsm["X_umap_cellnorm"] = picture
    corrected.uns |= {"X_umap_cellnorm": {"a": 1.0}, "cellnorm_neighbors": {"params": {"n_neighbors": 15}}}
    for name in ("distances", "connectivities"):
        corrected.obsp[f"cellnorm_neighbors_{name}"] = graph
    write_embedding(corrected, tmp_path / "z.h5ad", "batch", umap=True)
    adata = ad.read_h5ad(tmp_path / "z.h5ad")
    assert np.array_equal(adata.obsm["X_umap_cellnorm"], picture)
    assert set(adata.obsp) == {"cellnorm_neighbors_distances", "cellnorm_neighbors_connectivities"}
    assert adata.uns["cellnorm_neighbors"]["params"]["n_neighbors"] == 15


def test_key_added_names_everything(corrected: ad.AnnData, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    corrected.obsm["foo"], corrected.uns["foo"] = corrected.obsm["X_cellnorm"], {}
    write_embedding(corrected, tmp_path / "z.h5ad", "batch", key_added="foo")
    write_embedding(corrected, tmp_path / "z.parquet", "batch", key_added="foo")
    assert list(ad.read_h5ad(tmp_path / "z.h5ad").obsm) == ["foo"]
    assert list(pd.read_parquet(tmp_path / "z.parquet")) == ["foo_1", "foo_2", "foo_3", "foo_4"]


@given(n_cells=st.integers(1, 20), rows=st.integers(1, 7))
def test_row_groups_of_any_size_make_the_same_table(
    tmp_path_factory: pytest.TempPathFactory, n_cells: int, rows: int
) -> None:
    pytest.importorskip("pyarrow")
    values = np.arange(2 * n_cells, dtype=np.float32).reshape(n_cells, 2)
    names = pd.Index([f"c{i}" for i in range(n_cells)])
    path = tmp_path_factory.mktemp("groups") / "z.parquet"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_file, "ROWS", rows)
        embedding_file._write_parquet(names, values, "cellnorm", path)
    assert content(path)[0] == names.tolist()
    assert np.array_equal(content(path)[1], values)
    assert list(pd.read_parquet(path)) == ["cellnorm_1", "cellnorm_2"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_there_is_replaced_only_by_force(corrected: ad.AnnData, tmp_path: Path, name: str) -> None:
    needs_pyarrow(name)
    path = tmp_path / name
    path.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        write_embedding(corrected, path, "batch")
    assert path.read_text() == "mine"
    write_embedding(corrected, path, "batch", force=True)
    assert np.array_equal(content(path)[1], corrected.obsm["X_cellnorm"])


def test_a_file_where_the_names_would_go_is_not_overwritten(corrected: ad.AnnData, tmp_path: Path) -> None:
    names_file(tmp_path / "z.npy").write_text("mine")
    with pytest.raises(DataError, match=r"z\.names\.txt' exists"):
        write_embedding(corrected, tmp_path / "z.npy", "batch")
    assert names_file(tmp_path / "z.npy").read_text() == "mine"
    assert not (tmp_path / "z.npy").exists()


@pytest.mark.parametrize("broken", ["a\nb", "a\x85b", ""])
def test_names_that_do_not_fit_in_a_line_are_refused(corrected: ad.AnnData, tmp_path: Path, broken: str) -> None:
    corrected.obs_names = [broken, *corrected.obs_names[1:]]
    with pytest.raises(DataError, match=r"1 cell names do not fit in a line"):
        write_embedding(corrected, tmp_path / "z.npy", "batch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["z.npy", "z.parquet"])
def test_a_failure_leaves_nothing_and_changes_nothing(
    corrected: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    needs_pyarrow(name)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    writer = "_write_npy" if name == "z.npy" else "_write_parquet"
    (tmp_path / name).write_text("mine")
    monkeypatch.setattr(embedding_file, writer, full)
    with pytest.raises(DataError, match=r"could not be written: the disk is full\. Nothing was left"):
        write_embedding(corrected, tmp_path / name, "batch", force=True)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


def test_an_array_never_stands_beside_names_of_another(
    corrected: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the moment when the names change, the old array is gone and the new one not yet there."""
    path = tmp_path / "z.npy"
    write_embedding(corrected, path, "batch")
    seen: list[bool] = []
    replace: Callable[..., None] = embedding_file.os.replace

    def watched(source: Path, target: Path) -> None:
        if Path(target) == names_file(path):
            seen.append(path.exists())
        replace(source, target)

    monkeypatch.setattr(embedding_file.os, "replace", watched)
    write_embedding(corrected, path, "batch", force=True)
    assert seen == [False]
    assert path.exists()


def test_without_an_embedding_it_says_what_there_is(small_adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"obsm\['X_cellnorm'\] was to be written, but obsm holds: none"):
        write_embedding(small_adata, tmp_path / "z.npy", "batch")


def test_without_pyarrow_it_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "cellnorm\[parquet\]".*\.h5ad or \.npy'):
        check_embedding(tmp_path / "z.parquet")


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.h5ad or \.parquet or \.npy, found"):
        check_embedding(tmp_path / "z.zarr")


@pytest.mark.parametrize("name", ["z.h5ad", "z.npy"])
def test_the_input_is_never_the_output(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    source.touch()
    with pytest.raises(DataError, match="would change the input"):
        check_embedding(source, [source], force=True)
    if name == "z.npy":
        names_file(source).touch()
        with pytest.raises(DataError, match="would change the input"):
            check_embedding(tmp_path / name, [names_file(source)], force=True)
