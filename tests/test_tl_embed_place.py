"""What is computed before anything is written: the cells, and the model that knows their batches."""

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
from atlases import Atlas, make_atlas, without  # noqa: F401 - a fixture

from cellnorm.checkpoint import fingerprint
from cellnorm.strength import Strength
from cellnorm.tl._embed_place import Embedded, place_cells

OPTIONS: dict[str, Any] = {
    **{"layer": None, "use_rep": None, "frozen": False, "as_new": False, "batch_name": "new", "columns": ()},
    **{"reference": None, "save_model": None, "force": False, "key_added": None, "progress": None},
}


def placed(atlas: Atlas, **options: Any) -> Embedded:
    return place_cells(options.pop("adata", atlas.new), atlas.model, None, **{**OPTIONS, **options})


def test_the_model_that_comes_back_knows_the_batches_and_all_genes(atlas: Atlas) -> None:
    found = placed(atlas, adata=without(atlas.new, 0.4))
    assert found.model.batches_.tolist() == ["lab0", "lab1", "lab2"]
    assert found.model.n_features_in_ == atlas.model.n_features_in_
    for field in dataclasses.fields(atlas.model.front_):
        np.testing.assert_array_equal(getattr(found.model.front_, field.name), getattr(atlas.model.front_, field.name))
    assert found.info["model"] == fingerprint(found.model)
    assert found.model.input_["made_from"] == [fingerprint(atlas.model)]
    assert "made_from" not in atlas.model.input_
    assert set(found.labels) == {"lab2"}


def test_a_model_that_learns_nothing_is_the_same(atlas: Atlas) -> None:
    found = placed(atlas, adata=atlas.reference)
    assert fingerprint(found.model) == fingerprint(atlas.model)
    assert found.model.input_ == atlas.model.input_


def test_foreign_cells_are_supported_less(atlas: Atlas) -> None:
    """A quarter of the cells gets the genes in another order: a type that no batch has."""
    query = atlas.query()
    strange = (query.obs["cell_type"] == "type3").to_numpy()
    X = query.X.toarray()
    X[strange] = X[strange][:, np.random.default_rng(0).permutation(200)]
    query.X = X
    match = placed(atlas, adata=query).cells["cellnorm_match"]
    assert np.median(match[strange]) < 0.1 < np.median(match[~strange])


def test_a_model_that_corrects_little_says_so_of_new_batches(atlas: Atlas, caplog: pytest.LogCaptureFixture) -> None:
    weak = copy.copy(atlas.model)
    weak.evidence_ = Strength(0.0, 0.001, 0.4)
    for adata, said in ((atlas.new, True), (atlas.reference, False)):
        caplog.clear()
        place_cells(adata, weak, None if said else "batch", **OPTIONS)
        warnings = [r.getMessage() for r in caplog.records if "new batches no more than that" in r.getMessage()]
        assert bool(warnings) == said
        assert all("batches explain no more than chance" in text for text in warnings)


def test_stages_are_told(atlas: Atlas) -> None:
    stages: list[str] = []
    placed(atlas, columns=("cell_type",), progress=lambda stage, *_: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["prepare", "map", "encode", "transfer"]
