"""The batches of new cells: which of them a model knows, and what it learns of the others."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

from cellnorm.anchors import cosine, find_anchors
from cellnorm.determinism import one_thread
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.labels import batch_labels, guess_batch_key, listed
from cellnorm.tl._correct import SMALL_BATCH

if TYPE_CHECKING:
    from cellnorm.training import Progress

__all__ = ["Batches", "learn_batches", "read_batches", "warn_of_far"]

logger = logging.getLogger(__name__)

# Shift of matched cells against the cells of that name in the model, in distances between neighbouring cells. On nine
# real data sets two parts of a batch lie up to .25 apart, if the smaller has 50 cells (15 cells: .47), and batches of
# different protocols .3 to 2.
FAR, ENOUGH = 0.3, 50
MOST_CELLS = 3000  # that are looked at for it
MOST_SINGLE = 20  # new batches of one cell each: such a column names cells, not experiments


class Batches(NamedTuple):
    """What is to be done with each batch of the new cells.

    Attributes
    ----------
    labels
        Batch of each cell by its name in the model, shape (n_cells,).
    names
        The batches that occur, sorted, shape (n_batches,).
    found
        What each is called in obs, shape (n_batches,).
    known
        Which of them the model knows, shape (n_batches,).
    key
        Columns of obs that they come from; empty if all cells are one batch.
    """

    labels: NDArray[np.object_]
    names: NDArray[np.object_]
    found: NDArray[np.object_]
    known: NDArray[np.bool_]
    key: list[str]


def read_batches(
    adata: AnnData,
    model: CellNorm,
    batch_key: str | Sequence[str] | None,
    *,
    as_new: bool = False,
    batch_name: str = "new",
) -> Batches:
    """Batch of each new cell.

    Parameters
    ----------
    adata
        New cells; only obs is read.
    model
        A fitted model.
    batch_key, as_new, batch_name
        See `cellnorm.tl.embed`.

    Raises
    ------
    DataError
        If a column is missing or holds missing values, or names cells instead of experiments; if columns are asked for
        whose combinations the model cannot know by name.
    """
    taken = {str(name) for name in model.batches_}
    key = _key(adata, model, batch_key)
    if not as_new:
        key = _as_trained(key, model)
    if not key:
        name = _free(batch_name, taken)
        logger.info("batches: all %d cells are one new batch, %s", adata.n_obs, listed([name]))
        labels = np.full(adata.n_obs, name, dtype=object)
        names = np.array([name], dtype=object)
        return Batches(labels, names, names, np.zeros(1, bool), [])
    labels = batch_labels(adata, key, several=False)
    names, codes = np.unique(labels, return_inverse=True)
    known = np.isin(names, sorted(taken)) & (not as_new)
    renamed = names.copy()
    for i, name in enumerate(names):
        if not known[i]:
            renamed[i] = _free(str(name), taken)
            taken.add(renamed[i])
    if (n_new := int((~known).sum())) > MOST_SINGLE and np.bincount(codes)[~known].max() == 1:
        raise DataError(
            f"batch_key {listed(key)} has {n_new} values that are new to the model, each of one cell. Name a column "
            f"that tells experiments apart; obs has: {listed(adata.obs)}."
        )
    order = np.argsort(renamed.astype(str), kind="stable")
    return Batches(renamed[codes], renamed[order], names[order], known[order], key)


def _key(adata: AnnData, model: CellNorm, batch_key: str | Sequence[str] | None) -> list[str]:
    """The columns asked for, else those that the model was made with if they are there, else none."""
    if batch_key is not None:
        return [batch_key] if isinstance(batch_key, str) else list(dict.fromkeys(batch_key))
    own = [str(name) for name in model.input_.get("batch_key", [])]
    if own and all(name in adata.obs for name in own):
        logger.info("batches: column %s, as in the model", listed(own))
        return own
    try:
        guess, _ = guess_batch_key(adata.obs)
    except DataError:
        return []
    logger.info("if the cells are of several batches, name their column with --batch-key (%r may be it)", guess)
    return []


def _as_trained(key: list[str], model: CellNorm) -> list[str]:
    """The columns in the order of the model's, whose names of batches are made of them if there are several."""
    own = [str(name) for name in model.input_.get("batch_key", [])]
    if not key or not own or len(key) == len(own) == 1:
        return key
    if set(key) != set(own):
        raise DataError(
            f"batch_key {listed(key)} was asked for, but the batches of the model are made of {listed(own)}. Name "
            "these columns, or take all batches for new: --as-new (in Python: as_new=True)."
        )
    return own


def _free(name: str, taken: set[str]) -> str:
    """The name, with an addition where the model has a batch of that name."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} ({number})"
    return free


def learn_batches(
    model: CellNorm, X: Any, batches: Batches, *, frozen: bool = False, progress: Progress | None = None
) -> CellNorm:
    """A model that knows all the batches: each new one learns from its own cells alone.

    Parameters
    ----------
    model
        Made for the columns of X; it stays as it is.
    X
        As in `CellNorm.fit`, shape (n_cells, n_columns).
    batches
        Of the same cells.
    frozen
        Give new batches the shared statistics, without looking at their cells.
    progress
        Called with ("map", done, total, None).

    Raises
    ------
    DataError
        NaN or infinite values.
    """
    new = batches.names[~batches.known]
    for done, name in enumerate(new):
        if progress is not None:
            progress("map", done, len(new), None)
        rows = np.flatnonzero(batches.labels == name)
        model = model.add_batch(X[rows], str(name), frozen=frozen)
        if not frozen and len(rows) < SMALL_BATCH:
            logger.warning(
                "Batch %s has %d cells: too few for statistics of its own, so those shared by all batches decide.",
                *(listed([name]), len(rows)),
            )
    if len(new) and progress is not None:
        progress("map", len(new), len(new), None)
    return model


def warn_of_far(model: CellNorm, pcs: NDArray[np.float32], batches: Batches) -> list[str]:
    """Say which batches of a known name lie elsewhere than the cells of that name that the model was made with.

    Names like "1" repeat between labs. Matched cells are compared, so that another composition does not count.

    Parameters
    ----------
    model
        A fitted model.
    pcs
        Components of the new cells over the model's scale, shape (n_cells, n_comps).
    batches
        Of the same cells.

    Returns
    -------
    The names.
    """
    far, place = [], {name: code for code, name in enumerate(model.batches_)}
    for name in batches.names[batches.known]:
        own = model.sketch_[model.sketch_batch_ == place[name]]
        cells = np.flatnonzero(batches.labels == name)
        if min(len(own), len(cells)) >= ENOUGH and _shift(own, pcs[_spread(cells)]) > FAR:
            far.append(str(name))
    if far:
        logger.warning(
            "The cells of batch %s lie clearly off those of that name that the model was made with. If they are of "
            "another experiment of the same name, map them anew: --as-new (in Python: as_new=True).",
            listed(far),
        )
    return far


def _spread(cells: NDArray[np.int64]) -> NDArray[np.int64]:
    """At most MOST_CELLS of the cells, evenly."""
    return cells[np.linspace(0, len(cells) - 1, min(len(cells), MOST_CELLS)).astype(np.int64)]


def _shift(own: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """How far matched cells of two sets lie apart in the mean."""
    x = np.concatenate([own, other])
    side = np.repeat([0, 1], [len(own), len(other)])
    with one_thread():
        anchors = find_anchors(cosine(x), side, SMALL_BATCH)
    return float(np.linalg.norm((x[anchors.right] - x[anchors.left]).mean(axis=0))) if len(anchors) else 0.0
