"""Loss terms: tensors in, tensor out. Lengths are in units of the typical distance between neighbours of one batch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["contrast", "geometry", "kinship", "reconstruction", "squared_distances"]

# Squared distance over which the geometry of a batch is kept; the nearest neighbours are at about 1.
REACH = 4.0


def reconstruction(decoded: Tensor, x: Tensor) -> Tensor:
    """Mean over cells of the squared distance between decoded and given features, both (n_cells, n_features)."""
    return (decoded - x).square().sum(dim=1).mean()


def contrast(left: Tensor, right: Tensor) -> Tensor:
    """Each cell finds its partner among all partners of the minibatch: InfoNCE on negative squared distances.

    van den Oord et al. 2018, with a Gaussian kernel of unit width in place of the inner product, in both directions.

    Parameters
    ----------
    left, right
        Embeddings of the pairs, both (n_pairs, n_latent).
    """
    if not len(left):
        return left.sum()
    logits = -squared_distances(left, right)
    truth = torch.arange(len(left), device=left.device)
    return (functional.cross_entropy(logits, truth) + functional.cross_entropy(logits.T, truth)) / 2


def kinship(before: Tensor, after: Tensor, batch: Tensor, n_pairs: int) -> Tensor:
    """A cell sees the cells of its partner's batch as its partner sees them: cross-entropy of two softmax rows.

    Contrast pushes a cell away from all that are not its partner, its partner's own kin among them. Here the partner's
    batch says who the kin are: the target is a Gaussian kernel of the partner's distances before the correction (as in
    stochastic neighbour embedding, Hinton and Roweis 2002, across batches).

    Parameters
    ----------
    before, after
        Squared distances between all cells before and after the correction, both (n_cells, n_cells); the first
        2 n_pairs cells are the pairs, left sides first.
    batch
        Batch of each cell, shape (n_cells,).
    n_pairs
        Number of pairs.
    """
    if not n_pairs:
        return after[:0].sum()
    cell = torch.arange(2 * n_pairs, device=after.device)
    partner = (cell + n_pairs) % (2 * n_pairs)
    elsewhere = batch[partner][:, None] != batch[None, :]
    target = (-before[partner]).masked_fill(elsewhere, -torch.inf).softmax(dim=1)
    seen = (-after[: 2 * n_pairs]).masked_fill(elsewhere, -torch.inf).log_softmax(dim=1)
    return -(target * seen.masked_fill(elsewhere, 0)).sum(dim=1).mean()


def geometry(before: Tensor, after: Tensor, batch: Tensor) -> Tensor:
    """Mean squared change of the distances between cells of one batch, near cells first.

    What a batch says of its own cells is biology, whatever the batch effect: a correction may move cells together, but
    should not move them against their neighbours (stress of multidimensional scaling, weighted by a Gaussian kernel).

    Parameters
    ----------
    before, after
        Squared distances between all cells before and after the correction, both (n_cells, n_cells).
    batch
        Batch of each cell, shape (n_cells,).
    """
    near = (batch[:, None] == batch[None, :]) * torch.exp(-before / (2 * REACH))
    near.fill_diagonal_(0)
    # The root has no slope at zero distance: the clamp keeps the gradient of coinciding cells finite.
    change = before.clamp_min(1e-3).sqrt() - after.clamp_min(1e-3).sqrt()
    return (near * change.square()).sum() / near.sum().clamp_min(1e-6)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Squared Euclidean distances, shape (len(a), len(b))."""
    return (a.square().sum(1)[:, None] + b.square().sum(1)[None, :] - 2 * a @ b.T).clamp_min(0)
