"""What a GPU does otherwise, tried on the CPU: the same cells, pairs and numbers, and nothing waits in the loop."""

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from clouds import clouds
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from cellnorm import CellNorm, anchors, devices, mapping, training
from cellnorm.anchors import Anchors, find_anchors
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.covariates import level_codes
from cellnorm.devices import CPU, GPU, manner_of, moved
from cellnorm.layers import Levels
from cellnorm.optimizer import AdamW
from cellnorm.sampling import minibatches
from cellnorm.training import OnDevice, TrainingConfig, encode, loss_terms, train

SEEDS = st.integers(0, 10**6)
HOST, NOWHERE = torch.device("cpu"), torch.device("meta")  # meta tensors have no values: to read one is an error
READS = ("_local_scalar_dense", "item", "is_nonzero", "nonzero")
CONFIG = TrainingConfig(
    n_steps=12, n_pairs=24, n_others=6, n_neighbors=8, learning_rate=1e-3, weight_decay=1e-4, contrast=2.0, geometry=0.3
)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "manner_of", lambda _: GPU)


def set_of(pairs: Anchors) -> set[tuple[int, int]]:
    return set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))


def cells(seed: int, sizes: list[int], n_dims: int = 6) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return rng.normal(size=(len(batch), n_dims)).astype(np.float32), batch


def network(n_batches: int = 2, n_features: int = 6) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(AutoencoderConfig(n_features, n_batches, 4, 16, 3, 0.1))


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", CPU), ("cuda", GPU), ("cuda:1", GPU), ("mps", CPU), (torch.device("cuda"), GPU)]
)
def test_cuda_alone_has_a_manner_of_its_own(device: Any, expected: devices.Manner) -> None:
    assert manner_of(device) == expected


def test_a_cpu_draws_each_minibatch_when_it_is_needed() -> None:
    """Its bits depend on the chunks, and the benchmark's minibatches on the network as it is at that step."""
    assert CPU == (1024, 1, False)
    assert GPU.chunk_cells > CPU.chunk_cells
    assert GPU.steps_ahead > 1


def test_an_array_is_moved_whatever_its_layout() -> None:
    values = np.arange(12).reshape(3, 4)
    for given_ in (values, values.T, values[::-1], values[:, 1]):
        assert moved(given_, HOST).tolist() == given_.tolist()
    assert moved(values, NOWHERE).device == NOWHERE
    assert np.shares_memory(moved(values, HOST).numpy(), values)  # nothing is copied without need


# -- anchors ---------------------------------------------------------------------------------------------------------


@given(seed=SEEDS, sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4), k=st.integers(1, 8))
def test_products_find_the_pairs_of_the_index(seed: int, sizes: list[int], k: int) -> None:
    x, batch = cells(seed, sizes)
    x += 100  # far from the origin, where products in single precision would mistake one neighbour for another
    expected = find_anchors(x, batch, k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "manner_of", lambda _: GPU)
        patch.setattr(anchors, "CHUNK", 7)  # a few cells at a time
        found = find_anchors(x, batch, k)
    assert set_of(found) == set_of(expected)
    assert len(found) == len(expected)
    assert found.left.dtype == found.right.dtype == np.int64
    assert (batch[found.left] < batch[found.right]).all()


def test_many_batches_are_searched_by_products_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [5, 12] * ((anchors.MANY + 2) // 2)
    x, batch = cells(0, sizes)
    monkeypatch.setattr(anchors, "_by_index", None)  # which would be called otherwise
    found = find_anchors(x, batch, 5)
    monkeypatch.undo()
    monkeypatch.setattr(anchors, "MANY", len(sizes))
    assert set_of(found) == set_of(find_anchors(x, batch, 5))


@pytest.mark.usefixtures("as_on_a_gpu")
def test_cells_at_one_place_have_no_more_partners_than_were_asked_for() -> None:
    batch = np.arange(60) % 3
    found = find_anchors(np.zeros((60, 4), np.float32), batch, 5)
    assert np.bincount(found.left).max() <= 2 * 2


# -- minibatches -----------------------------------------------------------------------------------------------------


@given(seed=SEEDS, n_steps=st.integers(0, 60), ahead=st.integers(1, 40))
def test_minibatches_drawn_ahead_are_those_drawn_one_by_one(seed: int, n_steps: int, ahead: int) -> None:
    """To the cell, so that nothing about their distribution can differ; and no more is drawn than is used."""
    x, batch = cells(seed, [40, 30, 5])
    pairs = find_anchors(x, batch, 8)
    rng, other = np.random.default_rng(seed), np.random.default_rng(seed)
    stream = minibatches(batch, pairs, other, n_pairs=CONFIG.n_pairs, n_others=CONFIG.n_others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "manner_of", lambda _: GPU._replace(steps_ahead=ahead))
        found = list(training._stream(batch, pairs, CONFIG, rng, n_steps, HOST))
    expected = list(islice(stream, n_steps))
    assert [m.n_pairs for m in found] == [m.n_pairs for m in expected]
    assert [m.cells.tolist() for m in found] == [m.cells.tolist() for m in expected]
    assert all(m.cells.dtype == torch.int64 for m in found)
    assert rng.bit_generator.state == other.bit_generator.state


def test_one_transfer_serves_many_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    x, batch = cells(0, [40, 40])
    transfers = []
    monkeypatch.setattr(devices, "manner_of", lambda _: GPU)
    monkeypatch.setattr(devices, "moved", lambda a, device: transfers.append(len(a)) or moved(a, device))
    given_ = batch, find_anchors(x, batch, 8), CONFIG, np.random.default_rng(0)
    transfers.clear()
    minis = list(training._stream(*given_, 60, HOST))
    assert len(transfers) == 3
    assert sum(transfers) == sum(len(m.cells) for m in minis)


# -- steps -----------------------------------------------------------------------------------------------------------


class Watch(TorchDispatchMode):
    """Count the operations, and the types of number that they give."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.operations[func._schema.name.removeprefix("aten::")] += 1
        self.dtypes |= {o.dtype for o in (out if isinstance(out, tuple | list) else [out]) if torch.is_tensor(o)}
        return out

    @property
    def reads(self) -> int:
        """How often the host waited for a value."""
        return sum(self.operations[name] for name in READS)


def two_steps(device: torch.device, levels: Levels | None = None) -> None:
    net = network(4).to(device).train()
    data, labels = torch.randn(40, 6, device=device), (torch.arange(40, device=device) % 4)
    optimizer = AdamW(net, 1e-4)
    for n_pairs in (8, 0):  # without pairs, too
        terms = loss_terms(net, data, labels, OnDevice(torch.arange(24, device=device), n_pairs), levels)
        optimizer.step(sum(terms, start=data.new_zeros(())), 1e-3)


def crossed(device: torch.device) -> Levels:
    design = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], np.float32)
    return Levels(moved(design, device), moved(level_codes(design), device))


@pytest.mark.parametrize("covariates", [1, 2])
def test_a_step_reads_nothing_from_its_device(covariates: int) -> None:
    """Where there are no values to read and nothing may come from elsewhere, it runs all the same."""
    two_steps(NOWHERE, crossed(NOWHERE) if covariates == 2 else None)


@pytest.mark.parametrize("covariates", [1, 2])
def test_a_step_keeps_to_its_types_and_copies_nothing(covariates: int) -> None:
    levels = crossed(HOST) if covariates == 2 else None
    with Watch() as seen:
        two_steps(HOST, levels)
    assert seen.dtypes <= {torch.float32, torch.int64, torch.bool, torch.int32}  # int32: whether Cholesky went well
    assert seen.reads == 0
    assert seen.operations["_to_copy"] == 0
    assert seen.operations["index_add"] > 0  # or nothing was seen


@pytest.mark.usefixtures("as_on_a_gpu")
def test_the_loop_waits_no_more_often_for_more_steps() -> None:
    x, batch = cells(0, [60, 60])
    found = find_anchors(x, batch, 8)

    def reads(n_steps: int, **more: Any) -> int:
        config = TrainingConfig(**{**CONFIG.__dict__, "n_steps": n_steps})
        with Watch() as seen:
            train(network(), x, batch, found, config, np.random.default_rng(0), **more)
        return seen.reads

    assert reads(4) == reads(104) > 0  # the search at half time
    told: list[Any] = []
    assert reads(104, progress=lambda *call: told.append(call)) == reads(4) + len(told)
    assert len(told) == 5


def test_without_a_search_all_manners_train_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    x, batch = cells(0, [60, 60])
    found = find_anchors(x, batch, 8)
    monkeypatch.setattr(training, "level_anchors", lambda *_: found)
    states = []
    for manner in (CPU, GPU):
        monkeypatch.setattr(devices, "manner_of", lambda _, manner=manner: manner)
        net = network()
        train(net, x, batch, found, CONFIG, np.random.default_rng(0))
        states.append(net.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


# -- a trained network -----------------------------------------------------------------------------------------------


def test_larger_chunks_give_the_same_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (x, batch) = network(3).eval(), cells(0, [900, 900, 900])
    with torch.no_grad():
        net.encoder.reduce.weight.normal_()
    expected = encode(net, x, batch)
    monkeypatch.setattr(devices, "manner_of", lambda _: GPU)
    np.testing.assert_allclose(encode(net, x, batch), expected, rtol=1e-4, atol=1e-5)
    # alone and among others, as on a CPU
    np.testing.assert_array_equal(encode(net, x[:5], batch[:5]), encode(net, x, batch)[:5])


def test_a_model_fitted_as_on_a_gpu_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the order in which sums are made, which training makes larger."""
    data = clouds([[80, 80, 80], [80, 80, 80]], offset=2.0)
    settings = {"n_comps": None, "n_latent": 6, "n_steps": 30, "n_pairs": 64, "n_hidden": 32, "device": "cpu"}
    expected = CellNorm(**settings).fit_transform(data.measured, data.batch)
    monkeypatch.setattr(devices, "manner_of", lambda _: GPU)
    found = CellNorm(**settings).fit_transform(data.measured, data.batch)
    assert np.abs(found - expected).max() < 0.02 * expected.std()


def test_a_new_batch_is_placed_where_the_network_is() -> None:
    """Nothing that leads to the offsets of its kinds may stay on the host."""
    rng = np.random.default_rng(0)
    reference, own = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32)
    found = mapping._matches(reference, np.ones((60, 1), bool), own, 5, NOWHERE)
    raw, common = torch.empty(30, 4, device=NOWHERE), torch.empty(60, 4, device=NOWHERE)
    members = torch.empty(30, 3, device=NOWHERE), torch.empty(60, 3, device=NOWHERE)
    centres = torch.empty(3, 4, device=NOWHERE)
    offsets = mapping._kind_offsets(raw, found, found.shift(raw, common), *members, centres)
    assert (offsets.device, offsets.shape) == (NOWHERE, (3, 4))
