"""CellNorm: the method behind scikit-learn's manners, arrays in and arrays out."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from cellnorm import checkpoint, reuse
from cellnorm.components import begin, codes_of, learn, place
from cellnorm.determinism import one_thread
from cellnorm.front import LinearFront
from cellnorm.strength import Strength
from cellnorm.training import Progress, stage
from cellnorm.validation import check_matrix, check_strength, check_width

__all__ = ["CellNorm"]


class CellNorm(BaseEstimator):
    """Embed cells of several batches in one frame.

    Principal components, mutual nearest neighbours between batches, and an autoencoder with matched batch
    normalisation trained on minibatches of matched cells.

    Parameters
    ----------
    n_latent
        Dimensions of the embedding, which is in the coordinates of the first principal components.
    strength
        How strongly to correct: 0 gives the principal components as they are, 1 the full correction. None: as the data
        ask for, 0 if batches explain no more than chance; see `cellnorm.strength`.
    n_comps
        Principal components that the network sees; None: X is a low-dimensional representation already.
    n_neighbors
        Cells of another batch that count as near when anchors are looked for.
    n_steps
        Optimisation steps; their number need not grow with the number of cells.
    n_pairs
        Pairs of matched cells in a minibatch, and a quarter as many other cells beside them.
    n_hidden
        Width of the hidden layers.
    dropout
        Share of hidden units left out in training.
    contrast
        Weight of telling a cell's partner from all others, against seeing the other batch as the partner does.
    geometry
        Weight of the distances between cells of one batch, which should stay, against what the anchors ask for.
    learning_rate
        Largest learning rate of the one-cycle schedule.
    weight_decay
        Decoupled weight decay of the weight matrices.
    device
        "auto" (CUDA when there is one, else the CPU), "cpu", "cuda" or "mps".
    random_state
        Seed. The same input and seed give bit-identical output on a CPU, whatever the number of threads.

    Attributes
    ----------
    batches_
        Names of the batches, sorted, shape (n_batches,); those that were added later follow.
    counts_, matched_
        Cells of each batch, and how many of those looked at have a partner in another batch, both (n_batches,).
    front_
        The LinearFront, or None with n_comps=None.
    net_
        The Autoencoder, in evaluation mode.
    evidence_
        The strength of the correction and why it is this, see `cellnorm.strength.Strength`.
    sketch_, sketch_batch_, sketch_cells_
        The cells that the network learnt from: components over `scale_` (n_sketch, n_comps), batches, rows of X.
    added_, added_batch_
        Some cells of batches that were added later, by which others of these batches are judged, and their batches.
    history_
        Loss terms of every step.
    seconds_
        Seconds per stage: pca, anchors, strength, train, encode, check.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import CellNorm
    >>> rng = np.random.default_rng(0)
    >>> batch = np.repeat(["lab1", "lab2"], 100)
    >>> X = rng.normal(size=(200, 20)) + 3.0 * (batch == "lab2")[:, None]
    >>> model = CellNorm(n_latent=5, n_steps=20).fit(X, batch)
    >>> model.transform(X, batch).shape
    (200, 5)
    """

    def __init__(
        self,
        *,
        n_latent: int = 50,
        strength: float | None = None,
        n_comps: int | None = 50,
        n_neighbors: int = 20,
        n_steps: int = 600,
        n_pairs: int = 256,
        n_hidden: int = 128,
        dropout: float = 0.1,
        contrast: float = 0.5,
        geometry: float = 0.3,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        device: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.n_latent = n_latent
        self.strength = strength
        self.n_comps = n_comps
        self.n_neighbors = n_neighbors
        self.n_steps = n_steps
        self.n_pairs = n_pairs
        self.n_hidden = n_hidden
        self.dropout = dropout
        self.contrast = contrast
        self.geometry = geometry
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, batch: Any, *, progress: Progress | None = None) -> Self:
        """Learn the common frame of the batches.

        Parameters
        ----------
        X
            Log-normalised expression, shape (n_cells, n_genes), dense or sparse; with n_comps=None any dense
            representation, shape (n_cells, n_dims).
        batch
            Batch of each cell, shape (n_cells,), labels of any kind. Several covariates at once, as donor and protocol:
            an array or table (n_cells, n_covariates) or a list of columns. Batches are then the combinations that
            occur, named "donor1 / 10x", and what a batch adds is the sum of what its levels add.
        progress
            Called with (stage, done, total, loss or None).

        Raises
        ------
        DataError
            One batch only, a missing batch label, NaN or infinite values, fewer cells than latent dimensions, a
            strength that is not from 0 to 1, or a device that is not there.
        """
        labels = begin(self, batch, *X.shape)
        check_matrix(X, self.n_latent)
        with stage("pca", self.seconds_, progress), one_thread():
            self.front_ = None if self.n_comps is None else LinearFront.fit(X, self.n_comps)
            pcs = self._features(X)
        learn(self, pcs, labels, progress)
        return self

    @property
    def strength_(self) -> float:
        """How strongly the fitted model corrects, from 0 to 1."""
        evidence: Strength = self.evidence_
        return evidence.value

    def transform(self, X: Any, batch: Any = None, *, strength: float | None = None) -> NDArray[np.float32]:
        """Embed cells with the frozen statistics of their batches; a cell's answer does not depend on its companions.

        Parameters
        ----------
        X
            As in `fit`, shape (n_cells, n_genes).
        batch
            Batch of each cell, each one of `batches_`, or covariates as in `fit`. None: each cell is taken for one of
            the batch whose cells, as measured, it resembles most (that of its nearest neighbour among the cells on
            which anchors were found).
        strength
            Another than the model's `strength_`, from 0, the principal components to the bit, to 1; no new training.

        Returns
        -------
        Embedding, shape (n_cells, n_latent), in the units of the principal components.

        Raises
        ------
        DataError
            An unknown batch, another number of genes, NaN or infinite values, a strength that is not from 0 to 1.
        """
        return self._embed(X, batch, None, strength)

    def fit_transform(self, X: Any, batch: Any, *, progress: Progress | None = None) -> NDArray[np.float32]:
        """Fit, then embed the same cells: shape (n_cells, n_latent), in the units of the principal components.

        Parameters
        ----------
        X, batch, progress
            As in `fit`.

        Returns
        -------
        As `transform`.
        """
        return self.fit(X, batch, progress=progress)._embed(X, batch, progress)

    # What a fitted model is used for later; documented where it is written.
    check, add_batch, inverse_transform = reuse.check, reuse.add_batch, reuse.inverse_transform
    reference_embedding, stability_bound = reuse.reference_embedding, reuse.stability_bound
    save = checkpoint.save

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> Self:
        """Read a model that `save` wrote; on the same machine its answers are the same to the bit.

        Parameters
        ----------
        path
            The folder.
        device
            As in the parameters of the class.

        Raises
        ------
        DataError
            There is no such folder, or it is no model, or of a newer format, or not as it was written.
        """
        model: Self = checkpoint.load(path, make=cls, device=device)
        return model

    def _embed(
        self, X: Any, batch: Any, progress: Progress | None, strength: float | None = None
    ) -> NDArray[np.float32]:
        check_is_fitted(self, "net_")
        check_strength(strength)
        check_matrix(X, 0)
        check_width(X, self.n_features_in_)
        with stage("encode", self.seconds_, progress), one_thread():
            pcs = self._features(X)
            return place(self, pcs, codes_of(self, batch, pcs), strength)

    def _features(self, X: Any) -> NDArray[np.float32]:
        if self.front_ is not None:
            return self.front_.project(X)
        return np.ascontiguousarray(X.toarray() if hasattr(X, "toarray") else X, np.float32)
