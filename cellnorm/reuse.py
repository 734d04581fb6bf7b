"""What a fitted model is used for later: new batches, the reference to compare them with, how far to trust an answer.

These are methods of `cellnorm.CellNorm`; `model` is the fitted estimator.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from cellnorm import mapping
from cellnorm.alarm import Alarm, judge
from cellnorm.anchors import different
from cellnorm.determinism import one_thread
from cellnorm.errors import DataError
from cellnorm.fitting import SKETCH_BATCH
from cellnorm.null import null_check
from cellnorm.stability import Bound, lipschitz
from cellnorm.training import Progress, decode, encode, stage
from cellnorm.validation import check_matrix, check_width, known_codes

__all__ = ["add_batch", "check", "inverse_transform", "largest_batch", "reference_embedding", "stability_bound"]


def check(model: Any, *, progress: Progress | None = None) -> Alarm:
    """Judge the correction on the cells of the sketch, without cell types, and split the largest batch as a null.

    Parameters
    ----------
    model
        A fitted CellNorm.
    progress
        Called with (stage, done, total, loss or None).

    Returns
    -------
    Alarm
        See `cellnorm.alarm.Alarm`: a verdict, why, and the numbers behind it.
    """
    check_is_fitted(model, "net_")
    with stage("check", model.seconds_, progress), one_thread():
        x, batch, largest = model.sketch_, model.sketch_batch_, largest_batch(model)
        settings = {"n_neighbors": model.n_neighbors, "random_state": model.random_state}
        found = judge(x, encode(model.net_, x, batch), model.batches_[batch], **settings)
        rng = np.random.default_rng(model.random_state)
        found = found.with_null(*null_check(model.net_, x[batch == largest], largest, model.n_neighbors, rng))
    if model.strength_ > 0:
        return found
    return found.unchanged("strength 0 was asked for" if model.strength == 0 else "no batch effect was found")


def largest_batch(model: Any) -> int:
    """Number of the largest batch that the model learnt from; those added later have no cells in the sketch."""
    return int(model.counts_[: int(model.sketch_batch_.max()) + 1].argmax())


def inverse_transform(model: Any, Z: Any, batch: Any = None) -> NDArray[np.float32]:
    """Expression that belongs to embedded cells, as one batch would show it.

    Parameters
    ----------
    model
        A fitted CellNorm.
    Z
        Embedding at the model's strength, shape (n_cells, n_latent).
    batch
        The batch whose frame is wanted, per cell; None: the largest batch for all, to make them comparable.

    Returns
    -------
    Expression, shape (n_cells, n_genes), or the representation itself with n_comps=None.

    Raises
    ------
    DataError
        Another width than n_latent, or an unknown batch.
    """
    check_is_fitted(model, "net_")
    z = np.asarray(Z, np.float32) / model.scale_
    check_width(z, model.n_latent)
    codes = np.full(len(z), largest_batch(model)) if batch is None else known_codes(batch, model.batches_, len(z))
    with one_thread():
        pcs = decode(model.net_, z, codes) * model.scale_
        return np.asarray(pcs) if model.front_ is None else np.asarray(model.front_.lift(pcs))


def add_batch(model: Any, X: Any, name: str, *, frozen: bool = False) -> Any:
    """Learn where the cells of a new batch lie, with the weights and all other batches as they are.

    Parameters
    ----------
    model
        A fitted CellNorm; it stays as it is.
    X
        As in `fit`, shape (n_cells, n_genes): cells of one new batch.
    name
        Its name from now on.
    frozen
        Give it the statistics that all batches share, whatever its cells are like.

    Returns
    -------
    CellNorm
        A new model that knows one batch more.

    Raises
    ------
    DataError
        A name that is known already, another number of genes, NaN or infinite values.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import CellNorm
    >>> X, batch = np.random.default_rng(0).normal(size=(90, 8)), np.repeat(["a", "b", "c"], 30)
    >>> model = CellNorm(n_latent=3, n_comps=5, n_steps=5).fit(X[:60], batch[:60])
    >>> model.add_batch(X[60:], "c").transform(X[60:], batch[60:]).shape
    (30, 3)
    """
    check_is_fitted(model, "net_")
    check_matrix(X, 0)
    check_width(X, model.n_features_in_)
    if str(name) in set(model.batches_):
        raise DataError(f"Batch {name!r:.80} is known to the model already. Give the new one another name.")
    grown, n_matched = copy.copy(model), 0
    rng = np.random.default_rng(model.random_state)
    with one_thread():
        pcs = model._features(X) / model.scale_
        if frozen:
            grown.net_ = mapping.shared_batch(model.net_)
        else:
            sketch = model.sketch_, model.sketch_batch_
            grown.net_, n_matched = mapping.add_batch(model.net_, *sketch, pcs, model.n_neighbors, rng)
    some = pcs[different(pcs, SKETCH_BATCH, rng)]
    grown.added_ = np.concatenate([model.added_, some])
    grown.added_batch_ = np.append(model.added_batch_, np.full(len(some), len(model.batches_)))
    grown.batches_ = np.append(model.batches_, np.array([str(name)], object))
    grown.counts_, grown.matched_ = np.append(model.counts_, len(pcs)), np.append(model.matched_, n_matched)
    return grown


def reference_embedding(model: Any, *, strength: float | None = None) -> NDArray[np.float32]:
    """Embedding of the cells that the network learnt from, as `transform` gives it.

    Parameters
    ----------
    model
        A fitted CellNorm.
    strength
        Another than that of the model.

    Returns
    -------
    Shape (n_sketch, n_latent), in the units of the principal components.
    """
    check_is_fitted(model, "net_")
    with one_thread():
        z = encode(model.net_, model.sketch_, model.sketch_batch_, strength=strength)
        return np.asarray(z * model.scale_)


def stability_bound(model: Any) -> Bound:
    """How far a change of a cell's components can move its embedding at most, for each batch.

    Parameters
    ----------
    model
        A fitted CellNorm.

    Returns
    -------
    Bound
        See `cellnorm.stability`.
    """
    check_is_fitted(model, "net_")
    return Bound(model.batches_, lipschitz(model.net_))
