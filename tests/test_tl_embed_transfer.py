"""Labels of the reference: where they are found, and what is said of a cell."""

import anndata as ad
import numpy as np
import pytest
from atlases import Atlas, make_atlas  # noqa: F401 - a fixture

from cellnorm.stability._reach import reach_of
from cellnorm.tl import _embed_transfer
from cellnorm.tl._embed_transfer import UNKNOWN, label_cells, labelled_reference


def test_the_file_of_the_reference_gives_what_the_model_holds(atlas: Atlas) -> None:
    kept, read = (labelled_reference(atlas.model, "cell_type", r) for r in (None, atlas.reference))
    for mine, theirs in zip(kept, read, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_cells_without_a_label_are_left_out(atlas: Atlas) -> None:
    gaps = atlas.reference.copy()
    gaps.obs["cell_type"] = gaps.obs["cell_type"].astype(object).where(np.arange(200) > 49)
    found = labelled_reference(atlas.model, "cell_type", gaps)
    assert len(found.labels) == len(found.z) == len(found.batch) == 150
    np.testing.assert_array_equal(found.z, gaps.obsm["X_cellnorm"][50:])


def test_a_large_reference_is_thinned_evenly(atlas: Atlas, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_embed_transfer, "MAX_REFERENCE", 60)
    uneven = atlas.reference[np.r_[0:200, np.flatnonzero(atlas.reference.obs["batch"] == "lab1")]].copy()
    found = labelled_reference(atlas.model, "cell_type", uneven)
    assert np.bincount(found.batch).tolist() == [30, 30]
    again = labelled_reference(atlas.model, "cell_type", uneven)
    np.testing.assert_array_equal(found.z, again.z)


def test_a_cell_far_from_all_is_unknown_and_certain_of_nothing(atlas: Atlas) -> None:
    reference = labelled_reference(atlas.model, "cell_type")
    z = reference.z[:50].copy()
    z[:5] += 1000
    match = np.where(np.arange(50) < 5, 0.0, 0.5)
    length = np.where(np.arange(50) == 7, 0.0, 2.0)
    reach = reach_of(atlas.model.net_, atlas.model.sketch_[:50], reference.batch[:50], float(atlas.model.scale_))
    said = label_cells(atlas.model, reference, z, match, length, reach)
    assert set(said.labels[:5]) == {UNKNOWN}
    assert (said.radius[:5] == 0).all()
    assert (said.labels[5:] == reference.labels[5:50]).mean() > 0.9
    assert said.radius[7] == 0
    longer = label_cells(atlas.model, reference, z, match, length * 2, reach)
    np.testing.assert_allclose(longer.radius, said.radius / 2)


def test_the_radius_holds(atlas: Atlas) -> None:
    """No change of the components of that length changes the vote: tried in many directions."""
    rng = np.random.default_rng(0)
    reference = labelled_reference(atlas.model, "cell_type")
    cells: ad.AnnData = atlas.reference[:40, atlas.model.feature_names_in_]
    X = np.log1p(1e4 * cells.X.toarray() / np.asarray(atlas.reference[:40].X.sum(axis=1)))
    batch = cells.obs["batch"].to_numpy()
    codes, length = (batch == "lab1").astype(int), np.linalg.norm(X, axis=1)

    def said(X: np.ndarray) -> _embed_transfer.CellLabels:
        z, x = atlas.model.transform(X, batch), atlas.model._features(X) / atlas.model.scale_
        reach = reach_of(atlas.model.net_, x, codes, float(atlas.model.scale_))
        return label_cells(atlas.model, reference, z, np.ones(40), length, reach)

    first = said(X)
    assert (first.radius > 0).sum() > 10
    for _ in range(20):
        change = rng.normal(size=X.shape) if rng.random() < 0.5 else X[rng.permutation(40)] - X
        change *= (0.999 * first.radius * length / np.maximum(np.linalg.norm(change, axis=1), 1e-12))[:, None]
        sure = first.radius > 0
        labels = said((X + change).astype(np.float32)).labels
        assert (labels[sure] == first.labels[sure]).mean() > 0.97  # "unknown" rests on more than the vote
