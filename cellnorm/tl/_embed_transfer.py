"""Labels of the reference for new cells: where they are kept, and what is known of each answer."""

from __future__ import annotations

import logging
from collections import Counter
from typing import NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import representation, result_keys
from cellnorm.anchors import sketch
from cellnorm.checkpoint import fingerprints
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.labels import batch_labels, kept_labels, listed
from cellnorm.stability import Reach, label_radius, stretch
from cellnorm.transfer import LabelTransfer

__all__ = ["UNKNOWN", "CellLabels", "Labelled", "label_cells", "labelled_reference"]

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
MAX_REFERENCE = 20_000  # labelled cells that are compared with; more of them hardly change a majority


class Labelled(NamedTuple):
    """Cells of the reference.

    Attributes
    ----------
    z
        Their embedding, shape (n_reference, n_latent).
    batch
        Number of the batch of each, shape (n_reference,).
    labels
        Label of each, "" where it has none, shape (n_reference,).
    """

    z: NDArray[np.float32]
    batch: NDArray[np.int64]
    labels: NDArray[np.object_]


class CellLabels(NamedTuple):
    """What is said of new cells.

    Attributes
    ----------
    labels
        The label that most of the nearest cells of the reference have, or "unknown", shape (n_cells,).
    probability
        How probable it is that this label is right, shape (n_cells,).
    radius
        Change of the expression, relative to its length, within which the label stays for certain, shape (n_cells,).
    """

    labels: NDArray[np.object_]
    probability: NDArray[np.float64]
    radius: NDArray[np.float64]


def labelled_reference(
    model: CellNorm, column: str, reference: AnnData | None = None, key_added: str | None = None
) -> Labelled:
    """Find the cells of the reference with their labels.

    Parameters
    ----------
    model
        A fitted model; the labels that it holds are taken if no reference is given.
    column
        Column of obs with the labels.
    reference
        The cells of the reference, corrected with this model.
    key_added
        As given to `cellnorm.tl.correct` for them.

    Raises
    ------
    DataError
        If there are no such labels, or the reference was corrected with another model.
    """
    if reference is not None:
        return _of_file(model, column, reference, key_added)
    if column not in model.labels_:
        has = f"the model holds those of {listed(model.labels_)}" if model.labels_ else "the model holds none"
        raise DataError(
            f"Labels {column!r} were to be transferred, but {has}. Make it with them (cellnorm correct --save-model "
            f"DIR --label-key {column}), or give the corrected cells of the reference (--reference FILE; in Python: "
            "reference=adata)."
        )
    return Labelled(model.reference_embedding(), model.sketch_batch_, model.labels_[column])


def _of_file(model: CellNorm, column: str, reference: AnnData, key_added: str | None) -> Labelled:
    obsm_key, uns_key = result_keys(key_added)
    info = reference.uns.get(uns_key)
    made_by = str(info.get("model", "")) if isinstance(info, dict) else ""
    if obsm_key not in reference.obsm or made_by not in fingerprints(model):
        found = "is of another model" if made_by else "says of no model"
        raise DataError(
            f"The reference must have been corrected with this very model, but its uns[{uns_key!r}] {found}. Give the "
            "file that cellnorm correct wrote together with the model (--save-model), or a model that holds the labels."
        )
    labels = kept_labels(reference, column)
    _, batch = np.unique(batch_labels(reference, list(info["batch_key"]), several=False), return_inverse=True)
    cells = np.flatnonzero(labels != "")
    if len(cells) > MAX_REFERENCE:
        per_batch = max(1, MAX_REFERENCE // len(np.unique(batch[cells])))
        cells = cells[sketch(batch[cells], per_batch, np.random.default_rng(model.random_state))]
    z, _ = representation(reference, obsm_key)
    return Labelled(z[cells], batch[cells], labels[cells])


def label_cells(
    model: CellNorm,
    reference: Labelled,
    z: NDArray[np.float32],
    match: NDArray[np.float64],
    length: NDArray[np.float64],
    reach: Reach,
) -> CellLabels:
    """Label new cells like the nearest cells of the reference, where the evidence suffices.

    Parameters
    ----------
    model
        A model that knows their batches.
    reference
        See `labelled_reference`.
    z, match
        Embedding (n_cells, n_latent) and support (`cellnorm.transfer.Support`) of the new cells.
    length
        Length of each cell's log-expression, shape (n_cells,).
    reach
        How far changes of these cells go (`cellnorm.stability.reach_of`).
    """
    transfer = LabelTransfer.fit(reference.z, reference.batch, reference.labels)
    found = transfer.predict(z, match)
    labels = np.where(found.known, found.labels, UNKNOWN).astype(object)
    # with genes missing the loadings are not orthonormal: a change of the expression is then stretched by them too
    widest = 1.0 if model.front_ is None else max(1.0, stretch(model.front_.loadings))
    radius = label_radius(z, transfer.z, transfer.labels, transfer.k, reach) / widest
    relative = np.divide(radius, length, out=np.zeros_like(radius), where=length > 0)
    counts = Counter(labels.tolist())
    n_unknown = counts.pop(UNKNOWN, 0)
    said = ", ".join(f"{name} {n}" for name, n in counts.most_common(12))
    more = f" and {len(counts) - 12} more" if len(counts) > 12 else ""
    logger.info("labels: %s%s; unknown %d of %d", said or "none", more, n_unknown, len(labels))
    return CellLabels(labels, found.probability, np.where(found.known, relative, 0.0))
