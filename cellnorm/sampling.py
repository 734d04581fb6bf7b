"""Matched minibatches: arrays of cell indices in which every batch has its share and every anchor its partner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cellnorm.anchors import Anchors

__all__ = ["Minibatch", "minibatches", "shares"]

IntArray = NDArray[np.int64]


class Minibatch(NamedTuple):
    """One optimisation step's cells: `cells[:n]` and `cells[n:2 * n]` are the n pairs, the rest are company."""

    cells: IntArray
    n_pairs: int


def shares(counts: IntArray, size: int) -> IntArray:
    """How many of `size` draws go to each batch: by the square root of its cells, at least one, at most all it has.

    Parameters
    ----------
    counts
        Cells to draw from per batch, shape (n_batches,).
    size
        Draws in all.
    """
    root = np.sqrt(counts)
    wanted = np.ceil(size * root / max(root.sum(), 1)).astype(np.int64)
    return np.asarray(np.minimum(wanted, counts), np.int64)


def minibatches(
    batch: IntArray, anchors: Anchors, rng: np.random.Generator, *, n_pairs: int, n_others: int
) -> Iterator[Minibatch]:
    """Draw matched minibatches for ever.

    Each batch gives its share of anchor cells, in a shuffled order that comes round to every cell; each anchor cell
    brings one partner from another batch. No cell comes twice: pairs that share a cell are reduced to the first. Other
    cells of all batches come along, matched or not, so that the network also sees what has no partner.

    Parameters
    ----------
    batch
        Batch of each cell, shape (n_cells,), integers.
    anchors
        Pairs to draw from; without any, the minibatch holds other cells alone.
    n_pairs
        Pairs wanted; fewer come when the cells are few.
    n_others
        Cells wanted besides the pairs.
    """
    n_cells = len(batch)
    graph = _partners(anchors, n_cells)
    degree = np.diff(graph.indptr)
    decks = [np.flatnonzero((batch == b) & (degree > 0)) for b in range(int(batch.max()) + 1)]
    draws = shares(np.array([len(d) for d in decks]), n_pairs)
    dealers = [_deal(deck, n, rng) for deck, n in zip(decks, draws, strict=True) if n]
    company = _deal(np.arange(n_cells), min(n_others, n_cells), rng)
    while True:
        first = rng.permutation(np.concatenate([next(d) for d in dealers])) if dealers else np.empty(0, np.int64)
        second = graph.indices[graph.indptr[first] + rng.integers(0, degree[first])].astype(np.int64)
        alone = _disjoint(first, second)
        first, second = first[alone], second[alone]
        others = next(company)
        pairs = np.concatenate([first, second])
        yield Minibatch(np.concatenate([pairs, others[~np.isin(others, pairs)]]), len(first))


def _partners(anchors: Anchors, n_cells: int) -> sp.csr_matrix:
    rows = np.concatenate([anchors.left, anchors.right])
    columns = np.concatenate([anchors.right, anchors.left])
    return sp.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(n_cells, n_cells))


def _deal(deck: IntArray, n: int, rng: np.random.Generator) -> Iterator[IntArray]:
    """Deal n different cards at a time from a deck that is shuffled whenever it runs short."""
    order, start = rng.permutation(deck), 0
    while True:
        if start + n > len(order):
            order, start = rng.permutation(deck), 0
        yield order[start : start + n]
        start += n


def _disjoint(first: IntArray, second: IntArray) -> NDArray[np.bool_]:
    """Pairs whose two cells have not come before, in order."""
    flat = np.column_stack([first, second]).ravel()
    new = np.zeros(len(flat), bool)
    new[np.unique(flat, return_index=True)[1]] = True
    return np.asarray(new.reshape(-1, 2).all(axis=1))
