"""The training loop: what it learns from, what it keeps, and that its statistics hold afterwards."""

import copy
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cellnorm.anchors import Anchors, find_anchors
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.devices import CHUNK_CELLS
from cellnorm.layers import MatchedBatchNorm, Pairs, matched_shift
from cellnorm.optimizer import AdamW
from cellnorm.sampling import minibatches
from cellnorm.training import History, TrainingConfig, at_full_strength, decode, encode, train

EFFECT = np.array([[0, 0, 0, 0, 0, 0], [2, -1, 0.5, 1.5, 0, 1]], np.float32)
NO_ANCHORS = Anchors(np.empty(0, np.int64), np.empty(0, np.int64))


def cells(
    n_of_types: tuple[tuple[int, ...], ...] = ((120, 60, 20), (20, 60, 120)), noise: float = 0.4, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Types that lie far apart, in batches of different composition, moved by EFFECT; x, batch, type."""
    rng = np.random.default_rng(seed)
    table = np.array(n_of_types)
    batch = np.repeat(np.arange(len(table)), table.sum(axis=1))
    kind = np.concatenate([np.repeat(np.arange(table.shape[1]), row) for row in table])
    order = rng.permutation(len(batch))
    batch, kind = batch[order], kind[order]
    centres = 8 * rng.normal(size=(table.shape[1], 6))
    x = centres[kind] + EFFECT[batch] + noise * rng.normal(size=(len(batch), 6))
    return x.astype(np.float32), batch.astype(np.int64), kind


def settings(n_steps: int, **changes: Any) -> TrainingConfig:
    plain = {
        "n_pairs": 32,
        "n_others": 8,
        "n_neighbors": 5,
        "learning_rate": 3e-3,
        "weight_decay": 1e-4,
        "contrast": 1.0,
        "geometry": 0.1,
    }
    return TrainingConfig(n_steps=n_steps, **{**plain, **changes})


def network(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(n_features=6, n_batches=2, n_latent=4, n_hidden=16, n_kinds=2, dropout=0.1))


def trained(n_steps: int, seed: int = 0, progress: Any = None, **changes: Any) -> tuple[Autoencoder, Anchors, History]:
    x, batch, _ = cells()
    net = network(seed=seed)
    anchors = find_anchors(x, batch, 5)
    last, history = train(net, x, batch, anchors, settings(n_steps, **changes), np.random.default_rng(seed), progress)
    return net, last, history


# -- the steps -------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[AdamW, float]]:
    """The optimiser and the learning rate of every step of a training."""
    seen: list[tuple[AdamW, float]] = []
    step = AdamW.step

    def spied(self: AdamW, loss: torch.Tensor, learning_rate: float) -> None:
        seen.append((self, learning_rate))
        step(self, loss, learning_rate)

    monkeypatch.setattr(AdamW, "step", spied)
    return seen


def test_training_decays_as_it_was_told(steps: list[tuple[AdamW, float]]) -> None:
    net, _, _ = trained(3, weight_decay=0.125)
    names = {id(p): name for name, p in net.named_parameters()}
    assert len(steps) == 3
    assert len({id(optimizer) for optimizer, _ in steps}) == 1
    decays = {names[id(p)]: decay for p, decay in steps[0][0].parameters}
    assert decays == {
        name: 0.125 if name.endswith(("expand.weight", "reduce.weight")) else 0.0 for name in names.values()
    }


def test_the_learning_rate_rises_once_and_falls_to_nothing(steps: list[tuple[AdamW, float]]) -> None:
    trained(50, learning_rate=2e-3)
    rates = np.array([rate for _, rate in steps])
    assert len(rates) == 50
    assert rates.max() == pytest.approx(2e-3, rel=0.01)
    peak = int(rates.argmax())
    assert 10 <= peak <= 20
    assert (np.diff(rates[: peak + 1]) > 0).all()
    assert (np.diff(rates[peak:]) < 0).all()
    assert rates[-1] < 1e-3 * rates.max()


# -- what it learns --------------------------------------------------------------------------------------------------


def test_the_shift_is_found_whatever_the_composition() -> None:
    """Before the first step already: batches of the same three types, in proportions that differ six-fold."""
    x, batch, _ = cells(noise=0.1)  # mutual neighbours are those that scatter towards each other: keep that small
    net = network()
    train(net, x, batch, find_anchors(x, batch, 20), settings(0), np.random.default_rng(0))
    found = (net.shift[1] - net.shift[0]).numpy()
    assert np.linalg.norm(found - EFFECT[1]) < 0.15 * np.linalg.norm(EFFECT[1])
    plain = x[batch == 1].mean(axis=0) - x[batch == 0].mean(axis=0)
    assert np.linalg.norm(plain - EFFECT[1]) > np.linalg.norm(EFFECT[1])


def test_the_shift_is_that_of_all_anchors() -> None:
    x, batch, _ = cells()
    anchors = find_anchors(x, batch, 5)
    net, _, _ = trained(2)
    pairs = Pairs(torch.from_numpy(anchors.left), torch.from_numpy(anchors.right), torch.ones(len(anchors)))
    torch.testing.assert_close(net.shift, matched_shift(torch.from_numpy(x), torch.from_numpy(batch), pairs, 2))


@pytest.fixture(scope="module")
def long_run() -> tuple[Autoencoder, Anchors, History]:
    return trained(300)


def test_the_loss_falls(long_run: tuple[Autoencoder, Anchors, History]) -> None:
    loss = long_run[2].terms["loss"]
    assert np.isfinite(loss).all()
    assert loss[-20:].mean() < 0.7 * loss[:20].mean()


def test_types_meet_across_batches_and_stay_apart(long_run: tuple[Autoencoder, Anchors, History]) -> None:
    x, batch, kind = cells()
    z = encode(long_run[0], x, batch)

    def centre(values: NDArray[Any], t: int, b: int) -> NDArray[Any]:
        return np.asarray(values[(kind == t) & (batch == b), :4].mean(axis=0))

    for t in range(3):
        before = np.linalg.norm(centre(x, t, 0) - centre(x, t, 1))
        assert np.linalg.norm(centre(z, t, 0) - centre(z, t, 1)) < 0.5 * before
        for other in set(range(3)) - {t}:
            assert np.linalg.norm(centre(z, t, 0) - centre(z, other, 0)) > before


def test_the_decoder_learns_to_give_the_cells_back(long_run: tuple[Autoencoder, Anchors, History]) -> None:
    x, batch, _ = cells()

    def lost(net: Autoencoder) -> float:
        return float(np.square(decode(net, encode(net, x, batch), batch) - x).mean())

    # two of six features do not fit into the embedding, and are there again when the others tell of them
    assert lost(long_run[0]) < 0.5 * lost(trained(0)[0])


def test_without_anchors_it_trains_all_the_same() -> None:
    x, batch, _ = cells()
    net = network()
    _, history = train(net, x, batch, NO_ANCHORS, settings(1, n_neighbors=1), np.random.default_rng(0))
    assert np.isfinite(history.terms["loss"]).all()
    assert (net.shift == 0).all()
    assert np.isfinite(encode(net, x, batch)).all()


# -- statistics of training and of evaluation ------------------------------------------------------------------------


def hidden(net: Autoencoder, x: NDArray[Any], batch: NDArray[Any], pairs: Pairs | None) -> dict[str, torch.Tensor]:
    """What the norms of a network give, by name, without a change of their running averages."""
    found: dict[str, torch.Tensor] = {}
    net = copy.deepcopy(net).train(pairs is not None)
    for name, module in net.named_modules():
        if isinstance(module, MatchedBatchNorm):
            module.momentum = 0.0
            module.register_forward_hook(lambda _module, _given, out, name=name: found.__setitem__(name, out))
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        given = torch.from_numpy(x), torch.from_numpy(batch)
        net.decode(net.encode(*given, pairs), given[1], pairs)
    return found


@pytest.mark.parametrize("norm", ["encoder.norm", "decoder.norm"])
def test_at_the_end_both_statistics_agree(norm: str, long_run: tuple[Autoencoder, Anchors, History]) -> None:
    x, batch, _ = cells()
    net, anchors, _ = long_run
    fresh = copy.deepcopy(net)
    for module in fresh.modules():
        if isinstance(module, MatchedBatchNorm):
            module.load_state_dict({**module.state_dict(), **MatchedBatchNorm(16, 2, affine=False).state_dict()})
    found: list[list[torch.Tensor]] = [[], [], []]
    for mini in islice(minibatches(batch, anchors, np.random.default_rng(1), n_pairs=32, n_others=8), 40):
        place = torch.arange(2 * mini.n_pairs)
        pairs = Pairs(place[: mini.n_pairs], place[mini.n_pairs :], torch.ones(mini.n_pairs))
        given = x[mini.cells], batch[mini.cells]
        for values, part, of_training in zip(found, (net, net, fresh), (pairs, None, None), strict=True):
            values.append(hidden(part, *given, of_training)[norm])
    training, frozen, untrained = (torch.cat(values) for values in found)
    unit = training.std()
    assert (training - frozen).square().mean().sqrt() < 0.25 * unit  # one minibatch is a noisy measure
    assert (training.mean(0) - frozen.mean(0)).abs().max() < 0.1 * unit  # forty are not
    assert (training - untrained).square().mean().sqrt() > 0.5 * unit  # statistics at their start are other ones


# -- embedding with frozen statistics --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> tuple[Autoencoder, NDArray[np.float32], NDArray[np.int64]]:
    """A trained network and more cells than two chunks hold."""
    net, _, _ = trained(20)
    x, batch, _ = cells()
    times = -(-2 * CHUNK_CELLS // len(x)) + 1
    rng = np.random.default_rng(0)
    many = np.tile(x, (times, 1)) + rng.normal(size=(times * len(x), 6)).astype(np.float32)
    return net, many, np.tile(batch, times)


def test_a_cell_has_the_same_embedding_alone_in_ten_and_in_ten_thousand(
    model: tuple[Autoencoder, NDArray[np.float32], NDArray[np.int64]],
) -> None:
    net, x, batch = model
    assert len(x) > 2 * CHUNK_CELLS
    for function, given, width in ((encode, x, 4), (decode, encode(net, x, batch), 6)):
        among = function(net, given, batch)
        assert (among.shape, among.dtype, among.flags.c_contiguous) == ((len(x), width), np.float32, True)
        for i in (0, 1, 7, 777, CHUNK_CELLS - 1, CHUNK_CELLS, len(x) - 1):
            np.testing.assert_array_equal(function(net, given[i : i + 1], batch[i : i + 1]), among[i : i + 1])
        ten = np.random.default_rng(1).choice(len(x), 10, replace=False)
        np.testing.assert_array_equal(function(net, given[ten], batch[ten]), among[ten])
        np.testing.assert_array_equal(function(net, given[::-1], batch[::-1]), among[::-1])


def test_what_came_before_leaves_no_trace(
    model: tuple[Autoencoder, NDArray[np.float32], NDArray[np.int64]],
) -> None:
    """The padding of the last chunk holds cells of the chunk before: they must not show."""
    net, x, batch = model
    tail = slice(CHUNK_CELLS, CHUNK_CELLS + 5)
    np.testing.assert_array_equal(
        encode(net, x[: CHUNK_CELLS + 5], batch[: CHUNK_CELLS + 5])[tail], encode(net, x[tail], batch[tail])
    )


def test_embedding_changes_no_network(
    model: tuple[Autoencoder, NDArray[np.float32], NDArray[np.int64]],
) -> None:
    net, x, batch = model
    before = copy.deepcopy(net.state_dict())
    first = encode(net, x[:50], batch[:50])
    np.testing.assert_array_equal(encode(net.train(), x[:50], batch[:50]), first)
    assert not net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert encode(net, x[:0], batch[:0]).shape == (0, 4)


# -- history, progress, seeds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_steps", "searches"), [(0, 1), (1, 1), (2, 2), (7, 2)])
def test_the_history_has_every_step(n_steps: int, searches: int) -> None:
    x, batch, _ = cells()
    net, last, history = trained(n_steps)
    assert not net.training
    assert next(iter(history.terms)) == "loss"
    for term, values in history.terms.items():
        assert (values.shape, values.dtype) == ((n_steps,), np.float32), term
    assert history.n_anchors.shape == (searches,)
    assert history.n_anchors[0] == len(find_anchors(x, batch, 5))
    assert history.n_anchors[-1] == len(last)
    arrays = history.to_dict()
    assert set(arrays) == {*history.terms, "n_anchors"}
    assert arrays["loss"] is history.terms["loss"]


def test_at_half_time_anchors_are_found_on_the_embedding() -> None:
    x, batch, _ = cells()
    _, last, _ = trained(2, learning_rate=0.0)  # which learns nothing: at half time it is as after one step alone
    expected = find_anchors(encode(trained(1, learning_rate=0.0)[0], x, batch), batch, 5)
    assert last.left.tolist() == expected.left.tolist()
    assert last.right.tolist() == expected.right.tolist()
    assert len(last) != len(find_anchors(x, batch, 5))


@pytest.mark.parametrize(("n_steps", "expected"), [(10, [10]), (25, [25]), (60, [25, 50, 60])])
def test_progress_is_told_now_and_then_and_at_the_end(n_steps: int, expected: list[int]) -> None:
    calls: list[tuple[str, int, int, float | None]] = []
    _, _, history = trained(n_steps, progress=lambda *call: calls.append(call))
    assert [call[:3] for call in calls] == [("train", done, n_steps) for done in expected]
    assert [call[3] for call in calls] == [float(history.terms["loss"][done - 1]) for done in expected]


def test_the_same_seed_gives_the_same_bits() -> None:
    (net, _, history), (again, _, repeated), (other, _, _) = trained(30), trained(30), trained(30, seed=1)
    for key, value in net.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
    np.testing.assert_array_equal(history.terms["loss"], repeated.terms["loss"])
    assert not torch.equal(net.encoder.expand.weight, other.encoder.expand.weight)


# -- the strength ----------------------------------------------------------------------------------------------------


def test_cells_are_found_at_full_strength_from_where_they_are_at_another() -> None:
    """As near as the decoder comes to what is not in the embedding; to the bit where there is nothing to do."""
    net, _, _ = trained(600)
    x, batch, _ = cells()
    full = encode(net, x, batch)
    assert at_full_strength(net, full, batch) is full
    np.testing.assert_array_equal(encode(net, x, batch, strength=0), x[:, :4])
    half = encode(net, x, batch, strength=0.5)
    np.testing.assert_allclose(half, (full + x[:, :4]) / 2, atol=1e-5)
    net.strength.fill_(0.5)
    np.testing.assert_array_equal(encode(net, x, batch), half)
    again = at_full_strength(net, half, batch)
    assert np.square(again - full).sum() < 0.1 * np.square(half - full).sum()
