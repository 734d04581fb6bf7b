"""The batches of new cells: by which columns, known or new, under which name."""

import copy
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from atlases import Atlas, make_atlas  # noqa: F401 - a fixture

from cellnorm.errors import DataError
from cellnorm.tl._embed_batches import FAR, learn_batches, read_batches, warn_of_far
from cellnorm.tl._embed_input import read_features


def test_the_columns_of_the_training_are_taken(atlas: Atlas) -> None:
    mixed = ad.concat([atlas.reference, atlas.new])
    found = read_batches(mixed, atlas.model, None)
    assert found.key == ["batch"]
    assert found.names.tolist() == found.found.tolist() == ["lab0", "lab1", "lab2"]
    assert found.known.tolist() == [True, True, False]
    assert found.labels.tolist() == mixed.obs["batch"].tolist()


def test_without_them_all_cells_are_one_new_batch(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "cellnorm")
    query = atlas.query()
    query.obs = pd.DataFrame({"donor": ["a", "b"] * 50}, index=query.obs_names)
    found = read_batches(query, atlas.model, None, batch_name="march")
    assert (found.key, found.names.tolist(), found.known.tolist()) == ([], ["march"], [False])
    assert set(found.labels) == {"march"}
    assert "all 100 cells are one new batch, 'march'" in caplog.text
    assert "name their column with --batch-key ('donor' may be it)" in caplog.text
    assert read_batches(query, atlas.model, "donor").names.tolist() == ["a", "b"]


def test_the_name_of_such_a_batch_is_never_that_of_another(atlas: Atlas) -> None:
    query = atlas.query()
    del query.obs["batch"]
    assert read_batches(query, atlas.model, None, batch_name="lab1").names.tolist() == ["lab1 (2)"]
    grown = learn_batches(atlas.model, read_features(query, atlas.model).X, read_batches(query, atlas.model, None))
    assert grown.batches_.tolist() == ["lab0", "lab1", "new"]
    assert read_batches(query, grown, None).names.tolist() == ["new (2)"]


def test_known_batches_can_be_taken_for_new(atlas: Atlas) -> None:
    query = atlas.query()
    query.obs["batch"] = np.repeat(["lab1", "lab1 (2)"], 50)
    found = read_batches(query, atlas.model, None, as_new=True)
    assert found.known.tolist() == [False, False]
    assert dict(zip(found.found, found.names, strict=True)) == {"lab1": "lab1 (2)", "lab1 (2)": "lab1 (2) (2)"}
    assert found.labels[0] == "lab1 (2)"
    assert found.labels[99] == "lab1 (2) (2)"


def test_crossed_columns(atlas: Atlas) -> None:
    query = atlas.query()
    query.obs["day"] = [1, 2] * 50
    found = read_batches(query, atlas.model, ["batch", "day"], as_new=True)
    assert found.names.tolist() == ["lab2 / 1", "lab2 / 2"]
    assert found.key == ["batch", "day"]


def test_the_columns_are_those_of_the_model(atlas: Atlas) -> None:
    query = atlas.query()
    query.obs["day"] = [1, 2] * 50
    with pytest.raises(DataError, match=r"'batch', 'day' was asked for, but .* are made of 'batch'.*--as-new"):
        read_batches(query, atlas.model, ["batch", "day"])
    several = copy.copy(atlas.model)
    several.input_ = {**atlas.model.input_, "batch_key": ["batch", "day"]}
    several.batches_ = np.array(["lab2 / 1", "lab1 / 1"], object)
    for key in (["day", "batch"], ["batch", "day"], None):
        found = read_batches(query, several, key)
        assert (found.names.tolist(), found.known.tolist()) == (["lab2 / 1", "lab2 / 2"], [True, False])
        assert found.key == ["batch", "day"]
    with pytest.raises(DataError, match=r"'day' was asked for, but .* are made of 'batch', 'day'"):
        read_batches(query, several, "day")
    assert read_batches(query, several, "day", as_new=True).names.tolist() == ["1", "2"]


def test_one_cell_is_a_batch_and_a_hundred_barcodes_are_none(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    one = atlas.new[:1].copy()
    found = read_batches(one, atlas.model, None)
    grown = learn_batches(atlas.model, read_features(one, atlas.model).X, found)
    assert "Batch 'lab2' has 1 cells: too few" in caplog.text
    assert np.isfinite(grown.transform(read_features(one, atlas.model).X, found.labels)).all()
    query = atlas.query()
    query.obs["barcode"] = query.obs_names
    with pytest.raises(DataError, match="100 values that are new to the model, each of one cell"):
        read_batches(query, atlas.model, "barcode")
    query.obs["batch"] = query.obs["batch"].astype(object).where(np.arange(100) > 3)
    with pytest.raises(DataError, match=r"obs\['batch'\] is missing \(NaN\) for 4 of 100"):
        read_batches(query, atlas.model, None)


def test_each_new_batch_learns_from_its_own_cells(atlas: Atlas) -> None:
    query = atlas.query()
    query.obs["batch"] = np.repeat(["p", "q"], 50)
    X, batches = read_features(query, atlas.model).X, read_batches(query, atlas.model, None)
    stages: list[tuple[str, int, int]] = []
    grown = learn_batches(atlas.model, X, batches, progress=lambda *a: stages.append(a[:3]))
    assert stages == [("map", 0, 2), ("map", 1, 2), ("map", 2, 2)]
    assert grown.batches_.tolist() == ["lab0", "lab1", "p", "q"]
    assert grown.counts_.tolist() == [100, 100, 50, 50]
    alone = atlas.model.add_batch(X[50:], "q")
    np.testing.assert_array_equal(grown.transform(X[50:], ["q"] * 50), alone.transform(X[50:], ["q"] * 50))
    shared = learn_batches(atlas.model, X, batches, frozen=True)
    assert shared.matched_.tolist() == [*atlas.model.matched_, 0, 0]
    np.testing.assert_array_equal(shared.transform(X, ["p"] * 100), shared.transform(X, ["q"] * 100))
    assert atlas.model.batches_.tolist() == ["lab0", "lab1"]


def test_a_known_name_with_other_cells_is_told_of(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    components = atlas.model.front_.project(read_features(atlas.reference, atlas.model).X) / atlas.model.scale_
    mine = read_batches(atlas.reference, atlas.model, None)
    assert warn_of_far(atlas.model, components, mine) == []
    assert caplog.text == ""
    swapped = mine._replace(labels=np.where(mine.labels == "lab0", "lab1", "lab0").astype(object))
    assert warn_of_far(atlas.model, components, swapped) == ["lab0", "lab1"]
    assert "batch 'lab0', 'lab1' lie clearly off" in caplog.text
    assert "--as-new" in caplog.text
    assert warn_of_far(atlas.model, components[:5], mine._replace(labels=swapped.labels[:5])) == []


def test_another_composition_of_a_known_batch_is_not(atlas: Atlas) -> None:
    fewer = atlas.reference[atlas.reference.obs["cell_type"] != "type1"].copy()
    components = atlas.model.front_.project(read_features(fewer, atlas.model).X) / atlas.model.scale_
    assert warn_of_far(atlas.model, components, read_batches(fewer, atlas.model, None)) == []
    assert FAR < 1
