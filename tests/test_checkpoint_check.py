"""A config or an array that no model has is told, even where every checksum fits."""

import json
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from saved import cells, fitted, make_folder, make_original, reseal  # noqa: F401 - fixtures

from cellnorm import CellNorm, DataError
from cellnorm.checkpoint._check import blank_network, complaints, faults
from cellnorm.checkpoint._file import CONFIG, read

DEFAULTS = CellNorm().get_params()


def test_a_good_model_gives_no_complaint(original: Path) -> None:
    config, arrays = read(original, DEFAULTS)
    assert list(complaints(config, DEFAULTS)) == []
    assert list(faults(config, arrays)) == []


def test_a_blank_network_has_no_memory(original: Path) -> None:
    net = blank_network(read(original, DEFAULTS)[0])
    assert {v.device.type for v in net.state_dict().values()} == {"meta"}
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in fitted().net_.state_dict().items()
    }


CONFIGS: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda c: c.pop("scale"), "the key 'scale' is missing or unknown"),
    (lambda c: c.pop("checksum"), "its checksum is not"),
    (lambda c: c.update(surprise=1), "the key 'surprise' is missing or unknown"),
    (lambda c: c["batches"].__setitem__(0, "a\x1b[2J"), r"'a\\x1b\[2J' holds a control character"),
    (lambda c: c["genes"].__setitem__(3, "line\nbreak"), "control character"),
    (lambda c: c["input"].update({"nested": [{"a\0": 1}]}), "control character"),
    (lambda c: c["batches"].append("third"), "batches has 3 names where 2 are needed"),
    (lambda c: c.update(batches=["same", "same"]), "batches holds a name twice"),
    (lambda c: c.update(batches=[1, 2]), "batches is no list of names"),
    (lambda c: c.update(batches="ab"), "batches is no list of names"),
    (lambda c: c["genes"].pop(), "genes has 11 names where 12 are needed"),
    (lambda c: c.update(counts=[30, -1]), "counts is not a number for each"),
    (lambda c: c.update(matched=[30]), "matched is not a number for each"),
    (lambda c: c.update(matched=[30, True]), "matched is not a number for each"),
    (lambda c: c["parameters"].pop("dropout"), "parameters are not those of CellNorm"),
    (lambda c: c["parameters"].update(shell="rm"), "parameters are not those of CellNorm"),
    (lambda c: c["parameters"].update(n_hidden="wide"), "parameter 'n_hidden' is 'wide'"),
    (lambda c: c["parameters"].update(n_hidden=True), "parameter 'n_hidden' is True"),
    (lambda c: c["parameters"].update(contrast=10**400), "parameter 'contrast'"),
    (lambda c: c["parameters"].update(device=["cpu"]), "parameter 'device'"),
    (lambda c: c["parameters"].update(n_latent=7), "n_latent is 7"),
    (lambda c: c["parameters"].update(n_comps=None), "do not go together"),
    (lambda c: c.update(front=1), "do not go together"),
    (lambda c: c["network"].update(n_hidden=0), "n_hidden of network is 0"),
    (lambda c: c["network"].update(n_features=-3), "n_features of network is -3"),
    (lambda c: c["network"].update(n_batches=10**9), "n_batches of network is 1000000000"),
    (lambda c: c["network"].update(n_levels=0), "n_levels of network is 0"),
    (lambda c: c["network"].pop("n_levels"), "network is not what it should be"),
    (lambda c: c["network"].update(dropout=-0.5), "dropout of network is -0.5"),
    (lambda c: c["network"].update(dropout="much"), "dropout of network is 'much'"),
    (lambda c: c["network"].update(more=1), "network is not what it should be"),
    (lambda c: c.update(network=[]), "network is not what it should be"),
    (lambda c: c["sizes"].update(n_sketch=0), "n_sketch of sizes is 0"),
    (lambda c: c["sizes"].update(n_steps=9_999_999), "ask for 2"),
    (lambda c: c["sizes"].update(n_sketch=59), "'sketch' is float32 .*, expected float32"),
    (lambda c: c.update(scale=0.0), "scale is 0.0"),
    (lambda c: c.update(scale=-1), "scale is -1"),
    (lambda c: c.update(scale="1"), "scale is '1'"),
    (lambda c: c.update(n_features=3.5), "n_features is 3.5"),
    (lambda c: c.update(strength=1.0), "strength is not what it should be"),
    (lambda c: c["strength"].pop("p"), "strength is not what it should be"),
    (lambda c: c["strength"].update(value=1.5), "value of strength is 1.5"),
    (lambda c: c["strength"].update(value=-0.5), "value of strength is -0.5"),
    (lambda c: c["strength"].update(value=None), "value of strength is None"),
    (lambda c: c["strength"].update(value=True), "value of strength is True"),
    (lambda c: c["strength"].update(within="much"), "within of strength is 'much'"),
    (lambda c: c["strength"].update(p=None), "within and p of strength do not go together"),
    (lambda c: c["strength"].update(value=0.5), "'net.strength' is .*, and the strength 0.5"),
    (lambda c: c["parameters"].update(strength="much"), "parameter 'strength' is 'much'"),
    (lambda c: c.update(weights={}), "weights is not what it should be"),
    (lambda c: c["weights"].update(sha256=None), "weights is not what it should be"),
    (lambda c: c["weights"].update(sha256=""), "weights is not what it should be"),
    (lambda c: c["weights"].update(bytes=10**15), "its length says 1000000000000000"),
    (lambda c: c["weights"].update(bytes=-1), "bytes of weights is -1"),
    (lambda c: c.update(labels=[]), "input, labels or versions"),
    (lambda c: c.update(input=None), "input, labels or versions"),
    (lambda c: c["labels"].update({"cell type / α": []}), "is no list of names"),
    (lambda c: c["labels"].update({"cell type / α": ["", "B"]}), "labels.0.* holds numbers beyond 0 to 1"),
    (lambda c: c.update(labels={}), "labels.0.* is missing or unknown"),
]


@pytest.mark.parametrize(("change", "words"), CONFIGS)
def test_a_config_that_no_model_has(folder: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    reseal(folder, change)
    with pytest.raises(DataError, match=words) as caught:
        CellNorm.load(folder, device="cpu")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def setting(name: str, value: Any) -> Callable[[dict[str, NDArray[Any]]], Any]:
    def change(arrays: dict[str, NDArray[Any]]) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[0] = value

    return change


ARRAYS: list[tuple[Callable[[dict[str, NDArray[Any]]], Any], str]] = [
    (lambda a: a.pop("sketch"), "'sketch' is missing or unknown"),
    (lambda a: a.update(extra=np.zeros(1)), "'extra' is missing or unknown"),
    (
        lambda a: a.update({"net.shift": a["net.shift"].astype(np.float64)}),
        "net.shift.* is float64 .*, expected float32",
    ),
    (lambda a: a.update({"net.shift": a["net.shift"].T.copy()}), r"net.shift.*\(5, 2\), expected float32 \(2, 5\)"),
    (lambda a: a.update({"front.mean": a["front.mean"].astype(np.float16)}), "holds values of type F16"),
    (lambda a: a.update({"front.mean": a["front.mean"].astype(bool)}), "holds values of type BOOL"),
    (lambda a: a.update({"sketch": a["sketch"][:-1].copy()}), r"'sketch' is float32 \(59, 5\)"),
    (setting("net.axes", np.nan), "net.axes.* holds NaN or infinite values"),
    (setting("front.loadings", np.inf), "front.loadings.* holds NaN or infinite values"),
    (setting("sketch", -np.inf), "'sketch' holds NaN or infinite values"),
    (setting("history.loss", np.nan), "history.loss.* holds NaN"),
    (setting("net.encoder.norm.var", -1), "encoder.norm.var.* holds a negative value"),
    (setting("net.decoder.norm.spread", 0), "decoder.norm.spread.* holds a negative value, or zero"),
    (setting("front.variance", -1), "front.variance.* holds a negative value"),
    (setting("sketch_batch", 2), "'sketch_batch' holds numbers beyond 0 to 1"),
    (setting("sketch_batch", -1), "'sketch_batch' holds numbers beyond 0 to 1"),
    (setting("sketch_cells", -1), "'sketch_cells' holds numbers"),
    (setting("net.design", 0.5), "net.design.* is not zeros and ones"),
    (setting("net.design", 0), "net.design.* is not zeros and ones"),
    (setting("labels.0", 3), "labels.0.* holds numbers beyond 0 to 2"),
]


@pytest.mark.parametrize(("change", "words"), ARRAYS)
def test_an_array_that_no_model_has(folder: Path, change: Callable[[dict[str, NDArray[Any]]], Any], words: str) -> None:
    reseal(folder, arrays=change)
    with pytest.raises(DataError, match=words):
        CellNorm.load(folder, device="cpu")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Ways to everything in nested lists and dicts."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in inner for p in leaves(v, (*path, k))]


STRANGE: list[Any] = [None, True, -1, 0, 1, 2, 10**7, 10**20, 10**300, 0.5, 1e308, "", "x", [], {}, [[]], {"a": {}}]


@given(place=st.integers(0, 10**6), value=st.sampled_from(STRANGE))
@settings(max_examples=120)
def test_any_config_is_a_model_or_refused(
    original: Path, tmp_path_factory: pytest.TempPathFactory, place: int, value: Any
) -> None:
    folder = Path(shutil.copytree(original, tmp_path_factory.mktemp("any") / "model"))

    def change(config: dict[str, Any]) -> None:
        *way, last = (ways := leaves(config))[place % len(ways)]
        for step in way:
            config = config[step]
        config[last] = value

    reseal(folder, change)
    x, _ = cells()
    try:
        model = CellNorm.load(folder, device="cpu")
        assert model.transform(x).shape == (60, 3)
    except DataError:
        pass
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "sizes",
    [
        {"network": {"n_hidden": 9_999_999}},
        {"network": {"n_features": 9_999_999}, "n_features": 9_999_999},
        {"network": {"n_latent": 9_999_999}, "parameters": {"n_latent": 9_999_999}},
        {"sizes": {"n_sketch": 9_999_999, "n_steps": 9_999_999}},
    ],
)
def test_no_memory_is_taken_because_a_config_says_so(folder: Path, sizes: dict[str, Any]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def change(config: dict[str, Any]) -> None:
        for key, values in sizes.items():
            config[key] = config[key] | values if isinstance(values, dict) else values
        config["genes"] = None
        needed = 4 * 9_999_999 * 10
        config["weights"]["bytes"] = needed

    reseal(folder, change)
    with pytest.raises(DataError):
        CellNorm.load(folder, device="cpu")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_the_config_is_json_that_others_can_read(original: Path) -> None:
    assert json.loads((original / CONFIG).read_text(encoding="utf-8"))["network"] == {
        "n_features": 5,
        "n_batches": 2,
        "n_latent": 3,
        "n_hidden": 4,
        "n_kinds": 2,
        "dropout": 0.1,
        "n_levels": 2,
    }
