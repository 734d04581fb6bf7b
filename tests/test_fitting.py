"""The sketch on which a network learns, and what the whole of the fitting gives."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cellnorm import fitting
from cellnorm.anchors import Anchors, cosine, find_anchors, level_anchors
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.covariates import level_codes
from cellnorm.fitting import choose_sketch, fit_network
from cellnorm.training import TrainingConfig, encode

SETTINGS = TrainingConfig(
    n_steps=40,
    n_pairs=32,
    n_others=8,
    n_neighbors=10,
    learning_rate=1e-3,
    weight_decay=1e-4,
    contrast=2.0,
    geometry=0.3,
)


def cells(n: int = 400, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Two types in two batches, which lie 3 apart."""
    rng = np.random.default_rng(seed)
    batch = np.arange(n) % 2
    x = rng.normal(size=(n, 8)).astype(np.float32)
    x[:, 0] += 15 * (np.arange(n) // 2 % 2)
    x[:, 1] += 3 * batch
    return x, batch


def fitted(seed: int = 0) -> tuple[Autoencoder, NDArray[np.float32], NDArray[np.int64]]:
    x, batch = cells()
    config = AutoencoderConfig(n_features=8, n_batches=2, n_latent=6, n_hidden=16, n_kinds=8, dropout=0.1)
    anchors = find_anchors(cosine(x), batch, 10)
    net, found, history = fit_network(x, batch, anchors, config, SETTINGS, "cpu", np.random.default_rng(seed))
    assert len(found) == history.n_anchors[-1]
    return net, x, batch


def test_the_sketch_holds_every_batch_and_its_unit_is_the_distance_to_a_neighbour() -> None:
    x, batch = cells(1000)
    chosen, scale = choose_sketch(x, batch, np.random.default_rng(0))
    assert chosen.tolist() == list(range(1000))
    twice, double = choose_sketch(2 * x, batch, np.random.default_rng(0))
    assert (chosen == twice).all()
    assert double == pytest.approx(2 * scale, rel=1e-5)
    own = x[batch == 0]
    nearest = np.sort(np.linalg.norm(own[:, None] - own, axis=2), axis=1)[:, 1:11]
    assert 0.7 * np.median(nearest) < scale < 1.4 * np.median(nearest)


def test_large_batches_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SKETCH_BATCH", 150)
    x, batch = cells(1000)
    chosen, _ = choose_sketch(x, batch, np.random.default_rng(0))
    assert np.bincount(batch[chosen]).tolist() == [150, 150]
    assert (np.diff(chosen) > 0).all()


def test_the_batches_come_together_and_the_types_stay_apart() -> None:
    net, x, batch = fitted()
    z = encode(net, x, batch)
    first = x[:, 0] > 7
    gap = [np.linalg.norm(z[(batch == 0) & t].mean(0) - z[(batch == 1) & t].mean(0)) for t in (first, ~first)]
    assert max(gap) < 0.5
    assert np.linalg.norm(z[first].mean(0) - z[~first].mean(0)) > 8


def test_the_final_frame_is_set_and_the_network_is_ready() -> None:
    net, _, _ = fitted()
    assert not net.training
    assert net.offsets.abs().max() > 0
    torch.testing.assert_close(net.shares.sum(1), torch.ones(2))
    torch.testing.assert_close(net.axes @ net.axes_inverse, torch.eye(6), atol=1e-4, rtol=0)


def test_one_seed_one_network_and_torch_keeps_its_state() -> None:
    state = torch.get_rng_state()
    one, x, batch = fitted()
    other, _, _ = fitted()
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(encode(one, x, batch), encode(other, x, batch))
    assert (encode(fitted(1)[0], x, batch) != encode(one, x, batch)).any()


def test_combinations_of_few_cells_share_the_least_of_their_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "SKETCH_ALL", 1000)
    monkeypatch.setattr(fitting, "SKETCH_LEAST", 18)
    x, _ = cells(4000)
    batch = np.arange(4000) % 200
    for least, n_levels in ((18, None), (18, 400), (6, 60)):
        chosen, _ = choose_sketch(x, batch, np.random.default_rng(0), n_levels)
        assert np.bincount(batch[chosen]).tolist() == [least] * 200


def test_two_covariates_are_fitted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sought = []

    def seek(z: NDArray[np.float32], levels: NDArray[np.int64], n_neighbors: int, *_: object) -> Anchors:
        sought.append(levels)
        return level_anchors(z, levels, n_neighbors)

    monkeypatch.setattr("cellnorm.training.level_anchors", seek)
    x, batch = cells()
    other = np.arange(400) // 4 % 2
    x[:, 2] += 3 * other
    codes = 2 * batch + other
    design = np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], np.float32)
    anchors = level_anchors(cosine(x), level_codes(design)[codes], 10)
    config = AutoencoderConfig(n_features=8, n_batches=4, n_latent=6, n_hidden=16, n_kinds=8, dropout=0.1, n_levels=4)
    rng = np.random.default_rng(0)
    net, _, _ = fit_network(x, codes, anchors, config, SETTINGS, "cpu", rng, design=design)
    assert (net.design.numpy() == design).all()
    assert [levels.tolist() for levels in sought] == [level_codes(design)[codes].tolist()]  # at half time
    shift = net.shift.numpy()
    for found in (shift, net.encoder.norm.shift.numpy(), net.decoder.norm.shift.numpy()):
        assert np.abs(found).max() > 1e-3
        np.testing.assert_allclose(found[3] - found[2], found[1] - found[0], atol=1e-5)  # the effects add up
    z = encode(net, x, codes)
    for one, axis in ((batch, 1), (other, 2)):
        assert shift[codes[one == 1], axis].mean() - shift[codes[one == 0], axis].mean() > 1
        before, after = (np.linalg.norm(v[one == 1].mean(0) - v[one == 0].mean(0)) for v in (x, z))
        assert after < 0.25 * before
