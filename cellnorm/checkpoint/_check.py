"""What the content of a saved model must be, from its keys to its values; complaints say what is not so."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.training import TERMS

__all__ = ["Arrays", "Config", "blank_network", "complaints", "faults"]

Arrays = dict[str, NDArray[Any]]
Config = dict[str, Any]

# Far above any real model; below what would trouble a machine that is asked to read it.
MOST_WEIGHTS, MOST_HEADER, MOST_OF_ONE = 2**31, 2**20, 10**7
KEYS = {
    "format", "format_version", "versions", "normalisation", "input", "parameters", "network", "front", "n_features",
    "scale", "strength", "batches", "counts", "matched", "sizes", "labels", "genes", "weights", "checksum",
}  # fmt: skip
NETWORK = {"n_features", "n_batches", "n_latent", "n_hidden", "n_kinds", "n_levels"}
WEIGHTS = {"bytes", "sha256"}
STRENGTH = {"value", "within", "p"}
NEVER_ZERO = {"net.variance", "net.encoder.norm.spread", "net.decoder.norm.spread"}
MAY_BE_NONE = {"n_added", "n_steps", "n_anchors"}
SIZES = {"n_sketch", "n_added", "n_steps", "n_anchors"}
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def blank_network(config: Config) -> Autoencoder:
    """The network that a config describes, without memory for its weights."""
    with torch.device("meta"):
        return Autoencoder(AutoencoderConfig(**config["network"]))


def complaints(config: Config, defaults: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the content of a config, if anything: the first is told, the others may follow from it."""
    if unlike := set(config) ^ KEYS:
        yield f"the key {min(unlike)!r:.80} is missing or unknown"
    if text := next((t for t in _texts(config) if CONTROL.search(t)), None):
        yield f"the name {text!r:.80} holds a control character"
    yield from _of_dicts(config)
    given = config["parameters"]
    if not isinstance(given, dict) or set(given) != set(defaults):
        yield "its parameters are not those of CellNorm"
    for name, value in given.items():
        if value is not None and not _fits(value, defaults[name]):
            yield f"the parameter {name!r} is {value!r:.80}"
    network = config["network"]
    if given["n_latent"] != network["n_latent"]:
        yield f"n_latent is {given['n_latent']}, and the network was trained with {network['n_latent']}"
    if config["front"] is not (given["n_comps"] is not None):
        yield "n_comps and the presence of principal components do not go together"
    if not config["front"] and config["n_features"] != network["n_features"]:
        yield f"n_features is {config['n_features']!r:.40}, and the network has {network['n_features']}"
    yield from _of_lists(config)
    needed, length = _needed(config), config["weights"]["bytes"]
    if not needed <= length <= min(needed + MOST_HEADER, MOST_WEIGHTS):
        yield f"its sizes ask for {needed} bytes of weights, its length says {length}, and {MOST_WEIGHTS} are allowed"


def _of_dicts(config: Config) -> Iterator[str]:
    network, sizes, weights = config["network"], config["sizes"], config["weights"]
    for name, found, keys in (("network", network, NETWORK | {"dropout"}), ("sizes", sizes, SIZES)):
        if not isinstance(found, dict) or set(found) != keys:
            yield f"{name} is not what it should be"
        if bad := [k for k in keys - {"dropout"} if not _is_count(found[k], 0 if k in MAY_BE_NONE else 1)]:
            yield f"{min(bad)} of {name} is {found[min(bad)]!r:.40}"
    if not _fits(network["dropout"], 0.0) or not 0 <= network["dropout"] <= 1:
        yield f"dropout of network is {network['dropout']!r:.40}"
    if not isinstance(weights, dict) or set(weights) != WEIGHTS or not _is_hash(weights["sha256"]):
        yield "weights is not what it should be"
    if not _is_count(weights["bytes"], 1, 2**63):
        yield f"bytes of weights is {weights['bytes']!r:.40}"
    if not _is_count(config["n_features"], 1):
        yield f"n_features is {config['n_features']!r:.40}"
    yield from _of_strength(config["strength"])
    if not _fits(config["scale"], 0.0) or not 1e-30 < config["scale"] < 1e30:
        yield f"scale is {config['scale']!r:.40}"
    if not all(isinstance(config[k], dict) for k in ("input", "labels", "versions")):
        yield "input, labels or versions is not what it should be"


def _of_strength(found: Any) -> Iterator[str]:
    if not isinstance(found, dict) or set(found) != STRENGTH:
        yield "strength is not what it should be"
    for name, value in found.items():
        if (value is None and name == "value") or not (value is None or (_fits(value, 0.0) and 0 <= value <= 1)):
            yield f"{name} of strength is {value!r:.40}"
    if (found["within"] is None) is not (found["p"] is None):
        yield "within and p of strength do not go together"


def _of_lists(config: Config) -> Iterator[str]:
    n_batches = config["network"]["n_batches"]
    named = {"batches": (config["batches"], n_batches), "genes": (config["genes"], config["n_features"])}
    named |= {f"labels of {k}": (v, None) for k, v in config["labels"].items()}
    for name, (found, length) in named.items():
        if name == "genes" and found is None:
            continue
        if not isinstance(found, list) or not found or any(type(v) is not str for v in found):
            yield f"{name} is no list of names"
        if length is not None and len(found) != length:
            yield f"{name} has {len(found)} names where {length} are needed"
        if name != "genes" and len(set(found)) < len(found):
            yield f"{name} holds a name twice"
    for name in ("counts", "matched"):
        found = config[name]
        if not isinstance(found, list) or len(found) != n_batches or any(not _is_count(v, 0, 2**62) for v in found):
            yield f"{name} is not a number for each of {n_batches} batches"


def _layout(config: Config) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Type and shape of every array that belongs to a config."""
    sizes, n_genes, width = config["sizes"], config["n_features"], config["network"]["n_features"]
    n_sketch = sizes["n_sketch"]
    found: dict[str, tuple[type, tuple[int, ...]]] = {
        f"net.{k}": (np.float32, tuple(v.shape)) for k, v in blank_network(config).state_dict().items()
    }
    if config["front"]:
        found |= {"front.mean": (np.float64, (n_genes,)), "front.loadings": (np.float64, (width, n_genes))}
        found |= {f"front.{k}": (np.float64, (width,)) for k in ("variance", "variance_ratio")}
    found |= {"sketch": (np.float32, (n_sketch, width)), "sketch_batch": (np.int64, (n_sketch,))}
    n_added = sizes["n_added"]
    found |= {"added": (np.float32, (n_added, width)), "added_batch": (np.int64, (n_added,))}
    found |= {"sketch_cells": (np.int64, (n_sketch,)), "history.n_anchors": (np.int64, (sizes["n_anchors"],))}
    found |= {f"history.{term}": (np.float32, (sizes["n_steps"],)) for term in TERMS}
    return found | {f"labels.{i}": (np.int32, (n_sketch,)) for i in range(len(config["labels"]))}


def _needed(config: Config) -> int:
    return sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in _layout(config).values())


def faults(config: Config, arrays: Arrays) -> Iterator[str]:
    """What is wrong with the arrays that belong to a config, if anything: the first is told."""
    layout = _layout(config)
    if unlike := set(arrays) ^ set(layout):
        yield f"the array {min(unlike)!r:.80} is missing or unknown"
    for name, (kind, shape) in layout.items():
        values = arrays[name]
        if values.dtype != kind or values.shape != shape:
            yield f"the array {name!r} is {values.dtype} {values.shape}, expected {np.dtype(kind)} {shape}"
        if not np.isfinite(values).all():
            yield f"the array {name!r} holds NaN or infinite values"
        if (
            name.endswith(("spread", "var", "variance", "shares"))
            and not (values > 0 if name in NEVER_ZERO else values >= 0).all()
        ):
            yield f"the array {name!r} holds a negative value, or zero where none may be"
    design = arrays["net.design"]
    if not np.isin(design, (0, 1)).all() or not design.any(axis=1).all():
        yield "the array 'net.design' is not zeros and ones with a level for each batch"
    if arrays["net.strength"][0] != np.float32(config["strength"]["value"]):
        yield f"the array 'net.strength' is {arrays['net.strength'][0]}, and the strength {config['strength']['value']}"
    below = {**dict.fromkeys(("sketch_batch", "added_batch"), len(config["batches"])), "sketch_cells": 2**62}
    below |= {f"labels.{i}": len(names) for i, names in enumerate(config["labels"].values())}
    for name, end in below.items():
        if (arrays[name] < 0).any() or (arrays[name] >= end).any():
            yield f"the array {name!r} holds numbers beyond 0 to {end - 1}"


def _texts(value: Any) -> Iterator[str]:
    """All texts of nested lists and dicts."""
    left = [value]
    while left:
        found = left.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, dict):
            left += [*found, *found.values()]
        elif isinstance(found, list | tuple):
            left += found


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_count(value: Any, least: int, end: int = MOST_OF_ONE) -> bool:
    return type(value) is int and least <= value < end


def _fits(value: Any, default: Any) -> bool:
    """Whether a value is of the type of a default; a whole number does where a fraction, or nothing, may stand."""
    if default is None or type(default) is float:
        return type(value) in (int, float) and abs(value) < 1e300
    return type(value) is type(default)
