"""What CellNorm does with principal components, wherever they come from: learn from them, and embed them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from cellnorm.anchors import Anchors, cosine, level_anchors
from cellnorm.autoencoder import AutoencoderConfig
from cellnorm.counterparts import Counterparts, find_counterparts
from cellnorm.covariates import level_codes
from cellnorm.determinism import one_thread
from cellnorm.fitting import choose_sketch, fit_network
from cellnorm.front import LinearFront
from cellnorm.kinds import n_kinds
from cellnorm.parts import spans
from cellnorm.strength import Strength, choose_strength
from cellnorm.training import Progress, TrainingConfig, encode, stage
from cellnorm.validation import check_cells, check_strength, choose_device, encode_labels, known_codes

__all__ = ["begin", "codes_of", "fit_components", "learn", "place"]

Labels = tuple[NDArray[np.int64], NDArray[np.float32]]


def fit_components(
    model: Any, pcs: NDArray[np.float32], front: LinearFront, batch: Any, *, progress: Progress | None = None
) -> Any:
    """Learn the common frame of the batches from components that were found elsewhere.

    Parameters
    ----------
    model
        A CellNorm; is fitted.
    pcs
        Principal components as `front.project` gives them, shape (n_cells, n_comps); only the sketch is copied.
    front
        By which they were made.
    batch, progress
        As in `CellNorm.fit`.

    Returns
    -------
    The model.

    Raises
    ------
    DataError
        As `CellNorm.fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import CellNorm, LinearFront
    >>> X, batch = np.random.default_rng(0).normal(size=(60, 8)), np.arange(60) % 2
    >>> front = LinearFront.fit(X, 5)
    >>> model = CellNorm(n_latent=3, n_comps=5, n_steps=2)
    >>> bool((fit_components(model, front.project(X), front, batch).transform(X, batch)).any())
    True
    """
    labels = begin(model, batch, len(pcs), len(front.mean))
    check_cells(len(pcs), model.n_latent)
    model.front_ = front
    return learn(model, pcs, labels, progress)


def begin(model: Any, batch: Any, n_cells: int, n_features: int) -> Labels:
    """Forget what was fitted before; read the batch of each cell, and the levels that batches are made of."""
    check_strength(model.strength)
    names, codes, design = encode_labels(batch, n_cells)
    model.device_ = choose_device(model.device)
    model.batches_, model.counts_, model.n_features_in_ = names, np.bincount(codes), n_features
    model.seconds_ = {}
    model.input_ = {}
    model.labels_ = {}
    model.added_batch_ = np.empty(0, np.int64)
    return codes, design


def learn(model: Any, pcs: NDArray[np.float32], labels: Labels, progress: Progress | None) -> Any:
    """Sketch, anchors, strength and training, on components and what `begin` gave."""
    codes, design = labels
    rng = np.random.default_rng(model.random_state)
    with one_thread():
        with stage("anchors", model.seconds_, progress):
            cells, model.scale_ = choose_sketch(pcs, codes, rng, design.shape[1])
            model.sketch_, model.sketch_batch_, model.sketch_cells_ = pcs[cells] / model.scale_, codes[cells], cells
            model.added_ = model.sketch_[:0]
            levels = level_codes(design)[model.sketch_batch_]
            anchors = level_anchors(cosine(model.sketch_), levels, model.n_neighbors, model.device_)
            told = find_counterparts(model.sketch_, model.sketch_batch_, anchors, model.n_neighbors, rng)
        with stage("strength", model.seconds_, progress):
            given = None if model.strength is None else Strength(float(model.strength))
            model.evidence_ = given or choose_strength(model.sketch_, model.sketch_batch_, model.random_state)
        with stage("train", model.seconds_):
            _train(model, told, told.keep(anchors), design, progress, rng)
        model.net_.strength.fill_(model.strength_)
    return model


def _train(
    model: Any,
    told: Counterparts,
    anchors: Anchors,
    design: NDArray[np.float32],
    progress: Progress | None,
    rng: np.random.Generator,
) -> None:
    x, batch = model.sketch_, model.sketch_batch_
    settings = TrainingConfig(
        n_steps=model.n_steps,
        n_pairs=model.n_pairs,
        n_others=model.n_pairs // 4,
        n_neighbors=model.n_neighbors,
        learning_rate=model.learning_rate,
        weight_decay=model.weight_decay,
        contrast=model.contrast,
        geometry=model.geometry,
    )
    sizes = x.shape[1], len(model.batches_), model.n_latent, model.n_hidden, n_kinds(len(x))
    config = AutoencoderConfig(*sizes, model.dropout, n_levels=design.shape[1])
    found = fit_network(x, batch, anchors, config, settings, model.device_, rng, progress, design, told)
    model.net_, anchors, model.history_ = found
    model.matched_ = np.bincount(batch[anchors.matched(len(x))], minlength=len(model.batches_))


def place(
    model: Any, pcs: NDArray[np.float32], codes: NDArray[np.integer[Any]], strength: float | None = None
) -> NDArray[np.float32]:
    """Embed components of cells, part by part.

    Parameters
    ----------
    model
        A fitted CellNorm.
    pcs
        Shape (n_cells, n_comps); may lie in a memory map.
    codes
        Batch of each cell among those of the model.
    strength
        As in `CellNorm.transform`.

    Returns
    -------
    Shape (n_cells, n_latent), in the units of the components.
    """
    out = np.empty((len(pcs), model.n_latent), np.float32)
    as_they_are = (model.strength_ if strength is None else strength) == 0  # which dividing and multiplying would round
    with one_thread():
        for span in spans(len(pcs)):
            part = pcs[span]
            z = encode(model.net_, part / model.scale_, np.asarray(codes[span], np.int64), strength=strength)
            out[span] = z * model.scale_
            if as_they_are:
                width = min(z.shape[1], part.shape[1])
                out[span, :width] = part[:, :width]
    return out


def codes_of(model: Any, batch: Any, pcs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of each cell's batch; without labels, of the batch of the nearest cell of the sketch."""
    if batch is not None:
        return known_codes(batch, model.batches_, len(pcs))
    near = NearestNeighbors(n_neighbors=1, algorithm="brute", n_jobs=1).fit(model.sketch_)
    found = near.kneighbors(pcs / model.scale_, return_distance=False)[:, 0]
    return np.asarray(model.sketch_batch_[found], np.int64)
