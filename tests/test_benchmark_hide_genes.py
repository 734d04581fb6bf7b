"""Sets without a fifth of their genes."""

import sys
from pathlib import Path

import anndata as ad
import hide_genes
import numpy as np
import pytest


def test_a_fifth_of_the_genes_goes_and_the_rest_is_as_it_was(
    tmp_path: Path, small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        small_adata.write_h5ad(tmp_path / "in" / f"{name}.h5ad")
    asked = ["x", "one", "--data", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", asked)
    hide_genes.main()
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["one.h5ad"]
    first = ad.read_h5ad(tmp_path / "out" / "one.h5ad")
    assert first.n_vars == small_adata.n_vars - round(0.2 * small_adata.n_vars)
    kept = small_adata[first.obs_names, first.var_names]
    assert (kept.X != first.X).nnz == 0
    assert f"{first.n_vars} of {small_adata.n_vars} genes" in capsys.readouterr().out
    hide_genes.main()
    assert ad.read_h5ad(tmp_path / "out" / "one.h5ad").var_names.equals(first.var_names)


def test_of_many_cells_some_are_drawn_in_their_order(small_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hide_genes, "MAX_CELLS", 50)
    found = hide_genes.without_some_genes(small_adata, np.random.default_rng(0))
    rows = small_adata.obs_names.get_indexer(found.obs_names)
    assert len(rows) == 50
    assert (np.diff(rows) > 0).all()
    assert (np.diff(small_adata.var_names.get_indexer(found.var_names)) > 0).all()
