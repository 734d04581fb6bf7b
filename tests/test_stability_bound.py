"""No change of a cell moves its embedding by more than the bound."""

from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import some_net, steepest, trained
from numpy.typing import NDArray

from cellnorm import LinearFront
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.stability._bound import encoding_bounds, lipschitz, offsets_of, steepest_offset, stretch

Floats = NDArray[np.float64]


def patterns(net: Autoencoder, batch: int, masks: Floats, axes: torch.Tensor, strength: float = 1.0) -> Floats:
    """Largest stretch for each pattern of hidden units that are on, shape (n_masks,), straight from the definition."""
    norm, width = net.encoder.norm, net.config.n_latent
    scale = norm.gamma / (norm.spread[batch] * (norm.var + norm.eps).sqrt())  # type: ignore[operator]
    found = []
    for mask in masks:
        inner = net.encoder.reduce.weight @ torch.diag(scale * torch.from_numpy(mask)) @ net.encoder.expand.weight
        beside = torch.eye(width, net.config.n_features).to(inner)
        jacobian = strength * axes.T @ inner + (1 - strength) * beside
        found.append(float(torch.linalg.matrix_norm(jacobian.detach(), 2)))
    return np.array(found)


def naive(net: Autoencoder, batch: int) -> float:
    """The product of the layers' norms."""
    norm = net.encoder.norm
    scale = norm.gamma / (norm.spread[batch] * (norm.var + norm.eps).sqrt())  # type: ignore[operator]
    parts = (net.axes, net.encoder.reduce.weight, scale[:, None] * net.encoder.expand.weight)
    axes, last, first = (float(torch.linalg.matrix_norm(m.detach(), 2)) for m in parts)
    return axes * last * first


@given(st.integers(0, 2**16), st.integers(1, 8), st.integers(1, 8), st.integers(1, 7), st.sampled_from([1.0, 0.4]))
@settings(max_examples=25)
def test_the_bound_holds_for_every_pattern_and_is_near_the_worst(
    seed: int, n_features: int, n_latent: int, n_hidden: int, strength: float
) -> None:
    net = some_net(seed, n_features=n_features, n_latent=n_latent, n_hidden=n_hidden, strength=strength)
    masks = np.array(list(product([0.0, 1.0], repeat=n_hidden)))
    raw, framed = encoding_bounds(net, [0, 1])
    for batch in range(2):
        plain = torch.eye(n_latent).double()
        for bound, axes, share in ((raw[batch], plain, 1.0), (framed[batch], net.axes, strength)):
            worst = patterns(net, batch, masks, axes, share).max()
            assert worst <= bound <= 1.5 * worst
        assert bound <= (strength * naive(net, batch) + 1 - strength) * (1 + 1e-5)


STEPS = st.sampled_from([0.1, 1.0, 10.0])


@given(st.integers(0, 2**16), STEPS, STEPS, st.sampled_from([1.0, 0.6, 0.1]))
@settings(max_examples=15)
def test_no_pair_of_cells_found_by_gradient_ascent_is_stretched_further(
    seed: int, apart: float, width: float, strength: float
) -> None:
    net = some_net(seed, apart=apart, width=width, strength=strength)
    found = np.array([steepest(net, batch, seed, n_steps=40) for batch in range(2)])
    assert (found <= lipschitz(net)).all()
    if strength == 1 and width > 1 >= apart:  # else few cells lie where the offset is steep
        assert (found > 0.3 * lipschitz(net)).all()


def test_at_the_border_of_two_kinds_the_offset_counts() -> None:
    net = some_net(4, n_kinds=2, width=0.3)
    found = steepest(net, 0, 0, 300)
    assert 1.1 * encoding_bounds(net, [0])[1] < found <= lipschitz(net)[0]


@given(st.integers(0, 2**16), st.integers(2, 6), st.floats(0.1, 10))
@settings(max_examples=25)
def test_no_shares_of_kinds_make_the_offset_steeper(seed: int, n_kinds: int, variance: float) -> None:
    rng = np.random.default_rng(seed)
    offsets, centres = rng.normal(size=(n_kinds, 3)), rng.normal(size=(n_kinds, 4)) * rng.uniform(0.1, 10)
    bound = steepest_offset(offsets, centres, variance)
    shares = rng.dirichlet(np.full(n_kinds, 0.3), 300)
    shares[0] = (np.arange(n_kinds) < 2) / 2
    slope = np.einsum("nk,ki,kj->nij", shares, offsets, centres)
    slope -= (shares @ offsets)[:, :, None] * (shares @ centres)[:, None]
    largest = np.linalg.norm(slope, 2, axis=(1, 2)).max() / variance
    assert largest <= bound
    if n_kinds == 2:
        np.testing.assert_allclose(largest, bound, rtol=1e-5)


def test_offsets_that_are_the_same_everywhere_add_nothing() -> None:
    net = some_net(5)
    net.offsets[:] = net.offsets[:, :1]
    np.testing.assert_array_equal(lipschitz(net), encoding_bounds(net, [0, 1])[1])
    assert steepest_offset(np.ones((1, 2)), np.ones((1, 2)), 1.0) == 0


def test_without_correction_nothing_is_stretched() -> None:
    np.testing.assert_allclose(lipschitz(some_net(5, strength=0.0)), 1, rtol=1e-5)


def test_offsets_and_centres_of_a_batch_are_those_of_the_final_frame() -> None:
    net = some_net(6, apart=1000.0)  # a cell at the centre of a kind is of that kind alone
    offsets, centres = offsets_of(net, 1)
    z, batch = torch.from_numpy(centres), torch.ones(len(centres), dtype=torch.int64)
    np.testing.assert_allclose(net.place(z, batch).numpy(), centres @ net.axes.numpy() - offsets)


def test_a_network_that_maps_all_cells_to_one_point_stretches_nothing() -> None:
    net = Autoencoder(AutoencoderConfig(10, 3, 4, 8, 2, 0.1))
    bound = lipschitz(net)
    assert ((bound > 0) & (bound < 1e-9)).all()
    net.strength.fill_(0.25)
    np.testing.assert_allclose(lipschitz(net), 0.75, rtol=1e-5)


def test_where_it_starts_it_stretches_about_as_the_axes_do() -> None:
    net = Autoencoder(AutoencoderConfig(10, 1, 4, 200, 2, 0.1)).eval()
    x = torch.randn(500, 10)
    net.start(x, torch.zeros(500, dtype=torch.int64))
    before = lipschitz(net)
    assert 1 < before[0] < 3
    net.axes.mul_(0.5)
    np.testing.assert_allclose(lipschitz(net), before / 2, rtol=1e-2)


def test_a_batch_has_the_bound_of_its_own_statistics() -> None:
    net = some_net(1, n_batches=3)
    before = lipschitz(net)
    net.encoder.norm.spread[1] /= 4  # what a batch added later might have
    after = lipschitz(net)
    np.testing.assert_allclose(after[[0, 2]], before[[0, 2]], rtol=1e-2)
    assert after[1] > 1.5 * before[1]
    net.shift.normal_()
    net.encoder.norm.shift.normal_()
    np.testing.assert_allclose(lipschitz(net), after, rtol=1e-12)
    net.offsets[1] *= 3
    moved = lipschitz(net)
    np.testing.assert_allclose(moved[[0, 2]], after[[0, 2]], rtol=1e-12)
    assert moved[1] > 1.5 * after[1]


def test_some_batches_can_be_asked_for() -> None:
    net = some_net(2, n_batches=4)
    np.testing.assert_allclose(lipschitz(net, [3, 1]), lipschitz(net)[[3, 1]], rtol=0.02)
    assert lipschitz(net, []).shape == (0,)


def test_units_that_do_nothing_are_harmless() -> None:
    net = some_net(3)
    with torch.no_grad():
        net.encoder.expand.weight[0] = 0
        net.encoder.reduce.weight[:, 1] = 0
        net.encoder.reduce.weight[:, 2] *= 1e-12
    masks = np.array(list(product([0.0, 1.0], repeat=7)))
    bound, worst = encoding_bounds(net, [0])[1], patterns(net, 0, masks, net.axes).max()
    assert worst <= bound <= 1.5 * worst


def test_stretch_is_the_largest_singular_value() -> None:
    matrix = np.random.default_rng(0).normal(size=(40, 7))
    np.testing.assert_allclose([stretch(matrix), stretch(matrix.T)], np.linalg.norm(matrix, 2), rtol=1e-5)
    assert stretch(matrix) >= np.linalg.norm(matrix, 2)


def test_what_training_leaves_is_within_the_bound_in_the_units_of_the_components() -> None:
    model, x, batch, _ = trained()
    bound = lipschitz(model.net_)
    for b, name in enumerate(model.batches_):
        found = steepest(model.net_, b, 0)
        assert 0.4 * bound[b] < found <= bound[b] * (1 + 1e-4)
        own = x[batch == name]
        z = model.transform(own, np.full(len(own), name))
        apart = np.linalg.norm(own[:, None] - own[None], axis=2)
        moved = np.linalg.norm(z[:, None].astype(float) - z[None], axis=2)
        assert (moved <= bound[b] * apart + 1e-4).all()


def test_expression_moves_components_by_no_more_than_itself() -> None:
    rng = np.random.default_rng(0)
    x = rng.poisson(1.0, (100, 30)).astype(np.float32)
    front = LinearFront.fit(x, 5)
    assert 1 <= stretch(front.loadings) < 1 + 1e-5
    moved = np.linalg.norm(front.project(x[1:]) - front.project(x[:-1]), axis=1)
    assert (moved <= np.linalg.norm(x[1:] - x[:-1], axis=1) * stretch(front.loadings) + 1e-5).all()
