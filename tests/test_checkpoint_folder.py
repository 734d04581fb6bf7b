"""A saved model comes back to the bit, or not at all and with the reason; nothing but a model is ever replaced."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from saved import cells, fitted

from cellnorm import CellNorm, DataError, LinearFront
from cellnorm.checkpoint import check_folder, fingerprint, save
from cellnorm.checkpoint._file import CONFIG, WEIGHTS


def read(path: Path) -> CellNorm:
    model: CellNorm = CellNorm.load(path, device="cpu")
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model."""
    save(fitted(), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("n_comps", [5, None])
def test_a_loaded_model_gives_the_same_bits(tmp_path: Path, n_comps: int | None) -> None:
    model, (x, batch) = fitted(n_comps), cells()
    save(model, tmp_path / "model")
    again = read(tmp_path / "model")
    z = model.transform(x, batch)
    np.testing.assert_array_equal(again.transform(x, batch), z, strict=True)
    np.testing.assert_array_equal(again.transform(x), model.transform(x), strict=True)
    np.testing.assert_array_equal(again.inverse_transform(z), model.inverse_transform(z), strict=True)
    np.testing.assert_array_equal(again.inverse_transform(z, batch), model.inverse_transform(z, batch), strict=True)
    np.testing.assert_equal(again.check().to_dict(), model.check().to_dict())
    assert fingerprint(again) == fingerprint(model)


def test_many_genes_and_sparse_cells_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellnorm.front.MAX_GENES_EXACT", 8)  # the other way to find components
    x = sp.random(80, 40, 0.3, "csr", np.float32, np.random.default_rng(0))
    batch = np.arange(80) % 3
    model = CellNorm(n_latent=3, n_comps=5, n_steps=3, n_pairs=16, device="cpu").fit(x, batch)
    save(model, tmp_path / "model")
    again = read(tmp_path / "model")
    z = model.transform(x, batch)
    np.testing.assert_array_equal(again.transform(x, batch), z, strict=True)
    np.testing.assert_array_equal(again.inverse_transform(z), model.inverse_transform(z), strict=True)


@pytest.mark.parametrize("n_comps", [5, None])
def test_everything_comes_back(tmp_path: Path, n_comps: int | None) -> None:
    model = fitted(n_comps)
    save(model, tmp_path / "model")
    again = read(tmp_path / "model")
    state, there = vars(model), vars(again)
    assert set(state) == set(there)
    assert again.get_params() == model.get_params()
    apart = {"net_", "front_", "history_", "seconds_", "labels_"}
    for name in {n for n in state if n.endswith("_")} - apart:
        np.testing.assert_array_equal(there[name], state[name])
        assert type(there[name]) is type(state[name])
        assert getattr(there[name], "dtype", None) == getattr(state[name], "dtype", None)
    if model.front_ is not None and again.front_ is not None:
        for name, values in vars(model.front_).items():
            np.testing.assert_array_equal(getattr(again.front_, name), values, strict=True)
            assert getattr(again.front_, name).strides == values.strides  # products round as they lie in memory
    assert again.labels_.keys() == model.labels_.keys()
    for column in model.labels_:
        np.testing.assert_array_equal(again.labels_[column], model.labels_[column], strict=True)
    for name, values in model.history_.to_dict().items():
        np.testing.assert_array_equal(again.history_.to_dict()[name], values, strict=True)
    assert list(again.net_.state_dict()) == list(model.net_.state_dict())
    assert not again.net_.training
    assert again.seconds_ == {}


def test_a_loaded_model_can_be_fitted_and_saved_again(folder: Path, tmp_path: Path) -> None:
    again = read(folder)
    save(again, tmp_path / "second")
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "second" / name).read_bytes() == (folder / name).read_bytes()
    x, batch = cells()
    np.testing.assert_array_equal(again.fit(x, batch).transform(x, batch), fitted().transform(x, batch), strict=True)


def test_a_model_without_names_steps_or_labels(tmp_path: Path) -> None:
    x, batch = cells()
    model = CellNorm(n_latent=3, n_comps=np.int64(5), n_steps=0, device="cpu", random_state=None)  # type: ignore[arg-type]
    save(model.fit(x, batch), tmp_path / "model")
    again = read(tmp_path / "model")
    np.testing.assert_array_equal(again.transform(x, batch), model.transform(x, batch), strict=True)
    assert not hasattr(again, "feature_names_in_")
    assert (again.labels_, again.input_, again.random_state) == ({}, {}, None)


def test_loading_leaves_the_state_of_torch_alone(folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read(folder)
    assert (torch.get_rng_state() == before).all()


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="Device 'abacus'"):
        CellNorm.load(folder, device="abacus")
    assert CellNorm.load(folder, device="auto").device == "auto"


def test_the_config_can_be_read_by_people(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    text = (folder / CONFIG).read_text(encoding="utf-8")
    config = json.loads(text)
    assert list(config)[:2] == ["format", "format_version"]
    assert config["batches"] == ["lab1", "laboratoire é"]
    assert '"laboratoire é"' in text
    assert config["genes"][:2] == ["GENE-0", "GENE-1"]
    assert config["parameters"] == fitted().get_params()
    assert config["normalisation"] == "log-normalised expression as given"
    assert set(config["versions"]) == {"cellnorm", "torch", "numpy", "scikit-learn"}
    assert max(map(len, text.splitlines())) < 120


def test_the_same_model_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    save(copy.deepcopy(fitted()), tmp_path / "other")
    for name in (CONFIG, WEIGHTS):
        assert (folder / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


# Where it goes ----------------------------------------------------------------------------------------------------


def test_an_existing_model_is_replaced_only_when_told(folder: Path) -> None:
    with pytest.raises(DataError, match="exists"):
        save(fitted(None), folder)
    assert read(folder).front_ is not None
    save(fitted(None), folder, force=True)
    assert read(folder).front_ is None
    assert sorted(p.name for p in folder.parent.iterdir()) == ["model"]


@pytest.mark.parametrize(
    "damage", [lambda f: (f / WEIGHTS).unlink(), lambda f: (f / CONFIG).write_bytes((f / CONFIG).read_bytes()[:90])]
)
def test_a_damaged_model_can_be_replaced(folder: Path, damage: Callable[[Path], Any]) -> None:
    damage(folder)
    with pytest.raises(DataError):
        read(folder)
    save(fitted(), folder, force=True)
    assert fingerprint(read(folder)) == fingerprint(fitted())


def some_file(path: Path) -> None:
    path.write_text("mine")


def some_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def other_model(path: Path) -> None:
    path.mkdir()
    (path / CONFIG).write_text('{"architectures": ["Bert"], "model_type": "bert"}')
    (path / WEIGHTS).write_bytes(b"theirs")


def model_with_notes(path: Path) -> None:
    save(fitted(), path)
    (path / "notes.txt").write_text("mine")


def link_to_model(path: Path) -> None:
    save(fitted(), path.with_name("real"))
    path.symlink_to(path.with_name("real"))


def dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    "make", [some_file, some_folder, Path.mkdir, other_model, model_with_notes, link_to_model, dangling_link]
)
def test_what_is_no_model_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    target = tmp_path / "target"
    make(target)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for force in (False, True):
        with pytest.raises(DataError, match="exists, is no model and is not replaced"):
            save(fitted(), target, force=force)
        with pytest.raises(DataError, match="exists, is no model"):
            check_folder(target, force=force)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert os.path.lexists(target)


@pytest.mark.parametrize("name", ["missing/model", "", ".", "..", "a\0b", "n" * 300])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        save(fitted(), name)
    assert list(tmp_path.iterdir()) == []


def test_a_name_is_free_until_the_model_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DataError, match="the disk is full"):
        save(fitted(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_check_folder_lets_a_good_name_through(folder: Path, tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    check_folder(str(tmp_path / "new") + "/")
    check_folder(folder, force=True)
    with pytest.raises(DataError, match=r"exists\. Choose another name, or replace it"):
        check_folder(folder)
    assert not (tmp_path / "new").exists()


# What is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: None, "is not there"),
        (some_file, "is a file"),
        (Path.mkdir, f"it holds no {CONFIG}"),
        (some_folder, f"it holds no {CONFIG}"),
        (other_model, "is not that of a cellnorm-model"),
        (dangling_link, "is not there"),
    ],
)
def test_what_is_no_model_is_not_read(tmp_path: Path, make: Callable[[Path], None], words: str) -> None:
    make(tmp_path / "target")
    with pytest.raises(DataError, match=words) as caught:
        read(tmp_path / "target")
    assert "target" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_to_a_model_is_read(tmp_path: Path) -> None:
    link_to_model(tmp_path / "target")
    assert fingerprint(read(tmp_path / "target")) == fingerprint(fitted())


@pytest.mark.parametrize("name", ["a\0b", "", "n" * 300])
def test_strange_names_of_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError):
        CellNorm.load(name, device="cpu")


def changed(**values: Any) -> CellNorm:
    """The small model with other attributes."""
    model = copy.copy(fitted())
    vars(model).update(values)
    return model


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: changed(batches_=np.array(["a\x1b[31m", "b"], object)), "control character"),
        (lambda: changed(batches_=np.array(["a", "\ud800"], object)), "control character"),
        (lambda: changed(labels_={"x\n": np.full(60, "T", object)}), "control character"),
        (lambda: changed(n_latent=4), "n_latent is 4"),
        (lambda: changed(random_state=np.random.default_rng(0)), "random_state"),
        (lambda: changed(feature_names_in_=np.array(["one"], object)), "genes has 1 names where 12 are needed"),
        (lambda: changed(sketch_=np.full_like(fitted().sketch_, np.nan)), "NaN"),
    ],
)
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, model: Callable[[], CellNorm], words: str) -> None:
    with pytest.raises(DataError, match=words):
        save(model(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# Fingerprints -----------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_that_of_what_decides_the_embedding() -> None:
    model = fitted()
    same = [changed(labels_={}), changed(seconds_={"pca": 1.0}), changed(input_={}), copy.deepcopy(model)]
    assert {fingerprint(m) for m in same} == {fingerprint(model)}
    net = copy.deepcopy(model.net_)
    net.offsets[0, 0] += 1e-6
    front = model.front_
    assert front is not None
    other = LinearFront(front.mean, np.nextafter(front.loadings, 2), front.variance, front.variance_ratio)
    different = [
        changed(net_=net),
        changed(front_=other),
        changed(front_=None),
        changed(scale_=np.nextafter(model.scale_, np.float32(0))),
        changed(batches_=model.batches_[::-1]),
        fitted(None),
    ]
    assert len({fingerprint(m) for m in [model, *different]}) == 1 + len(different)


def test_a_copied_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(read(tmp_path / "copy")) == fingerprint(fitted())


def test_a_model_of_several_covariates_comes_back_whole(tmp_path: Path) -> None:
    x, _ = cells()
    batch = np.column_stack([np.arange(60) % 3, np.arange(60) // 3 % 2]).astype(str)
    model = CellNorm(n_latent=3, n_comps=5, n_hidden=4, n_steps=4, n_pairs=16, device="cpu").fit(x, batch)
    grown = model.add_batch(x[:20] + 1, "later")
    for name, one in (("m", model), ("grown", grown)):
        one.save(tmp_path / name)
        again = CellNorm.load(tmp_path / name, device="cpu")
        assert again.batches_.tolist() == one.batches_.tolist()
        assert (again.net_.design == one.net_.design).all()
        assert (again.transform(x, batch) == model.transform(x, batch)).all()
        z = again.transform(x, batch)
        assert (again.inverse_transform(z, batch) == one.inverse_transform(z, batch)).all()
