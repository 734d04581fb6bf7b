"""No change of a cell within its reach moves its embedding further than was asked."""

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import furthest, some_net
from numpy.typing import NDArray
from scipy.special import expit

from cellnorm import CellNorm
from cellnorm.autoencoder import Autoencoder
from cellnorm.pp import log_expression
from cellnorm.stability import lipschitz
from cellnorm.stability._reach import Reach, _Kinds, reach_of

Floats = NDArray[np.float64]
APART, WIDTH = st.sampled_from([0.1, 1.0, 10.0]), st.sampled_from([0.01, 0.3, 3.0])


def some_cells(net: Autoencoder, seed: int, n: int = 40) -> tuple[Reach, torch.Tensor, torch.Tensor, Floats]:
    """Reach of cells of both batches, their features and batches, and a step for each."""
    rng = np.random.default_rng(seed)
    x, batch = 2 * rng.normal(size=(n, net.config.n_features)), np.arange(n) % 2
    reach = reach_of(net, x, batch, 1.0)
    return reach, torch.from_numpy(x), torch.from_numpy(batch), 10 ** rng.uniform(-2, 1, n)


@given(st.integers(0, 2**16), st.integers(1, 6), APART, WIDTH, st.sampled_from([1.0, 0.5, 0.0]))
@settings(max_examples=16)
def test_no_change_found_by_gradient_ascent_moves_a_cell_further(
    seed: int, n_kinds: int, apart: float, width: float, strength: float
) -> None:
    # of few hidden units a cell may lie where none is on: nothing moves it there
    net = some_net(seed, n_hidden=20, n_kinds=n_kinds, apart=apart, width=width, strength=strength)
    reach, x, batch, step = some_cells(net, seed)
    radius = reach.within(step)
    found = furthest(net, x, batch, radius, 40)
    assert (found <= step).all()
    assert np.median(found / step) > 0.1
    worst, usual = step / lipschitz(net)[batch], step / reach.framed[batch]
    assert (radius >= worst * (1 - 1e-5)).all()  # never less than the bound that holds everywhere
    assert (radius <= usual).all()


def test_the_offset_counts_where_it_changes() -> None:
    """With the offset taken for constant, cells would be moved further than was asked: the attack finds them."""
    net = some_net(4, n_kinds=2, width=0.1)
    reach, x, batch, _ = some_cells(net, 0, 200)
    step = np.full(200, 1.0)
    constant = step / reach.framed[batch]
    assert (furthest(net, x, batch, constant) > step).any()
    assert (furthest(net, x, batch, reach.within(step)) <= step).all()


def test_far_from_all_borders_the_offset_is_constant() -> None:
    net = some_net(1, apart=100.0, width=1.0)
    reach, _, batch, _ = some_cells(net, 1)
    member = np.exp(np.concatenate([_Kinds.of(net, b).log_member(encoded(reach, b)) for b in range(2)])).max(1)
    member[np.argsort(batch.numpy(), kind="stable")] = member.copy()
    inside = member > 1 - 1e-9
    assert inside.mean() > 0.5
    radius = reach.within(np.full(40, 0.1))
    np.testing.assert_allclose(radius[inside], 0.1 / reach.framed[batch][inside], rtol=1e-4)
    net.offsets[:] = net.offsets[:, :1]
    same, _, _, step = some_cells(net, 1)
    np.testing.assert_allclose(same.within(step), step / same.framed[batch], rtol=1e-5)


def encoded(reach: Reach, batch: int) -> Floats:
    x = torch.from_numpy(reach.x[reach.batch == batch])
    return np.asarray(reach.net.encode(x, torch.full((len(x),), batch)).detach().numpy())


def test_shares_of_kinds_are_those_of_the_network() -> None:
    net = some_net(2, n_kinds=5, apart=2.0, width=0.5)
    net.shares[:, 0] = 0  # a kind that a batch has none of
    z = torch.randn(30, 4).double()
    for b in range(2):
        there = net.membership(z, torch.full((30,), b)).numpy()
        np.testing.assert_allclose(np.exp(_Kinds.of(net, b).log_member(z.numpy())), there, rtol=1e-9)


@given(st.integers(0, 2**16), st.integers(2, 5), WIDTH, st.floats(0.01, 3))
@settings(max_examples=20)
def test_no_share_within_a_distance_exceeds_its_bound(seed: int, n_kinds: int, width: float, distance: float) -> None:
    kinds, rng = _Kinds.of(some_net(seed, n_kinds=n_kinds, width=width), 0), np.random.default_rng(seed)
    z = rng.normal(size=(20, 4))
    log_odds, rate, _ = kinds._local(z)
    most = expit(log_odds + distance * rate)
    mean = np.exp(kinds.log_member(z)) @ kinds.centres
    for k in range(n_kinds):
        for way in (kinds.centres[k] - mean, rng.normal(size=z.shape)):
            moved = z + distance * way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1e-12)
            assert (np.exp(kinds.log_member(moved)) <= most + 1e-9).all()


@given(st.integers(0, 2**16), APART, WIDTH)
@settings(max_examples=6)
def test_the_unit_of_length_cancels(seed: int, apart: float, width: float) -> None:
    net = some_net(seed, apart=apart, width=width)
    reach, x, batch, step = some_cells(net, seed)
    radius = reach.within(step)
    large = reach_of(net, x.numpy(), batch.numpy(), 7.0).within(7 * step)
    np.testing.assert_allclose(large, 7 * radius, rtol=1e-9)
    assert (reach.within(np.zeros(40)) == 0).all()


def test_where_any_step_is_safe_any_change_is() -> None:
    reach, _, _, step = some_cells(some_net(3), 3)
    step[:3] = np.inf
    radius = reach.within(step)
    assert np.isinf(radius[:3]).all()
    assert np.isfinite(radius[3:]).all()
    assert (radius[3:] > 0).all()


def test_a_batch_has_the_reach_of_its_own_statistics() -> None:
    net = some_net(5, width=5.0)
    before, x, batch, step = some_cells(net, 5)
    net.offsets[1] *= 4  # what a batch added later might have
    after = reach_of(net, x.numpy(), batch.numpy(), 1.0)
    np.testing.assert_array_equal(after.within(step)[::2], before.within(step)[::2])
    assert np.median(after.within(step)[1::2] / before.within(step)[1::2]) < 0.9


def test_cells_are_looked_at_one_by_one() -> None:
    reach, _, _, step = some_cells(some_net(6, n_features=16, n_latent=8, n_hidden=16, n_kinds=8), 6, 150)
    whole = reach.within(step)
    order = np.random.default_rng(0).permutation(150)
    mixed = Reach(reach.net, reach.x[order], reach.batch[order], 1.0, reach.raw, reach.framed)
    np.testing.assert_array_equal(mixed.within(step[order]), whole[order])
    alone = Reach(reach.net, reach.x[7:8], reach.batch[7:8], 1.0, reach.raw, reach.framed)
    np.testing.assert_array_equal(alone.within(step[7:8]), whole[7:8])


def test_only_batches_with_cells_are_bounded_and_the_network_stays_as_it_is() -> None:
    net = some_net(7).float()
    state = {name: values.clone() for name, values in net.state_dict().items()}
    reach = reach_of(net, np.zeros((3, 6), np.float32), np.ones(3, int), 1.0)
    assert np.isnan(reach.framed).tolist() == [True, False]
    assert (reach.within(np.ones(3)) > 0).all()
    assert all(torch.equal(values, state[name]) for name, values in net.state_dict().items())
    assert reach_of(net, np.zeros((0, 6)), np.zeros(0, int), 1.0).within(np.zeros(0)).shape == (0,)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("width", [np.finfo(np.float32).tiny, 1e-9, 1e12])
def test_kinds_without_width_or_of_any_width_are_harmless(width: float) -> None:
    net = some_net(8, width=width)
    reach, x, batch, step = some_cells(net, 8)
    radius = reach.within(step)
    assert np.isfinite(radius).all()
    assert (furthest(net, x, batch, radius) <= step).all()


def test_on_real_data(data_dir: Path) -> None:
    adata = ad.read_h5ad(data_dir / "pbmc_3tech_small.h5ad")[::3].copy()
    labels = adata.obs["batch"].astype(str).to_numpy(object)
    x = log_expression(adata, labels)[0]
    new = labels == "3pv1"
    known = CellNorm(n_steps=60, device="cpu").fit(x[~new], labels[~new])
    model = known.add_batch(x[new], "new")
    cells = (model._features(x[new]) / model.scale_).astype(np.float64)
    codes = np.full(len(cells), 2)
    reach = reach_of(model.net_, cells, codes, float(model.scale_))
    step = np.full(len(cells), 0.3 * float(model.scale_))
    radius = reach.within(step) / model.scale_
    found = furthest(reach.net, torch.from_numpy(cells), torch.from_numpy(codes), radius)
    assert (found <= 0.3).all()
    assert np.median(found) > 0.1
    assert np.median(radius * reach.framed[2]) > 0.6 * 0.3  # the offset costs less than half of the radius
