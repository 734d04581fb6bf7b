"""The estimator: what goes in, what comes out, what has no say, and that a known batch effect goes away."""

import hashlib
import inspect
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from neighborhoods import mixing, purity
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from threadpoolctl import threadpool_info, threadpool_limits

import cellnorm
from cellnorm import fitting, reuse
from cellnorm.datasets import simulate
from cellnorm.errors import DataError
from cellnorm.estimator import CellNorm
from cellnorm.training import decode, encode

Data = tuple[NDArray[np.float32], NDArray[Any], NDArray[Any]]


def quick(**changes: Any) -> CellNorm:
    """A model that fits in a fraction of a second."""
    return CellNorm(**{"n_latent": 6, "n_comps": 12, "n_steps": 10, "n_pairs": 32, "device": "cpu", **changes})


def simulated(n_cells: Any = 600, **changes: Any) -> Data:
    """Log-normalised values, batch and type of cells with a known batch effect."""
    adata = simulate(n_cells, 300, **{"n_types": 4, "depth": 300.0, **changes})
    counts = adata.X.toarray()
    X = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    return X, adata.obs["batch"].to_numpy().astype(str), adata.obs["cell_type"].to_numpy().astype(str)


def integers(n_cells: int = 90, n_genes: int = 40) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Small whole numbers that every number type can hold, and three batches."""
    rng = np.random.default_rng(0)
    batch = np.arange(n_cells) % 3
    rate = rng.gamma(1.0, 1.0, (4, n_genes))[rng.integers(0, 4, n_cells)]
    return rng.poisson(rate * np.exp(0.3 * rng.normal(size=(3, n_genes)))[batch]), batch


@pytest.fixture(scope="module")
def data() -> Data:
    return simulated()


@pytest.fixture(scope="module")
def fitted(data: Data) -> CellNorm:
    """A model of the simulated data, trained as little as makes a difference."""
    return quick(n_comps=20, n_latent=8, n_steps=60, n_pairs=64).fit(data[0], data[1])


# -- the manners of scikit-learn -------------------------------------------------------------------------------------


def test_parameters_are_kept_as_given() -> None:
    model = CellNorm(n_latent=7, n_comps=None, random_state=3)
    assert model.get_params()["n_latent"] == 7
    assert model.get_params()["n_comps"] is None
    assert model.set_params(n_steps=5) is model
    assert model.n_steps == 5
    assert set(model.get_params()) == set(inspect.signature(CellNorm).parameters)


def test_a_clone_has_the_parameters_and_nothing_learnt(data: Data, fitted: CellNorm) -> None:
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert [name for name in vars(copy) if name.endswith("_")] == []
    with pytest.raises(NotFittedError):
        copy.transform(data[0], data[1])


@pytest.mark.parametrize("method", ["transform", "inverse_transform"])
def test_nothing_comes_before_fit(method: str) -> None:
    with pytest.raises(NotFittedError, match="Call 'fit'"):
        getattr(CellNorm(), method)(np.ones((5, 3)))


def test_fit_changes_no_parameter_and_no_input(data: Data) -> None:
    X, batch = sp.csc_matrix(data[0][:200]), data[1][:200].astype(object)
    before = X.data.tobytes(), X.indices.tobytes(), batch.tolist()
    model = quick()
    parameters = dict(model.get_params())
    assert model.fit(X, batch) is model
    model.transform(X, batch)
    assert model.get_params() == parameters
    assert (X.data.tobytes(), X.indices.tobytes(), batch.tolist()) == before


def test_fit_transform_is_fit_and_transform(data: Data) -> None:
    X, batch, _ = data
    np.testing.assert_array_equal(quick().fit_transform(X, batch), quick().fit(X, batch).transform(X, batch))


def test_fitting_again_starts_anew(data: Data) -> None:
    X, batch, _ = data
    again = quick().fit(X[:300], np.array(["x", "y"])[np.arange(300) % 2]).fit(X, batch)
    once = quick().fit(X, batch)
    assert again.batches_.tolist() == once.batches_.tolist()
    np.testing.assert_array_equal(again.transform(X, batch), once.transform(X, batch))


# -- what comes out --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_latent", [3, 12, 20])
@pytest.mark.parametrize("n_comps", [None, 12])
def test_the_shape_of_the_embedding_is_frozen(n_latent: int, n_comps: int | None) -> None:
    X, batch = integers()
    z = quick(n_latent=n_latent, n_comps=n_comps).fit_transform(X, batch)
    assert (z.shape, z.dtype, z.flags.c_contiguous) == ((90, n_latent), np.float32, True)
    assert np.isfinite(z).all()


def test_what_is_known_after_fit(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data
    names, counts = np.unique(batch, return_counts=True)
    assert fitted.batches_.tolist() == names.tolist()
    assert {type(name) for name in fitted.batches_.tolist()} == {str}
    assert fitted.counts_.tolist() == counts.tolist()
    assert fitted.matched_.shape == counts.shape
    assert (fitted.matched_ > 0).all()
    assert (fitted.matched_ <= counts).all()
    assert fitted.front_ is not None
    assert fitted.front_.loadings.shape == (300, 20)
    assert fitted.device_ == "cpu"
    assert fitted.history_.to_dict()["loss"].shape == (60,)
    fitted.transform(X[:5], batch[:5])
    assert set(fitted.seconds_) == {"pca", "anchors", "strength", "train", "encode"}
    assert min(fitted.seconds_.values()) >= 0


def test_the_embedding_keeps_the_units_of_the_components(data: Data) -> None:
    """With no step taken and its final frame undone it is nearly the components less the shift of each batch."""
    X, batch, _ = data
    model = quick(n_comps=8, n_latent=8, n_steps=0).fit(X, batch)
    assert model.front_ is not None
    codes = torch.from_numpy(np.unique(batch, return_inverse=True)[1])
    z = model.net_.unembed(torch.from_numpy(model.transform(X, batch) / model.scale_), codes).numpy() * model.scale_
    pcs = model.front_.project(X)
    moved = pcs - z
    for b in model.batches_:
        own = batch == b
        assert moved[own].var(0).sum() < 0.1 * pcs[own].var(0).sum()
    assert np.ptp([moved[batch == b].mean(0) for b in model.batches_], axis=0).max() > 0.1
    scaled = quick(n_comps=8, n_latent=8, n_steps=0).fit(5 * X, batch).transform(5 * X, batch)
    np.testing.assert_allclose(scaled, 5 * model.transform(X, batch), rtol=1e-3, atol=1e-2)


def test_progress_tells_of_every_stage(data: Data) -> None:
    calls: list[tuple[str, int, int, float | None]] = []
    model = quick(n_steps=30)
    model.fit_transform(data[0], data[1], progress=lambda *call: calls.append(call))
    stages = ["pca", "anchors", "strength", "train", "encode"]
    assert list(dict.fromkeys(call[0] for call in calls)) == stages
    assert [call[0] for call in calls if call[1] == call[2]] == stages
    assert {type(call[3]) for call in calls if call[0] == "train"} <= {float, type(None)}
    assert calls[[call[0] for call in calls].index("encode") - 1][3] == model.history_.to_dict()["loss"][-1]


# -- what has no say -------------------------------------------------------------------------------------------------

STORES: dict[str, Callable[[NDArray[Any]], Any]] = {
    "dense": np.ascontiguousarray,
    "columns first": np.asfortranarray,
    "CSR": sp.csr_matrix,
    "CSC": sp.csc_matrix,
    "COO": sp.coo_matrix,
    "CSR array": sp.csr_array,
}


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.uint16])
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("n_comps", [12, None])
def test_the_storage_has_no_say(store: str, kind: type, n_comps: int | None) -> None:
    X, batch = integers()
    model = quick(n_comps=n_comps, n_steps=3)
    plain = model.fit_transform(X.astype(np.float32), batch)
    stored = STORES[store](X.astype(kind))
    np.testing.assert_array_equal(model.transform(stored, batch), plain)
    np.testing.assert_array_equal(clone(model).fit_transform(stored, batch), plain)


LABELS: dict[str, Callable[[NDArray[np.int64]], Any]] = {
    "text": lambda b: b.astype(str),
    "objects": lambda b: np.array([f"lab {i}" for i in b], dtype=object),
    "list": lambda b: b.tolist(),
    "small integers": lambda b: b.astype(np.int8),
    "floats": lambda b: b / 2,
    "bytes": lambda b: b.astype("S1"),
    "dates": lambda b: np.datetime64("2020-01-01") + b,
    "categorical": lambda b: pd.Categorical.from_codes(b, ["a", "b", "c", "unused"]),
    "series": lambda b: pd.Series(b, index=b[::-1]),
    "nullable integers": lambda b: pd.array(b, dtype="Int64"),
    "strange": lambda b: np.array(["a/b | 'c'", "x" * 10_000, "ß→日本"])[b],
    "empty text": lambda b: np.array(["", "a", "nan"])[b],
}


@pytest.mark.parametrize("kind", LABELS)
def test_the_type_of_the_labels_has_no_say(kind: str) -> None:
    X, batch = integers()
    plain = quick(n_steps=3).fit(X, batch)
    labels = LABELS[kind](batch)
    model = quick(n_steps=3).fit(X, labels)
    assert model.counts_.tolist() == plain.counts_.tolist()
    np.testing.assert_array_equal(model.transform(X, labels), plain.transform(X, batch))
    np.testing.assert_array_equal(model.transform(X, model.batches_[batch]), plain.transform(X, batch))


def test_truth_values_are_labels() -> None:
    X, batch = integers()
    model = quick(n_steps=3).fit(X, batch == 1)
    assert model.batches_.tolist() == ["False", "True"]
    np.testing.assert_array_equal(model.transform(X, batch == 1), model.transform(X, (batch == 1).astype(str)))


def test_a_cell_is_embedded_alike_alone_in_ten_and_in_ten_thousand(data: Data, fitted: CellNorm) -> None:
    X, batch = np.tile(data[0], (17, 1))[:10_000], np.tile(data[1], 17)[:10_000]
    among = fitted.transform(sp.csr_matrix(X), batch)
    for i in (0, 5, 6, 11, 77, 511, 512, 4095, 4096, 9999):
        np.testing.assert_array_equal(fitted.transform(X[i : i + 1], batch[i : i + 1]), among[i : i + 1])
    ten = np.random.default_rng(0).choice(10_000, 10, replace=False)
    np.testing.assert_array_equal(fitted.transform(X[ten], batch[ten]), among[ten])
    np.testing.assert_array_equal(fitted.transform(X[::-1], batch[::-1]), among[::-1])


def test_no_cells_give_no_rows(data: Data, fitted: CellNorm) -> None:
    assert fitted.transform(data[0][:0], data[1][:0]).shape == (0, 8)


# -- randomness ------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bits(data: Data) -> None:
    X, batch, _ = data
    first, again, other = (quick(random_state=seed).fit_transform(X, batch) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_the_state_of_the_world_has_no_say_and_is_left_alone(data: Data) -> None:
    X, batch, _ = data
    expected = quick().fit_transform(X, batch)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    torch.set_num_threads(2)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    with threadpool_limits(limits=2):
        np.testing.assert_array_equal(quick().fit_transform(X, batch), expected)
        assert {pool["num_threads"] for pool in threadpool_info()} == {2}
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_an_error_leaves_the_threads_alone(data: Data) -> None:
    torch.set_num_threads(2)
    with pytest.raises(DataError):
        quick().fit(np.ones((60, 20)), np.arange(60) % 2)
    assert torch.get_num_threads() == 2


PROCESS = """
import hashlib, sys
import numpy as np
import torch
if sys.argv[1] != "unset":
    torch.set_num_threads(int(sys.argv[1]))
from cellnorm.estimator import CellNorm
rng = np.random.default_rng(0)
batch = np.arange(600) % 3
X = np.log1p(rng.poisson(rng.gamma(1.0, 1.0, (4, 200))[rng.integers(0, 4, 600)] * (1 + 0.3 * batch[:, None])))
z = CellNorm(n_latent=6, n_comps=20, n_steps=15, n_pairs=64, device="cpu").fit_transform(X, batch)
print(hashlib.sha256(z.tobytes()).hexdigest())
"""


def test_another_process_and_other_numbers_of_threads_give_the_same_bits() -> None:
    found = set()
    for threads in ("1", "2"):
        pools = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        path = {"PYTHONPATH": str(Path(cellnorm.__file__).parent.parent), "PYTHONHASHSEED": threads}
        command = [sys.executable, "-c", PROCESS, threads]
        run = subprocess.run(command, env={**os.environ, **pools, **path}, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        found.add(run.stdout.strip())
    rng = np.random.default_rng(0)
    batch = np.arange(600) % 3
    X = np.log1p(rng.poisson(rng.gamma(1.0, 1.0, (4, 200))[rng.integers(0, 4, 600)] * (1 + 0.3 * batch[:, None])))
    z = quick(n_comps=20, n_steps=15, n_pairs=64).fit_transform(X, batch)
    assert found == {hashlib.sha256(z.tobytes()).hexdigest()}


def test_reordering_the_cells_matters_no_more_than_another_seed(data: Data) -> None:
    X, batch, kind = data

    def scores(order: NDArray[Any], seed: int) -> NDArray[np.float64]:
        model = quick(n_comps=20, n_latent=8, n_steps=60, n_pairs=64, random_state=seed)
        z = model.fit_transform(X[order], batch[order])
        return np.array([mixing(z, batch[order]), purity(z, kind[order])])

    plain = np.arange(len(X))
    sorts = (
        np.random.default_rng(0).permutation(plain),
        np.argsort(batch, kind="stable"),
        np.argsort(kind, kind="stable"),
    )
    seeds = np.array([scores(plain, seed) for seed in range(4)])
    orders = np.array([scores(order, 0) for order in sorts])
    spread = np.ptp(seeds, axis=0) + 0.01
    assert (spread < 0.1).all()
    assert (np.abs(orders - seeds.mean(axis=0)) <= spread).all()


# -- what it is for --------------------------------------------------------------------------------------------------


def before_and_after(data: Data, **changes: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """The components as they are, and corrected."""
    model = quick(**{"n_comps": 20, "n_latent": 10, "n_steps": 80, "n_pairs": 128, **changes})
    z = model.fit_transform(data[0], data[1])
    assert model.front_ is not None
    return model.front_.project(data[0]), z


@pytest.mark.parametrize("batch_effect", [1.0, 1.5])
def test_a_known_batch_effect_goes_away_and_the_types_stay(batch_effect: float) -> None:
    X, batch, kind = simulated(batch_effect=batch_effect)
    plain, z = before_and_after((X, batch, kind))
    assert mixing(plain, batch) < 0.4  # the control: the batches do lie apart
    assert mixing(z, batch) > 0.8
    assert purity(z, kind) > purity(plain, kind) - 0.02
    assert purity(z, kind) > 0.7
    # what mixing would be had the types been lost
    shuffled = np.random.default_rng(0).permutation(kind)
    assert purity(z, shuffled) < 0.4


def test_proportions_that_differ_are_no_batch_effect() -> None:
    shares = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]
    data = simulated(composition=shares)
    plain, z = before_and_after(data)
    assert mixing(z, data[1]) > mixing(plain, data[1]) + 0.2
    own_means = plain.copy()  # what statistics per batch do
    for b in np.unique(data[1]):
        own_means[data[1] == b] -= plain[data[1] == b].mean(axis=0)
    assert purity(z, data[2]) > purity(own_means, data[2]) + 0.1


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_batch_of_few_cells_comes_along(n: int) -> None:
    X, batch, _ = simulated([200, 200, n])
    model = quick(n_steps=40).fit(X, batch)
    z = model.transform(X, batch)
    assert model.counts_.tolist() == [200, 200, n]
    assert np.isfinite(z).all()
    assert model.front_ is not None
    # the few lie where the many do
    few = batch == "batch3"
    reach = np.linalg.norm(z[~few] - z[~few].mean(axis=0), axis=1).max()
    assert np.linalg.norm(z[few] - z[~few].mean(axis=0), axis=1).max() < 1.5 * reach


def test_batches_without_a_shared_type_do_not_crash() -> None:
    X, batch, kind = simulated(
        300, n_batches=2, missing_types={"batch1": ["T1a", "T1b"], "batch2": ["T2a", "T2b"]}, batch_effect=2.0
    )
    assert set(kind[batch == "batch1"]) & set(kind[batch == "batch2"]) == set()
    assert np.isfinite(quick(n_steps=40).fit_transform(X, batch)).all()


def test_a_batch_unlike_any_other_does_not_crash() -> None:
    X, batch, _ = simulated([150, 150, 60])
    odd = batch == "batch3"
    X[odd] = np.random.default_rng(0).gamma(2.0, 3.0, (odd.sum(), 300))
    z = quick(n_steps=40).fit_transform(X, batch)
    assert np.isfinite(z).all()


@pytest.mark.parametrize("kind", ["zero cell", "zero gene", "twins"])
def test_cells_and_genes_that_say_nothing_are_kept(kind: str) -> None:
    X, batch = integers()
    if kind == "zero cell":
        X[[3, 50]] = 0
    elif kind == "zero gene":
        X[:, 7] = 0
    else:
        X[:] = X[np.arange(90) // 9 * 9]
    z = quick().fit_transform(X, batch)
    assert z.shape == (90, 6)
    assert np.isfinite(z).all()


def test_more_cells_than_the_sketch_holds(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    X, batch, kind = data
    for name, value in (("SKETCH_BATCH", 80), ("SKETCH_ALL", 600), ("SKETCH_LEAST", 10)):
        monkeypatch.setattr(fitting, name, value)
    model = quick(n_comps=20, n_latent=10, n_steps=80, n_pairs=64).fit(X, batch)
    assert (model.matched_ <= 80).all()
    assert model.counts_.sum() == 600
    z = model.transform(X, batch)
    assert model.front_ is not None
    plain = model.front_.project(X)
    assert mixing(z, batch) > mixing(plain, batch) + 0.3  # cells outside the sketch follow
    assert purity(z, kind) > purity(plain, kind) - 0.03


def test_a_representation_can_be_corrected(data: Data) -> None:
    _, batch, kind = data
    plain, _ = before_and_after(data, n_steps=0)
    model = quick(n_comps=None, n_latent=10, n_steps=80, n_pairs=128).fit(plain.astype(np.float64), batch)
    assert model.front_ is None
    z = model.transform(plain, batch)
    assert mixing(z, batch) > 0.8
    assert purity(z, kind) > purity(plain, kind) - 0.03


# -- the strength ----------------------------------------------------------------------------------------------------


def test_strength_0_is_the_components_to_the_bit_and_1_what_the_network_gives(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data
    assert fitted.front_ is not None
    pcs = fitted.front_.project(X)
    np.testing.assert_array_equal(fitted.transform(X, batch, strength=0), pcs[:, :8])
    assert fitted.strength_ == 1  # the data ask for it
    np.testing.assert_array_equal(fitted.transform(X, batch, strength=1), fitted.transform(X, batch))
    codes = np.searchsorted(fitted.batches_, batch)
    full = encode(fitted.net_, pcs / fitted.scale_, codes, strength=1) * fitted.scale_
    np.testing.assert_array_equal(fitted.transform(X, batch, strength=1), full)


@pytest.mark.parametrize("n_comps", [12, None])
def test_a_model_of_strength_0_gives_what_it_was_given(n_comps: int | None) -> None:
    X, batch = integers()
    model = quick(strength=0, n_comps=n_comps, n_latent=45).fit(X, batch)
    plain = X.astype(np.float32) if model.front_ is None else model.front_.project(X)
    z = model.fit_transform(X, batch)
    np.testing.assert_array_equal(z[:, : plain.shape[1]], plain)
    assert (z[:, plain.shape[1] :] == 0).all()
    np.testing.assert_allclose(model.reference_embedding(), z[model.sketch_cells_], rtol=1e-5, atol=1e-5)


def test_the_strength_is_chosen_before_training_and_changes_no_bit_of_it(data: Data) -> None:
    X, batch, _ = data
    models = [quick(strength=s).fit(X, batch) for s in (None, 1.0, 0.25)]
    states = [{k: v for k, v in m.net_.state_dict().items() if k != "strength"} for m in models]
    for state in states[1:]:
        for name, values in state.items():
            assert torch.equal(values, states[0][name]), name
    assert [m.strength_ for m in models] == [1, 1, 0.25]
    assert models[0].evidence_.p is not None
    assert models[1].evidence_.p is None
    assert models[2].net_.strength.item() == 0.25
    np.testing.assert_array_equal(models[2].transform(X, batch), models[0].transform(X, batch, strength=0.25))


def test_batches_at_random_are_left_alone(data: Data) -> None:
    X, _, _ = data
    one = X[data[1] == data[1][0]]
    model = quick(n_comps=20, n_latent=20).fit(one, np.arange(len(one)) % 2)
    assert model.strength_ == 0
    assert model.front_ is not None
    np.testing.assert_array_equal(model.transform(one, np.arange(len(one)) % 2), model.front_.project(one))
    alarm = model.check()
    assert alarm.verdict == "good", alarm.reason
    assert alarm.reason.startswith("no batch effect was found, and nothing was changed; ")
    assert (alarm.kept, alarm.null_moved) == (1, 0)


def test_the_check_sees_the_strength(data: Data) -> None:
    X, batch, _ = data
    model = quick(strength=0, n_comps=20, n_latent=20).fit(X, batch)
    alarm = model.check()
    assert alarm.verdict == "under-corrected"
    assert alarm.reason.startswith("strength 0 was asked for, and nothing was changed; ")
    assert alarm.apart == alarm.apart_before


@pytest.mark.parametrize("seed", range(3))
def test_mixing_rises_with_the_strength(seed: int) -> None:
    """Monotone but for 2 % of the scale, which is what neighbours at the border of two batches give and take."""
    X, batch, _ = simulated(batch_effect=1.0, random_state=seed)
    model = quick(n_comps=20, n_latent=20, n_steps=80, n_pairs=64, random_state=seed).fit(X, batch)
    found = [mixing(model.transform(X, batch, strength=s), batch) for s in np.linspace(0, 1, 11)]
    assert min(np.diff(found)) > -0.02, found
    assert found[-1] > found[0] + 0.4


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n_comps", [10, None])
def test_there_and_back_at_every_strength(strength: float, n_comps: int | None, data: Data) -> None:
    """As near to the components as the decoder comes, and at strength 0 all but exact."""
    X, batch, _ = data
    X = X if n_comps else X[:, :10]
    model = quick(n_comps=n_comps, n_latent=10, n_steps=60, strength=strength).fit(X, batch)
    pcs = X.astype(np.float32) if model.front_ is None else model.front_.project(X)
    expected = pcs if model.front_ is None else model.front_.lift(pcs)
    back = model.inverse_transform(model.transform(X, batch), batch)
    left = np.square(back - expected).sum() / np.square(expected - expected.mean(0)).sum()
    assert left < (1e-4 if strength == 0 else 0.1)


@pytest.mark.parametrize("strength", [-0.1, 1.01, np.nan, np.inf, "much", [0.5]])
def test_a_strength_that_is_none_is_refused(strength: Any) -> None:
    X, batch = integers()
    with pytest.raises(DataError, match=r"A strength of .* was asked for. Give a number from 0"):
        quick(strength=strength).fit(X, batch)
    model = quick(n_steps=1).fit(X, batch)
    with pytest.raises(DataError, match=r"A strength of .* was asked for"):
        model.transform(X, batch, strength=strength)


# -- cells whose batch is not told -----------------------------------------------------------------------------------


def test_without_labels_cells_are_taken_for_those_they_resemble(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data  # all of them are in the sketch: each resembles itself most
    np.testing.assert_array_equal(fitted.transform(X), fitted.transform(X, batch))
    far = fitted.transform(X[:50], np.full(50, "batch1"))
    assert np.abs(far - fitted.transform(X[:50])).max() > 0.1


# -- and back --------------------------------------------------------------------------------------------------------


def test_back_are_genes(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data
    z = fitted.transform(X, batch)
    for labels in (None, batch):
        back = fitted.inverse_transform(z, labels)
        assert (back.shape, back.dtype) == (X.shape, np.float32)
        assert np.isfinite(back).all()


def test_back_is_the_decoder_and_the_loadings(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data
    z = fitted.transform(X, batch)
    codes = np.searchsorted(fitted.batches_, batch)
    assert fitted.front_ is not None
    expected = fitted.front_.lift(decode(fitted.net_, z / fitted.scale_, codes) * fitted.scale_)
    np.testing.assert_allclose(fitted.inverse_transform(z, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_comps", [8, None])
@pytest.mark.parametrize(("strength", "left"), [(1.0, 0.05), (0.5, 1e-6)])
def test_it_goes_there_and_back(n_comps: int | None, strength: float, left: float, data: Data) -> None:
    """At full strength as near as the decoder comes; below, the embedding holds the components."""
    batch = data[1]
    X = data[0] if n_comps else data[0][:, :8]
    model = quick(n_comps=n_comps, n_latent=8, n_hidden=64, strength=strength).fit(X, batch)
    expected = X if model.front_ is None else model.front_.lift(model.front_.project(X))
    back = model.inverse_transform(model.transform(X, batch), batch)
    assert back.dtype == np.float32
    assert (back - expected).var(0).sum() < left * expected.var(0).sum()


def test_without_labels_all_are_shown_as_the_largest_batch_would() -> None:
    X, batch, kind = simulated([150, 300, 150])
    model = quick(n_comps=20, n_latent=10, n_steps=60, n_pairs=64).fit(X, batch)
    z = model.transform(X, batch)
    common = model.inverse_transform(z)
    np.testing.assert_array_equal(common, model.inverse_transform(z, np.full(600, "batch2")))
    own = model.inverse_transform(z, batch)
    assert mixing(common, batch) > mixing(own, batch) + 0.3
    assert purity(common, kind) > purity(own, kind) - 0.03


# -- the check -------------------------------------------------------------------------------------------------------


def test_a_trained_model_passes_its_check(data: Data, fitted: CellNorm) -> None:
    alarm = fitted.check()
    assert alarm.verdict == "good", alarm.reason
    assert alarm.merged == 0
    assert alarm.apart < alarm.apart_before
    assert alarm.kept > 0.4
    assert 0 <= alarm.null_moved < 0.25
    assert 0 <= alarm.null_separated < 0.15
    assert alarm.batches["name"].tolist() == fitted.batches_.tolist()
    assert alarm.batches["n_cells"].tolist() == fitted.counts_.tolist()


def test_a_model_that_does_nothing_leaves_batches_apart() -> None:
    X, batch, _ = simulated(batch_effect=3.0)
    model = quick(n_comps=12, n_latent=12, n_steps=0).fit(X, batch)
    corrected = model.check()
    model.net_.shift.zero_()  # what an untrained model has learnt
    alarm = model.check()
    assert alarm.verdict == "under-corrected"
    assert alarm.kept > 0.5
    assert alarm.apart > 0.75
    assert alarm.merged == 0
    assert corrected.apart < alarm.apart


def test_a_model_that_destroys_the_types_is_over_corrected(
    data: Data, fitted: CellNorm, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    monkeypatch.setattr(reuse, "encode", lambda net, x, batch: noise[: len(x)])
    alarm = fitted.check()
    assert alarm.verdict == "over-corrected"
    assert alarm.kept < 0.2


def test_what_the_null_check_finds_is_in_the_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    X, batch, _ = simulated([100, 200, 100])
    model, asked = quick(n_steps=3, n_neighbors=7).fit(X, batch), []

    def null_check(*args: Any) -> tuple[float, float]:
        asked.extend(args)
        return 7.0, 0.9

    monkeypatch.setattr(reuse, "null_check", null_check)
    alarm = model.check()
    assert (alarm.null_moved, alarm.null_separated) == (7.0, 0.9)
    assert alarm.verdict != "good"
    net, cells, largest, n_neighbors, _ = asked
    assert net is model.net_
    assert (largest, n_neighbors) == (1, 7)
    np.testing.assert_array_equal(cells, model.sketch_[model.sketch_batch_ == 1])


def test_the_check_gives_the_same_again_and_changes_nothing(data: Data, fitted: CellNorm) -> None:
    X, batch, _ = data
    before, state = fitted.transform(X, batch), torch.get_rng_state()
    first, again = fitted.check(), fitted.check()
    assert (first.reason, first.null_moved, first.matched) == (again.reason, again.null_moved, again.matched)
    np.testing.assert_array_equal(first.clusters["kept"], again.clusters["kept"])
    np.testing.assert_array_equal(fitted.transform(X, batch), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_check_tells_of_itself(data: Data) -> None:
    calls: list[tuple[str, int, int, float | None]] = []
    model = quick(n_steps=2).fit(data[0], data[1])
    model.check(progress=lambda *call: calls.append(call))
    assert calls == [("check", 0, 1, None), ("check", 1, 1, None)]
    assert model.seconds_["check"] > 0


def test_small_batches_have_no_null_check() -> None:
    X, batch = integers()
    alarm = quick(n_steps=3).fit(X, batch).check()
    assert np.isnan([alarm.null_moved, alarm.null_separated]).all()
    assert alarm.verdict in ("good", "look", "under-corrected", "over-corrected")


def test_no_check_comes_before_fit() -> None:
    with pytest.raises(NotFittedError, match="Call 'fit'"):
        CellNorm().check()


# -- refusals --------------------------------------------------------------------------------------------------------


def spoilt(value: float) -> Callable[[NDArray[Any], NDArray[Any]], tuple[Any, Any]]:
    def spoil(X: NDArray[Any], batch: NDArray[Any]) -> tuple[Any, Any]:
        X = X.astype(np.float64)
        X[3, 4] = value
        return X, batch

    return spoil


def unlabelled(missing: Any) -> Callable[[NDArray[Any], NDArray[Any]], tuple[Any, Any]]:
    return lambda X, batch: (X, np.array([missing, *batch[1:].astype(str)], dtype=object))


BAD: dict[str, tuple[Callable[[NDArray[Any], NDArray[Any]], tuple[Any, Any]], str]] = {
    "one batch": (lambda X, b: (X, np.full(len(b), "lab7")), "at least two batches, found only 'lab7'"),
    "no cells": (lambda X, b: (X[:0], b[:0]), "at least two batches"),
    "NaN in batch": (lambda X, b: (X, np.where(b == 0, np.nan, b)), "missing for 30 of 90"),
    "None in batch": (unlabelled(None), "missing for 1 of 90"),
    "NaN among texts": (unlabelled(np.nan), "missing for 1 of 90"),
    "NA in batch": (unlabelled(pd.NA), "missing for 1 of 90"),
    "NaT in batch": (unlabelled(pd.NaT), "missing for 1 of 90"),
    "missing category": (lambda X, b: (X, pd.Categorical.from_codes(b - 1, ["a", "b"])), "missing for 30 of 90"),
    "missing text": (lambda X, b: (X, pd.array([None, *b[1:].astype(str)], dtype="string")), "missing for 1 of 90"),
    "labels too few": (lambda X, b: (X, b[:-1]), r"each of 90 cells.*\(89,\)"),
    "labels in rows": (lambda X, b: (X, np.stack([b, b])), r"each of 90 cells.*\(2,\)"),
    "missing in a column": (lambda X, b: (X, [b, np.where(b == 0, np.nan, b)]), "missing for 30 of 90"),
    "one label": (lambda X, _: (X, "lab"), r"\(\)"),
    "NaN": (spoilt(np.nan), "1 values that are NaN"),
    "infinite": (spoilt(np.inf), "1 values that are NaN"),
    "minus infinite": (spoilt(-np.inf), "1 values that are NaN"),
    "too large for a float32": (spoilt(1e300), "infinite|large"),
    "NaN in CSR": (lambda X, b: (sp.csr_matrix(spoilt(np.nan)(X, b)[0]), b), "1 values that are NaN"),
    "few cells": (lambda X, b: (X[:5], b[:5]), "6 dimensions.*5 cells"),
    "no difference": (lambda X, b: (np.ones_like(X), b), "no gene varies"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_corrected_is_refused(case: str) -> None:
    make, pattern = BAD[case]
    model = quick()
    with pytest.raises(DataError, match=pattern) as caught:
        model.fit(*make(*integers()))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    with pytest.raises(NotFittedError):
        model.transform(integers()[0])


def test_as_many_cells_as_dimensions_are_enough() -> None:
    X, batch = integers()
    assert quick().fit_transform(X[:6], batch[:6]).shape == (6, 6)


AFTER: dict[str, tuple[Callable[[CellNorm, NDArray[Any], NDArray[Any]], Any], str]] = {
    "unknown batch": (lambda m, X, b: m.transform(X, np.where(b == 0, 7, b)), r"Batch '7' is unknown.*0\W+1\W+2"),
    "missing label": (lambda m, X, b: m.transform(X, np.where(b == 0, np.nan, b)), "unknown|missing"),
    "labels too few": (lambda m, X, b: m.transform(X, b[:-1]), "each of 90 cells"),
    "one label of many": (lambda m, X, b: m.transform(X, b[:1]), "each of 90 cells"),
    "too few genes": (lambda m, X, b: m.transform(X[:, :-1], b), "40 genes.*39"),
    "too many genes": (lambda m, X, b: m.transform(np.hstack([X, X]), b), "40 genes.*80"),
    "NaN": (lambda m, X, b: m.transform(spoilt(np.nan)(X, b)[0], b), "1 values that are NaN"),
    "infinite without labels": (lambda m, X, b: m.transform(spoilt(np.inf)(X, b)[0]), "1 values that are NaN"),
    "back to an unknown batch": (lambda m, X, b: m.inverse_transform(m.transform(X, b), b + 5), "Batch '5' is unknown"),
    "labels too few on the way back": (
        lambda m, X, b: m.inverse_transform(m.transform(X, b), b[:1]),
        "each of 90 cells",
    ),
    "another embedding": (lambda m, X, b: m.inverse_transform(np.ones((5, 4))), "6.*4"),
}


@pytest.mark.parametrize("case", AFTER)
def test_what_does_not_fit_the_model_is_refused(case: str) -> None:
    ask, pattern = AFTER[case]
    X, batch = integers()
    model = quick(n_steps=2).fit(X, batch)
    with pytest.raises(DataError, match=pattern) as caught:
        ask(model, X, batch)
    assert "\n" not in str(caught.value)


def test_an_unknown_batch_is_refused_in_a_line_whatever_the_names() -> None:
    X, batch = integers()
    model = quick(n_steps=1).fit(X, np.array(["x" * 10_000, "two\nlines", "y" * 10_000])[batch])
    with pytest.raises(DataError, match="unknown") as caught:
        model.transform(X, np.full(90, "z" * 10_000))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("width", [1, 7, 41])
def test_a_representation_of_another_width_is_refused(width: int) -> None:
    X, batch = integers()
    model = quick(n_comps=None, n_steps=2).fit(X, batch)
    with pytest.raises(DataError, match=rf"40.*{width}"):
        model.transform(np.ones((90, width)), batch)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(DataError, match=f"'{device}' was asked for and is not there"):
        quick(device=device).fit(*integers())
    model = quick(device="auto", n_steps=1).fit(*integers())
    assert model.device_ == "cpu"


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DataError, match=r"'tpu' is unknown.*auto, cpu, cuda or mps"):
        quick(device="tpu").fit(*integers())


# -- several covariates ----------------------------------------------------------------------------------------------


def two_covariates(
    seed: int, n_cells: int = 900, *, nested: bool = False
) -> tuple[NDArray[np.float32], pd.DataFrame, NDArray[np.int64]]:
    """Six donors and four protocols, whose effects add up; coordinates, covariates, types.

    Each donor has every protocol, in uneven shares, or one of them if `nested`.
    """
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 5, n_cells)
    donor = rng.integers(0, 6, n_cells)
    shares = (np.eye(4)[np.arange(6) % 4] if nested else rng.dirichlet(np.ones(4), 6)).cumsum(1)
    protocol = (rng.random(n_cells)[:, None] > shares[donor]).sum(1).clip(max=3)
    kind[(donor == 0) & (kind == 4)] = 0  # a donor without a type
    x = 6 * rng.normal(size=(5, 20))[kind] + rng.normal(size=(n_cells, 20))
    x += 2 * rng.normal(size=(6, 20))[donor] + 2 * rng.normal(size=(4, 20))[protocol]
    return x.astype(np.float32), pd.DataFrame({"donor": donor, "protocol": protocol}), kind


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_covariates_are_corrected_together(seed: int) -> None:
    x, table, kind = two_covariates(seed)
    crossed = (table["donor"] * 10 + table["protocol"]).to_numpy()
    options = {"n_comps": None, "n_latent": 15, "n_steps": 150, "n_pairs": 128}
    found = {}
    for name, batch in {"donor": table["donor"], "crossed": crossed, "both": table}.items():
        z = quick(**options).fit_transform(x, batch)
        mixed = [mixing_within(z, table[key].to_numpy(), kind) for key in table]
        found[name] = (*mixed, purity(z, kind))
    assert min(found["both"][:2]) > 0.9
    assert found["both"][2] > 0.99
    assert found["donor"][1] < 0.8 * found["both"][1]  # the other covariate stays
    assert min(found["both"][:2]) > min(found["crossed"][:2]) - 0.03
    assert found["both"][2] > found["crossed"][2] - 0.003


def mixing_within(z: NDArray[Any], batch: NDArray[Any], kind: NDArray[Any]) -> float:
    """Mixing among the cells of each type."""
    return float(np.mean([mixing(z[kind == k], batch[kind == k]) for k in np.unique(kind)]))


def test_each_donor_with_one_protocol() -> None:
    x, table, kind = two_covariates(3, nested=True)
    model = quick(n_comps=None, n_latent=15, n_steps=150, n_pairs=128).fit(x, table)
    assert model.net_.design.shape == (6, 10)  # of rank 6 at most
    z = model.transform(x, table)
    alone = quick(**model.get_params()).fit_transform(x, table["donor"])
    within = [mixing_within(one, table["donor"].to_numpy(), kind) for one in (z, alone)]
    assert min(within) > 0.9  # the donors' effects and that of their protocol are one sum
    assert within[0] > within[1] - 0.03
    assert purity(z, kind) > 0.99


def test_the_ways_to_give_covariates_are_one(data: Data) -> None:
    X, batch, _ = data
    day = np.arange(len(X)) // 3 % 2
    plain = quick().fit_transform(X, batch)
    for one in ([batch], batch[:, None], pd.DataFrame({"batch": batch})):
        np.testing.assert_array_equal(quick().fit_transform(X, one), plain)
    model = quick().fit(X, [batch, day])
    z = model.transform(X, [batch, day])
    table = pd.DataFrame({"batch": batch, "day": day})
    np.testing.assert_array_equal(quick().fit_transform(X, table), z)
    names = [f"{b} / {d}" for b, d in zip(batch, day, strict=True)]
    np.testing.assert_array_equal(model.transform(X, names), z)
    assert sorted(set(names)) == model.batches_.tolist()
    assert model.counts_.sum() == len(X)
    assert len(model.net_.design) == 6
    constant = quick().fit_transform(X, [batch, np.zeros(len(X))])
    np.testing.assert_array_equal(constant, plain)  # a covariate of one level says nothing


def test_many_small_combinations_are_no_obstacle() -> None:
    rng = np.random.default_rng(0)
    donor, protocol = np.arange(1000) % 40, np.arange(1000) // 40 % 5
    x = (rng.normal(size=(1000, 8)) + 10 * np.eye(2, 8)[rng.integers(0, 2, 1000)]).astype(np.float32)
    x += rng.normal(size=(40, 8))[donor].astype(np.float32) + 2 * rng.normal(size=(5, 8))[protocol].astype(np.float32)
    z = quick(n_comps=None, n_steps=60).fit_transform(x, [donor, protocol])
    assert np.isfinite(z).all()
    assert mixing(z, protocol) > 0.9 > mixing(x, protocol)
