"""A model of components found elsewhere is that of the expression, and cells are embedded part by part."""

from pathlib import Path

import numpy as np
import pytest

from cellnorm import CellNorm, LinearFront, parts
from cellnorm.components import codes_of, fit_components, place
from cellnorm.errors import DataError

N = 150
RNG = np.random.default_rng(0)
BATCH = RNG.choice(["a", "b", "c"], N)
X = (RNG.normal(size=(N, 12)) + 2.0 * (BATCH == "b")[:, None]).astype(np.float32)


def model(**params: object) -> CellNorm:
    return CellNorm(**{"n_latent": 4, "n_comps": 6, "n_steps": 4, "device": "cpu", **params})


def test_given_components_the_model_is_that_of_the_expression(tmp_path: Path) -> None:
    expected, front = model().fit(X, BATCH), LinearFront.fit(X, 6)
    np.save(tmp_path / "pcs.npy", front.project(X))
    stages: list[str] = []
    found, pcs = model(), np.load(tmp_path / "pcs.npy", "r")
    fit_components(found, pcs, front, BATCH, progress=lambda *state: stages.append(state[0]))
    assert list(dict.fromkeys(stages)) == ["anchors", "strength", "train"]
    np.testing.assert_array_equal(found.transform(X, BATCH), expected.transform(X, BATCH))
    for name, value in expected.net_.state_dict().items():
        np.testing.assert_array_equal(found.net_.state_dict()[name], value, err_msg=name)
    assert "pca" not in found.seconds_


def test_what_cannot_be_fitted_is_refused() -> None:
    front = LinearFront.fit(X, 6)
    with pytest.raises(DataError, match="An embedding of 200 dimensions was asked for, found 150 cells"):
        fit_components(model(n_latent=200), front.project(X), front, BATCH)
    with pytest.raises(DataError, match="One batch label is needed for each of 150 cells"):
        fit_components(model(), front.project(X), front, BATCH[1:])


@pytest.mark.parametrize("strength", [None, 0.0, 0.5])
def test_parts_have_no_say(strength: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = model().fit(X, BATCH)
    pcs = fitted.front_.project(X)
    codes = codes_of(fitted, BATCH, pcs)
    whole = place(fitted, pcs, codes, strength)
    monkeypatch.setattr(parts, "SPAN_ROWS", 40)
    np.testing.assert_array_equal(place(fitted, pcs, codes.astype(np.int32), strength), whole)
    np.testing.assert_array_equal(fitted.transform(X, BATCH, strength=strength), whole)
    assert strength != 0 or (whole == pcs[:, :4]).all()


def test_without_labels_a_cell_is_of_the_batch_of_its_nearest_neighbour() -> None:
    fitted = model().fit(X, BATCH)
    codes = codes_of(fitted, None, fitted.front_.project(X))
    assert (fitted.batches_[codes[fitted.sketch_cells_]] == BATCH[fitted.sketch_cells_]).all()
