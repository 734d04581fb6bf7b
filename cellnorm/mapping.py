"""Mapping: statistics for a batch that the network has not seen, from its matches with the reference; weights frozen.

What BatchNorm should do with data that is not of the training has here a plain answer: the statistics of a new batch
are found as those of the others were, from matched cells and layer by layer, and nothing else changes. A batch of few
matched cells keeps near to the statistics that all share.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cellnorm import devices
from cellnorm.anchors import cosine, find_anchors
from cellnorm.autoencoder import Autoencoder
from cellnorm.determinism import one_thread
from cellnorm.layers import PRIOR, MatchedBatchNorm
from cellnorm.training import encode

__all__ = ["Mapping", "add_batch", "shared_batch"]

# Cells of the new batch among which matches are looked for: more would make its statistics no surer, but slower.
MAX_CELLS = 2000
# Matches are found again where the statistics of the round before put the cells; the final frame has its own rounds.
ROUNDS, FRAME_ROUNDS = 3, 4
# Matched cells of a kind at which its own offset counts for half, and the power of the share of its cells that are
# matched by which it counts: cells of a kind that the reference lacks find few partners, and must not be drawn to it.
KIND_PRIOR, DOUBT = 3.0, 3
TINY = 1e-6


class Mapping(NamedTuple):
    """A network that knows one batch more, and what its statistics rest on.

    Attributes
    ----------
    net
        A copy of the network in which the new batch has the highest number; the others' statistics are as before.
    n_matched
        Cells with a partner in the reference, of the at most 2000 different cells that were looked at.
    """

    net: Autoencoder
    n_matched: int


class _Matches(NamedTuple):
    """Pairs of a cell of the new batch and one of the reference, as positions; and how many different cells are in."""

    own: Tensor
    partner: Tensor
    n_cells: int

    def shift(self, own: Tensor, reference: Tensor) -> Tensor:
        """Mean difference of matched cells times n / (n + PRIOR), n being the number of matched cells."""
        difference = (own[self.own] - reference[self.partner]).sum(0) / max(len(self.own), 1)
        return difference * (self.n_cells / (self.n_cells + PRIOR))

    def spread(self, own: Tensor, reference: Tensor) -> Tensor:
        """Root mean square of matched cells over that of their partners, with PRIOR cells of the reference in both."""
        squares = [
            (x.square().sum(0) / max(len(i), 1))
            for x, i in ((own[self.own], self.own), (reference[self.partner], self.partner))
        ]
        common = PRIOR * reference.square().mean(0) + 1e-6
        return ((self.n_cells * squares[0] + common) / (self.n_cells * squares[1] + common)).sqrt()


def add_batch(
    net: Autoencoder,
    sketch: NDArray[np.float32],
    sketch_batch: NDArray[np.int64],
    x: NDArray[np.float32],
    n_neighbors: int,
    rng: np.random.Generator,
) -> Mapping:
    """Give a network one batch more, whose statistics come from the matches of its cells with the reference.

    Mutual nearest neighbours by angle, as before training, give the shift of the features; those in the embedding, as
    at half time, give shift and spread of the hidden layer; few of the nearest give the offset of each kind of cells.
    The reference is fixed: the new batch alone moves. The decoder is told the mean of the known batches, which decodes
    cells that were not looked at better than statistics of its own (.156 of the variance left, against .160).

    Parameters
    ----------
    net
        A trained network with its final frame; it stays as it is.
    sketch, sketch_batch
        Features of the reference's cells, shape (n_sketch, n_features), in the units of the training, and their
        batches.
    x
        Features of the cells of the new batch, shape (n_cells, n_features). Their order has no say, nor do cells that
        come more than once.
    n_neighbors
        As for `anchors.find_anchors`.
    rng
        Chooses the cells that are looked at where there are more than 2000.

    Returns
    -------
    Mapping
        The network and the number of matched cells.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm import CellNorm
    >>> from cellnorm.mapping import add_batch
    >>> rng = np.random.default_rng(0)
    >>> x, batch = rng.normal(size=(300, 20)).astype("float32"), np.repeat(["lab1", "lab2", "lab3"], 100)
    >>> known = batch != "lab3"
    >>> model = CellNorm(n_comps=None, n_latent=5, n_steps=20).fit(x[known], batch[known])
    >>> reference = model.sketch_, model.sketch_batch_
    >>> add_batch(model.net_, *reference, x[~known] / model.scale_, 20, rng).net.config.n_batches
    3
    """
    with one_thread(), torch.inference_mode():
        grown = shared_batch(net)
        if not len(x):
            return Mapping(grown, 0)
        grown.strength.fill_(1)  # matches are found where batches lie on each other, however little of it is wanted
        n_matched = _match(grown, sketch, sketch_batch, _different(x, rng), n_neighbors)
        grown.strength.copy_(net.strength)
        return Mapping(grown, n_matched)


def shared_batch(net: Autoencoder) -> Autoencoder:
    """A copy of a network with one batch more, which has the statistics that all share; no random number is drawn.

    The batch is a level of its own, whatever covariates the others are made of.
    """
    n_batches, n_levels = net.config.n_batches, net.config.n_levels
    with torch.device("meta"):
        grown = Autoencoder(replace(net.config, n_batches=n_batches + 1, n_levels=n_levels + 1))
    state = {name: values.detach().clone() for name, values in net.state_dict().items()}
    for name in ("shift", "offsets", "encoder.norm.shift", "decoder.norm.shift"):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name][:1])])
    state["shares"] = torch.cat([state["shares"], state["shares"].mean(0, keepdim=True)])
    for name in ("encoder.norm.spread", "decoder.norm.spread"):
        state[name] = torch.cat([state[name], torch.ones_like(state[name][:1])])
    weight, design = state["decoder.expand.weight"], state["design"]
    told = weight[:, -n_levels:]
    if (design.sum(1) > 1).any():  # of a batch: what its levels add up to
        told = told @ design.T
    state["decoder.expand.weight"] = torch.cat([weight, told.mean(1, keepdim=True)], dim=1)
    state["design"] = torch.nn.functional.pad(design, (0, 1, 0, 1))
    state["design"][-1, -1] = 1
    grown.load_state_dict(state, assign=True)
    return grown.eval()


def _different(x: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """At most MAX_CELLS different cells, sorted, so that their order has no say in what is chosen nor in any sum."""
    cells = np.unique(np.asarray(x, np.float32) + np.float32(0), axis=0)  # a zero has one sign
    if len(cells) <= MAX_CELLS:
        return cells
    return cells[np.sort(rng.choice(len(cells), MAX_CELLS, replace=False))]


def _match(
    net: Autoencoder,
    sketch: NDArray[np.float32],
    sketch_batch: NDArray[np.int64],
    x: NDArray[np.float32],
    n_neighbors: int,
) -> int:
    """Find the statistics of the last batch in place; how many of its cells have a partner in the end."""
    device, new = net.shift.device, net.config.n_batches - 1
    levels = net.design.cpu().numpy()[sketch_batch] > 0
    codes = np.full(len(x), new)
    reference, of_reference, own = (torch.from_numpy(a).to(device) for a in (sketch, sketch_batch, x))
    aligned, goal = net.aligned(reference, of_reference), encode(net, sketch, sketch_batch)
    found = _matches(cosine(sketch), levels, cosine(x), n_neighbors, device)
    net.shift[new] = found.shift(own, aligned)
    norm, expand = net.encoder.norm, net.encoder.expand
    hidden, hidden_reference = expand(own - net.shift[new]), expand(aligned)
    _settle(norm, hidden, hidden_reference, of_reference, found)
    for _ in range(ROUNDS):
        found = _matches(goal, levels, encode(net, x, codes), n_neighbors, device)
        _settle(norm, hidden, hidden_reference, of_reference, found)
    _settle_kinds(net, reference, of_reference, own, n_neighbors)
    return found.n_cells


def _settle_kinds(net: Autoencoder, reference: Tensor, batch: Tensor, own: Tensor, n_neighbors: int) -> None:
    """Set the last batch's offset in each kind, and the share of each kind in it, round by round."""
    codes = torch.full((len(own),), net.config.n_batches - 1, device=own.device)
    raw, usual = net.encode(own, codes), net.shares[torch.unique(batch)].mean(0)
    net.shares[-1] = usual  # of the reference, whatever else was added to it
    member, common = _in_kinds(net, net.encode(reference, batch), batch)
    centres = (member.T @ common) / member.sum(0).clamp_min(TINY)[:, None]
    goal, levels = (common @ net.axes).cpu().numpy(), (net.design[batch] > 0).cpu().numpy()
    for _ in range(FRAME_ROUNDS):
        own_member, placed = _in_kinds(net, raw, codes)
        here = (placed @ net.axes).cpu().numpy()
        near = _matches(goal, levels, here, max(1, n_neighbors // 4), own.device)
        # The whole offset anew each time: if parts were added up, its shrinkage would come to nothing.
        net.offsets[-1] = _kind_offsets(raw, near, near.shift(raw, common), own_member, member, centres)
        net.shares[-1] = (own_member.sum(0) + PRIOR * usual) / (len(own) + PRIOR)


def _kind_offsets(
    own: Tensor, matches: _Matches, usual: Tensor, own_member: Tensor, member: Tensor, centres: Tensor
) -> Tensor:
    """Offset of the new batch in each kind, shape (n_kinds, n_latent), shrunk towards the one that is usual in it.

    It leads from the kind's centre in the reference to the mean of the matched cells that are of it as their partners
    are. Means of kinds, not of differences: mutual neighbours are the nearest pairs, which say less than the whole.
    """
    seen = torch.zeros_like(own_member).index_add(0, matches.own, member[matches.partner])
    seen = seen / seen.sum(1, keepdim=True).clamp_min(TINY)
    n = seen.sum(0)
    mean = (seen.T @ own) / n.clamp_min(TINY)[:, None]
    matched = torch.zeros_like(own[:, 0]).index_fill(0, matches.own, 1)
    share = (matched @ own_member) / own_member.sum(0).clamp_min(TINY)
    trust = share**DOUBT * n / (n + KIND_PRIOR)
    out: Tensor = usual + trust[:, None] * (mean - centres - usual)
    return out


def _in_kinds(net: Autoencoder, z: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Share of each kind in encoded cells, and where they lie without the offsets; in chunks, as both take memory."""
    members, placed = [], []
    size = devices.manner_of(z.device).chunk_cells
    for own, codes in zip(torch.split(z, size), torch.split(batch, size), strict=True):
        members.append(net.membership(own, codes))
        placed.append(own - net.mixed_offset(members[-1], codes))
    return torch.cat(members), torch.cat(placed)


def _matches(
    reference: NDArray[np.float32],
    levels: NDArray[np.bool_],
    own: NDArray[np.float32],
    n_neighbors: int,
    device: torch.device,
) -> _Matches:
    """Mutual nearest neighbours between the new batch and each level of the reference, as before training.

    `levels` says which of them a cell of the reference is of, shape (n_cells, n_levels): of its batch alone, or of one
    of each covariate. Then a pair may be found more than once, and counts once.
    """
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for level in levels[:, levels.any(0)].T:
        cells = np.flatnonzero(level)
        of_new = np.arange(len(cells) + len(own)) >= len(cells)
        both = np.concatenate([reference[cells], own])
        anchors = find_anchors(both, of_new.astype(np.int64), n_neighbors, device)
        left.append(cells[anchors.left])
        right.append(anchors.right - len(cells))
    pairs = np.column_stack([np.concatenate(right), np.concatenate(left)])
    pairs = pairs[np.sort(np.unique(pairs, axis=0, return_index=True)[1])]
    of_own, partner = (devices.moved(column, device) for column in pairs.T)
    return _Matches(of_own, partner, len(np.unique(pairs[:, 0])))


def _settle(norm: MatchedBatchNorm, own: Tensor, reference: Tensor, batch: Tensor, matches: _Matches) -> None:
    """Set the last batch's shift and spread to what its matches with the reference say, whose own are as they are."""
    shift, spread, mean, _ = norm.frozen()
    settled = reference - mean - shift[batch]
    shift[-1] = matches.shift(own - mean, settled)
    spread[-1] = matches.spread(own - mean - shift[-1], settled / spread[batch])
