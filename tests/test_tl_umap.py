"""Lay a corrected embedding out: names of its own, nothing overwritten, and a picture of that embedding."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from neighborhoods import neighbors
from snapshots import changes, snapshot

import cellnorm as cn
from cellnorm.adata import result_keys, result_slots, umap_keys
from cellnorm.errors import DataError


@pytest.fixture
def embedded(small_adata: ad.AnnData) -> ad.AnnData:
    """As if corrected twice: four groups of cells that lie elsewhere in each; and a UMAP and neighbors of the user."""
    rng, group = np.random.default_rng(0), np.arange(300) % 4
    for key in (None, "foo"):
        group = rng.permutation(group)
        small_adata.obs[f"group_{key}"] = group
        small_adata.obsm[result_keys(key)[0]] = (8 * np.eye(4)[group] + rng.normal(size=(300, 4))).astype(np.float32)
    small_adata.obsm["X_umap"] = rng.normal(size=(300, 2))
    small_adata.obsp["connectivities"] = sp.random(300, 300, density=0.05, format="csr", random_state=0)
    small_adata.uns["neighbors"] = {"params": {"n_neighbors": 15}}
    small_adata.uns["umap"] = {"params": {"a": 1.0}}
    return small_adata


@pytest.mark.parametrize("key", [None, "foo"])
def test_umap_overwrites_nothing(embedded: ad.AnnData, key: str | None) -> None:
    before = snapshot(embedded)
    assert cn.tl.umap(embedded, key_added=key) is None  # type: ignore[func-returns-value]
    written = {tuple(path.split("/")[1:3]) for path in changes(before, snapshot(embedded))}
    assert written == set(result_slots(key, umap=True)) - set(result_slots(key))
    picture = embedded.obsm["X_umap_foo" if key else "X_umap_cellnorm"]
    assert picture.shape == (300, 2)
    assert np.isfinite(picture).all()
    group = embedded.obs[f"group_{key}"].to_numpy()
    assert (group[neighbors(picture, 5)] == group[:, None]).mean() > 0.95, "a picture of another embedding"


def test_the_same_seed_gives_the_same_picture(embedded: ad.AnnData) -> None:
    pictures = []
    for seed in (0, 0, 1):
        cn.tl.umap(embedded, random_state=seed)
        pictures.append(embedded.obsm[umap_keys(None)[0]].copy())
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize(("key", "name"), [(None, "X_cellnorm"), ("foo", "foo")])
def test_umap_needs_a_correction(small_adata: ad.AnnData, key: str | None, name: str) -> None:
    with pytest.raises(DataError, match=rf"needs obsm\['{name}'\], but obsm holds: none.*same key_added"):
        cn.tl.umap(small_adata, key_added=key)
