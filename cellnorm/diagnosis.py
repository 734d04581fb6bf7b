"""Is there a batch effect, which column causes it, and can it be told from biology? Numbers for `tl.diagnose`.

All of it works on principal components and integer codes. What is asked of a column of labels:

1. Does it explain anything beyond chance? Labels are shuffled over all cells, and within clusters of like cells. Under
   pure noise both shuffles are exact, whatever the number and the sizes of the levels.
2. How much does it explain among cells of one kind? A strong batch effect drives clusters itself, and within clusters
   that hold one batch each nothing is left to see. So the levels are laid upon each other first, by offsets that mutual
   nearest neighbours give, and clusters are found there. Plain centring would not do: levels with different shares of
   the cell types would be shifted against each other, and the composition would count as an effect.
3. Do its levels hold the same structure? Experiments each show the same directions of variation; cell types, whose
   column takes the structure away, do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from cellnorm.determinism import one_thread

__all__ = ["Effect", "aligned", "effects", "explained", "find_clusters", "follows_clusters", "shared_structure"]
__all__ += ["strength_verdict"]

# Calibrated by benchmarks/diagnose_calibration.py.
ALPHA = 0.01  # chance of a noise column to be taken for more, before the size of its effect is looked at
N_PERMUTATIONS = 299  # with two tests the smallest p that can be had is 2 / 300, below ALPHA
# Shares of the variance among like cells. Donors in one pool explain 5 %, versions of a protocol 16 % and more,
# protocols 20 to 60 %; differences in composition alone hardly ever 1.5 %, save in sets of fewer than 500 cells.
MILD, STRONG = 0.015, 0.1
# Of `shared_structure`. Known experiments have .34 and more, known cell types .24 and less.
FOLLOWS = 0.3
# A name like "donor" is evidence too: only levels that share next to nothing can then be cell types.
FOLLOWS_NAMED = 0.04
LEAST_ALIGNED = 10  # cells of a level; the place of fewer cannot be told
LEAST_COMPARED = 20  # cells of a level for its directions of variation
SKETCH, ROUNDS, N_NEAREST = 1500, 5, 15
PRIOR = 30.0  # matched cells that a level's offset must stand against: noise is not to be aligned

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Effect:
    """What a column of labels explains of the variance of the principal components, as shares beyond chance.

    Attributes
    ----------
    strength
        Of all variance, cell types included; 0 is chance, 1 is everything.
    null
        What shuffled labels explain on average (subtracted and divided out of the others).
    p
        Smaller p-value of the two permutation tests (all cells; within clusters), times two for looking twice.
    within
        Of the variance within clusters of like cells, found after the levels were laid upon each other.
    blind
        Of the variance within clusters found without a look at the column: near 0 for columns that follow the clusters.
    shared
        How much of the structure all levels share, see `shared_structure`; NaN where levels are too small to tell.
    """

    strength: float
    null: float
    p: float
    within: float
    blind: float
    shared: float


def find_clusters(x: Floats, random_state: int, *, most: int = 25) -> Codes:
    """Clusters of like cells by k-means, one per 40 cells, at least 8 and at most `most`; shape (n_cells,).

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(100, 3))
    >>> int(find_clusters(x, 0).max()) + 1
    8
    """
    n_clusters = min(max(len(x) // 40, 8), most, len(x))
    with one_thread():
        return np.asarray(KMeans(n_clusters, n_init=2, random_state=random_state).fit_predict(x), np.int64)


def explained(x: Floats, codes: Codes, groups: Codes | None = None) -> tuple[float, float]:
    """Share of the variance within groups that labels explain, beyond chance, and what chance explains.

    R² of a one-way analysis of variance, summed over dimensions and groups. Its mean over all shuffles within groups is
    the sum of SS_g (L_g - 1) / (n_g - 1) over that of SS_g, with L_g levels among the n_g cells of group g. The share
    beyond chance is (R² - mean) / (1 - mean), which is adjusted R² if there is one group.

    Parameters
    ----------
    x
        Shape (n_cells, n_dims).
    codes, groups
        Shape (n_cells,); None: one group.

    Examples
    --------
    >>> x = np.array([[0.0], [1.0], [4.0], [5.0]])
    >>> beyond, chance = explained(x, np.array([0, 0, 1, 1]))
    >>> round(beyond, 3), round(chance, 3)
    (0.912, 0.333)
    """
    groups = np.zeros(len(x), np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    cells = np.unique(groups * (codes.max() + 1) + codes, return_inverse=True)[1]
    n_group = np.bincount(groups)
    centred = x - _means(x, groups)[groups]
    total = np.bincount(groups, np.square(centred).sum(axis=1))
    between = float((np.square(_means(centred, cells)).sum(axis=1) * np.bincount(cells)).sum())
    n_levels = np.bincount(groups[np.unique(cells, return_index=True)[1]], minlength=len(n_group))
    chance = float((total * (n_levels - 1) / np.maximum(n_group - 1, 1)).sum() / max(total.sum(), 1e-300))
    observed = between / max(float(total.sum()), 1e-300)
    return (observed - chance) / max(1 - chance, 1e-12) if chance < 1 else 0.0, chance


def _indicator(codes: Codes) -> sp.csr_matrix:
    """Sums over the cells of each level, as a matrix of shape (n_levels, n_cells)."""
    return sp.csr_matrix((np.ones(len(codes)), (codes, np.arange(len(codes)))))


def _means(x: Floats, codes: Codes) -> Floats:
    sums = _indicator(codes) @ x
    return np.asarray(sums / np.maximum(np.bincount(codes), 1)[:, None])


def permutation_p(x: Floats, columns: Sequence[Codes], groups: Codes, rng: np.random.Generator) -> Floats:
    """Share of shuffles within groups that explain as much as each column does, the column itself included.

    All columns see the same shuffles; the test of each is exact (Phipson & Smyth 2010, doi 10.2202/1544-6115.1585).
    """
    # Within groups only the sums of the levels change from shuffle to shuffle.
    centred = x - _means(x, groups)[groups]
    cells = [np.unique(groups * (codes.max() + 1) + codes, return_inverse=True)[1] for codes in columns]
    sums = [(_indicator(codes), np.bincount(codes)[:, None]) for codes in cells]

    def between(values: Floats) -> Floats:
        return np.array([(np.square(matrix @ values) / n).sum() for matrix, n in sums])

    rounding = 1e-9 * float(np.square(centred).sum())  # where nothing can be shuffled, sums differ by no more
    observed = between(centred) - rounding
    place, reached = np.argsort(groups, kind="stable"), np.ones(len(columns))
    order = np.empty(len(x), np.int64)
    for _ in range(N_PERMUTATIONS):
        order[place] = np.lexsort((rng.random(len(x)), groups))
        reached += between(centred[order]) >= observed
    return reached / (N_PERMUTATIONS + 1)


def shared_structure(x: Floats, codes: Codes) -> float:
    """How much of the structure of all cells the levels share: 1 for random labels, near 0 for cell types.

    Mean over pairs of levels, weighted by the product of their cells, of the inner product of their covariance
    matrices, divided by that of the covariance of all cells with itself. Noise, the smallest variance of all cells in
    any direction, is taken off each diagonal. Levels of fewer than 20 cells are left out; NaN if fewer than two remain.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> kind = rng.integers(0, 2, 400)
    >>> x = rng.normal(size=(400, 5)) + 20 * kind[:, None] * np.arange(5)
    >>> shared_structure(x, rng.integers(0, 2, 400)) > 0.9, shared_structure(x, kind) < 0.1
    (True, True)
    """
    kept = np.flatnonzero(np.bincount(codes) >= LEAST_COMPARED)
    if len(kept) < 2:
        return float("nan")
    whole = np.cov(x[np.isin(codes, kept)].T)
    noise = np.eye(len(whole)) * max(float(np.linalg.eigvalsh(whole)[0]), 0.0)
    weights = np.array([(codes == level).sum() for level in kept], float)
    covariances = np.stack([(np.cov(x[codes == level].T) - noise).ravel() for level in kept]) * weights[:, None]
    # The sum over pairs of different levels is the square of the sum without the squares.
    pairs = np.square(covariances.sum(axis=0)).sum() - np.square(covariances).sum()
    weight = weights.sum() ** 2 - np.square(weights).sum()
    return float(pairs / weight / max(np.square(whole - noise).sum(), 1e-300))


def aligned(x: Floats, codes: Codes, random_state: int) -> Floats:
    """The cells with the levels laid upon each other: one offset per level, taken off; shape (n_cells, n_dims).

    Offsets are the least-squares solution of "mutual nearest neighbours of two levels lie at the same place", sought
    again from where the last round left the levels. Pairs of like cells have the same composition on both sides: levels
    that differ in composition alone stay where they are. Levels of fewer than ten cells stay as well.
    """
    rng, n_levels = np.random.default_rng(random_state), int(codes.max()) + 1
    size = max(SKETCH // n_levels, LEAST_ALIGNED)
    parts = [rng.permutation(np.flatnonzero(codes == level))[:size] for level in range(n_levels)]
    parts = [part for part in sorted(parts, key=len, reverse=True) if len(part) >= LEAST_ALIGNED]
    parts = parts[: SKETCH // LEAST_ALIGNED]
    offsets = np.zeros((n_levels, x.shape[1]))
    if len(parts) < 2:
        return x
    ends = np.cumsum([0, *map(len, parts)])
    sketch = np.concatenate(parts)
    levels = codes[sketch]
    for _ in range(ROUNDS):
        moved = x[sketch] - offsets[levels]
        distance = cdist(moved, moved, "sqeuclidean")
        offsets = _offsets(x[sketch], distance, levels, ends, n_levels)
    return np.asarray(x - offsets[codes])


def _offsets(x: Floats, distance: Floats, levels: Codes, ends: NDArray[np.int64], n_levels: int) -> Floats:
    """Offsets of the levels that bring mutual neighbours together, shrunk towards none where few are matched."""
    system, right = np.eye(n_levels) * PRIOR, np.zeros((n_levels, x.shape[1]))
    for i in range(len(ends) - 1):
        for j in range(i):
            rows, columns = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
            left, partner = _mutual(distance[rows, columns])
            if not len(left):
                continue
            a, b = levels[ends[i]], levels[ends[j]]
            weight = min(len(np.unique(left)), len(np.unique(partner)))
            apart = weight * (x[rows][left] - x[columns][partner]).mean(axis=0)
            system[[a, b], [a, b]] += weight
            system[[a, b], [b, a]] -= weight
            right[a] += apart
            right[b] -= apart
    return np.asarray(np.linalg.solve(system, right))


def _mutual(distance: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pairs of which each is among the nearest of the other's level."""
    k = [min(N_NEAREST, max(1, n // 2)) for n in distance.shape]
    of_rows = distance <= np.partition(distance, k[1] - 1, axis=1)[:, [k[1] - 1]]
    of_columns = distance <= np.partition(distance, k[0] - 1, axis=0)[[k[0] - 1]]
    left, right = np.nonzero(of_rows & of_columns)
    return left, right


def effects(x: Floats, columns: Sequence[Codes], random_state: int = 0) -> list[Effect]:
    """What each column of labels explains of the variance of cells.

    Parameters
    ----------
    x
        Principal components, shape (n_cells, n_dims).
    columns
        For each column the labels of all cells as codes from 0, shape (n_cells,).
    random_state
        Seed.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> batch, noise = rng.integers(0, 2, (2, 300))
    >>> x = rng.normal(size=(300, 5)) + 2 * batch[:, None]
    >>> [strength_verdict(effect) for effect in effects(x, [batch, noise])]
    ['strong', 'none']
    """
    if not columns:
        return []
    with one_thread():
        rng = np.random.default_rng(random_state)
        blind = find_clusters(x, random_state)
        anywhere = permutation_p(x, columns, np.zeros(len(x), np.int64), rng)
        within = permutation_p(x, columns, blind, rng)
        tested = zip(columns, np.minimum(1.0, 2 * np.minimum(anywhere, within)), strict=True)
        return [_effect(x, codes, float(p), blind, random_state) for codes, p in tested]


def _effect(x: Floats, codes: Codes, p: float, blind: Codes, random_state: int) -> Effect:
    strength, null = explained(x, codes)
    beyond = explained(x, codes, blind)[0]
    within = beyond  # a column of noise needs no aligning, and its chance differences should not be aligned away
    if p <= ALPHA:
        within = explained(x, codes, find_clusters(aligned(x, codes, random_state), random_state))[0]
    return Effect(strength, null, p, within, beyond, shared_structure(x, codes))


def strength_verdict(effect: Effect) -> str:
    """Say "none", "mild" or "strong": is there more than chance, and how much among like cells."""
    if effect.p > ALPHA or effect.within < MILD:
        return "none"
    return "mild" if effect.within < STRONG else "strong"


def follows_clusters(effect: Effect, shared: float, *, named: bool) -> bool:
    """Whether a column parts the cells as cell types do, rather than as experiments do.

    Parameters
    ----------
    effect
        Of the column.
    shared
        `shared_structure` of the column; after aligning the experiments if they are known, since a batch effect that
        is stronger than the cell types makes these look like experiments.
    named
        Whether the column has a usual name for experiments.
    """
    return effect.p <= ALPHA and shared < (FOLLOWS_NAMED if named else FOLLOWS)
