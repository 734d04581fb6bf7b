"""Simulated data: what is promised holds, and the truth that is handed out explains the counts."""

import hashlib
import re
import tracemalloc
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import silhouette_score

from cellnorm import DataError, datasets
from cellnorm.datasets import simulate

DATA = Path(__file__).resolve().parent.parent / "data"


def expected_counts(adata: ad.AnnData) -> NDArray[np.float64]:
    """Mean of every count, from the truth alone."""
    batch = adata.obs["batch"].cat.codes.to_numpy()
    log_rates = adata.var["log_mean"].to_numpy() + adata.obsm["X_truth"] @ adata.varm["truth_loadings"].T
    rates = np.exp(log_rates + adata.varm["batch_effect"].T[batch])
    captured = 1 - adata.uns["simulation"]["dropout"][batch]
    return rates / rates.sum(axis=1, keepdims=True) * (adata.obs["library_size"].to_numpy() * captured)[:, None]


def log_profiles(adata: ad.AnnData) -> NDArray[np.float64]:
    """Log-normalised expression, dense."""
    counts = adata.X.toarray().astype(float)
    return np.log1p(1e3 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def principal_components(adata: ad.AnnData, n_comps: int = 15) -> NDArray[np.float64]:
    values = log_profiles(adata)
    u, s, _ = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    return u[:, :n_comps] * s[:n_comps]


def sparsity(adata: ad.AnnData) -> float:
    return 1 - adata.X.nnz / (adata.n_obs * adata.n_vars)


def assert_same(a: ad.AnnData, b: ad.AnnData, rtol: float = 0.0) -> None:
    """Same cells, genes, counts and truth; real numbers up to rtol of the largest."""
    assert (a.X != b.X).nnz == 0
    assert a.shape == b.shape
    pd.testing.assert_frame_equal(a.obs, b.obs, rtol=rtol, atol=0)
    pd.testing.assert_frame_equal(a.var, b.var, rtol=rtol, atol=1e3 * rtol)
    for left, right in ((a.obsm, b.obsm), (a.varm, b.varm), (a.uns["simulation"], b.uns["simulation"])):
        assert set(left) == set(right)
        for key, value in left.items():
            if np.asarray(value).dtype.kind == "f":
                np.testing.assert_allclose(right[key], value, rtol=rtol, atol=rtol * np.abs(value).max())
            else:
                np.testing.assert_array_equal(right[key], value)


# Form -----------------------------------------------------------------------------------------------------------------


@given(
    n_cells=st.integers(8, 60),
    n_genes=st.integers(12, 80),
    n_batches=st.integers(1, 4),
    n_types=st.integers(1, 8),
    effect=st.floats(0, 3),
    continuous=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_form(
    n_cells: int, n_genes: int, n_batches: int, n_types: int, effect: float, continuous: bool, seed: int
) -> None:
    adata = simulate(
        n_cells,
        n_genes,
        n_batches=n_batches,
        n_types=n_types,
        batch_effect=effect,
        continuous=continuous,
        random_state=seed,
    )
    assert adata.shape == (n_cells, n_genes)
    assert isinstance(adata.X, sp.csr_matrix | sp.csr_array)
    assert adata.X.dtype == np.float32
    assert adata.X.has_sorted_indices
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert (adata.X.data > 0).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    sizes = adata.obs["batch"].value_counts()
    assert list(adata.obs["batch"].cat.categories) == [f"batch{i + 1}" for i in range(n_batches)]
    assert sizes.max() - sizes.min() <= 1
    assert set(adata.obs["cell_type"]) <= set(adata.uns["simulation"]["types"])
    assert set(adata.obs["cell_type"].cat.categories) == set(adata.obs["cell_type"])
    assert adata.obsm["X_truth"].shape == (n_cells, n_types + 3)
    assert adata.obsm["X_truth"].dtype == np.float32
    assert adata.varm["batch_effect"].shape == (n_genes, n_batches)
    assert ("position" in adata.obs) == continuous
    for values in (adata.obsm["X_truth"], adata.varm["batch_effect"], adata.varm["truth_loadings"]):
        assert np.isfinite(values).all()


def test_defaults_give_three_batches_of_six_types_mixed_in_order() -> None:
    adata = simulate(600, 200)
    assert list(adata.uns["simulation"]["types"]) == ["T1a", "T1b", "T2a", "T2b", "T3a", "T3b"]
    assert adata.obs["batch"].nunique() == 3
    runs = (adata.obs["batch"].cat.codes.diff() != 0).sum()
    assert runs > 300  # blocks of one batch would make 3


def test_a_seed_is_an_answer() -> None:
    def state() -> Any:
        return np.random.get_state()[1].tolist()  # noqa: NPY002

    before = state()
    first = simulate(90, 100, random_state=5)
    assert_same(first, simulate(90, 100, random_state=5))
    assert state() == before
    assert (first.X != simulate(90, 100, random_state=6).X).nnz > 0


def test_the_batch_effect_changes_the_counts_alone() -> None:
    none, strong = (simulate(90, 100, batch_effect=effect) for effect in (0, 2))
    pd.testing.assert_frame_equal(none.obs, strong.obs)
    pd.testing.assert_frame_equal(none.var, strong.var)
    np.testing.assert_array_equal(none.obsm["X_truth"], strong.obsm["X_truth"])
    assert (none.X != strong.X).nnz > 0
    assert not none.varm["batch_effect"].any()


def test_genes_stay_whatever_the_batches() -> None:
    few, many = simulate(90, 100), simulate((30, 80), 100, n_batches=2, depth=(20, 90), missing_types=2)
    np.testing.assert_array_equal(few.var["marker_of"], many.var["marker_of"])
    np.testing.assert_array_equal(few.var["dispersion"], many.var["dispersion"])


def test_numbers_of_cells_per_batch() -> None:
    adata = simulate((5, 40, 1), 50)
    assert adata.obs["batch"].value_counts(sort=False).tolist() == [5, 40, 1]


def test_h5ad_round_trip(tmp_path: Path) -> None:
    adata = simulate(60, 50, continuous=True, missing_types={"batch2": ["T1b"]}, depth=(10, 20, 30))
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(adata, ad.read_h5ad(tmp_path / "a.h5ad"))


def test_no_dense_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "CHUNK_ENTRIES", 20_000)
    simulate(10, 10)  # imports are no memory of ours
    tracemalloc.start()
    simulate(6000, 500)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6000 * 500 * 8 / 2  # half of one dense matrix; the counts themselves and a copy take a fifth


def test_chunks_of_any_size_follow_the_same_law(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulate(200, 100)
    monkeypatch.setattr(
        datasets, "CHUNK_ENTRIES", 700
    )  # 7 cells at a time, the last chunk of 4; then one gene too many
    for adata in (simulate(200, 100), simulate(3, 701)):
        assert adata.X.sum() == pytest.approx(expected_counts(adata).sum(), rel=0.3)
        assert np.diff(adata.X.indptr).min() > 0
    pd.testing.assert_frame_equal(whole.obs, simulate(200, 100).obs)


# Truth ----------------------------------------------------------------------------------------------------------------


def test_the_truth_explains_the_counts() -> None:
    adata = simulate(3000, 150, batch_effect=1.5, depth=(1000, 2000, 4000), dropout=(0, 0.5, 0.2), dispersion=0.5)
    mean, counts = expected_counts(adata), adata.X.toarray().astype(float)
    for batch in adata.obs["batch"].cat.categories:
        cells = (adata.obs["batch"] == batch).to_numpy()
        high = mean[cells].mean(axis=0) > 1
        assert high.sum() > 40
        ratio = counts[cells][:, high].mean(axis=0) / mean[cells][:, high].mean(axis=0)
        assert np.abs(ratio - 1).max() < 0.2
        assert np.abs(ratio - 1).mean() < 0.05


def test_the_variance_is_negative_binomial() -> None:
    """Variance = mean + dispersion * mean ** 2, gene by gene, with the dispersion that var tells."""
    adata = simulate(4000, 100, n_batches=1, n_types=2, depth=5000, depth_sd=0.2, dispersion=0.5)
    mean, counts = expected_counts(adata), adata.X.toarray().astype(float)
    high = mean.mean(axis=0) > 2
    found = (((counts - mean) ** 2 - mean).sum(axis=0) / (mean**2).sum(axis=0))[high]
    told = adata.var["dispersion"].to_numpy()[high]
    assert high.sum() > 40
    assert np.median(found / told) == pytest.approx(1, abs=0.1)
    assert stats.spearmanr(found, told).statistic > 0.9
    assert np.median(adata.var["dispersion"]) == pytest.approx(0.5, rel=0.3)


def test_more_dispersion_more_variance_and_never_less_than_poisson() -> None:
    ratios = []
    for dispersion in (0.001, 0.3, 2):
        adata = simulate(600, 150, n_batches=1, n_types=1, depth=1000, depth_sd=0, dispersion=dispersion)
        counts = adata.X.toarray().astype(float)
        high = counts.mean(axis=0) > 1
        ratios.append(np.median(counts.var(axis=0)[high] / counts.mean(axis=0)[high]))
    assert 0.9 < ratios[0] < ratios[1] < ratios[2]
    assert ratios[1] > 1.5


def test_distances_in_the_truth_are_those_of_expression() -> None:
    adata = simulate(80, 60, n_types=4, batch_effect=0)
    log_rates = adata.obsm["X_truth"] @ adata.varm["truth_loadings"].T
    gram = adata.varm["truth_loadings"].T @ adata.varm["truth_loadings"]
    np.testing.assert_allclose(gram, np.eye(7), atol=1e-10)
    np.testing.assert_allclose(adata.obsm["X_truth"].mean(axis=0), 0, atol=1e-5)
    variances = adata.obsm["X_truth"].var(axis=0)
    assert (np.diff(variances) <= 1e-6).all()
    assert np.linalg.matrix_rank(log_rates, tol=1e-3) <= 7


def test_types_come_in_similar_pairs() -> None:
    adata = simulate(900, 2000, composition=np.inf)
    centres = pd.DataFrame(adata.obsm["X_truth"]).groupby(adata.obs["cell_type"].to_numpy()).mean()
    distance = pd.DataFrame(
        np.linalg.norm(centres.to_numpy()[:, None] - centres.to_numpy(), axis=2), centres.index, centres.index
    )
    related = [distance.loc[f"T{i}a", f"T{i}b"] for i in (1, 2, 3)]
    others = [distance.loc[a, b] for a in centres.index for b in centres.index if a[:2] < b[:2]]
    assert max(related) < 0.7 * min(others)
    assert min(related) > 0


def test_markers_are_higher_in_their_type() -> None:
    adata = simulate(1200, 500, batch_effect=0, composition=np.inf)
    values = pd.DataFrame(log_profiles(adata)).groupby(adata.obs["cell_type"].to_numpy()).mean()
    sibling = {"a": "b", "b": "a"}
    gains = []
    for kind in values.index:
        genes = np.flatnonzero((adata.var["marker_of"] == kind) & (adata.var["log_mean"] > -1))
        gains += list(values.loc[kind].iloc[genes] - values.loc[kind[:-1] + sibling[kind[-1]]].iloc[genes])
    assert len(gains) >= 10
    assert np.mean(np.array(gains) > 0) > 0.9
    assert (adata.var["marker_of"] != "").sum() == 6 * 5


# Batch effects --------------------------------------------------------------------------------------------------------


def small_p_values(effect: float) -> float:
    """Share of genes that differ (p < .05, rank test) between two batches of cells of one type."""
    adata = simulate(800, 300, n_batches=2, n_types=1, depth=600, batch_effect=effect)
    first = (adata.obs["batch"] == "batch1").to_numpy()
    values = log_profiles(adata)[:, adata.X.mean(axis=0).A1 > 0.2]
    p = np.array([stats.mannwhitneyu(v[first], v[~first]).pvalue for v in values.T])
    assert len(p) > 60
    return float((p < 0.05).mean())


def test_without_an_effect_batches_do_not_differ() -> None:
    assert small_p_values(0.0) < 0.12  # .05 by chance
    assert small_p_values(1.0) > 0.6


def test_the_strength_is_the_spread_of_log_ratios() -> None:
    adata = simulate(60, 5000, n_batches=4, batch_effect=(1, 1, 0, 3))
    shift = adata.varm["batch_effect"]
    assert np.std(shift[:, 0] - shift[:, 1]) == pytest.approx(0.707, rel=0.05)
    assert not shift[:, 2].any()
    assert shift[:, 3].std() == pytest.approx(1.5, rel=0.05)
    assert np.abs(np.corrcoef(shift[:, [0, 1, 3]].T) - np.eye(3)).max() < 0.05
    assert np.abs(stats.skew(shift[:, 3])) < 0.15


def test_a_stronger_effect_separates_batches_more() -> None:
    separations, purities = [], []
    for effect in (0, 0.6, 1.5):
        adata = simulate(450, 500, batch_effect=effect, depth=400)
        scores = principal_components(adata)
        separations.append(silhouette_score(scores, adata.obs["batch"]))
        purities.append(silhouette_score(scores, adata.obs["cell_type"].str[:2]))
    assert separations[0] < 0.01
    assert separations[0] + 0.01 < separations[1] < separations[2] - 0.05
    assert min(purities) > 0.03  # types can be found whatever the effect


# Composition ----------------------------------------------------------------------------------------------------------


def table(adata: ad.AnnData) -> pd.DataFrame:
    return pd.crosstab(adata.obs["batch"], adata.obs["cell_type"])


@given(st.data(), st.integers(2, 6), st.integers(2, 7), st.booleans(), st.integers(0, 2**31))
def test_missing_types_are_missing(
    data: st.DataObject, n_batches: int, n_types: int, continuous: bool, seed: int
) -> None:
    n_from = data.draw(st.integers(1, n_batches - 1))
    # as many as leave every batch a type when types are taken from the batches in turn
    n_missing = data.draw(st.integers(0, n_batches * (n_types - 1) // n_from).filter(lambda n: n <= n_types))
    adata = simulate(
        60 * n_batches,
        12,
        n_batches=n_batches,
        n_types=n_types,
        missing_types=(n_missing, n_from),
        composition=np.inf,
        depth=5,
        continuous=continuous,
        random_state=seed,
    )
    lacking = adata.uns["simulation"]["proportions"] == 0
    assert sorted(lacking.sum(axis=0)) == [0] * (n_types - n_missing) + [n_from] * n_missing
    assert np.ptp(lacking.sum(axis=1)) <= 1
    drawn = table(adata).reindex(columns=adata.uns["simulation"]["types"], fill_value=0).to_numpy()
    assert not drawn[lacking].any()


def test_missing_types_by_name() -> None:
    adata = simulate(600, 50, missing_types={"batch1": ["T1a", "T3b"], "batch3": ["T2a"]}, composition=np.inf)
    empty = table(adata).stack()
    assert set(empty[empty == 0].index) == {("batch1", "T1a"), ("batch1", "T3b"), ("batch3", "T2a")}


def test_proportions_as_given() -> None:
    shares = np.array([[0.7, 0.2, 0.1], [0.0, 5.0, 5.0]])
    adata = simulate(4000, 20, n_batches=2, n_types=3, composition=shares)
    found = table(adata).to_numpy() / 2000
    np.testing.assert_allclose(found, [[0.7, 0.2, 0.1], [0, 0.5, 0.5]], atol=0.04)
    np.testing.assert_allclose(adata.uns["simulation"]["proportions"].sum(axis=1), 1)


def test_concentration_sets_how_much_batches_differ() -> None:
    spread = [
        simulate(60, 30, n_batches=20, n_types=5, composition=c).uns["simulation"]["proportions"].std(axis=0).mean()
        for c in (0.3, 5, 500, np.inf)
    ]
    assert spread[0] > 2 * spread[1] > 4 * spread[2] > 8 * spread[3]
    assert spread[3] < 1e-3


def test_a_trajectory_passes_the_types_in_order() -> None:
    adata = simulate(900, 100, n_types=4, continuous=True, composition=np.inf, missing_types={"batch1": ["T2a"]})
    place, types = adata.obs["position"].to_numpy(), list(adata.uns["simulation"]["types"])
    code = adata.obs["cell_type"].map({t: i for i, t in enumerate(types)}).astype(float).to_numpy()
    assert np.abs(place - code).max() <= 0.5
    assert (place.min(), place.max()) == (0, 3)
    assert len(np.unique(place)) > 600
    here = place[adata.obs["batch"] == "batch1"]
    assert not ((here > 1.5) & (here < 2.5)).any()
    # without the factors that vary within types, expression is a broken line from type to type
    means = pd.DataFrame(adata.obsm["X_truth"]).groupby(np.round(place * 2) / 2).mean().to_numpy()
    middle = (means[2] + means[4]) / 2
    assert np.linalg.norm(means[3] - middle) < 0.25 * np.linalg.norm(means[2] - means[4])


# Depth ----------------------------------------------------------------------------------------------------------------


def test_depth_and_capture() -> None:
    adata = simulate(3000, 300, depth=(500, 1000, 3000), dropout=(0, 0.5, 0.9), depth_sd=(0.1, 0.4, 0.8))
    for i, (batch, cells) in enumerate(adata.obs.groupby("batch", observed=True)):
        library = cells["library_size"]
        assert np.median(library) == pytest.approx((500, 1000, 3000)[i], rel=0.1)
        assert np.log(library).std() == pytest.approx((0.1, 0.4, 0.8)[i], rel=0.1)
        assert abs(stats.skew(np.log(library))) < 0.25
        counted = adata[adata.obs["batch"] == batch].X.sum()
        assert counted / library.sum() == pytest.approx((1, 0.5, 0.1)[i], rel=0.05)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(600, 2000), (120, 20_000)])
def test_zeros_are_as_many_as_in_real_data(n_cells: int, n_genes: int) -> None:
    adata = simulate(n_cells, n_genes)
    assert 0.85 < sparsity(adata) < 0.95
    assert np.diff(adata.X.indptr).min() > 0


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"n_cells": 2}, "at least one cell"),
        ({"n_cells": -5}, "at least one cell"),
        ({"n_cells": (5, 5)}, "at least one cell"),
        ({"n_cells": (5, 5, 0)}, "at least one cell"),
        ({"n_cells": 99.5}, "whole numbers"),
        ({"n_genes": 8}, "n_genes must be a whole number of at least 9, found 8"),
        ({"n_genes": 50.0}, "n_genes must be a whole number"),
        ({"n_batches": 0}, "n_batches must be a whole number of at least 1"),
        ({"n_types": 0}, "n_types must be a whole number of at least 1"),
        ({"random_state": -1}, "random_state must be"),
        ({"random_state": None}, "random_state must be"),
        ({"batch_effect": -1}, "batch_effect must be at least 0"),
        ({"batch_effect": np.nan}, "batch_effect must be at least 0"),
        ({"batch_effect": "strong"}, "batch_effect must be one or more numbers, found 'strong'"),
        ({"batch_effect": (1, 2)}, r"one number per batch \(3\), found shape \(2,\)"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"depth": np.inf}, "depth must be at least 1 and below"),
        ({"depth_sd": -0.1}, "depth_sd must be"),
        ({"dropout": 1}, "dropout must be at least 0 and below 1"),
        ({"dispersion": 0}, "dispersion must be"),
        ({"composition": 0}, "concentration above 0"),
        ({"composition": np.nan}, "concentration above 0"),
        ({"composition": "even"}, "composition must be"),
        ({"composition": np.ones((3, 5))}, r"\(3, 6\), found the shape \(3, 5\)"),
        ({"composition": -np.ones((3, 6))}, "shares of 0 or more"),
        ({"composition": np.eye(3, 6), "missing_types": {"batch1": ["T1a"]}}, "without any type"),
        ({"missing_types": -1}, "missing_types must be a whole number"),
        ({"missing_types": 1.5}, "missing_types must be a whole number"),
        ({"missing_types": "T1a"}, "missing_types must be a whole number"),
        ({"missing_types": (1, 2, 3)}, "missing_types"),
        ({"missing_types": 1, "n_batches": 1}, "leaves a batch or a type with nothing"),
        ({"missing_types": 7}, "too much for 6 types in 3 batches"),
        ({"missing_types": (1, 3)}, "too much for 6 types in 3 batches"),
        ({"missing_types": {"batch9": ["T1a"]}}, "names 'batch9'; the batches are"),
        ({"missing_types": {"batch1": ["B cell"]}}, "names 'B cell'"),
        ({"missing_types": {f"batch{i}": ["T1a"] for i in (1, 2, 3)}}, "leaves a batch or a type with nothing"),
        ({"missing_types": {"batch1": ["T1a", "T1b", "T2a", "T2b", "T3a", "T3b"]}}, "leaves a batch or a type"),
    ],
)
def test_errors(given_: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        simulate(**({"n_cells": 60, "n_genes": 50} | given_))
    assert "\n" not in str(caught.value)


# The demonstration data -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme() -> str:
    return (DATA / "README.md").read_text()


@pytest.fixture(scope="module")
def demo() -> ad.AnnData:
    return ad.read_h5ad(DATA / "demo.h5ad")


def test_demo_is_the_file_described(readme: str) -> None:
    content = (DATA / "demo.h5ad").read_bytes()
    assert len(content) < 1_000_000
    assert hashlib.sha256(content).hexdigest() in readme


def test_demo_is_made_by_the_command_in_the_readme(
    readme: str, demo: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (command,) = re.findall(r"```python\n(.+?)```", readme, re.DOTALL)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    exec(compile(command, "data/README.md", "exec"), {})
    made = ad.read_h5ad(tmp_path / "data" / "demo.h5ad")
    assert_same(made, demo, rtol=1e-5)  # linear algebra differs from machine to machine in the last bits


def test_demo_holds_a_batch_effect_and_a_missing_type(demo: ad.AnnData) -> None:
    assert demo.shape == (1500, 1000)
    counts = table(demo)
    assert counts.shape == (3, 6)
    assert [(b, t) for b in counts.index for t in counts if counts.loc[b, t] == 0] == [("batch3", "T2b")]
    depths = demo.obs["library_size"].groupby(demo.obs["batch"], observed=True).median()
    assert depths.max() > 2 * depths.min()
    assert silhouette_score(principal_components(demo), demo.obs["batch"]) > 0.1
    assert silhouette_score(demo.obsm["X_truth"], demo.obs["batch"]) < 0.05
