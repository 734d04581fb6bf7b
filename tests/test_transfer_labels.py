"""Label transfer: the plain majority, a probability that holds for a batch that was left out, and unknown cells."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import cellnorm as cn
from cellnorm.errors import DataError
from cellnorm.pp import log_expression
from cellnorm.transfer._labels import LEAST_EVIDENCE, LabelTransfer
from cellnorm.transfer._support import Support

NAMES = np.array(["B", "NK", "T", "DC"], object)


def cells(n: int, seed: int, spread: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.object_]]:
    """Cells of four types that lie in each other more or less."""
    centres = 2.2 * np.random.default_rng(7).normal(size=(4, 6))
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    return (centres[kind] + spread * rng.normal(size=(n, 6))).astype(np.float32), NAMES[kind]


def reference(n: int = 400, spread: float = 1.0) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.object_]]:
    parts = [cells(n, seed, spread) for seed in range(3)]
    return np.concatenate([p[0] for p in parts]), np.repeat(np.arange(3), n), np.concatenate([p[1] for p in parts])


def calibration_error(probability: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    which = np.minimum((probability * 10).astype(int), 9)
    return float(
        sum(abs(probability[which == b].mean() - right[which == b].mean()) * (which == b).mean() for b in set(which))
    )


@given(st.integers(0, 1000), st.sampled_from([1, 4, 5, 15]))
def test_a_label_is_the_majority_of_the_nearest(seed: int, k: int) -> None:
    z, batch, labels = reference(40)
    query = cells(30, 100 + seed, 2.0)[0]
    found = LabelTransfer.fit(z, batch, labels, k=k).predict(query)
    distance = np.linalg.norm(z[None].astype(float) - query[:, None], axis=2)
    for i, near in enumerate(np.argsort(distance, axis=1)[:, :k]):
        votes = {name: int((labels[near] == name).sum()) for name in NAMES}
        assert votes[found.labels[i]] == max(votes.values())
        assert found.votes[i] == pytest.approx(max(votes.values()) / k)


def test_ties_go_to_the_nearer_cells() -> None:
    z = np.array([[1.0], [-2], [-3], [4], [100]], np.float32)
    labels = np.array(["a", "b", "b", "a", "c"], object)
    transfer = LabelTransfer.fit(z, np.array([0, 1, 0, 1, 0]), labels, k=4)
    assert transfer.predict(np.zeros((1, 1), np.float32)).labels.tolist() == ["a"]
    assert transfer.predict(np.full((1, 1), -1.6, np.float32)).labels.tolist() == ["b"]


@pytest.mark.parametrize("spread", [0.7, 1.5, 2.5])
def test_probabilities_hold_for_a_new_batch(spread: float) -> None:
    """However hard the task: what is said to be right with p is so in a share p of the cells."""
    query, truth = cells(3000, 77, spread)
    found = LabelTransfer.fit(*reference(spread=spread)).predict(query)
    right = found.labels == truth
    assert calibration_error(found.probability, right) < 0.05
    assert abs(found.probability.mean() - right.mean()) < 0.04


def test_votes_alone_would_not_hold() -> None:
    """Labels of one batch are wrong at random: the others' votes are worth less, and the probabilities say so."""
    z, batch, labels = reference()
    rng = np.random.default_rng(0)
    noisy = labels.copy()
    wrong = rng.random(len(labels)) < 0.3
    noisy[wrong] = NAMES[rng.integers(0, 4, wrong.sum())]
    query, _ = cells(2000, 78)
    clean, doubtful = (LabelTransfer.fit(z, batch, said).predict(query).probability for said in (labels, noisy))
    assert doubtful.mean() < clean.mean() - 0.1


def test_a_low_match_makes_a_cell_unknown_and_its_label_less_probable() -> None:
    query, _ = cells(200, 79, 0.5)
    transfer = LabelTransfer.fit(*reference(spread=0.5))
    plain, low, high = (transfer.predict(query, m) for m in (None, np.full(200, 0.001), np.full(200, 0.7)))
    assert not low.known.any()
    assert high.known.mean() > 0.95
    assert (low.probability < high.probability).all()
    assert (low.probability < 0.7 * plain.probability).all()
    np.testing.assert_allclose(high.probability, plain.probability, atol=0.01)
    np.testing.assert_array_equal(low.labels, plain.labels)
    assert not transfer.predict(query, np.full(200, LEAST_EVIDENCE / 2)).known.any()
    assert np.isfinite(transfer.predict(query, np.zeros(200)).probability).all()


def test_more_votes_never_make_a_label_less_probable() -> None:
    rng = np.random.default_rng(0)
    z, batch, labels = reference(100, spread=3.0)
    for said in (labels, rng.permutation(labels)):
        transfer = LabelTransfer.fit(z, batch, said)
        assert transfer.weights[1] >= 0
        assert transfer.weights[2] <= 0


def test_cells_without_a_label_are_not_used() -> None:
    z, batch, labels = reference(60)
    some = labels.copy()
    some[::2] = ""
    query = cells(50, 80)[0]
    found, expected = (t.predict(query) for t in (
        LabelTransfer.fit(z, batch, some), LabelTransfer.fit(z[1::2], batch[1::2], labels[1::2])
    ))  # fmt: skip
    np.testing.assert_array_equal(found.labels, expected.labels)
    np.testing.assert_array_equal(found.probability, expected.probability)


def test_no_label_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="no cell of the reference has one"):
        LabelTransfer.fit(np.zeros((3, 2), np.float32), np.arange(3), np.array(["", "", ""], object))


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ([0, 0, 0, 0], ["a", "a", "b", "b"]),  # one batch has labels
        ([0, 0, 1, 1], ["a", "a", "b", "b"]),  # no label in two batches
        ([0, 1, 0, 1], ["a", "a", "a", "a"]),  # one label
        ([0, 1, 2, 2], ["a", "b", "a", "b"]),  # fewer cells than voters
    ],
)
def test_small_references_give_finite_answers(batch: list[int], labels: list[str]) -> None:
    z = np.array([[0.0], [0.0], [1.0], [1.0]], np.float32)
    transfer = LabelTransfer.fit(z, np.array(batch), np.array(labels, object))
    found = transfer.predict(np.array([[0.1], [5.0]], np.float32), np.array([0.5, 0.0]))
    assert set(found.labels) <= {"a", "b"}
    assert ((found.probability >= 0) & (found.probability <= 1)).all()
    assert not found.known[1]
    assert transfer.predict(np.empty((0, 1), np.float32)).labels.shape == (0,)


def test_a_cell_gets_the_same_answer_alone_and_in_company() -> None:
    transfer = LabelTransfer.fit(*reference(100))
    query = cells(600, 81, 2.0)[0]
    whole = transfer.predict(query)
    for i in (0, 300, 599):
        alone = transfer.predict(query[i : i + 1])
        assert alone.labels[0] == whole.labels[i]
        assert alone.probability[0] == pytest.approx(whole.probability[i], abs=1e-12)


def test_a_left_out_batch_with_a_left_out_type(data_dir: Path) -> None:
    """Peripheral blood, one protocol left out, and its B cells from the reference: labels, calibration and unknown."""
    adata = ad.read_h5ad(data_dir / "pbmc_3tech_small.h5ad")
    batch, kind = (adata.obs[key].astype(str).to_numpy(object) for key in ("batch", "cell_type"))
    own = batch == "5p"
    ref = ~own & (kind != "B")
    genes = log_expression(adata[ref].copy(), batch[ref])[1]
    x = log_expression(adata, batch, mask_var=np.isin(adata.var_names.to_numpy(object), genes))[0]
    model = cn.CellNorm(device="cpu", n_steps=150).fit(x[ref], batch[ref]).add_batch(x[own], "5p")
    shift, seen = model.net_.shift.numpy(), model.sketch_batch_
    reference_z, z = model.reference_embedding(), model.transform(x[own], batch[own])
    aligned = model._features(x[own]) / model.scale_ - shift[-1]
    match = Support.fit(model.sketch_ - shift[seen], reference_z, seen).score(aligned, z)
    found = LabelTransfer.fit(reference_z, seen, kind[ref][model.sketch_cells_]).predict(z, match)
    new, right = kind[own] == "B", found.labels == kind[own]
    assert right[~new].mean() > 0.88
    assert calibration_error(found.probability[~new], right[~new]) < 0.12
    assert (~found.known[new]).mean() > 0.8
    assert (~found.known[~new]).mean() < 0.15
