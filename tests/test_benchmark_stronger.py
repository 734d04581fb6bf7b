"""Sets made for `benchmarks/peers.py`, in which the effects of laboratories are stronger than they were."""

import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
import stronger
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

N_GENES, EACH = 300, 40


def changes(spread: float, seed: int, counts: int = 1000) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Mean log change of each gene in each of two batches, (2, n_genes), and the counts of all cells."""
    before = sp.csr_matrix(np.full((2 * EACH, N_GENES), counts, np.float32))
    batch = np.tile(["a", "b"], EACH)
    after = stronger.changed(before, batch, spread, np.random.default_rng(seed)).toarray()
    return np.log(np.stack([after[batch == name].mean(0) for name in "ab"]) / counts), after


@given(spread=st.floats(0.3, 1.5), seed=st.integers(0, 10**6))
def test_each_batch_has_factors_of_its_own_with_the_spread_asked_for(spread: float, seed: int) -> None:
    of_batch, _ = changes(spread, seed)
    assert of_batch.std(1) == pytest.approx([spread, spread], rel=0.2)
    assert abs(np.corrcoef(of_batch)[0, 1]) < 0.3


@given(seed=st.integers(0, 10**6))
def test_cells_of_a_batch_differ_by_sampling_alone(seed: int) -> None:
    _, after = changes(0.7, seed)
    own = after[::2]
    assert np.median(own.var(0, ddof=1) / own.mean(0)) == pytest.approx(1, abs=0.1)  # Poisson


def test_without_spread_a_batch_only_loses_depth() -> None:
    of_batch, _ = changes(0, 0)
    assert of_batch.std(1).max() < 0.02
    assert ((np.exp(of_batch.mean(1)) >= stronger.LEAST_KEPT) & (np.exp(of_batch.mean(1)) <= 1)).all()


def test_what_was_not_found_is_not_found_and_the_source_stays() -> None:
    before = sp.random(50, 40, density=0.3, format="csr", dtype=np.float32, random_state=0)
    before.data[:] = 3
    kept = before.copy()
    after = stronger.changed(before, np.repeat(["a", "b"], 25), 1.0, np.random.default_rng(0))
    assert (before != kept).nnz == 0
    assert not np.any(after.toarray()[before.toarray() == 0])
    assert after.data.min() >= 1  # none stored that is zero
    assert (np.mod(after.data, 1) == 0).all()


def test_it_writes_counts_and_leaves_out_what_has_none(
    tmp_path: Path, small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    small_adata.write_h5ad(tmp_path / "in" / "whole.h5ad")
    logs = small_adata.copy()
    logs.X = np.log1p(small_adata.X)
    logs.write_h5ad(tmp_path / "in" / "logs.h5ad")
    arguments = ["--data", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--spread", "0.5", "1"]
    monkeypatch.setattr(sys, "argv", ["stronger.py", *arguments])
    stronger.main()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"whole_0.5.h5ad", "whole_1.0.h5ad"}
    assert capsys.readouterr().out.count("holds no counts") == 2
    mild, strong = (ad.read_h5ad(tmp_path / "out" / f"whole_{spread}.h5ad") for spread in ("0.5", "1.0"))
    assert mild.obs["batch"].tolist() == small_adata.obs.loc[mild.obs_names, "batch"].tolist()
    assert mild.X.shape == strong.X.shape
    assert (mild.X != strong.X).nnz > 0
