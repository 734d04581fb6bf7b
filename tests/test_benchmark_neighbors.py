"""How often a cell's nearest cells are of its type, in its own batch and in others."""

import sys
from pathlib import Path

import anndata as ad
import neighbors
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

EACH = 20


def cells(apart: float, offset: float, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.str_], NDArray[np.str_]]:
    """Two types, so far apart, in two batches with this offset along the line from type to type."""
    kind, batch = np.tile(np.repeat([0, 1], EACH), 2), np.repeat([0, 1], 2 * EACH)
    Z = np.random.default_rng(seed).normal(size=(4 * EACH, 2))
    Z[:, 0] += apart * kind + offset * batch
    return Z.astype(np.float32), np.array(["a", "b"])[batch], np.array(["T", "B"])[kind]


@given(seed=st.integers(0, 10**6))
def test_types_that_lie_on_each_other_are_seen_and_types_laid_on_others_too(seed: int) -> None:
    assert neighbors.shares(*cells(50, 0, seed)) == (1, 1)
    own, others = neighbors.shares(*cells(50, 50, seed))  # one type onto the other: type 0 of b on type 1 of a
    assert own == 1
    assert others < 0.6
    assert max(neighbors.shares(*cells(0, 0, seed))) < 0.75  # nothing to tell them by


def test_types_count_alike_and_what_is_not_asked_does_not() -> None:
    share = np.array([1, 1, 1, 1, 0, np.nan, np.nan])
    assert neighbors.each_type_alike(share, np.array(list("aaaabbc"))) == 0.5


def test_a_cell_is_not_its_own_neighbour_even_where_all_share_a_place() -> None:
    label = np.array(["a", "b"])
    assert neighbors.of_own_type(np.zeros((2, 2), np.float32), label, np.arange(2)).tolist() == [0, 0]


def test_types_and_batches_without_company_are_left_out() -> None:
    Z, batch, label = cells(50, 0)
    batch[0], label[-1] = "alone", "rare"  # a batch of one cell; a type in one batch
    own, others = neighbors.shares(Z, batch, label)
    assert own == pytest.approx((1 + 1 + 0) / 3, abs=0.05)  # the rare cell has none of its type
    assert others > 0.9


def test_it_prints_methods_that_did_all_sets(
    tmp_path: Path, small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in", "out/answers"):
        (tmp_path / name).mkdir(parents=True)
    for of in ("one", "two"):
        small_adata.write_h5ad(tmp_path / "in" / f"{of}.h5ad")
    Z = small_adata.obsm["X_pca"] if "X_pca" in small_adata.obsm else np.asarray(small_adata.X.todense())[:, :5]
    for name in ("one.cellnorm.0", "one.cellnorm.1", "two.cellnorm.0", "one.Harmony.0"):
        ad.AnnData(obsm={"Z": Z}, obs=small_adata.obs[[]]).write_h5ad(tmp_path / "out/answers" / f"{name}.h5ad")
    ad.AnnData(obs=small_adata.obs[[]]).write_h5ad(tmp_path / "out/answers" / "one.BBKNN.0.h5ad")
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out")])
    neighbors.main()
    printed = capsys.readouterr().out
    assert "| own batch | cellnorm |" in printed
    assert printed.count("| mean |") == 2
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="no method"):
        neighbors.main()
