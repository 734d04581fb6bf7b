"""Labels of the reference for new cells: a majority, the probability that it is right, and where none is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from cellnorm.errors import DataError
from cellnorm.metrics.neighbors import count_codes
from cellnorm.transfer._nearby import log_ratio, nearest, other_batches

__all__ = ["LabelTransfer", "Transfer"]

IntArray = NDArray[np.int64]
Floats = NDArray[np.float64]
Labels = NDArray[np.object_]
K = 15  # neighbours that vote
# A cell is unknown if its match times a power of the probability that the votes give is less than this. Found by
# benchmarks/transfer.py: less than a tenth of the cells of known types are lost.
LEAST_EVIDENCE, POWER = 0.08, 2
# The match of known types is even, and that of new types is taken for SKEW * match^(SKEW - 1), heaped at zero; so many
# of the cells of a new batch are expected to be of new types.
EXPECTED_NEW, SKEW = 0.01, 0.2
# The calibration starts from the share of the votes as it is, and is held to it by this ridge: the cells of a few
# batches say less than their number. More votes never make a label less probable, nor does a larger distance make it
# more so.
AS_VOTED, RIDGE = np.array([0.0, 1.0, 0.0]), 0.03
FAIR = 2  # cells of its label in the other batches that a cell needs to say something, per voting neighbour
SIGNS = [(None, None), (0.0, None), (None, 0.0)]
TINY = 1e-9


class Transfer(NamedTuple):
    """Labels found for cells.

    Attributes
    ----------
    labels
        The most frequent label among the nearest reference cells, object array of str, shape (n_cells,).
    probability
        How probable it is that this label is right, shape (n_cells,).
    known
        False where the evidence is too little to name a type, shape (n_cells,).
    votes
        Share of the nearest reference cells with that label, shape (n_cells,).
    """

    labels: Labels
    probability: Floats
    known: NDArray[np.bool_]
    votes: Floats


@dataclass(frozen=True)
class LabelTransfer:
    """Labels by majority among the nearest cells of the reference, with a calibrated probability.

    Attributes
    ----------
    z
        Embedding of the labelled reference cells, shape (n_reference, n_latent).
    labels
        Their labels, object array of str, shape (n_reference,).
    k
        Neighbours that vote.
    usual
        Mean distance of each of these cells to its nearest of other batches, shape (n_reference,).
    weights
        Of the evidence: a constant, the logarithm of the odds that the votes give, and of the distance; shape (3,).

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.transfer import LabelTransfer
    >>> rng = np.random.default_rng(0)
    >>> kind = np.arange(400) % 2
    >>> z = (rng.normal(size=(400, 5)) + 4 * kind[:, None]).astype("float32")
    >>> transfer = LabelTransfer.fit(z, np.arange(400) // 200, np.array(["B", "T"], object)[kind])
    >>> found = transfer.predict(np.array([[0.0] * 5, [4.0] * 5], "float32"))
    >>> found.labels.tolist(), found.known.tolist(), bool((found.probability > 0.9).all())
    (['B', 'T'], [True, True], True)
    """

    z: NDArray[np.float32]
    labels: Labels
    k: int
    usual: Floats
    weights: Floats

    @classmethod
    def fit(cls, z: NDArray[np.float32], batch: IntArray, labels: Labels, *, k: int = K) -> LabelTransfer:
        """Take the labelled cells of a reference, and learn from its batches how far votes can be trusted.

        Each cell is labelled by the cells of other batches, and a logistic regression of being right on the evidence
        gives the probabilities (Platt 1999). Cells whose label is rare in the other batches are left out of that: it
        loses the vote for a reason that is gone when all batches vote.

        Parameters
        ----------
        z
            Embedding of the reference, shape (n_reference, n_latent).
        batch
            Batch of each cell, shape (n_reference,).
        labels
            Label of each cell, "" where it has none, shape (n_reference,).
        k
            Neighbours that vote.

        Raises
        ------
        DataError
            If no cell has a label.
        """
        labels = np.asarray(labels, object)
        has = labels != ""
        if not has.any():
            raise DataError(
                "Labels were to be transferred, but no cell of the reference has one. Choose another column."
            )
        z, batch, labels = np.asarray(z, np.float32)[has], np.asarray(batch)[has], labels[has]
        names, codes = np.unique(labels.astype(str), return_inverse=True)
        if len(np.unique(batch)) < 2:
            return cls(z, labels, k, np.ones(len(z)), AS_VOTED)
        found, apart = other_batches(z, batch, k)
        usual = apart.mean(1)
        best, _, evidence = _evidence(codes[found], len(names), log_ratio(usual, usual[found].mean(1)))
        of_batch = np.unique(batch, return_inverse=True)[1]
        table = np.zeros((len(names), of_batch.max() + 1), np.int64)
        np.add.at(table, (codes, of_batch), 1)
        fair = table.sum(1)[codes] - table[codes, of_batch] >= FAIR * k
        return cls(z, labels, k, usual, _calibrated(evidence[fair], (best == codes)[fair]))

    def predict(self, z: NDArray[np.float32], match: Floats | None = None) -> Transfer:
        """Label cells.

        Parameters
        ----------
        z
            Their embedding, shape (n_cells, n_latent).
        match
            How well the reference supports them (`Support.score`), shape (n_cells,). None: all are taken to be of
            types that the reference has.
        """
        names, codes = np.unique(self.labels.astype(str), return_inverse=True)
        found, apart = nearest(self.z, np.asarray(z, np.float32), self.k)
        distance = log_ratio(apart.mean(1), self.usual[found].mean(1))
        best, share, evidence = _evidence(codes[found], len(names), distance)
        probability = expit(evidence @ self.weights)
        support = np.ones(len(best)) if match is None else np.maximum(match, TINY)
        known = support * probability**POWER >= LEAST_EVIDENCE
        if match is not None:
            new = EXPECTED_NEW * SKEW * support ** (SKEW - 1)
            probability = probability * (1 - EXPECTED_NEW) / (1 - EXPECTED_NEW + new)
        return Transfer(names.astype(object)[best], probability, known, share)


def _evidence(near: IntArray, n_labels: int, distance: Floats) -> tuple[IntArray, Floats, Floats]:
    """The label most voted for, ties going to the nearer cells; its share of the votes; the evidence (n_cells, 3)."""
    n_cells, k = near.shape
    # what nearer cells count for more adds up to half a vote, so that it decides ties and nothing else
    nearer = np.broadcast_to((k - np.arange(k)) / (k * (k + 1)), near.shape)
    votes = count_codes(near, n_labels)
    best = (votes + count_codes(near, n_labels, nearer)).argmax(1)
    most = votes[np.arange(n_cells), best]
    return best, most / k, np.column_stack([np.ones(n_cells), logit((most + 0.5) / (k + 1)), distance])


def _calibrated(evidence: Floats, right: NDArray[np.bool_]) -> Floats:
    """Weights of a logistic regression of being right on the evidence."""
    if not len(right):
        return AS_VOTED

    def loss(weights: Floats) -> tuple[float, Floats]:
        odds, off = evidence @ weights, weights - AS_VOTED
        slope = evidence.T @ (expit(odds) - right) / len(right)
        return float((np.logaddexp(0, odds) - right * odds).mean() + RIDGE * off @ off), slope + 2 * RIDGE * off

    return np.asarray(minimize(loss, AS_VOTED, jac=True, method="L-BFGS-B", bounds=SIGNS).x)
