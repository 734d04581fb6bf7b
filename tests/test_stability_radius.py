"""No change of a cell within the certified radius changes its label."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Trained, trained
from numpy.typing import NDArray

from cellnorm.stability._radius import label_radius, safe_step
from cellnorm.stability._reach import reach_of

Floats = NDArray[np.float64]


def majority(z: Floats, reference: Floats, labels: NDArray[np.object_], k: int) -> list[str]:
    """Label with more than half of the votes of the k nearest, "" where there is none: cell by cell."""
    found = []
    for cell in z:
        near = np.argsort(np.linalg.norm(reference - cell, axis=1), kind="stable")[:k]
        names, votes = np.unique(labels[near].astype(str), return_counts=True)
        found.append(str(names[votes.argmax()]) if 2 * votes.max() > len(near) else "")
    return found


def labelled(seed: int, n: int = 60, n_labels: int = 3) -> tuple[Floats, NDArray[np.object_], np.random.Generator]:
    rng = np.random.default_rng(seed)
    kind = rng.integers(n_labels, size=n)
    centres = 2 * rng.normal(size=(n_labels, 3))
    return centres[kind] + rng.normal(size=(n, 3)), np.array([f"type{i}" for i in kind], object), rng


@given(st.integers(0, 2**16), st.integers(1, 70))
@settings(max_examples=30)
def test_no_step_of_the_embedding_that_counts_as_safe_changes_the_label(seed: int, k: int) -> None:
    reference, labels, rng = labelled(seed)
    z = 2 * rng.normal(size=(20, 3))
    step = safe_step(z, reference, labels, k)
    before = majority(z, reference, labels, k)
    assert ((step == 0) | (np.array(before) != "")).all()
    length = np.minimum(step, 100)
    towards = reference[rng.integers(len(reference), size=(40, 20))] - z
    for way in [*towards, *rng.normal(size=(40, 20, 3))]:
        moved = z + length[:, None] * way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-12)
        kept = np.array(majority(moved, reference, labels, k)) == np.array(before)
        assert kept[step > 0].all()


def test_the_step_is_no_smaller_than_the_argument_gives() -> None:
    reference, labels = np.array([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]]), np.array([*"BBBTTT"], object)
    z = np.array([[1.0], [4.0], [8.5]])
    # three vote: the second nearest of the own label against the second nearest of the other
    expected = np.array([7 - 1, 4 - 3, 7.5 - 0.5]) / 2
    np.testing.assert_allclose(safe_step(z, reference, labels, 3), expected, rtol=1e-3)


def test_without_a_majority_nothing_is_certain_and_without_another_label_everything_is() -> None:
    reference = np.arange(6.0)[:, None]
    assert safe_step(np.zeros((1, 1)), reference, np.array([*"ABCABC"], object), 3)[0] == 0
    assert safe_step(np.zeros((1, 1)), reference, np.array([*"ABABAB"], object), 2)[0] == 0
    assert safe_step(np.zeros((1, 1)), reference, np.array([*"AAAAAA"], object), 3)[0] == np.inf
    assert safe_step(np.zeros((1, 1)), reference, np.array([*"AAAAAB"], object), 3)[0] == np.inf
    assert safe_step(np.zeros((1, 1)), reference, np.array([*"AAAABB"], object), 99)[0] == np.inf
    assert safe_step(np.zeros((0, 1)), reference, np.array([*"AAAABB"], object), 3).shape == (0,)


def test_a_cell_as_far_from_one_label_as_from_another_has_no_safe_step() -> None:
    reference, labels = np.array([[-1.0], [1.0]]), np.array(["A", "B"], object)
    assert safe_step(np.array([[0.0], [1e-7]]), reference, labels, 1).tolist() == [0, 0]


def test_cells_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, labels, rng = labelled(5)
    z = rng.normal(size=(30, 3))
    whole = safe_step(z, reference, labels, 7)
    alone = [safe_step(z[i : i + 1], reference, labels, 7)[0] for i in range(30)]
    monkeypatch.setattr("cellnorm.stability._radius.CHUNK_DISTANCES", 7 * len(reference))
    chunked = safe_step(z, reference, labels, 7)
    np.testing.assert_array_equal([alone, chunked], [whole, whole])


def test_looking_at_fewer_cells_never_makes_the_step_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    reference, labels, rng = labelled(6, n=400)
    z = rng.normal(size=(60, 3))
    all_of_them = safe_step(z, reference, labels, 9)
    for more in (48, 4, 0):
        monkeypatch.setattr("cellnorm.stability._radius.MORE", more)
        fewer = safe_step(z, reference, labels, 9)
        assert (fewer <= all_of_them + 1e-12).all()
        assert ((fewer > 0) == (all_of_them > 0)).all()
    assert fewer.mean() < 0.95 * all_of_them.mean()


def test_gradient_ascent_on_a_trained_model_changes_no_label_within_the_radius() -> None:
    whole = trained()
    model, x, batch, types = whole
    voters, asked = np.arange(0, len(x), 2), np.arange(1, len(x), 6)
    reference, k = model.transform(x[voters], batch[voters]), 5
    codes = np.searchsorted(model.batches_, batch[asked])
    z, reach = (
        model.transform(x[asked], batch[asked]),
        reach_of(model.net_, x[asked] / model.scale_, codes, model.scale_),
    )
    radius = label_radius(z, reference, types[voters], k, reach)
    before = majority(z.astype(float), reference.astype(float), types[voters], k)
    assert np.isfinite(radius).all()
    assert (radius > 0.05).mean() > 0.9
    for share, changes in ((0.999, False), (8, True)):
        after = attacked(whole, asked, share * radius, reference, types[voters], k)
        changed = (np.array(after) != np.array(before)).mean()
        assert changed > 0.5 if changes else changed == 0  # the attack is one


def test_a_change_of_the_offsets_changes_the_radius() -> None:
    model, x, batch, types = trained()
    z, codes = model.transform(x, batch), np.searchsorted(model.batches_, batch)
    reach = reach_of(model.net_, x / model.scale_, codes, model.scale_)
    before = label_radius(z, z, types, 5, reach)
    step = safe_step(z, z, types, 5)
    assert (before <= step / reach.framed[codes]).all()
    np.testing.assert_array_equal(before, reach.within(step))
    reach.net.offsets[1] += 0.2 * torch.randn_like(reach.net.offsets[1])
    after = label_radius(z, z, types, 5, reach)
    np.testing.assert_array_equal(after[codes == 0], before[codes == 0])
    assert np.median(after[codes == 1]) < 0.95 * np.median(before[codes == 1])


def attacked(
    whole: Trained,
    asked: NDArray[np.int64],
    radius: Floats,
    reference: NDArray[np.float32],
    labels: NDArray[np.object_],
    k: int,
) -> list[str]:
    """Labels after projected gradient steps within the radius: nearer to other labels, further from one's own."""
    model, x, batch = whole.model, whole.x[asked], whole.batch[asked]
    at_first = majority(model.transform(x, batch).astype(float), reference.astype(float), labels, k)
    other = torch.from_numpy(labels[None] != np.array(at_first, object)[:, None])
    scale, codes = float(model.scale_), torch.from_numpy(np.searchsorted(model.batches_, batch))
    start, goal = torch.from_numpy(x / scale), torch.from_numpy(reference / scale)
    limit = torch.from_numpy(radius / scale).float()[:, None]
    torch.manual_seed(0)
    step = (0.1 * limit * torch.randn_like(start)).requires_grad_()
    for _ in range(60):
        distance = torch.cdist(model.net_.embed(start + step, codes), goal)
        nearest_other = distance.masked_fill(~other, torch.inf).topk(k // 2 + 1, largest=False)[0]
        nearest_own = distance.masked_fill(other, torch.inf).topk(k // 2 + 1, largest=False)[0]
        (slope,) = torch.autograd.grad((nearest_own - nearest_other).sum(), step)
        moved = step.detach() + 0.2 * limit * slope / slope.norm(dim=1, keepdim=True).clamp_min(1e-12)
        step = (moved * (limit / moved.norm(dim=1, keepdim=True)).clamp_max(1)).requires_grad_()
    end = (start + step.detach()).numpy() * scale
    return majority(model.transform(end, batch).astype(float), reference.astype(float), labels, k)
