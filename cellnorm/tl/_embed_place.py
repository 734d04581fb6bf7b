"""New cells placed, compared with the reference and labelled, by a model that learns of their batches."""

from __future__ import annotations

import copy
import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.adata import cell_keys
from cellnorm.checkpoint import check_folder, fingerprint
from cellnorm.determinism import one_thread
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.labels import listed
from cellnorm.stability import reach_of
from cellnorm.tl._correct import versions
from cellnorm.tl._embed_batches import Batches, learn_batches, read_batches, warn_of_far
from cellnorm.tl._embed_input import Features, read_features
from cellnorm.tl._embed_transfer import label_cells, labelled_reference
from cellnorm.training import encode, stage
from cellnorm.transfer import Support
from cellnorm.validation import check_matrix, known_codes

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["Embedded", "place_cells"]

logger = logging.getLogger(__name__)

LOW_MATCH = 0.05  # of cells like those of the reference one in twenty has less
MOST_OF_IT = 0.9  # with less of what the model sees, a difference to earlier cells may be that of the missing genes


class Embedded(NamedTuple):
    """New cells in the embedding.

    Attributes
    ----------
    z
        Where they lie, shape (n_cells, n_latent).
    cells
        Columns of obs: the match of each cell and what is transferred, by name.
    info
        What is written into uns.
    model
        The model that knows all their batches.
    labels
        Batch of each cell by its name in this model, shape (n_cells,).
    """

    z: NDArray[np.float32]
    cells: dict[str, NDArray[Any]]
    info: dict[str, Any]
    model: CellNorm
    labels: NDArray[np.object_]


def place_cells(
    adata: AnnData,
    model: str | os.PathLike[str] | CellNorm,
    batch_key: str | Sequence[str] | None,
    *,
    layer: str | None,
    use_rep: str | None,
    frozen: bool,
    as_new: bool,
    batch_name: str,
    columns: Sequence[str],
    reference: AnnData | None,
    save_model: str | os.PathLike[str] | None,
    force: bool,
    key_added: str | None,
    progress: Progress | None,
) -> Embedded:
    """All of `cellnorm.tl.embed` but the writing into `adata`, which is only read; the model is saved.

    Parameters
    ----------
    columns
        What to transfer.
    adata, model, batch_key, layer, use_rep, frozen, as_new, batch_name, reference, save_model, force, key_added
        See `cellnorm.tl.embed`.
    progress
        See `cellnorm.tl.embed`.

    Raises
    ------
    DataError
        If the model cannot be read, or matrix, genes, batches or labels do not fit it.
    """
    _check_columns(columns, key_added)
    if save_model is not None:
        check_folder(save_model, force=force)
    known = model if isinstance(model, CellNorm) else CellNorm.load(model)
    labelled = {column: labelled_reference(known, column, reference, key_added) for column in columns}
    batches = read_batches(adata, known, batch_key, as_new=as_new, batch_name=batch_name)
    seconds: dict[str, float] = {}
    with stage("prepare", seconds, progress):
        features = read_features(adata, known, layer=layer, use_rep=use_rep)
    with stage("map", seconds, progress):
        grown = learn_batches(features.model, features.X, batches, frozen=frozen)
    described = _described(grown, batches, features, frozen=frozen)
    if known.strength_ < 1 and not batches.known.all():
        logger.warning(
            "The model corrects with %s, and new batches no more than that. Where they differ from the reference, "
            "correct this again with strength 1.",
            known.evidence_.why,
        )
    with stage("encode", seconds, progress):
        z, codes, match, x = _encoded(grown, features, batches)
    cells: dict[str, NDArray[Any]] = dict(zip(cell_keys(key_added), (match,), strict=True))
    with stage("transfer", seconds, progress):
        if labelled:
            reach = reach_of(grown.net_, x, codes, float(grown.scale_))
            for column, kept in labelled.items():
                said = label_cells(grown, kept, z, match, features.length, reach)
                cells |= zip(cell_keys(key_added, column), said, strict=True)
    whole = _with_all_genes(grown, known)
    if save_model is not None:
        whole.save(save_model, force=force)
    asked = {"frozen": frozen, "as_new": as_new, "layer": layer, "use_rep": use_rep, "transfer": list(columns)}
    info = {
        "parameters": {**known.get_params(), **asked},
        "random_state": known.random_state,
        "versions": versions(),
        "model": fingerprint(whole),
        "reference": fingerprint(known),
        **described,
        "seconds": seconds,
        "device": known.device_,
    }
    return Embedded(z, cells, info, whole, batches.labels)


def _check_columns(columns: Sequence[str], key_added: str | None) -> None:
    """Refuse labels whose columns would have the name of another."""
    keys = [key for label in (None, *columns) for key in cell_keys(key_added, label)]
    if double := [key for key, n in Counter(keys).items() if n > 1]:
        raise DataError(
            f"Labels {listed(columns)} would be written into {listed(double)} more than once. Rename their columns in "
            "the reference, or transfer them one at a time with a key_added for each."
        )


def _encoded(
    model: CellNorm, features: Features, batches: Batches
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float64], NDArray[np.float32]]:
    """Embedding of the cells (n_cells, n_latent), numbers of their batches, their support, what the network sees."""
    codes = known_codes(batches.labels, model.batches_, len(batches.labels))
    check_matrix(features.X, 0)
    with one_thread():
        pcs = (features.X if model.front_ is None else model.front_.project(features.X)) / model.scale_
        z = encode(model.net_, pcs, codes) * model.scale_
    if features.match is None or features.match.share > MOST_OF_IT:
        warn_of_far(model, pcs, batches)
    shift, seen = model.net_.shift.detach().cpu().numpy(), model.sketch_batch_
    support = Support.fit(model.sketch_ - shift[seen], model.reference_embedding(), seen)
    met = {}
    for b in np.intersect1d(codes, model.added_batch_):
        some = model.added_[model.added_batch_ == b]
        met[int(b)] = support.meet(some - shift[b], encode(model.net_, some, np.full(len(some), b)) * model.scale_)
    match = support.score(pcs - shift[codes], z, codes, met)
    logger.info(
        "match: %d of %d cells (%.0f %%) have hardly any support in the reference (below %s)",
        *((match < LOW_MATCH).sum(), len(match), 100 * (match < LOW_MATCH).mean(), LOW_MATCH),
    )
    return z, codes, match, pcs


def _described(model: CellNorm, batches: Batches, features: Features, *, frozen: bool) -> dict[str, Any]:
    """What is known of batches and genes, for uns; said in the log, too."""
    rows = known_codes(batches.names, model.batches_, len(batches.names))
    how = np.where(batches.known, "known", "frozen" if frozen else "new").astype(object)
    n_cells = np.array([(batches.labels == name).sum() for name in batches.names])
    said = [f"{listed([name])} {way} ({n} cells)" for name, way, n in zip(batches.names, how, n_cells, strict=True)]
    more = f" and {len(said) - 12} more" if len(said) > 12 else ""
    logger.info("batches: %s%s", ", ".join(said[:12]), more)
    genes = np.asarray(getattr(model, "feature_names_in_", ()), dtype=object)
    found = np.zeros(0, bool) if features.match is None else features.match.found
    return {
        "batch_key": batches.key,
        "batches": {
            "name": batches.names,
            "label": batches.found,
            "n_cells": n_cells,
            "n_matched": model.matched_[rows],
            "treatment": how,
        },
        "matrix": features.source,
        "matrix_kind": features.kind,
        "genes": genes[found] if len(found) else np.empty(0, dtype=object),
        "genes_missing": genes[~found] if len(found) else np.empty(0, dtype=object),
        "genes_share": 1.0 if features.match is None else features.match.share,
    }


def _with_all_genes(grown: CellNorm, known: CellNorm) -> CellNorm:
    """The model that knows the new batches, with all genes again."""
    whole = copy.copy(grown)
    whole.front_, whole.n_features_in_ = known.front_, known.n_features_in_
    # by which the cells of the reference are known still; a model that learnt nothing is the same model
    if len(whole.batches_) > len(known.batches_):
        whole.input_ = {**known.input_, "made_from": [*known.input_.get("made_from", []), fingerprint(known)]}
    return whole
