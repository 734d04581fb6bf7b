"""The data of the benchmark of scale are cells of their batch and type, and its table says how stages grow."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scale
import scale_data
import scipy.sparse as sp


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> ad.AnnData:
    path = tmp_path_factory.mktemp("pool") / "pool.h5ad"
    scale_data.make_pool(path, 400, 300)
    return ad.read_h5ad(path)


def test_half_of_the_molecules_are_kept_of_few_and_of_many() -> None:
    counts = sp.csr_matrix(np.repeat([[1.0], [5.0], [32.0], [33.0], [4000.0]], 2000, axis=1))
    kept = scale_data.halved(counts, np.random.default_rng(0)).toarray()
    whole = counts.toarray()
    assert ((kept >= 0) & (kept <= whole) & (kept == np.rint(kept))).all()
    assert np.allclose(kept.mean(axis=1), whole[:, 0] / 2, rtol=0.05)
    assert np.allclose(kept.var(axis=1), whole[:, 0] / 4, rtol=0.15)  # of a binomial


def test_cells_are_made_of_two_of_their_batch_and_type(pool: ad.AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale_data, "CHUNK_CELLS", 300)
    pieces = list(scale_data.chunks(pool, 1000))
    assert [counts.shape[0] for _, counts in pieces] == [300, 300, 300, 100]
    origin, counts = np.concatenate([cells for cells, _ in pieces]), sp.vstack([counts for _, counts in pieces])
    assert counts.data.min() >= 1
    assert counts.sum() / 1000 == pytest.approx(pool.X.sum() / pool.n_obs, rel=0.1)
    group = (pool.obs["batch"].astype(str) + pool.obs["cell_type"].astype(str)).to_numpy()
    names, codes = np.unique(group, return_inverse=True)
    centres = np.log1p([np.asarray(pool.X[codes == code].mean(axis=0)).ravel() for code in range(len(names))])
    nearest = ((np.log1p(counts.toarray())[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == codes[origin]).mean() > 0.8


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_a_file_written_in_chunks_is_what_anndata_reads(
    pool: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(scale_data, "CHUNK_CELLS", 70)
    path = tmp_path / f"cells{suffix}"
    scale_data.write_cells(path, pool, 200)
    adata = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    pieces = list(scale_data.chunks(pool, 200))
    assert (sp.vstack([counts for _, counts in pieces]) != adata.X).nnz == 0
    origin = np.concatenate([cells for cells, _ in pieces])
    assert adata.obs["batch"].tolist() == pool.obs["batch"].iloc[origin].tolist()
    assert adata.obs_names.is_unique
    assert adata.var_names.equals(pool.var_names)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_table_tells_how_a_stage_grows() -> None:
    def run(cells: int, seconds: dict[str, float]) -> scale.Run:
        return {"cells": cells, "GB": cells / 1e6, "seconds": seconds, "whole": sum(seconds.values()), "peak": 1.0}

    small, large = {"survey": 1.0, "train": 40.0, "check": 0.1}, {"survey": 10.0, "train": 40.0, "check": 0.2}
    lines = scale.table("streamed", [run(10**4, small), run(10**5, large)])
    cells = {line.split(" | ")[0].strip("| "): [cell.strip("| ") for cell in line.split(" | ")[1:]] for line in lines}
    assert cells["survey, s"] == ["1.0", "10.0", "1.00"]
    assert cells["train, s"] == ["40.0", "40.0", "0.00"]
    assert cells["check, s"][2] == ""  # too short to tell
    assert cells["streamed"] == ["10,000 cells", "100,000 cells", "exponent to 100,000"]
