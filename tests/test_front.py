"""The linear front: scikit-learn's components, whatever the storage, the number of threads and the company."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_info, threadpool_limits

from cellnorm import front, parts
from cellnorm.errors import DataError
from cellnorm.front import Gram, LinearFront, sum_of

ARRAYS = ("mean", "loadings", "variance", "variance_ratio")


def untidy(x: NDArray[Any]) -> sp.csr_matrix:
    """CSR with stored zeros and with columns out of order."""
    full = np.ones(x.shape, bool)
    columns = np.tile(np.arange(x.shape[1])[::-1], len(x))
    return sp.csr_matrix((x[:, ::-1][full], columns, np.arange(0, x.size + 1, x.shape[1])), shape=x.shape)


STORAGE: dict[str, Callable[[NDArray[Any]], Any]] = {
    "columns first": np.asfortranarray,
    "double": lambda x: x.astype(np.float64),
    "view": lambda x: np.repeat(x, 2, axis=0)[::2],
    "CSR": sp.csr_matrix,
    "CSR array": sp.csr_array,
    "CSR double": lambda x: sp.csr_matrix(x.astype(np.float64)),
    "CSR untidy": untidy,
    "CSC": sp.csc_matrix,
}


def expression(n_cells: int = 150, n_genes: int = 40, seed: int = 0) -> NDArray[np.float32]:
    """Log-normalised values of a few programmes of different strengths."""
    rng = np.random.default_rng(seed)
    programmes = rng.normal(size=(n_cells, 6)) * [1.5, 1.2, 1.0, 0.8, 0.6, 0.4]
    rate = np.exp(programmes @ rng.normal(size=(6, n_genes)) * 0.5)
    return np.log1p(rng.poisson(rate)).astype(np.float32)


def in_turn(values: NDArray[Any]) -> NDArray[Any]:
    """Columns with their largest entry made positive."""
    return values * np.sign(values[np.abs(values).argmax(axis=0), np.arange(values.shape[1])])


# -- the components --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_cells", "n_genes"), [(150, 40), (30, 80)])
def test_the_components_are_those_of_scikit_learn(n_cells: int, n_genes: int) -> None:
    X = expression(n_cells, n_genes)
    ours, theirs = LinearFront.fit(X, 6), PCA(6, svd_solver="full").fit(X.astype(np.float64))
    np.testing.assert_allclose(ours.mean, theirs.mean_, rtol=1e-5)
    np.testing.assert_allclose(ours.loadings, in_turn(theirs.components_.T), atol=1e-4)
    np.testing.assert_allclose(ours.variance, theirs.explained_variance_, rtol=1e-5)
    np.testing.assert_allclose(ours.variance_ratio, theirs.explained_variance_ratio_, rtol=1e-5)
    signs = np.sign((ours.loadings * theirs.components_.T).sum(axis=0))
    np.testing.assert_allclose(ours.project(X), theirs.transform(X.astype(np.float64)) * signs, atol=1e-3)


@given(seed=st.integers(0, 10**6), n_comps=st.integers(1, 12))
def test_the_loadings_are_orthonormal_and_the_components_uncorrelated(seed: int, n_comps: int) -> None:
    X = expression(seed=seed)
    fitted = LinearFront.fit(X, n_comps)
    np.testing.assert_allclose(fitted.loadings.T @ fitted.loadings, np.eye(n_comps), atol=1e-8)
    covariance = np.cov(fitted.project(X).T).reshape(n_comps, n_comps)
    np.testing.assert_allclose(covariance, np.diag(fitted.variance), atol=1e-4 * fitted.variance[0])
    assert (np.diff(fitted.variance) <= 0).all()
    largest = np.abs(fitted.loadings).argmax(axis=0)
    assert (fitted.loadings[largest, np.arange(n_comps)] > 0).all()


def test_the_cells_are_centred() -> None:
    X = expression()
    np.testing.assert_allclose(LinearFront.fit(X, 5).project(X).mean(axis=0), 0, atol=1e-4)


def test_many_genes_take_another_way_to_the_same_components(monkeypatch: pytest.MonkeyPatch) -> None:
    X = expression()
    exact = LinearFront.fit(X, 5)
    monkeypatch.setattr(front, "MAX_GENES_EXACT", 39)
    for iterative in (LinearFront.fit(X, 5), LinearFront.fit(sp.csr_matrix(X), 5)):
        for name in ARRAYS:
            np.testing.assert_allclose(getattr(iterative, name), getattr(exact, name), atol=2e-4, err_msg=name)


def test_more_cells_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    X = expression()
    whole = LinearFront.fit(X, 5)
    monkeypatch.setattr(front, "CHUNK_ROWS", 7)
    pieces = LinearFront.fit(X, 5)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-5, err_msg=name)


@pytest.mark.parametrize("storage", ["dense", "CSR", "CSC"])
def test_the_sums_of_parts_add_up(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    X = expression()
    stored = X if storage == "dense" else STORAGE[storage](X)
    whole = LinearFront.fit(stored, 5)
    monkeypatch.setattr(parts, "SPAN_ROWS", 60)
    in_parts = LinearFront.fit(stored, 5)
    by_hand = [Gram.of([X[rows]], X.shape[1]) for rows in (slice(60), slice(60, 120), slice(120, 150))]
    assert by_hand[0].n_cells == 60
    summed = LinearFront.of_gram(sum_of(by_hand), 5)
    for name in ARRAYS:
        np.testing.assert_allclose(getattr(in_parts, name), getattr(whole, name), atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(getattr(in_parts, name), getattr(summed, name), err_msg=name)


@pytest.mark.parametrize(("shape", "found"), [((5, 40), 4), ((150, 3), 3), ((150, 40), 20)])
def test_no_more_components_than_there_are(shape: tuple[int, int], found: int) -> None:
    X = expression(*shape)
    fitted = LinearFront.fit(X, 20)
    assert fitted.loadings.shape == (shape[1], found)
    assert fitted.project(X).shape == (shape[0], found)


def test_a_gene_that_never_varies_has_no_say() -> None:
    X = expression()
    X[:, 3] = 0
    fitted = LinearFront.fit(X, 5)
    np.testing.assert_allclose(fitted.loadings[3], 0, atol=1e-8)
    without = LinearFront.fit(np.delete(X, 3, axis=1), 5)
    np.testing.assert_allclose(fitted.project(X), without.project(np.delete(X, 3, axis=1)), atol=1e-4)


# -- and back --------------------------------------------------------------------------------------------------------


def test_with_all_components_lifting_brings_the_expression_back() -> None:
    X = expression(60, 12)
    fitted = LinearFront.fit(X, 12)
    np.testing.assert_allclose(fitted.lift(fitted.project(X)), X, atol=1e-4)


def test_with_fewer_components_lifting_gives_the_nearest_expression() -> None:
    X = expression()
    fitted = LinearFront.fit(X, 4)
    lifted = fitted.lift(fitted.project(X))
    np.testing.assert_allclose((X - lifted) @ fitted.loadings, 0, atol=1e-3)
    np.testing.assert_allclose(fitted.project(lifted), fitted.project(X), atol=1e-3)
    lost = np.square(X - lifted).sum() / np.square(X - X.mean(axis=0)).sum()
    assert lost == pytest.approx(1 - fitted.variance_ratio.sum(), abs=1e-4)
    assert 0.05 < lost < 0.9


def test_shapes_and_types_are_frozen() -> None:
    X = expression(700)
    fitted = LinearFront.fit(X, 4)
    pcs, lifted = fitted.project(sp.csc_matrix(X)), fitted.lift(fitted.project(X))
    assert (pcs.shape, pcs.dtype, pcs.flags.c_contiguous) == ((700, 4), np.float32, True)
    assert (lifted.shape, lifted.dtype) == (X.shape, np.float32)
    assert fitted.project(X[:0]).shape == (0, 4)


# -- what has no say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["exact", "iterative"])
@pytest.mark.parametrize("storage", STORAGE)
def test_the_storage_has_no_say(storage: str, solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if solver == "iterative":
        monkeypatch.setattr(front, "MAX_GENES_EXACT", 39)
    X = expression()
    stored = STORAGE[storage](X)
    plain, other = LinearFront.fit(X, 5), LinearFront.fit(stored, 5)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(other, name), getattr(plain, name), err_msg=name)
    np.testing.assert_array_equal(plain.project(stored), plain.project(X))


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.float64])
@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix])
def test_the_number_type_has_no_say(kind: type, store: Callable[[Any], Any]) -> None:
    X = np.random.default_rng(0).poisson(1.0, (150, 40))
    plain, other = LinearFront.fit(X.astype(np.float32), 5), LinearFront.fit(store(X.astype(kind)), 5)
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(other, name), getattr(plain, name), err_msg=name)


@pytest.mark.parametrize("store", [np.asarray, np.asfortranarray, sp.csr_matrix, sp.csc_matrix])
def test_a_cell_has_the_same_components_alone_and_among_others(store: Callable[[Any], Any]) -> None:
    X = expression(1200, 130)
    fitted = LinearFront.fit(X, 30)
    among = fitted.project(store(X))
    for i in (0, 511, 512, 1199):
        np.testing.assert_array_equal(fitted.project(store(X[i : i + 1])), among[i : i + 1])
    np.testing.assert_array_equal(fitted.project(store(X[505:515])), among[505:515])
    np.testing.assert_array_equal(fitted.project(store(X[::-1])), among[::-1])


@pytest.mark.parametrize("store", [np.asarray, sp.csr_matrix])
def test_the_number_of_threads_has_no_say(store: Callable[[Any], Any]) -> None:
    X = store(expression(1100, 320))
    found = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            fitted = LinearFront.fit(X, 20)
            found.append((*(getattr(fitted, name) for name in ARRAYS), fitted.project(X)))
            assert {pool["num_threads"] for pool in threadpool_info()} == {threads}
    for one, two in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)


def test_the_order_of_the_cells_hardly_matters() -> None:
    X = expression()
    order = np.random.default_rng(1).permutation(len(X))
    plain, shuffled = LinearFront.fit(X, 5), LinearFront.fit(X[order], 5)
    np.testing.assert_allclose(shuffled.project(X[order]), plain.project(X)[order], atol=1e-3)


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_cells", [0, 1])
def test_too_few_cells_are_refused(n_cells: int) -> None:
    with pytest.raises(DataError, match=rf"at least 2 cells .* found {n_cells} x 40"):
        LinearFront.fit(expression()[:n_cells], 5)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.7, 0.1, 7.3])
def test_genes_that_do_not_vary_are_refused(value: float) -> None:
    with pytest.raises(DataError, match="no gene varies"):
        LinearFront.fit(np.full((50, 20), value), 5)


@pytest.mark.parametrize("n_genes", [39, 41])
def test_other_genes_are_refused(n_genes: int) -> None:
    fitted = LinearFront.fit(expression(), 5)
    with pytest.raises(DataError, match=f"with 40 genes and got {n_genes}"):
        fitted.project(expression(10, n_genes))


# -- missing genes ---------------------------------------------------------------------------------------------------


def linked_genes(n: int = 500, n_genes: int = 60, seed: int = 0) -> NDArray[np.float32]:
    """Genes that follow five programmes, and noise."""
    rng = np.random.default_rng(seed)
    programmes = rng.normal(size=(n, 5)) * np.array([5, 4, 3, 2, 2])
    return np.asarray(programmes @ rng.normal(size=(5, n_genes)) + rng.normal(size=(n, n_genes)) + 3, np.float32)


def lost(front: LinearFront, X: NDArray[np.float32], present: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the components' variance that is not recovered: by the restricted front, and with means filled in."""
    truth = front.project(X)
    filled = front.project(np.where(present, X, front.mean).astype(np.float32))
    found = front.restricted(present).project(X[:, present])
    total = np.square(truth).sum()
    return float(np.square(found - truth).sum() / total), float(np.square(filled - truth).sum() / total)


def test_with_all_genes_the_components_are_the_same_bits() -> None:
    X = linked_genes()
    fitted = LinearFront.fit(X, 5)
    np.testing.assert_array_equal(fitted.restricted(np.ones(60, bool)).project(X), fitted.project(X))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_missing_genes_are_expected_from_the_others(share: float) -> None:
    X = linked_genes()
    fitted = LinearFront.fit(X[:250], 5)
    found, filled = lost(fitted, X[250:], np.random.default_rng(1).random(60) >= share)
    assert found < 0.1
    assert found < filled / 3


def test_the_loss_grows_smoothly_with_the_genes_that_are_missing() -> None:
    X, order = linked_genes(), np.random.default_rng(2).permutation(60)
    fitted = LinearFront.fit(X, 5)
    losses = [lost(fitted, X, np.argsort(order) >= n)[0] for n in range(0, 60, 3)]
    assert losses[0] == 0
    assert max(np.diff(losses[:15])) < 0.05
    assert all(loss < 1.001 for loss in losses)


def test_the_filling_is_the_conditional_expectation() -> None:
    """Against the covariance written out: the mean of the missing genes given the others, then the components."""
    X = linked_genes()
    fitted = LinearFront.fit(X, 5)
    present = np.random.default_rng(3).random(60) < 0.7
    noise = fitted.variance.sum() * (1 / fitted.variance_ratio.sum() - 1) / 55
    covariance = (fitted.loadings * (fitted.variance - noise)) @ fitted.loadings.T + noise * np.eye(60)
    centred = X - fitted.mean
    weights = np.linalg.solve(covariance[np.ix_(present, present)], covariance[np.ix_(present, ~present)])
    centred[:, ~present] = centred[:, present] @ weights
    np.testing.assert_allclose(
        fitted.restricted(present).project(X[:, present]), centred @ fitted.loadings, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("n_comps", [5, 8])
def test_components_that_explain_all_and_one_gene_left_are_harmless(n_comps: int) -> None:
    X = linked_genes(n_genes=8)
    fitted = LinearFront.fit(X, n_comps)
    for n in (1, 4, 7):
        present = np.arange(8) < n
        assert np.isfinite(fitted.restricted(present).project(X[:, present])).all()
        assert lost(fitted, X, present)[0] < 1.5


@pytest.mark.parametrize("present", [np.zeros(60, bool), np.ones(59, bool)])
def test_no_genes_and_other_genes_are_refused(present: NDArray[np.bool_]) -> None:
    with pytest.raises(DataError, match="made with 60 genes"):
        LinearFront.fit(linked_genes(), 5).restricted(present)
