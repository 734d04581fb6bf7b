"""Labs are joined on what they share; a written result holds its input to the byte and is complete or not there."""

import errno
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from command import FORKING_PYTHON, folder_content, h5_content
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import io
from cellnorm.blocks import RowBlocks
from cellnorm.errors import DataError

KEYS = [("obsm", "X_new"), ("uns", "new"), ("obsp", "new_graph")]


# -- joining --------------------------------------------------------------------------------------------------------


def _lab(n_cells: int, genes: list[str], seed: int = 0, **obs: Any) -> ad.AnnData:
    counts = np.random.default_rng(seed).poisson(1.0, (n_cells, len(genes))).astype(np.float32)
    index = [f"cell{i}" for i in range(n_cells)]
    return ad.AnnData(sp.csr_matrix(counts), pd.DataFrame(obs, index=index), pd.DataFrame(index=genes))


GENES = [f"gene{i}" for i in range(150)]


def _write(folder: Path, **labs: ad.AnnData) -> list[Path]:
    paths = [folder / f"{name}.h5ad" for name in labs]
    for path, lab in zip(paths, labs.values(), strict=True):
        lab.write_h5ad(path)
    return paths


def test_labs_are_joined_on_shared_genes_in_the_order_of_the_first(tmp_path: Path) -> None:
    first, second = _lab(4, ["only1", *GENES]), _lab(3, [*GENES[::-1], "only2"], seed=1)
    adata, key = io.read_many(_write(tmp_path, zurich=first, basel=second))
    assert adata.var_names.tolist() == GENES
    assert key == "batch"
    assert adata.obs["batch"].tolist() == ["zurich"] * 4 + ["basel"] * 3
    np.testing.assert_array_equal(adata.X[:4].toarray(), first[:, GENES].X.toarray())
    np.testing.assert_array_equal(adata.X[4:].toarray(), second[:, GENES].X.toarray())
    assert adata.obs_names.tolist() == [
        *(f"cell{i}-zurich" for i in range(3)),
        "cell3",
        *(f"cell{i}-basel" for i in range(3)),
    ]


def test_cell_names_change_only_where_they_repeat(tmp_path: Path) -> None:
    first, second = _lab(2, GENES), _lab(3, GENES)
    second.obs_names = ["cell0", "other", "other"]
    adata, _ = io.read_many(_write(tmp_path, a=first, b=second))
    assert adata.obs_names.tolist() == ["cell0-a", "cell1", "cell0-b", "other-b", "other-b-1"]


def test_all_columns_of_all_labs_are_kept_and_can_be_written(tmp_path: Path) -> None:
    first = _lab(2, GENES, n=[1, 2], kind=pd.Categorical(["T", "B"]), mixed=["x", "y"], flag=[True, False])
    second = _lab(2, GENES, kind=pd.Categorical(["T", "NK"]), mixed=[1, 2], own=[0.5, 1.5])
    adata, _ = io.read_many(_write(tmp_path, a=first, b=second))
    io.write(adata, tmp_path / "joined.h5ad")
    obs = io.read(tmp_path / "joined.h5ad").obs
    assert obs["kind"].tolist() == ["T", "B", "T", "NK"]
    assert obs["mixed"].tolist() == ["x", "y", "1", "2"]
    assert obs["n"].tolist()[:2] == [1, 2]
    assert obs["own"].tolist()[2:] == [0.5, 1.5]
    assert obs[["n", "flag"]].iloc[2:].isna().all(axis=None)
    assert obs["flag"].tolist()[:2] == ["True", "False"]


def test_a_batch_column_of_the_labs_is_not_overwritten(tmp_path: Path) -> None:
    adata, key = io.read_many(_write(tmp_path, a=_lab(2, GENES, batch=["x", "y"]), b=_lab(2, GENES, seed=1)))
    assert key == "file"
    assert adata.obs["batch"].tolist()[:2] == ["x", "y"]
    assert adata.obs["file"].tolist() == ["a", "a", "b", "b"]


def test_files_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    paths = []
    for lab in ("lab1", "lab2"):
        (tmp_path / lab / "out").mkdir(parents=True)
        paths += _write(tmp_path / lab / "out", filtered=_lab(2, GENES))
    adata, _ = io.read_many(paths)
    assert adata.obs["batch"].cat.categories.tolist() == ["lab1/out/filtered", "lab2/out/filtered"]


@given(parts=st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=2, max_size=5, unique_by=tuple))
def test_names_of_different_files_differ(parts: list[list[str]]) -> None:
    stems = io._stems([Path("/", *part[:-1], part[-1] + ".h5ad") for part in parts])
    assert len(set(stems)) == len(parts)


def test_the_matrix_may_lie_elsewhere_in_each_lab(tmp_path: Path) -> None:
    plain, layered = _lab(3, GENES), _lab(3, GENES, seed=1)
    counts = layered.X.copy()
    layered.layers["counts"] = counts
    layered.X = sp.csr_matrix(np.log1p(counts.toarray()) / 3)
    adata, _ = io.read_many(_write(tmp_path, a=plain, b=layered))
    np.testing.assert_array_equal(adata.X[3:].toarray(), counts.toarray())


def test_a_layer_is_taken_from_every_lab(tmp_path: Path) -> None:
    labs = {name: _lab(3, GENES, seed=seed) for seed, name in enumerate("ab")}
    for lab in labs.values():
        lab.layers["raw"], lab.X = lab.X, sp.csr_matrix(lab.X * 0)
    adata, _ = io.read_many(_write(tmp_path, **labs), layer="raw")
    np.testing.assert_array_equal(adata.X[:3].toarray(), labs["a"].layers["raw"].toarray())
    with pytest.raises(DataError, match=r"a\.h5ad': layer"):
        io.read_many([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], layer="no")


def test_repeated_gene_names_are_numbered_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    doubled = [*GENES, "gene0"]
    adata, _ = io.read_many(_write(tmp_path, a=_lab(2, doubled), b=_lab(2, doubled, seed=1)))
    assert adata.var_names.tolist() == [*GENES, "gene0-1"]
    assert caplog.text.count("1 gene names occurred before") == 2


def test_labs_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    ensembl = [f"ENSG{i:011d}" for i in range(150)]
    log = _lab(3, GENES)
    log.X = sp.csr_matrix(np.log1p(log.X.toarray()) / 3)
    paths = dict(zip("abc", _write(tmp_path, a=_lab(3, GENES), b=_lab(3, ensembl), c=log), strict=True))
    with pytest.raises(DataError, match=r"0 genes are shared.* 150 genes: 'gene0'.*by symbol, others by Ensembl"):
        io.read_many([paths["a"], paths["b"]])
    with pytest.raises(DataError, match=r"same kind of values.*counts in .*log in"):
        io.read_many([paths["a"], paths["c"]])
    with pytest.raises(DataError, match="given twice"):
        io.read_many([paths["a"], tmp_path / "." / "a.h5ad"])


@pytest.mark.parametrize("n_shared", [io.MIN_SHARED_GENES - 1, io.MIN_SHARED_GENES])
def test_a_sensible_number_of_genes_must_be_shared(tmp_path: Path, n_shared: int) -> None:
    paths = _write(tmp_path, a=_lab(2, GENES), b=_lab(2, [*GENES[:n_shared], *(f"other{i}" for i in range(50))]))
    if n_shared < io.MIN_SHARED_GENES:
        with pytest.raises(DataError, match=f"{n_shared} genes are shared, at least {io.MIN_SHARED_GENES} are needed"):
            io.read_many(paths)
    else:
        assert io.read_many(paths)[0].n_vars == n_shared


# -- writing --------------------------------------------------------------------------------------------------------


def _rich() -> ad.AnnData:
    """An AnnData with something in every slot."""
    rng = np.random.default_rng(3)
    counts = sp.random(30, 20, 0.3, format="csr", random_state=3, dtype=np.float32)
    obs = pd.DataFrame(
        {
            "lab": pd.Categorical(["a", "b"] * 15, categories=["unused", "b", "a"], ordered=True),
            "text": "é ü",
            "score": np.where(rng.random(30) < 0.2, np.nan, 1.0),
            "flag": rng.random(30) < 0.5,
            "maybe": pd.array([True, None] * 15, dtype="boolean"),
        },
        index=[f"c{i % 25}" for i in range(30)],  # names that repeat
    )
    adata = ad.AnnData(counts, obs, pd.DataFrame({"mean": rng.random(20)}, index=[f"g{i}" for i in range(20)]))
    adata.raw = adata.copy()
    adata.layers["counts"] = counts.tocsc()
    adata.layers["dense"] = rng.random((30, 20))
    adata.obsm["X_pca"] = rng.random((30, 3))
    adata.obsm["table"] = pd.DataFrame({"x": rng.random(30)}, index=adata.obs_names)
    adata.varm["PCs"] = rng.random((20, 3))
    adata.obsp["graph"] = sp.eye(30, format="csr")
    adata.uns = {"colors": np.array(["#fff", "#000"]), "deep": {"n": 1, "table": pd.DataFrame({"a": [1, 2]})}, "s": "x"}
    return adata


def _corrected(adata: ad.AnnData, value: float = 1.0) -> ad.AnnData:
    result = adata.copy()
    result.obsm["X_new"] = np.full((adata.n_obs, 2), value, np.float32)
    result.uns["new"] = {"genes": np.array(["a", "b"], dtype=object), "loss": {"total": np.arange(3.0)}, "seed": 0}
    result.obsp["new_graph"] = sp.eye(adata.n_obs, format="csr")
    return result


def _is_new(name: str) -> bool:
    return any(name == f"{slot}/{key}" or name.startswith(f"{slot}/{key}/") for slot, key in KEYS)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    _rich().write_h5ad(tmp_path / "in.h5ad", compression="gzip")
    with h5py.File(tmp_path / "in.h5ad", "r+") as file:
        for name in ("/", "X", "uns/deep"):
            file[name].attrs["unknown to anndata"] = [1, 2, 3]
    return tmp_path / "in.h5ad"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    _rich().write_zarr(tmp_path / "in.zarr")
    (tmp_path / "in.zarr" / "notes.txt").write_text("keep me")
    return tmp_path / "in.zarr"


def _assert_complete(path: Path, value: float = 1.0) -> None:
    result = io.read(path)
    np.testing.assert_array_equal(result.obsm["X_new"], np.full((30, 2), value, np.float32))
    assert result.obsm["X_new"].dtype == np.float32
    assert result.uns["new"]["genes"].tolist() == ["a", "b"]
    assert result.uns["new"]["loss"]["total"].tolist() == [0, 1, 2]
    assert (result.obsp["new_graph"] != sp.eye(30, format="csr")).nnz == 0


@pytest.mark.parametrize("again", [False, True])
def test_an_h5ad_is_kept_to_the_byte(source: Path, tmp_path: Path, again: bool) -> None:
    before = source.read_bytes()
    out = tmp_path / "out.h5ad"
    adata = _corrected(io.read(source))
    io.write(adata, out, source=source, keys=KEYS)
    if again:  # the corrected file is corrected once more
        source, out = out, tmp_path / "again.h5ad"
        io.write(_corrected(adata, 2.0), out, source=source, keys=KEYS)
    kept = {name: content for name, content in h5_content(out).items() if not _is_new(name)}
    assert kept == {name: content for name, content in h5_content(source).items() if not _is_new(name)}
    assert len(kept) > 40
    _assert_complete(out, 2.0 if again else 1.0)
    assert (tmp_path / "in.h5ad").read_bytes() == before
    assert out.stat().st_size < source.stat().st_size + 200_000  # no reserved room is left behind


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_zarr_is_kept_to_the_byte(tmp_path: Path, zarr_format: int, read_only: bool) -> None:
    store, out = tmp_path / "in.zarr", tmp_path / "out.zarr"
    with ad.settings.override(zarr_write_format=zarr_format):
        _rich().write_zarr(store)
    (store / "notes.txt").write_text("keep me")
    before = folder_content(store)
    if read_only:
        for folder in [store, *(p for p in store.rglob("*") if p.is_dir())]:
            folder.chmod(0o500)
    io.write(_corrected(io.read(store)), out, source=store, keys=KEYS)
    assert all(p.stat().st_mode & 0o700 == 0o700 for p in [out, *out.rglob("*")] if p.is_dir())
    after = folder_content(out)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {".zmetadata", "zarr.json"}  # the table of contents, which now lists more
    assert all(_is_new(str(Path(name).parent)) or _is_new(name) for name in set(after) - set(before))
    assert zarr.open_group(out, mode="r").metadata.consolidated_metadata is not None
    assert folder_content(store) == before
    _assert_complete(out)


@pytest.mark.parametrize(("start", "end"), [("in.h5ad", "out.zarr"), ("in.zarr", "out.h5ad")])
def test_the_other_format_holds_the_same(source: Path, store: Path, tmp_path: Path, start: str, end: str) -> None:
    adata = _corrected(io.read(tmp_path / start))
    io.write(adata, tmp_path / end, source=tmp_path / start, keys=KEYS)
    _assert_complete(tmp_path / end)
    result = io.read(tmp_path / end)
    pd.testing.assert_frame_equal(result.obs, adata.obs)
    pd.testing.assert_frame_equal(result.var, adata.var)
    assert (result.X != adata.X).nnz == 0
    assert (result.raw.X != adata.raw.X).nnz == 0
    np.testing.assert_array_equal(result.layers["dense"], adata.layers["dense"])
    assert set(result.uns) == set(adata.uns)


def test_slots_that_the_input_lacks_are_made(source: Path, tmp_path: Path) -> None:
    adata = _corrected(io.read(source))
    with h5py.File(source, "r+") as file:
        for slot in ("obsm", "obsp", "uns"):
            del file[slot]
    io.write(adata, tmp_path / "out.h5ad", source=source, keys=KEYS)
    _assert_complete(tmp_path / "out.h5ad")


def test_a_file_that_another_one_links_to_is_not_changed(source: Path, tmp_path: Path) -> None:
    """A slot may be a link into another file; adding there would change that one."""
    other = tmp_path / "other.h5"
    with h5py.File(source, "r+") as file, h5py.File(other, "w") as elsewhere:
        file.copy("uns", elsewhere)
        del file["uns"]
        file["uns"] = h5py.ExternalLink(str(other), "uns")
    before = other.read_bytes()
    io.write(_corrected(io.read(source)), tmp_path / "out.h5ad", source=source, keys=KEYS)
    _assert_complete(tmp_path / "out.h5ad")
    assert other.read_bytes() == before


def test_an_existing_result_is_kept_unless_forced(source: Path, store: Path, tmp_path: Path) -> None:
    for path, start in ((tmp_path / "out.h5ad", source), (tmp_path / "out.zarr", store)):
        adata = io.read(start)
        io.write(_corrected(adata), path, source=start, keys=KEYS)
        with pytest.raises(DataError, match="exists"):
            io.write(_corrected(adata, 2.0), path, source=start, keys=KEYS)
        _assert_complete(path)
        io.write(_corrected(adata, 2.0), path, source=start, keys=KEYS, force=True)
        _assert_complete(path, 2.0)


def test_what_cannot_be_stored_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    adata = _rich()
    adata.uns["odd"] = object()
    for name in ("out.h5ad", "out.zarr"):
        with pytest.raises(DataError, match="cannot be stored as"):
            io.write(adata, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 400 kB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if mount is None or subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here; the test with a made-up error still runs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# In a process of its own, because HDF5 would crash at the end of one in which it met a full disk.
FILL = """
import os, sys
import numpy as np
from cellnorm import io
from cellnorm.errors import DataError

source, disk = sys.argv[1:]
adata = io.read(source)
adata.obsm["X_new"] = np.random.default_rng(0).random((30, 1000))
for free in (0, 8, 20, 40, 60, 90, 120, 160, 200, 240):
    open(f"{disk}/filler", "wb").write(bytes((400 - free) * 1024))
    for name, start in (("grown.h5ad", source), ("whole.h5ad", None), ("a.zarr", None)):
        try:
            io.write(adata, f"{disk}/{name}", source=start, keys=[("obsm", "X_new")])
        except DataError as error:
            print(error, "|", *os.listdir(disk))
    os.remove(f"{disk}/filler")
"""


def test_a_full_disk_leaves_nothing_wherever_in_writing_it_gets_full(source: Path, small_disk: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", FILL, source, small_disk], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    lines = ran.stdout.splitlines()
    assert len(lines) == 30
    for line in lines:
        assert "could not be written: the disk is full" in line or "cannot be written: the disk is full" in line
        assert line.endswith("| filler")


@pytest.mark.parametrize("step", ["shutil.copyfile", "os.fsync", "os.replace"])
def test_an_error_of_the_system_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    adata = _corrected(io.read(source))
    monkeypatch.setattr(step, full)
    with pytest.raises(DataError, match="the disk is full"):
        io.write(adata, tmp_path / "out.h5ad", source=source, keys=KEYS)
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]


# -- columns, and layers made while they are written ----------------------------------------------------------------


def _blocks(value: float = 1.0, sparse: bool = False) -> RowBlocks:
    def make() -> Iterator[Any]:
        for start in range(0, 30, 7):
            block = np.full((min(7, 30 - start), 20), value, np.float32)
            yield sp.csr_matrix(block) if sparse else block

    return RowBlocks((30, 20), sparse, 600, make)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_columns_of_cells_are_added_and_the_others_kept(source: Path, store: Path, tmp_path: Path, kind: str) -> None:
    start, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    adata = io.read(start)
    before = adata.obs.copy()
    adata.obs["match"] = np.linspace(0, 1, 30, dtype=np.float32)
    adata.obs["kind"] = pd.Categorical(["T", "unknown", "B"] * 10)
    adata.obs["lab"] = adata.obs["lab"].cat.rename_categories({"a": "new"})  # a column that was there is replaced
    keys = [("obs", "match"), ("obs", "kind"), ("obs", "lab")]
    io.write(adata, out, source=start, keys=keys)
    obs = io.read(out).obs
    assert obs.columns.tolist() == [*before.columns, "match", "kind"]
    pd.testing.assert_frame_equal(obs, adata.obs)
    assert obs["match"].dtype == np.float32
    if kind == "h5ad":
        new = ("obs/match", "obs/kind", "obs/lab")
        old, now = h5_content(start), h5_content(out)
        changed = {n for n in old if now.get(n) != old[n] and not n.startswith(new)}
        assert changed == {"obs"}  # whose list of columns is longer
    else:
        assert zarr.open_group(out, mode="r").metadata.consolidated_metadata is not None


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("grown", [False, True])
def test_a_layer_is_made_while_it_is_written(
    source: Path, store: Path, tmp_path: Path, kind: str, sparse: bool, grown: bool
) -> None:
    start, out = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    adata = _corrected(io.read(start))
    layers = {"new": _blocks(3.0, sparse), "dense": _blocks(4.0, sparse)}  # one of a name that was there
    io.write(adata, out, source=start if grown else None, keys=KEYS, layers=layers)
    _assert_complete(out)
    result = io.read(out)
    for name, value in (("new", 3.0), ("dense", 4.0)):
        assert sp.issparse(result.layers[name]) == sparse
        values = result.layers[name].toarray() if sparse else result.layers[name]
        np.testing.assert_array_equal(values, np.full((30, 20), value, np.float32))
    assert set(result.layers) == {"counts", "dense", "new"}
    assert "new" not in adata.layers
    if kind == "h5ad" and grown:
        old, now = h5_content(start), h5_content(out)
        assert {n for n in old if now.get(n) != old[n] and not n.startswith("layers/dense")} == set()
    if kind == "zarr":
        assert "layers/new" in zarr.open_consolidated(out)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full")])
def test_a_layer_that_cannot_be_finished_leaves_nothing(
    source: Path, store: Path, tmp_path: Path, kind: str, error: Any
) -> None:
    def make() -> Iterator[np.ndarray]:
        yield np.zeros((7, 20), np.float32)
        raise error

    expected = DataError if isinstance(error, OSError) else KeyboardInterrupt
    start, layers = tmp_path / f"in.{kind}", {"new": RowBlocks((30, 20), False, 600, make)}
    adata = io.read(start)
    with pytest.raises(expected):
        io.write(adata, tmp_path / f"out.{kind}", source=start, layers=layers)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", "in.zarr"]


def test_room_for_a_layer_is_taken_before_it_is_made(source: Path, small_disk: Path) -> None:
    def make() -> Iterator[np.ndarray]:
        pytest.fail("the layer does not fit, so that none of it need be made")
        yield np.zeros(0)

    layers = {"new": RowBlocks((30, 20_000), False, 600_000, make)}
    with pytest.raises(DataError, match="the disk is full"):
        io.write(io.read(source), small_disk / "out.h5ad", layers=layers)
    assert list(small_disk.iterdir()) == []


def test_a_layer_in_another_file_is_not_changed(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.h5"
    with h5py.File(source, "r+") as file, h5py.File(other, "w") as elsewhere:
        file.copy("layers", elsewhere)
        del file["layers"]
        file["layers"] = h5py.ExternalLink(str(other), "layers")
    before = other.read_bytes()
    io.write(io.read(source), tmp_path / "out.h5ad", source=source, layers={"new": _blocks()})
    assert set(io.read(tmp_path / "out.h5ad").layers) == {"counts", "dense", "new"}
    assert other.read_bytes() == before


# -- being killed ---------------------------------------------------------------------------------------------------

# Children write version 1, 2, 3... over each other until they are killed: by themselves when a function is called, or
# by their parent after a while. What then bears the final name is put aside under the number of the child.
KILLED = """
import importlib, os, signal, sys, time
import numpy as np
from cellnorm import io

source, target, *deaths = sys.argv[1:]
for number, death in enumerate(deaths):
    ready, say = os.pipe()
    child = os.fork()
    if child == 0:
        adata = io.read(source)
        if "." in death and not death[0].isdigit():
            module, name = death.rsplit(".", 1)
            setattr(importlib.import_module(module), name, lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL))
        for value in range(1, 10**6 if death[0].isdigit() else 3):
            adata.obsm["X_new"] = np.full((adata.n_obs, 2), value, np.float32)
            io.write(adata, target, source=source, keys=[("obsm", "X_new")], force=True)
            os.write(say, b"1")
        os._exit(0)
    if death[0].isdigit():
        os.read(ready, 1)  # the first version is there, the next ones are on their way
        time.sleep(float(death))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if os.path.exists(target):
        os.rename(target, target.replace("out", str(number)))
"""

STEPS = ["shutil.copyfile", "cellnorm.io._slot", "cellnorm.io.write_elem", "cellnorm.output._sync", "os.replace"]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_killed_at_any_moment_the_result_is_complete_or_absent(
    source: Path, store: Path, tmp_path: Path, kind: str
) -> None:
    start, target = tmp_path / f"in.{kind}", tmp_path / f"out.{kind}"
    before = h5_content(source), folder_content(store)
    moments = [f"{random.Random(kind + str(i)).uniform(0, 0.4):.4f}" for i in range(8)]
    ran = subprocess.run(
        [*FORKING_PYTHON, "-c", KILLED, start, target, *STEPS, *moments],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert (ran.stderr, ran.stdout.split()) == ("", ["-9"] * (len(STEPS) + len(moments)))
    assert not any((tmp_path / f"{number}.{kind}").exists() for number in range(len(STEPS)))
    found = sorted(tmp_path.glob(f"[0-9]*.{kind}"))
    assert found, "no child lived long enough to write anything"
    for path in found:
        values = io.read(path).obsm["X_new"]
        assert values.shape == (30, 2)
        assert len(np.unique(values)) == 1
    assert (h5_content(source), folder_content(store)) == before
    io.write(_corrected(io.read(start)), target, source=start, keys=KEYS)  # the next one tidies up
    assert {p.name for p in tmp_path.iterdir()} == {"in.h5ad", "in.zarr", target.name, *(p.name for p in found)}
