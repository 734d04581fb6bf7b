"""Corrected expression: the batch goes, the cell stays; in any chunks; sparse and counts as promised."""

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import CellNorm
from cellnorm.expression import BatchEffect, Cells, at_values, chunks, counts_like, learn_effect
from cellnorm.expression import _effect as module
from cellnorm.training import decode

SIZES = {"a": (100, 60), "b": (70, 90), "c": (40, 80)}  # cells of two types in three batches
N_GENES, N_SEEN = 120, 80  # the model uses the first 80 genes


class Data:
    """Log-expression of two types in three batches, with a known offset per batch (and type) in every gene."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.batch = np.concatenate([np.repeat(name, sum(n)) for name, n in SIZES.items()])
        self.kind = np.concatenate([np.repeat([0, 1], n) for n in SIZES.values()])
        self.code = np.searchsorted(list(SIZES), self.batch)
        of_type = 3 + rng.normal(0, 1.5, (2, N_GENES))
        of_batch = rng.normal(0, 0.8, (3, 1, N_GENES)) + rng.normal(0, 0.2, (3, 2, N_GENES))
        self.offset = of_batch - of_batch.mean(0)
        noise = rng.normal(0, 0.4, (len(self.batch), N_GENES))
        self.truth = (of_type[self.kind] + noise).astype(np.float32)
        self.X = (self.truth + self.offset[self.code, self.kind]).astype(np.float32)
        self.model = CellNorm(n_latent=10, n_comps=15, n_steps=150, device="cpu").fit(self.X[:, :N_SEEN], self.batch)
        self.z = self.model.transform(self.X[:, :N_SEEN], self.batch)
        self.cells = Cells(lambda rows: self.X[rows], self.z, self.code)
        self.positions = np.arange(N_SEEN)
        self.effect = learn_effect(self.model, [self.cells], self.positions)


@pytest.fixture(scope="module")
def data() -> Data:
    return Data()


def between(x: np.ndarray, data: Data) -> np.ndarray:
    """Variance between batches within types, per gene."""
    means = [[x[(data.code == b) & (data.kind == k)].mean(0) for b in range(3)] for k in (0, 1)]
    return np.asarray(np.var(means, axis=1).mean(0))


def test_the_batch_goes_from_every_gene_and_the_cell_stays(data: Data) -> None:
    after = data.effect.corrected(data.X, data.z, data.code)
    assert after.shape == data.X.shape
    assert after.dtype == np.float32
    removed = 1 - between(after, data) / between(data.X, data)
    assert np.median(removed[:N_SEEN]) > 0.95
    assert np.median(removed[N_SEEN:]) > 0.95  # of these the model knows nothing
    own = [np.corrcoef((after - data.truth)[:, g], data.code)[0, 1] for g in range(N_GENES)]
    assert np.median(np.abs(own)) < 0.3
    left = np.corrcoef((after - after.mean(0)).ravel(), (data.truth - data.truth.mean(0)).ravel())[0, 1]
    assert left > 0.97


def test_differences_between_types_within_a_batch_stay(data: Data) -> None:
    after = data.effect.corrected(data.X, data.z, data.code)
    for b in range(3):
        change = [
            x[(data.code == b) & (data.kind == 1)].mean(0) - x[(data.code == b) & (data.kind == 0)].mean(0)
            for x in (data.truth, after)
        ]
        assert np.corrcoef(*change)[0, 1] > 0.98


def test_the_residual_finds_what_the_components_do_not_hold(data: Data) -> None:
    without = BatchEffect(**{**vars(data.effect), "offset": data.effect.offset * 0})
    left = [between(e.corrected(data.X, data.z, data.code), data)[N_SEEN:] for e in (without, data.effect)]
    assert np.median(left[1]) < 0.3 * np.median(left[0])


def test_what_is_taken_is_a_function_of_the_place_in_the_embedding(data: Data) -> None:
    """Two cells at one place lose the same, whatever their own values: what is particular to a cell stays."""
    z = np.repeat(data.z[:5], 2, axis=0)
    code = np.repeat(data.code[:5], 2)
    x = np.random.default_rng(0).normal(size=(10, N_GENES)).astype(np.float32)
    difference = x - data.effect.corrected(x, z, code)
    np.testing.assert_allclose(difference[::2], difference[1::2], atol=1e-5)


def test_a_cell_gets_the_same_alone_as_among_others(data: Data) -> None:
    together = data.effect.corrected(data.X, data.z, data.code)
    for i in (0, 150, 300):
        one = slice(i, i + 1)
        alone = data.effect.corrected(data.X[one], data.z[one], data.code[one])
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


def test_the_answer_does_not_depend_on_chunks_storage_or_order(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", 37 * N_GENES)
    order = np.random.default_rng(0).permutation(len(data.X))
    X = sp.csr_matrix(data.X[order])
    cells = Cells(lambda rows: X[rows], data.z[order], data.code[order])
    assert len(list(chunks(cells.rows, len(order)))) == 12
    other = learn_effect(data.model, [cells], data.positions)
    for name in ("mean", "loadings", "offset", "centres"):
        np.testing.assert_allclose(getattr(other, name), getattr(data.effect, name), atol=2e-4)


def test_several_files_are_one_set_of_cells(data: Data) -> None:
    half = len(data.X) // 2
    first = Cells(lambda rows: data.X[:half][rows], data.z[:half], data.code[:half])
    second = Cells(lambda rows: data.X[half:][rows], data.z[half:], data.code[half:])
    other = learn_effect(data.model, [first, second], data.positions)
    np.testing.assert_allclose(other.offset, data.effect.offset, atol=1e-4)


def test_genes_of_the_front_keep_its_loadings(data: Data) -> None:
    assert data.model.front_ is not None
    np.testing.assert_allclose(data.effect.loadings[:N_SEEN], data.model.front_.loadings, rtol=1e-6)
    np.testing.assert_allclose(data.effect.mean[:N_SEEN], data.model.front_.mean, rtol=1e-6)
    missing = np.where(np.arange(N_SEEN) == 3, -1, data.positions)
    other = learn_effect(data.model, [data.cells], missing)
    np.testing.assert_allclose(other.loadings[4], data.model.front_.loadings[4], rtol=1e-6)
    assert np.abs(other.loadings[3] - data.model.front_.loadings[3]).max() > 1e-4  # by regression


def test_denoised_is_the_decoder_in_the_common_frame(data: Data) -> None:
    denoised = data.effect.denoised(data.z, data.code)
    model, z = data.model, np.asarray(data.z / data.model.scale_, np.float32)
    assert model.front_ is not None
    as_each = [decode(model.net_, z, np.full(len(z), b), evenly=True) for b in range(len(model.batches_))]
    expected = model.front_.lift(np.mean(as_each, axis=0) * model.scale_)
    np.testing.assert_allclose(denoised[:, :N_SEEN], expected, atol=1e-4)
    seen = denoised[:, N_SEEN:]  # close to the truth in genes of which the model knows nothing
    truth = data.truth[:, N_SEEN:]
    assert np.corrcoef(seen.ravel(), truth.ravel())[0, 1] > 0.95
    assert between(denoised, data).mean() < 0.1 * between(data.X, data).mean()


class Weaker:
    """The effect of a model of the same data at another strength, and what it needs."""

    def __init__(self, data: Data, strength: float) -> None:
        X = data.X[:, :N_SEEN]
        self.model = CellNorm(n_latent=15, n_comps=15, device="cpu", strength=strength).fit(X, data.batch)
        self.z = self.model.transform(X, data.batch)
        self.effect = learn_effect(self.model, [Cells(lambda rows: data.X[rows], self.z, data.code)], data.positions)


def test_at_strength_0_no_value_changes(data: Data) -> None:
    weak = Weaker(data, 0.0)
    np.testing.assert_array_equal(weak.effect.corrected(data.X, weak.z, data.code), data.X)
    x = sp.csr_matrix(np.maximum(data.X, 0))
    np.testing.assert_array_equal(weak.effect.scaled(x, weak.z, data.code).toarray(), x.toarray())
    denoised = weak.effect.denoised(weak.z, data.code)  # of genes that the model sees the noise goes, the batch stays
    assert between(denoised, data)[:N_SEEN].mean() > 0.9 * between(data.X, data)[:N_SEEN].mean()


def test_below_full_strength_that_share_is_taken_away(data: Data) -> None:
    """Within what the decoder misses of a cell, of which its place at full strength is made."""
    half, full = Weaker(data, 0.5), Weaker(data, 1.0)
    removed = half.effect.removed(half.z, data.code)
    expected = 0.5 * full.effect.removed(full.z, data.code)
    assert np.square(removed - expected).sum() < 0.02 * np.square(expected).sum()
    left = between(half.effect.corrected(data.X, half.z, data.code), data) / between(data.X, data)
    assert 0.2 < np.median(left) < 0.3  # a quarter of the variance


def test_a_batch_added_later_does_not_move_the_frame(data: Data) -> None:
    rng = np.random.default_rng(5)
    new = (data.truth + rng.normal(0, 0.8, N_GENES))[:150].astype(np.float32)
    model = data.model.add_batch(new[:, :N_SEEN], "d")
    z, code = model.transform(new[:, :N_SEEN], np.repeat("d", 150)), np.full(150, 3)
    old = learn_effect(model, [data.cells], data.positions)
    np.testing.assert_allclose(old.removed(data.z, data.code), data.effect.removed(data.z, data.code), atol=1e-5)
    both = learn_effect(model, [Cells(lambda rows: new[rows], z, code), data.cells], data.positions)
    level = data.truth[:150].mean(0)
    before, after = (x.mean(0) - level for x in (new, both.corrected(new, z, code)))
    assert np.square(after).sum() < 0.1 * np.square(before).sum()
    moved = both.removed(data.z, data.code) - data.effect.removed(data.z, data.code)
    assert np.abs(moved).mean() < 0.05  # the kinds' levels are estimated a little differently


def test_a_model_of_a_representation_corrects_genes_by_regression(data: Data) -> None:
    pcs = data.model.front_.project(data.X[:, :N_SEEN])  # type: ignore[union-attr]
    model = CellNorm(n_latent=10, n_comps=None, n_steps=150, device="cpu").fit(pcs, data.batch)
    effect = learn_effect(model, [Cells(lambda rows: data.X[rows], model.transform(pcs, data.batch), data.code)])
    after = effect.corrected(data.X, model.transform(pcs, data.batch), data.code)
    assert np.median(1 - between(after, data) / between(data.X, data)) > 0.9


def test_sums_for_many_batches_and_genes_stay_small() -> None:
    assert module._n_kinds(10**6, 8, 20_000) == module.MAX_KINDS
    assert module._n_kinds(10**6, 200, 20_000) == 5
    assert module._n_kinds(10**6, 5000, 20_000) == 1
    assert module._n_kinds(30, 3, 100) == 1


def test_a_sparse_layer_multiplies_and_keeps_zeros(data: Data) -> None:
    x = np.where(np.random.default_rng(0).random(data.X.shape) < 0.3, 0, np.abs(data.X)).astype(np.float32)
    cells = Cells(lambda rows: x[rows], data.z, data.code)
    effect = learn_effect(data.model, [cells], np.full(N_SEEN, -1))
    made = effect.scaled(sp.csr_matrix(x), data.z, data.code)
    np.testing.assert_array_equal(made.toarray() != 0, x != 0)
    ratio = made.data / x[x != 0]
    assert ratio.min() >= 0.4999
    assert ratio.max() <= 2.0001
    before, after = between(x, data).mean(), between(made.toarray(), data).mean()
    assert after < 0.5 * before
    assert after < 0.9 * between(at_values(x, effect.corrected(x, data.z, data.code)).toarray(), data).mean()


values = st.lists(st.sampled_from([0.0, 0.5, 1.5, 3.0]), min_size=12, max_size=12)


@given(x=values, y=st.lists(st.floats(-2, 4, width=32), min_size=12, max_size=12))
def test_zeros_stay_zeros_in_a_sparse_layer(x: list[float], y: list[float]) -> None:
    before, after = np.reshape(x, (3, 4)).astype(np.float32), np.reshape(y, (3, 4)).astype(np.float32)
    made = at_values(sp.csr_matrix(before), after)
    np.testing.assert_array_equal(made.toarray(), np.where(before != 0, np.maximum(after, 0), 0))
    assert (made.data > 0).all()
    np.testing.assert_array_equal(before, np.reshape(x, (3, 4)))


@pytest.mark.parametrize("sparse", [False, True])
def test_counts_have_the_total_of_their_cell_and_are_not_negative(sparse: bool) -> None:
    values: Any = np.array([[1.0, -0.5, 2.0], [0.0, -1.0, 0.0], [0.1, 0.2, 0.3]], np.float32)
    expected = np.expm1(np.maximum(values, 0))
    made = counts_like(sp.csr_matrix(values) if sparse else values.copy(), np.array([100.0, 50.0, 7.0]))
    made = made.toarray() if sparse else made
    assert (made >= 0).all()
    np.testing.assert_allclose(made.sum(1), [100, 0, 7], rtol=1e-5)  # the second cell shows nothing
    np.testing.assert_allclose(made[0] / made[0].sum(), expected[0] / expected[0].sum(), rtol=1e-5)
    assert made.dtype == np.float32
