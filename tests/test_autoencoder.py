"""The autoencoder: starts near the identity, keeps the rules of batch normalisation, and knows the batch."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cellnorm.autoencoder import Autoencoder, AutoencoderConfig, resize
from cellnorm.kinds import Kinds
from cellnorm.layers import MatchedBatchNorm, Pairs

SMALL = AutoencoderConfig(n_features=10, n_batches=3, n_latent=4, n_hidden=8, n_kinds=2, dropout=0.0)
PAIRS = Pairs(torch.arange(10), torch.arange(10, 20), torch.ones(10))


def network(seed: int = 0, *, trained: bool = True, **changes: Any) -> Autoencoder:
    """A network; `trained` fills the last layers, which start at zero, and the statistics."""
    torch.manual_seed(seed)
    net = Autoencoder(dataclasses.replace(SMALL, **changes))
    if trained:
        for p in net.parameters():
            nn.init.normal_(p, std=0.3)
        nn.init.normal_(net.shift)
        for _ in range(5):
            x, batch = cells()
            net.decode(net.encode(x, batch, PAIRS), batch, PAIRS)
    return net


def cells(n: int = 30) -> tuple[Tensor, Tensor]:
    """The first 20 are pairs of cells of different batches."""
    return torch.randn(n, 10), torch.tensor(([0] * 10 + [1] * 5 + [2] * 5 + [0, 1, 2] * n)[:n])


def kept(net: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """What every module gets and gives, by name, filled at each pass."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda _module, given, out: found.__setitem__(name, (given[0].detach(), out.detach()))

    for name, module in net.named_modules():
        module.register_forward_hook(keep(name))
    return found


# -- where it starts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_latent", [4, 10, 13])
def test_the_encoder_starts_near_the_identity_less_the_shift(n_latent: int) -> None:
    net = network(trained=False, n_latent=n_latent, n_hidden=64).eval()
    nn.init.normal_(net.shift)
    x, batch = cells(500)
    net.start(x, batch)
    z, width = net.encode(x, batch), min(n_latent, 10)
    assert z.shape == (500, n_latent)
    goal = (x - net.shift[batch])[:, :width]
    left = (z[:, :width] - goal).square().sum(0) / (goal - goal.mean(0)).square().sum(0)
    assert left.max() < 0.1
    assert (z[:, width:] == 0).all()


def test_the_first_layer_has_no_say_in_how_a_wider_one_starts() -> None:
    """The more hidden units, the nearer; another scale of the first layer changes nothing, for it is normalised."""
    x, batch = cells(500)
    left = []
    for n_hidden in (4, 16, 64):
        net = network(trained=False, n_hidden=n_hidden).eval()
        net.start(x, batch)
        z = net.encode(x, batch)
        left.append(float((z.detach() - x[:, :4]).square().mean()))
        net.encoder.expand.weight.data *= 7
        net.start(x, batch)
        torch.testing.assert_close(net.encode(x, batch), z, atol=1e-3, rtol=0)
    assert left[0] > left[1] > left[2]


def test_its_norm_starts_at_the_statistics_of_the_cells() -> None:
    net = network(trained=False).eval()
    nn.init.normal_(net.shift)
    x, batch = cells(500)
    net.start(10 * x + 5, batch)
    found = kept(net)
    net.encode(10 * x + 5, batch)
    normed = found["encoder.norm"][1]
    torch.testing.assert_close(normed.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    torch.testing.assert_close(normed.var(0, correction=0), torch.ones(8), atol=1e-3, rtol=0)


def test_no_change_of_the_last_layer_brings_the_start_nearer() -> None:
    net = network(trained=False, n_hidden=16).eval()
    x, batch = cells(500)
    net.start(x, batch)
    (net.encode(x, batch) - x[:, :4]).square().mean().backward()
    steps = [p.grad.abs().max() for p in net.encoder.reduce.parameters() if p.grad is not None]
    assert len(steps) == 2
    assert max(steps) < 1e-2


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("n_latent", [4, 10, 13])
def test_the_decoder_starts_as_the_identity_with_the_shift(n_latent: int, train: bool) -> None:
    net = network(trained=False, n_latent=n_latent).train(train)
    nn.init.normal_(net.shift)
    (_, batch), z = cells(), torch.randn(30, n_latent)
    assert torch.equal(net.decode(z, batch, PAIRS), resize(z, 10) + net.shift[batch])


def test_what_is_decoded_for_another_batch_is_moved_by_its_shift() -> None:
    net = network(trained=False).eval()
    nn.init.normal_(net.shift)
    x, batch = cells()
    z = net.encode(x, batch)
    zeros = torch.zeros_like(batch)
    moved = net.decode(z, zeros + 2) - net.decode(z, zeros)
    torch.testing.assert_close(moved, (net.shift[2] - net.shift[0]).expand(30, -1))


@pytest.mark.parametrize(
    ("width", "expected"), [(2, [[1.0, 2.0]]), (3, [[1.0, 2.0, 3.0]]), (5, [[1.0, 2.0, 3.0, 0.0, 0.0]])]
)
def test_resize_cuts_or_fills_with_zeros(width: int, expected: list[list[float]]) -> None:
    assert resize(torch.tensor([[1.0, 2.0, 3.0]]), width).tolist() == expected


# -- the rules of batch normalisation --------------------------------------------------------------------------------


def test_no_linear_layer_before_a_norm_has_a_bias() -> None:
    net = network()
    found = kept(net)
    x, batch = cells()
    net.decode(net.encode(x, batch, PAIRS), batch, PAIRS)
    norms = [name for name, module in net.named_modules() if isinstance(module, MatchedBatchNorm)]
    linear = {name: module for name, module in net.named_modules() if isinstance(module, nn.Linear)}
    assert len(norms) == 2
    for norm in norms:
        before = [name for name in linear if torch.equal(found[name][1], found[norm][0])]
        assert len(before) == 1
        assert linear[before[0]].bias is None


def test_first_the_norm_then_relu_then_dropout() -> None:
    net = network(dropout=0.5).train()
    found = kept(net)
    x, batch = cells()
    net.encode(x, batch, PAIRS)
    normed = found["encoder.norm"][1]
    given_to_dropout, dropped = found["encoder.dropout"]
    assert torch.equal(found["encoder.expand"][1], found["encoder.norm"][0])
    assert (normed < 0).any()
    assert torch.equal(given_to_dropout, normed.clamp(min=0))
    assert torch.equal(found["encoder.reduce"][0], dropped)
    left_out = (dropped == 0) & (given_to_dropout > 0)
    assert 0.3 < left_out.sum() / (given_to_dropout > 0).sum() < 0.7
    torch.testing.assert_close(dropped[~left_out], 2 * given_to_dropout[~left_out])


def test_evaluation_drops_nothing() -> None:
    net = network(dropout=0.5).eval()
    x, batch = cells()
    assert torch.equal(net.encode(x, batch), net.encode(x, batch))
    net.train()
    assert not torch.equal(net.encode(x, batch, PAIRS), net.encode(x, batch, PAIRS))


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 20))
def test_scaling_the_weights_before_the_norm_leaves_the_output(seed: int, scale: float) -> None:
    net = network(seed)
    x, batch = cells()
    z, other = net.encode(x, batch, PAIRS), torch.randn(30, 4)
    back = net.decode(other, batch, PAIRS)
    for block in (net.encoder, net.decoder):
        block.expand.weight.data *= scale
    torch.testing.assert_close(net.encode(x, batch, PAIRS), z, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(net.decode(other, batch, PAIRS), back, rtol=1e-2, atol=1e-2)


def test_the_norms_are_matched() -> None:
    """The pairs reach both norms: without them, as many cells give another answer."""
    net = network()
    x, batch = cells()
    nobody = Pairs(*(part[:0] for part in PAIRS[:3]))
    z = net.encode(x, batch, PAIRS)
    assert (net.encode(x + 5 * batch[:, None], batch, PAIRS) - z).abs().max() > 1e-2
    assert not torch.allclose(net.encode(x, batch, nobody), z, atol=1e-3)
    assert not torch.allclose(net.decode(z, batch, nobody), net.decode(z, batch, PAIRS), atol=1e-3)


# -- what it knows ---------------------------------------------------------------------------------------------------


def test_the_decoder_is_told_the_batch() -> None:
    net = network().eval()
    net.shift.zero_()
    net.decoder.norm.shift.zero_()  # neither of the two other ways in which a batch could differ
    net.decoder.norm.spread.fill_(1.0)
    z = torch.randn(6, 4)
    as_each = [net.decode(z, torch.full((6,), b)) for b in range(3)]
    for other in as_each[1:]:
        assert (other - as_each[0]).abs().max() > 1e-2


def test_the_encoder_takes_the_shift_of_the_own_batch_away() -> None:
    net = network(trained=False).eval()
    x, batch = cells()
    net.shift[1] = 3.0
    assert torch.equal(net.aligned(x, batch), torch.where(batch[:, None] == 1, x - 3, x))


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_a_cell_does_not_depend_on_its_companions(way: str) -> None:
    net = network().eval()
    x, batch = cells()
    function, given = (net.encode, x) if way == "encode" else (net.decode, torch.randn(30, 4))
    together = function(given, batch)
    for i in (0, 15, 29):
        torch.testing.assert_close(function(given[i : i + 1], batch[i : i + 1]), together[i : i + 1])


def test_every_weight_learns() -> None:
    net = network()
    x, batch = cells()
    (net.decode(net.encode(x, batch, PAIRS), batch, PAIRS) - x).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert torch.isfinite(p.grad).all(), name
        assert p.grad.abs().sum() > 0, name


def test_from_its_start_the_last_layers_learn() -> None:
    net = network(trained=False)
    x, batch = cells()
    net.start(x, batch)
    net.decode(net.encode(x, batch, PAIRS), batch, PAIRS).sum().backward()
    for block in (net.encoder, net.decoder):
        assert block.reduce.weight.grad.abs().sum() > 0


def test_the_configuration_builds_it_again() -> None:
    net = network().eval()
    again = Autoencoder(net.config)
    again.load_state_dict(net.state_dict())
    x, batch = cells()
    assert torch.equal(again.eval().encode(x, batch), net.encode(x, batch))
    with pytest.raises(dataclasses.FrozenInstanceError):
        net.config.n_latent = 5  # type: ignore[misc]
    buffers = {name for name, _ in net.named_buffers()}
    statistics = {f"{part}.norm.{s}" for part in ("encoder", "decoder") for s in ("shift", "spread", "mean", "var")}
    of_frame = {"centres", "offsets", "shares", "variance", "axes", "axes_inverse", "strength"}
    assert buffers == {"design", "shift"} | of_frame | statistics


# -- the final frame -------------------------------------------------------------------------------------------------


def framed(seed: int = 0) -> Autoencoder:
    """A network with two kinds of cells, 10 apart, and another offset of each batch in each; axes that stretch."""
    net = network().eval()
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0, 0], [10.0, 0, 0, 0]])
    net.set_kinds(Kinds(centres, rng.normal(size=(3, 2, 4)), np.array([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]]), 1.0))
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [1.0, 0.8, 0.5, 0.2]
    net.set_axes(axes, np.linalg.inv(axes))
    return net


def test_without_kinds_and_axes_the_embedding_is_the_encoding() -> None:
    net = network().eval()
    x, batch = cells()
    torch.testing.assert_close(net.embed(x, batch), net.encode(x, batch))


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("b", [0, 1, 2])
def test_a_cell_of_a_kind_loses_the_offset_of_its_batch_there(kind: int, b: int) -> None:
    net = framed()
    z = net.centres[kind] + net.offsets[b, kind] + 0.1 * torch.randn(20, 4)
    found = net.removed(z, torch.full((20,), b))
    torch.testing.assert_close(found, net.offsets[b, kind].expand(20, 4), atol=1e-3, rtol=0)


def test_between_two_kinds_the_offset_goes_over_from_one_to_the_other() -> None:
    net = framed()
    start, end = net.centres[0] + net.offsets[0, 0], net.centres[1] + net.offsets[0, 1]
    way = start + torch.linspace(0, 1, 50)[:, None] * (end - start)
    member = net.membership(way, torch.zeros(50, dtype=torch.long))
    assert (member[1:, 1] >= member[:-1, 1]).all()
    torch.testing.assert_close(member.sum(1), torch.ones(50))
    torch.testing.assert_close(member[24:26].mean(0), torch.full((2,), 0.5), atol=1e-3, rtol=0)


def test_the_way_back_through_the_frame() -> None:
    net = framed()
    batch = torch.arange(60) % 3
    z = net.centres[torch.arange(60) // 30] + torch.randn(60, 4)
    torch.testing.assert_close(net.unembed(net.place(z, batch), batch), z, atol=1e-3, rtol=0)


def test_the_even_way_back_has_one_offset_per_batch() -> None:
    net = framed()
    batch = torch.arange(60) % 3
    z = torch.randn(60, 4)
    gone = net.unembed_evenly(z, batch) - z @ net.axes_inverse
    expected = torch.stack([net.shares[b] @ net.offsets[b] for b in range(3)])
    torch.testing.assert_close(gone, expected[batch], atol=1e-4, rtol=0)


# -- the strength ----------------------------------------------------------------------------------------------------


def at_strength(strength: float) -> Autoencoder:
    """A network near the identity, as trained ones are, with symmetric axes that shrink, and this strength."""
    net = framed()
    for block in (net.encoder, net.decoder):
        block.reduce.weight.data *= 0.1
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    axes = (turn * [1.0, 0.8, 0.5, 0.2]) @ turn.T
    net.set_axes(axes, np.linalg.inv(axes))
    net.strength.fill_(strength)
    return net


def started(n_latent: int, strength: float) -> Autoencoder:
    """A network that encodes near the identity, with offsets of the batches, and another start of its decoder."""
    net = network(trained=False, n_latent=n_latent, n_hidden=64).eval()
    nn.init.normal_(net.shift)
    nn.init.normal_(net.decoder.reduce.weight, std=0.3)
    net.start(*cells(500))
    net.offsets.normal_(std=0.3)
    net.strength.fill_(strength)
    return net


def test_a_new_network_is_at_full_strength() -> None:
    net = framed()
    x, batch = cells()
    assert net.strength.tolist() == [1]
    assert torch.equal(net.embed(x, batch), net.place(net.encode(x, batch), batch))


def test_at_strength_0_the_embedding_is_the_input_to_the_bit() -> None:
    x, batch = cells()
    assert torch.equal(at_strength(0.0).embed(x, batch), x[:, :4])
    wide = network(n_latent=13).eval()
    assert torch.equal(wide.embed(x, batch, 0.0), resize(x, 13))


@given(strength=st.floats(0, 1))
def test_the_embedding_goes_straight_from_the_input_to_the_full_correction(strength: float) -> None:
    x, batch = cells()
    net = at_strength(strength)
    expected = (1 - strength) * net.embed(x, batch, 0.0) + strength * net.embed(x, batch, 1.0)
    torch.testing.assert_close(net.embed(x, batch), expected)
    assert torch.equal(net.embed(x, batch), at_strength(0.5).embed(x, batch, strength))


@pytest.mark.parametrize("n_latent", [10, 13])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 0.95])
def test_the_way_back_below_full_strength_is_exact(strength: float, n_latent: int) -> None:
    net = started(n_latent, strength)
    x, batch = cells(60)
    found = net.restored(net.embed(x, batch), batch)
    torch.testing.assert_close(found, x, atol=2e-3 if strength < 0.9 else 0.2, rtol=0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.7, 0.95])
def test_features_that_no_embedding_holds_are_those_of_the_decoder(strength: float) -> None:
    net = started(4, strength)
    x, batch = cells(60)
    z = net.embed(x, batch)
    found = net.restored(z, batch)
    assert found.shape == (60, 10)
    near = 2e-2 if strength < 0.9 else 0.2
    torch.testing.assert_close(net.embed(found, batch), z, atol=near, rtol=0)
    told = net.decode(net.encode(found, batch), batch)
    torch.testing.assert_close(found[:, 4:], told[:, 4:], atol=near, rtol=0)


def test_at_full_strength_the_way_back_is_the_decoders() -> None:
    net = framed()
    x, batch = cells()
    z = net.embed(x, batch)
    assert torch.equal(net.restored(z, batch), net.decode(net.unembed(z, batch), batch))


# -- batches that are split further ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_parts", [1, 2, 3])
def test_parts_without_pairs_are_encoded_as_their_batches(n_parts: int) -> None:
    net = network().eval()
    x, batch = cells()
    nobody = Pairs(*(part[:0] for part in PAIRS[:3]))
    found = net.encode_parts(x, batch, torch.arange(30) % n_parts, nobody)
    torch.testing.assert_close(found, net.encode(x, batch), rtol=1e-5, atol=1e-5)


@given(seed=st.integers(0, 1000))
def test_a_known_offset_between_parts_is_removed(seed: int) -> None:
    """Two halves of a batch, of which one lies elsewhere by the same step: less than the shrinkage is left."""
    n, net = 500, network(seed).eval()
    torch.manual_seed(seed)
    own, step = torch.randn(n, 10), 2 * torch.randn(10)
    x, part, batch = torch.cat([own, own + step]), torch.arange(2 * n) // n, torch.ones(2 * n, dtype=torch.long)
    pairs = Pairs(torch.arange(n), torch.arange(n, 2 * n), torch.ones(n))
    with torch.no_grad():
        by_parts, plain = net.encode_parts(x, batch, part, pairs), net.encode(x, batch)
        gaps = [(z[n:] - z[:n]).norm(dim=1).mean() for z in (by_parts, plain)]
        alike = net.encode_parts(torch.cat([own, own]), batch, part, pairs)
        torch.testing.assert_close(alike[:n], alike[n:], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(alike[:n], net.encode(own, batch[:n]), rtol=1e-3, atol=1e-3)
    assert gaps[0] < 0.05 * gaps[1]


def test_a_known_spread_between_parts_is_removed_inside() -> None:
    """One half is the other, stretched: the layer behind the norm sees both alike."""
    n, net = 1000, network().eval()
    net.encoder.norm.mean.zero_()
    net.encoder.norm.shift.zero_()
    own = torch.randn(n, 10)
    own -= own.mean(0)
    x, part, batch = torch.cat([own, 3 * own]) + net.shift[1], torch.arange(2 * n) // n, torch.ones(2 * n).long()
    pairs = Pairs(torch.arange(n), torch.arange(n, 2 * n), torch.ones(n))
    found = kept(net)
    net.encode_parts(x, batch, part, pairs)
    h = found["encoder.dropout"][0]
    torch.testing.assert_close(h[n:], h[:n], rtol=0.05, atol=0.05)
    net.encode(x, batch)
    h = found["encoder.dropout"][0]
    assert (h[n:] - h[:n]).abs().mean() > 0.1


def test_parts_leave_the_network_as_it_was() -> None:
    net = network().eval()
    x, batch = cells()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.encode_parts(x, batch, torch.arange(30) % 2, PAIRS)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


# -- several covariates ----------------------------------------------------------------------------------------------


def test_each_batch_is_a_level_unless_something_else_is_said() -> None:
    net = network()
    assert net.config.n_levels == net.config.n_batches == 3
    assert torch.equal(net.design, torch.eye(3))
    assert net.levels() is None


def test_the_decoder_is_told_the_levels_of_a_batch() -> None:
    net = network(n_batches=4, n_levels=5).eval()
    net.set_design(np.array([[1, 0, 0, 1, 0], [1, 0, 0, 0, 1], [0, 1, 0, 1, 0], [0, 0, 1, 0, 1]], np.float32))
    levels = net.levels()
    assert levels is not None
    assert levels.codes.tolist() == [[0, 3], [0, 4], [1, 3], [2, 4]]
    assert net.decoder.expand.in_features == 4 + 5
    z = torch.randn(4, 4)
    told = torch.cat([z, net.design], dim=1)
    batch = torch.arange(4)
    expected = torch.nn.functional.pad(z, (0, 6)) + net.decoder(told, batch, None) + net.shift
    torch.testing.assert_close(net.decode(z, batch), expected)
