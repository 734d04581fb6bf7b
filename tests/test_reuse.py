"""What a fitted model is used for later: new batches, own or shared statistics, the reference, the bound."""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from cellnorm import CellNorm, DataError
from cellnorm.reuse import largest_batch

LATE = "c"


@cache
def made() -> tuple[CellNorm, NDArray[np.float32], NDArray[np.object_]]:
    """A model of batches a and b; cells of these and of c, which is larger than both and lies elsewhere."""
    rng = np.random.default_rng(0)
    batch = np.repeat(np.array(["a", "b", LATE], object), [120, 160, 300])
    X = rng.normal(size=(580, 12)).astype(np.float32)
    X[:, 0] += 12 * (np.arange(580) % 2)
    X[:, 1] += 3 * np.searchsorted(["a", "b", LATE], batch.astype(str))
    old = batch != LATE
    return CellNorm(n_latent=5, n_comps=10, n_steps=40, device="cpu").fit(X[old], batch[old]), X, batch


def new() -> NDArray[np.float32]:
    _, X, batch = made()
    return X[batch == LATE]


def test_a_new_batch_is_known_from_then_on_and_the_old_model_stays() -> None:
    model, X, batch = made()
    old = batch != LATE
    before = model.transform(X[old], batch[old])
    grown = model.add_batch(new(), LATE)
    assert grown.batches_.tolist() == ["a", "b", LATE]
    assert model.batches_.tolist() == ["a", "b"]
    assert grown.counts_.tolist() == [120, 160, 300]
    assert 0 < grown.matched_[2] <= 300
    np.testing.assert_array_equal(grown.transform(X[old], batch[old]), before)
    with pytest.raises(DataError, match="unknown to the model"):
        model.transform(new(), [LATE] * 300)
    with pytest.raises(DataError, match="known to the model already"):
        grown.add_batch(new(), LATE)
    with pytest.raises(DataError, match="12 genes"):
        model.add_batch(new()[:, :5], "d")


def test_own_statistics_lay_a_batch_onto_the_reference_and_shared_ones_do_not() -> None:
    model, _, _ = made()
    goal = model.reference_embedding()
    far = []
    for frozen in (False, True):
        z = model.add_batch(new(), LATE, frozen=frozen).transform(new(), [LATE] * 300)
        far.append(np.median(np.linalg.norm(z[:, None] - goal, axis=2).min(1)))
    assert far[0] < 0.8 * far[1]


def test_cells_of_added_batches_are_kept_whatever_their_order() -> None:
    model, _, _ = made()
    one = model.add_batch(new(), LATE).add_batch(new()[:40], "d", frozen=True)
    assert one.added_.shape == (340, 10)
    assert np.bincount(one.added_batch_).tolist() == [0, 0, 300, 40]
    other = model.add_batch(new()[::-1], LATE)
    np.testing.assert_array_equal(other.added_, one.added_[:300])
    assert len(model.added_) == 0


def test_the_common_frame_does_not_move_to_a_larger_batch() -> None:
    model, _, _ = made()
    grown = model.add_batch(new(), LATE)
    assert largest_batch(model) == largest_batch(grown) == 1
    z = model.reference_embedding()
    np.testing.assert_allclose(grown.inverse_transform(z), model.inverse_transform(z), atol=1e-4)
    assert grown.check().verdict == model.check().verdict


def test_the_reference_embedding_is_that_of_the_sketch() -> None:
    model, X, batch = made()
    cells = np.flatnonzero(batch != LATE)[model.sketch_cells_]
    np.testing.assert_array_equal(model.reference_embedding(), model.transform(X[cells], batch[cells]))


def at_strength(strength: float) -> CellNorm:
    """The model of `made`, at another strength."""
    _, X, batch = made()
    old = batch != LATE
    return CellNorm(n_latent=5, n_comps=10, n_steps=40, device="cpu", strength=strength).fit(X[old], batch[old])


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_a_new_batch_is_matched_at_full_strength_and_embedded_at_the_models(strength: float) -> None:
    model, _, _ = made()
    assert model.strength_ == 1
    full, weak = model.add_batch(new(), LATE), at_strength(strength).add_batch(new(), LATE)
    assert weak.strength_ == strength
    assert weak.net_.strength.item() == np.float32(strength)
    assert weak.matched_.tolist() == full.matched_.tolist()
    names = [LATE] * 300
    np.testing.assert_array_equal(weak.transform(new(), names, strength=1), full.transform(new(), names))
    np.testing.assert_array_equal(weak.transform(new(), names), full.transform(new(), names, strength=strength))


@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_the_reference_embedding_has_the_models_strength_or_another(strength: float) -> None:
    weak = at_strength(strength)
    np.testing.assert_array_equal(weak.reference_embedding(strength=1), made()[0].reference_embedding())
    np.testing.assert_array_equal(weak.reference_embedding(), made()[0].reference_embedding(strength=strength))


def test_the_bound_falls_to_that_of_the_components() -> None:
    none, some, full = (at_strength(s).stability_bound().lipschitz for s in (0.0, 0.4, 1.0))
    np.testing.assert_allclose(none, 1, rtol=1e-5)
    assert (some <= 0.6 + 0.4 * full + 1e-4).all()


def test_a_batch_has_its_bound() -> None:
    model, _, _ = made()
    bound = model.add_batch(new(), LATE).stability_bound()
    assert bound.batches.tolist() == ["a", "b", LATE]
    assert (bound.lipschitz > 0).all()
    np.testing.assert_allclose(bound.lipschitz[:2], model.stability_bound().lipschitz, rtol=1e-3)


@pytest.mark.parametrize("use", ["check", "reference_embedding", "stability_bound"])
def test_an_unfitted_model_is_of_no_use(use: str) -> None:
    with pytest.raises(NotFittedError):
        getattr(CellNorm(), use)()
