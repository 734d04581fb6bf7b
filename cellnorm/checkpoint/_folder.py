"""A trained model as a folder: config.json, which people can read, and weights.safetensors; nothing in it is executed.

A loaded model gives the same bits on the same machine: arrays are kept as they are, and in the order in which they lie
in memory, so that sums round as they did. Of the data it holds the cells of the sketch, as principal components.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from cellnorm import __version__
from cellnorm.checkpoint._check import Arrays, Config, blank_network
from cellnorm.checkpoint._file import CONFIG, FORMAT, VERSION, WEIGHTS, looks_like, read, sealed
from cellnorm.errors import DataError
from cellnorm.front import LinearFront
from cellnorm.output import reason, replacing, shown
from cellnorm.strength import Strength
from cellnorm.training import TERMS, History
from cellnorm.validation import choose_device

__all__ = ["check_folder", "fingerprint", "fingerprints", "load", "save"]

NORMALISATION = {
    "counts": "log(1 + 10,000 x count / counts of the cell), the counts of all genes of the file",
    "log": "log-normalised expression as given",
    "representation": "a low-dimensional representation as given",
}


def save(model: Any, path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Write a fitted model into a new folder, whole or not at all.

    Parameters
    ----------
    model
        A fitted CellNorm.
    path
        The folder to make.
    force
        Replace a model that is there; anything else that is there stays.

    Raises
    ------
    DataError
        The folder exists or cannot be written; the model holds what could not be read again.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from cellnorm import CellNorm
    >>> from cellnorm.checkpoint import load, save
    >>> X, batch = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 2
    >>> model = CellNorm(n_latent=3, n_comps=5, n_steps=2, device="cpu").fit(X, batch)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(model, pathlib.Path(folder, "model"))
    ...     again = CellNorm.load(pathlib.Path(folder, "model"), device="cpu")
    >>> bool((again.transform(X, batch) == model.transform(X, batch)).all())
    True
    """
    check_is_fitted(model, "net_")
    check_folder(path, force=force)
    config, arrays = _described(model)
    text, weights = sealed(config, arrays, type(model)().get_params())
    try:
        with replacing(Path(path)) as temporary:
            temporary.mkdir()
            (temporary / CONFIG).write_bytes(text)
            (temporary / WEIGHTS).write_bytes(weights)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The model {shown(path)} cannot be written: {reason(error)}. Choose another folder."
        ) from error


def load(path: str | os.PathLike[str], *, make: Callable[..., Any], device: str) -> Any:
    """Read a model that `save` wrote; on the same machine its answers are the same to the bit.

    Parameters
    ----------
    path
        The folder.
    make
        Makes an estimator from its parameters: CellNorm.
    device
        Where it shall compute, as in the parameters of CellNorm; takes the place of the saved one.

    Raises
    ------
    DataError
        There is no such folder, or it is no model, or of a newer format, or not as it was written.
    """
    folder = Path(path)
    if not os.path.isdir(folder):  # which never raises, whatever the name
        found = "is a file" if os.path.exists(folder) else "is not there"
        raise DataError(f"The model {shown(path)} {found}. Give the folder that a model was saved into.")
    try:
        config, arrays = read(folder, make().get_params())
    except DataError as error:
        raise DataError(f"The model {shown(path)} cannot be used: {error}") from None
    return _rebuilt(config, arrays, make, device)


def check_folder(path: str | os.PathLike[str], *, force: bool = False) -> None:
    """Refuse, before any long work, a folder that a model could not be saved into or that would lose something else.

    Parameters
    ----------
    path
        The folder to make.
    force
        A model that is there may be replaced.

    Raises
    ------
    DataError
        It exists and `force` is not set, or is no model; or there is no folder to make it in.
    """
    target = Path(path)
    if os.path.lexists(target):
        if not looks_like(target):
            raise DataError(f"{shown(path)} exists, is no model and is not replaced. Choose another name.")
        if not force:
            raise DataError(f"{shown(path)} exists. Choose another name, or replace it (force).")
    if not os.path.isdir(target.parent):
        raise DataError(f"There is no folder {shown(target.parent)} to save a model in. Make it, or choose another.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise DataError(f"Nothing may be written into {shown(target.parent)}. Choose another folder for the model.")


def fingerprint(model: Any) -> str:
    """SHA-256 of all that decides where a fitted model puts a cell: front, scale, network and names of the batches."""
    state = {f"net.{k}": v.detach().cpu().numpy() for k, v in sorted(model.net_.state_dict().items())}
    arrays = {**_front_arrays(model.front_), "scale": np.array([model.scale_], np.float32), **state}
    total = hashlib.sha256(json.dumps([str(b) for b in model.batches_]).encode())
    for name, values in arrays.items():
        total.update(json.dumps([name, str(values.dtype), values.shape]).encode())
        total.update(np.ascontiguousarray(values).tobytes())
    return total.hexdigest()


def fingerprints(model: Any) -> set[str]:
    """Fingerprints of a model and of those that it was made from by adding batches: all embed the reference alike."""
    return {fingerprint(model), *model.input_.get("made_from", ())}


def _front_arrays(front: LinearFront | None) -> Arrays:
    """Loadings lie in memory gene by gene of one component after the other, and are kept so: sums round as they did."""
    if front is None:
        return {}
    kept = {"mean": front.mean, "loadings": front.loadings.T}
    kept |= {"variance": front.variance, "variance_ratio": front.variance_ratio}
    return {f"front.{k}": np.ascontiguousarray(v, np.float64) for k, v in kept.items()}


def _described(model: Any) -> tuple[Config, Arrays]:
    """What is written of a model, but for the checksums."""
    labels = {
        str(c): np.unique(np.asarray(v, object).astype(str), return_inverse=True) for c, v in model.labels_.items()
    }
    sizes = {"n_sketch": len(model.sketch_), "n_added": len(model.added_), "n_steps": len(model.history_.terms["loss"])}
    genes, history = getattr(model, "feature_names_in_", None), model.history_.to_dict()
    arrays = {f"net.{k}": v.detach().cpu().contiguous().numpy() for k, v in model.net_.state_dict().items()}
    arrays |= _front_arrays(model.front_) | {f"history.{k}": v for k, v in history.items()}
    arrays |= {"sketch": model.sketch_, "sketch_batch": model.sketch_batch_, "sketch_cells": model.sketch_cells_}
    arrays |= {"added": model.added_, "added_batch": model.added_batch_}
    arrays |= {f"labels.{i}": codes.astype(np.int32) for i, (_, codes) in enumerate(labels.values())}
    parameters = {k: v.item() if isinstance(v, np.generic) else v for k, v in model.get_params().items()}
    config = {
        "format": FORMAT,
        "format_version": VERSION,
        "versions": {"cellnorm": __version__, **{p: version(p) for p in ("torch", "numpy", "scikit-learn")}},
        "normalisation": NORMALISATION.get(model.input_.get("kind", ""), "as given"),
        "input": model.input_,
        "parameters": parameters,
        "network": asdict(model.net_.config),
        "front": model.front_ is not None,
        "n_features": int(model.n_features_in_),
        "scale": float(model.scale_),
        "strength": asdict(model.evidence_),
        "batches": [str(b) for b in model.batches_],
        "counts": [int(n) for n in model.counts_],
        "matched": [int(n) for n in model.matched_],
        "sizes": {**sizes, "n_anchors": len(model.history_.n_anchors)},
        "labels": {column: categories.tolist() for column, (categories, _) in labels.items()},
        "genes": None if genes is None else [str(g) for g in genes],
    }  # fmt: skip
    return config, {k: np.ascontiguousarray(v) for k, v in arrays.items()}


def _rebuilt(config: Config, arrays: Arrays, make: Callable[..., Any], device: str) -> Any:
    model = make(**{**config["parameters"], "device": device})
    model.device_ = choose_device(device)
    net = blank_network(config)
    state = {k: torch.from_numpy(arrays[f"net.{k}"]).clone() for k in net.state_dict()}
    net.load_state_dict(state, assign=True)
    model.net_ = net.to(model.device_).eval()
    model.front_ = _front(arrays) if config["front"] else None
    model.n_features_in_, model.scale_ = config["n_features"], np.float32(config["scale"])
    model.evidence_ = Strength(**config["strength"])
    model.sketch_, model.sketch_batch_, model.sketch_cells_ = (
        arrays[k] for k in ("sketch", "sketch_batch", "sketch_cells")
    )
    model.added_, model.added_batch_ = arrays["added"], arrays["added_batch"]
    model.batches_ = np.array(config["batches"], object)
    model.counts_, model.matched_ = (np.array(config[k], np.int64) for k in ("counts", "matched"))
    model.history_ = History({t: arrays[f"history.{t}"] for t in TERMS}, arrays["history.n_anchors"])
    model.seconds_, model.input_ = {}, config["input"]
    named = enumerate(config["labels"].items())
    model.labels_ = {c: np.array(names, object)[arrays[f"labels.{i}"]] for i, (c, names) in named}
    if config["genes"] is not None:
        model.feature_names_in_ = np.array(config["genes"], object)
    return model


def _front(arrays: Arrays) -> LinearFront:
    mean, loadings, variance, ratio = (arrays[f"front.{k}"] for k in ("mean", "loadings", "variance", "variance_ratio"))
    return LinearFront(mean, loadings.T, variance, ratio)
