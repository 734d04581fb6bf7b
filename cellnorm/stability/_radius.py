"""How far a cell can change before its label might: a radius that is certain.

The label rests on distances in the embedding, so a step of the embedding is found first that cannot change it, then a
change of the components that cannot cause such a step.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from cellnorm.determinism import one_thread
from cellnorm.stability._reach import Reach

__all__ = ["label_radius"]

Floats = NDArray[np.float64]
# Rounding of the embedding, which is computed in 32 bits, as a share of its length: distances less certain than this do
# not count as different.
ROUNDING = 1e-5
# Cells of other labels that are looked at beyond those that decide.
MORE = 48
CHUNK_DISTANCES, CHUNK_CELLS = 4_000_000, 256


def label_radius(
    z: NDArray[np.floating], reference: NDArray[np.floating], labels: NDArray[np.object_], k: int, reach: Reach
) -> Floats:
    """How far the components of a cell can change in any direction while the majority of its neighbours stays.

    A label with more than half of the k nearest reference cells has j = k // 2 + 1 of them. Its j nearest cells stay
    among the k nearest as long as at most k - j cells of other labels come nearer than the furthest of them. A cell b
    of another label comes nearer than one of them, a, only when the embedded cell crosses the plane half way between
    the two, which is (|z - b|^2 - |z - a|^2) / (2 |a - b|) away. So the label is safe for steps below the
    (k - j + 1)-th smallest of these distances, for each b the least over the j cells. `Reach.within` says which changes
    of the components cause no such step; and since the loadings of a front are orthonormal, no change of the
    log-expression of that length does more.

    Parameters
    ----------
    z
        Embedding of the cells, shape (n_cells, n_latent), as `CellNorm.transform` gives it.
    reference
        Embedding of the reference cells that vote, shape (n_reference, n_latent).
    labels
        Their labels, shape (n_reference,).
    k
        Number of neighbours that vote, by Euclidean distance; all of the reference where it has fewer cells.
    reach
        The same cells as `z`, see `reach.reach_of`.

    Returns
    -------
    Radius, shape (n_cells,), in the units of the components: 0 where no label has more than half of the votes, infinite
    where too few reference cells have another label to outvote it. The batch of the cell is taken as given.

    Examples
    --------
    >>> import numpy as np
    >>> from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
    >>> from cellnorm.stability import label_radius
    >>> from cellnorm.stability import reach_of
    >>> reference, labels = np.array([[0.0], [1.0], [5.0], [6.0]]), np.array(["B", "B", "T", "T"], object)
    >>> net = Autoencoder(AutoencoderConfig(n_features=1, n_batches=2, n_latent=1, n_hidden=8, n_kinds=2, dropout=0.1))
    >>> _ = net.strength.fill_(0)  # the embedding is the features
    >>> z = np.array([[0.5], [3.0]])
    >>> label_radius(z, reference, labels, 1, reach_of(net, z, np.array([0, 0]), 1.0)).round(3)
    array([2., 0.])
    """
    return reach.within(safe_step(z, reference, labels, k))


def safe_step(z: NDArray[np.floating], reference: NDArray[np.floating], labels: NDArray[np.object_], k: int) -> Floats:
    """As `label_radius`, but the length of a step in the embedding that is safe, shape (n_cells,)."""
    _, codes = np.unique(np.asarray(labels, object).astype(str), return_inverse=True)
    k = min(k, len(codes))
    there, here = np.asarray(reference, np.float64), np.asarray(z, np.float64)
    step = np.zeros(len(here))
    size = min(CHUNK_CELLS, max(1, CHUNK_DISTANCES // len(there)))
    with one_thread():
        for start in range(0, len(here), size):
            step[start : start + size] = _safe_step(here[start : start + size], there, codes, k)
    sure = step - ROUNDING * (np.linalg.norm(here, axis=1) + np.linalg.norm(there, axis=1).max())
    return np.asarray(np.maximum(sure, 0))


def _safe_step(here: Floats, there: Floats, codes: NDArray[np.int64], k: int) -> Floats:
    """Length in the embedding below which the majority stays; 0 without a majority."""
    needed, safe = k // 2 + 1, np.zeros(len(here))
    distance = cdist(here, there)  # pair by pair: the same bits for a cell alone and among others
    votes = codes[np.argpartition(distance, k - 1, axis=1)[:, :k]]
    # with a majority the middle one of the sorted votes is of it
    middle = np.sort(votes, axis=1)[:, (k - 1) // 2]
    majority = np.count_nonzero(votes == middle[:, None], axis=1) >= needed
    for label in np.unique(middle[majority]):
        cells, own, other = majority & (middle == label), np.flatnonzero(codes == label), np.flatnonzero(codes != label)
        if len(other) <= k - needed:
            safe[cells] = np.inf
            continue
        of_cells = distance[cells]
        near_own = own[_nearest(of_cells[:, own], needed)]
        near_other = other[_nearest(of_cells[:, other], k - needed + 1 + MORE)]
        safe[cells] = _to_plane(of_cells, there, near_own, near_other, k - needed, near_other.shape[1] < len(other))
    return np.maximum(safe, 0)


def _nearest(distance: Floats, k: int) -> NDArray[np.int64]:
    """The k nearest columns of each row, or all, the furthest of them last."""
    k = min(k, distance.shape[1])
    return np.argpartition(distance, k - 1, axis=1)[:, :k]


def _to_plane(
    distance: Floats, there: Floats, own: NDArray[np.int64], other: NDArray[np.int64], n_allowed: int, more: bool
) -> Floats:
    """How far cells are from where more than `n_allowed` cells of other labels come nearer than one of their own."""
    to_own, to_other = (np.take_along_axis(distance, c, axis=1) for c in (own, other))
    apart = np.linalg.norm(there[own][:, :, None] - there[other][:, None], axis=3)
    least = 1e-6 * np.abs(there).max() + 1e-300  # the plane between two cells in one place is anywhere
    planes = (np.square(to_other)[:, None] - np.square(to_own)[:, :, None]) / 2 / np.maximum(apart, least)
    found = np.partition(planes.min(1), n_allowed, axis=1)[:, n_allowed]
    # no plane of the cells that were not looked at, all of them further off, is nearer than this
    return np.minimum(found, (to_other[:, -1] - to_own.max(1)) / 2) if more else found
