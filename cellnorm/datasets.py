"""Simulated data with a known truth.

Counts follow a negative binomial (gamma-Poisson) around log-linear means, as in Splatter (Zappia et al. 2017, Genome
Biology 18:174) and in scVI's likelihood (Lopez et al. 2018, Nature Methods 15:1053)::

    log rate = base[gene] + effects[type, gene] + factors[cell] @ loadings[:, gene] + shift[batch, gene]
    count ~ Poisson(library[cell] * (1 - dropout[batch]) * rate / sum(rate) * Gamma(mean 1, variance dispersion[gene]))

The constants give the spreads of public data sets: log ratios between batches and between types, close and distant,
dispersion, share of zeros.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray

from cellnorm.errors import DataError

__all__ = ["simulate"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Rng = np.random.Generator

# Standard deviations are of natural logarithms, shares are of the genes.
BASE_SD, DISPERSION_SD = 2.0, 0.5  # of mean expression and dispersion over genes
UNIT_EFFECT = 0.5  # a batch's factors at batch_effect=1: .7 for the ratio of two, as between versions of a protocol
FAMILY_SHARE, TYPE_SHARE, FOLD_SD = 0.2, 0.04, 1.5  # genes that differ by family (pair of types), by type within it
MARKER_SHARE, MARKER_LOW, MARKER_HIGH = 0.01, 1.0, 2.5  # markers of each type and their log fold changes
N_FACTORS, FACTOR_SHARE, FACTOR_SD = 3, 0.1, 0.5  # programmes that vary continuously within every type
CHUNK_ENTRIES = 2_000_000  # entries of a dense block: 16 MB each in double precision


def _check_numbers(**named: tuple[object, int]) -> None:
    """Each (value, minimum) must be a whole number, not below the minimum."""
    for name, (value, low) in named.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
            raise DataError(f"{name} must be a whole number of at least {low}, found {value!r}.")


def _floats(name: str, value: ArrayLike) -> Floats:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{name} must be one or more numbers, found {value!r}.") from None


def _per_batch(name: str, value: ArrayLike, n_batches: int, low: float, high: float) -> Floats:
    """One number per batch out of a number or a sequence, with low <= number < high."""
    values = _floats(name, value)
    if values.ndim > 1 or (values.ndim == 1 and len(values) != n_batches):
        raise DataError(f"{name} must be a number or one number per batch ({n_batches}), found shape {values.shape}.")
    if not ((values >= low) & (values < high)).all():
        raise DataError(f"{name} must be at least {low:g} and below {high:g}, found {value!r}.")
    return np.broadcast_to(values, (n_batches,)).copy()


def _batch_codes(n_cells: int | Sequence[int], n_batches: int, rng: Rng) -> Integers:
    """Batch of each cell, in random order."""
    sizes = np.asarray(n_cells)
    if sizes.dtype.kind not in "iu":
        raise DataError(f"n_cells must be whole numbers, found {n_cells!r}.")
    if sizes.ndim == 0:
        sizes = sizes // n_batches + (np.arange(n_batches) < sizes % n_batches)
    if sizes.shape != (n_batches,) or sizes.min() < 1:
        raise DataError(f"n_cells must give each of the {n_batches} batches at least one cell, found {n_cells!r}.")
    return rng.permutation(np.repeat(np.arange(n_batches), sizes))


def _present(
    missing: int | tuple[int, int] | Mapping[str, Sequence[str]], batches: list[str], types: list[str], rng: Rng
) -> NDArray[np.bool_]:
    """Which type is in which batch, (n_batches, n_types)."""
    present = np.ones((len(batches), len(types)), dtype=bool)
    if isinstance(missing, Mapping):
        for batch, names in missing.items():
            unknown = [n for n in [batch] if n not in batches] or [n for n in names if n not in types]
            if unknown:
                raise DataError(f"missing_types names {unknown[0]!r}; the batches are {batches} and the types {types}.")
            present[batches.index(batch), [types.index(n) for n in names]] = False
    else:
        n_missing, n_from = missing if isinstance(missing, tuple) and len(missing) == 2 else (missing, 1)
        for number in (n_missing, n_from):
            _check_numbers(missing_types=(number, 0))
        if n_missing > len(types) or not 0 < n_from < max(2, len(batches)):
            raise DataError(f"missing_types={missing!r} is too much for {len(types)} types in {len(batches)} batches.")
        lacking = np.resize(rng.permutation(len(batches)), n_missing * n_from)  # in turn: none loses most
        present[lacking, np.repeat(rng.permutation(len(types))[:n_missing], n_from)] = False
    if not (present.any(axis=0).all() and present.any(axis=1).all()):
        raise DataError(f"missing_types={missing!r} leaves a batch or a type with nothing; take fewer types away.")
    return present


def _proportions(composition: ArrayLike, present: NDArray[np.bool_], rng: Rng) -> Floats:
    """Share of each type in each batch, (n_batches, n_types), rows summing to 1."""
    given = _floats("composition", composition)
    if given.ndim == 0:
        shares = np.zeros(present.shape)
        if not given > 0:
            raise DataError(f"composition must be a concentration above 0 or a table, found {composition!r}.")
        for row, mask in zip(shares, present, strict=True):
            row[mask] = rng.dirichlet(np.full(mask.sum(), min(float(given), 1e9)))  # infinite: all equal
        return shares
    if given.shape != present.shape or not (np.isfinite(given).all() and given.min() >= 0):
        raise DataError(f"composition must be shares of 0 or more, {present.shape}, found the shape {given.shape}.")
    shares = np.where(present, given, 0.0)
    if not shares.sum(axis=1).all():
        raise DataError("composition and missing_types leave a batch without any type.")
    shares /= shares.sum(axis=1, keepdims=True)
    return shares


def _genes(n_genes: int, types: list[str], dispersion: float, rng: Rng) -> tuple[pd.DataFrame, Floats]:
    """Table of genes and log fold changes of types and factors, (n_types + N_FACTORS, n_genes)."""

    def sparse_normal(n: int, share: float, sd: float) -> Floats:
        return rng.normal(0.0, sd, (n, n_genes)) * (rng.random((n, n_genes)) < share)

    n_types = len(types)
    base = rng.normal(0.0, BASE_SD, n_genes)
    effects = np.repeat(sparse_normal((n_types + 1) // 2, FAMILY_SHARE, FOLD_SD), 2, axis=0)[:n_types]
    effects += sparse_normal(n_types, TYPE_SHARE, FOLD_SD)
    n_markers = max(1, int(MARKER_SHARE * n_genes))
    markers = rng.permutation(n_genes)[: n_types * n_markers]
    marked = np.arange(len(markers)) // n_markers
    effects[marked, markers] += rng.uniform(MARKER_LOW, MARKER_HIGH, len(markers))
    marker_of = np.full(n_genes, "", dtype=object)
    marker_of[markers] = np.array(types, dtype=object)[marked]
    dispersions = dispersion * np.exp(DISPERSION_SD * rng.standard_normal(n_genes))
    var = pd.DataFrame({"log_mean": base, "dispersion": dispersions, "marker_of": pd.Categorical(marker_of)})
    var.index = pd.Index([f"gene{i + 1:0{len(str(n_genes))}d}" for i in range(n_genes)])
    return var, np.vstack([effects, sparse_normal(N_FACTORS, FACTOR_SHARE, FACTOR_SD)])


def _weights(labels: Integers, n_types: int, continuous: bool, rng: Rng) -> tuple[Floats, Floats]:
    """Weights of the programmes in each cell, (n_cells, n_types + N_FACTORS), and its place on the chain of types."""
    place = labels.astype(np.float64)
    if continuous:  # within half a step of its own type: a type missing from a batch leaves a gap there
        place = np.clip(place + rng.uniform(-0.5, 0.5, len(labels)), 0, n_types - 1)
    weights = np.zeros((len(labels), n_types + N_FACTORS))
    below, rows = np.floor(place).astype(np.int64), np.arange(len(labels))
    weights[rows, below] = 1.0 - (place - below)
    weights[rows, np.minimum(below + 1, n_types - 1)] += place - below
    weights[:, n_types:] = rng.standard_normal((len(labels), N_FACTORS))
    return weights, place


def _write_truth(adata: ad.AnnData, weights: Floats, effects: Floats, shift: Floats) -> None:
    """Write the batch effects and the principal axes of the batch-free log expression, weights @ effects."""
    q, r = np.linalg.qr(effects.T)
    scores = weights @ r.T
    mean = scores.mean(axis=0)
    axes = np.linalg.eigh(np.cov(scores.T, ddof=0))[1][:, ::-1]  # largest variance first
    loadings = q @ axes
    peaks = np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0)
    sign = np.where(peaks < 0, -1.0, 1.0)  # the solver's choice of sign is arbitrary
    adata.obsm["X_truth"] = ((scores - mean) @ axes * sign).astype(np.float32)
    adata.varm["truth_loadings"] = loadings * sign
    adata.varm["batch_effect"] = shift.T.copy()
    adata.var["log_mean"] += q @ mean


def _count_chunks(
    var: pd.DataFrame, shift: Floats, weights: Floats, effects: Floats, batch: Integers, molecules: Floats, rng: Rng
) -> Iterator[sp.csr_matrix]:
    """Blocks of rows of the count matrix; never more than CHUNK_ENTRIES of it are dense."""
    log_rates = var["log_mean"].to_numpy() + shift
    dispersion, step = var["dispersion"].to_numpy(), max(1, CHUNK_ENTRIES // len(var))
    for start in range(0, len(weights), step):
        rows = slice(start, start + step)
        rates = weights[rows] @ effects
        rates += log_rates[batch[rows]]
        np.exp(rates, out=rates)
        rates *= (molecules[rows] / rates.sum(axis=1))[:, None]
        # Single precision hides the last bits, in which machines differ, from the random numbers that follow.
        rates = rates.astype(np.float32).astype(np.float64)
        rates *= rng.standard_gamma(1.0 / dispersion, rates.shape) * dispersion
        yield sp.csr_matrix(rng.poisson(rates).astype(np.float32))


def simulate(
    n_cells: int | Sequence[int] = 3000,
    n_genes: int = 2000,
    *,
    n_batches: int = 3,
    n_types: int = 6,
    batch_effect: float | Sequence[float] = 1.0,
    composition: ArrayLike = 5.0,
    missing_types: int | tuple[int, int] | Mapping[str, Sequence[str]] = 0,
    depth: float | Sequence[float] | None = None,
    depth_sd: float | Sequence[float] = 0.4,
    dropout: float | Sequence[float] = 0.0,
    dispersion: float = 0.3,
    continuous: bool = False,
    random_state: int = 0,
) -> ad.AnnData:
    """Simulate counts of several batches with a known truth.

    Types come in pairs of similar ones (T1a and T1b, T2a and T2b, ...), batches are called batch1, batch2, ..., and
    the cells are in random order. Genes and types depend on the seed, `n_genes`, `n_types` and `dispersion` alone.

    Parameters
    ----------
    n_cells
        Number of cells, shared out evenly, or one number per batch.
    n_genes
        Number of genes, at least `n_types` + 3.
    n_batches, n_types
        Number of batches and of cell types.
    batch_effect
        Strength of the gene-wise multiplicative log-normal effect, one for all or one per batch. The log ratio of two
        batches has a standard deviation of .7 times this: .4 is like donors, 1 like versions of a protocol, 1.5 like
        different protocols.
    composition
        Concentration of the Dirichlet law of the proportions of types in a batch (small: uneven, `numpy.inf`: all
        equal), or the proportions themselves, shape (n_batches, n_types).
    missing_types
        How many types are missing from one batch each; (types, batches): how many, from how many batches each; or a
        mapping from batches to the types that they lack, by name.
    depth
        Median library size in molecules, one for all or one per batch. None: .3 molecules per gene, which makes about
        90 % of the counts zero.
    depth_sd
        Standard deviation of the log library size within a batch, one for all or one per batch.
    dropout
        Chance in [0, 1) that a molecule is lost in capture, one for all or one per batch.
    dispersion
        Median over genes of the dispersion: variance = mean + dispersion * mean ** 2.
    continuous
        Put the cells on a trajectory T1a - T1b - T2a - ...; `cell_type` is then the nearest type.
    random_state
        Seed.

    Returns
    -------
    Annotated data with the counts in `X` (CSR float32). `obs`: batch, cell_type, library_size (molecules before
    capture) and, with `continuous`, position. `var`: log_mean, dispersion, marker_of. `varm["batch_effect"]`: log
    factors, (n_genes, n_batches). `obsm["X_truth"]`: principal axes of the batch-free log expression, (n_cells,
    n_types + 3); that expression is `var["log_mean"] + X_truth @ varm["truth_loadings"].T`. `uns["simulation"]`: the
    parameters and the proportions of the types.

    Raises
    ------
    DataError
        A parameter is out of its range, or a type is left without a batch or a batch without a type.

    Examples
    --------
    >>> from cellnorm.datasets import simulate
    >>> adata = simulate(300, 500, missing_types={"batch1": ["T1a"]})
    >>> adata.shape, "T1a" in set(adata.obs["cell_type"][adata.obs["batch"] == "batch1"])
    ((300, 500), False)
    """
    _check_numbers(n_batches=(n_batches, 1), n_types=(n_types, 1), random_state=(random_state, 0))
    _check_numbers(n_genes=(n_genes, n_types + N_FACTORS))
    per_batch = {
        "batch_effect": _per_batch("batch_effect", batch_effect, n_batches, 0, 10),
        "depth": _per_batch("depth", max(1.0, 0.3 * n_genes) if depth is None else depth, n_batches, 1, 1e9),
        "depth_sd": _per_batch("depth_sd", depth_sd, n_batches, 0, 5),
        "dropout": _per_batch("dropout", dropout, n_batches, 0, 1),
    }
    (spread,) = _per_batch("dispersion", dispersion, 1, 1e-6, 100)
    batches = [f"batch{i + 1}" for i in range(n_batches)]
    types = [f"T{i // 2 + 1}{'ab'[i % 2]}" for i in range(n_types)]
    genes_rng, rng = np.random.default_rng(random_state).spawn(2)
    var, effects = _genes(n_genes, types, spread, genes_rng)
    shift = UNIT_EFFECT * per_batch["batch_effect"][:, None] * rng.standard_normal((n_batches, n_genes))
    shares = _proportions(composition, _present(missing_types, batches, types, rng), rng)
    batch = _batch_codes(n_cells, n_batches, rng)
    reach = np.cumsum(shares, axis=1)
    labels = (rng.random(len(batch))[:, None] >= (reach / reach[:, -1:])[batch]).sum(axis=1)  # never a share of 0
    weights, place = _weights(labels, n_types, continuous, rng)
    library = per_batch["depth"][batch] * np.exp(per_batch["depth_sd"][batch] * rng.standard_normal(len(batch)))
    molecules = library * (1.0 - per_batch["dropout"][batch])
    chunks = _count_chunks(var, shift, weights, effects, batch, molecules, rng)
    columns = {
        "batch": pd.Categorical(np.array(batches)[batch], batches),
        "cell_type": pd.Categorical(np.array(types)[labels], [t for i, t in enumerate(types) if i in labels]),
        "library_size": library,
    } | ({"position": place} if continuous else {})
    obs = pd.DataFrame(columns, index=[f"cell{i + 1}" for i in range(len(batch))])
    adata = ad.AnnData(sp.vstack(list(chunks), format="csr"), obs=obs, var=var)
    _write_truth(adata, weights, effects, shift)
    adata.uns["simulation"] = {
        **per_batch,
        "batches": np.array(batches),
        "types": np.array(types),
        "proportions": shares,  # (n_batches, n_types)
        "dispersion": spread,
        "continuous": bool(continuous),
        "random_state": int(random_state),
    }
    return adata
