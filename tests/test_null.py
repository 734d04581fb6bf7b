"""The null check: near nothing for a sound network, and not for one that treats the halves of a batch differently."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from clouds import clouds
from numpy.typing import NDArray
from torch import Tensor

from cellnorm.alarm import MOVED, SEPARATED
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.estimator import CellNorm
from cellnorm.null import LEAST, null_check


@pytest.fixture(scope="module")
def model() -> CellNorm:
    data = clouds([[60, 60, 60], [60, 60, 60]])
    return CellNorm(n_comps=None, n_latent=10, n_steps=60, n_pairs=64, device="cpu").fit(data.measured, data.batch)


def checked(model: CellNorm, net: Autoencoder | None = None, *, seed: int = 0, n: int | None = None) -> Any:
    cells: NDArray[np.float32] = model.sketch_[model.sketch_batch_ == 0][:n]
    return null_check(net or model.net_, cells, 0, model.n_neighbors, np.random.default_rng(seed))


def spoilt(model: CellNorm, step: float) -> Autoencoder:
    """The network, with the statistics of the second half forced apart by `step` in each feature."""
    net = copy.deepcopy(model.net_)
    sound = net.encode_parts

    def encode_parts(x: Tensor, batch: Tensor, part: Tensor, pairs: Any) -> Tensor:
        return sound(x, batch, part, pairs) + step * part[:, None]

    net.encode_parts = encode_parts  # type: ignore[method-assign]
    return net


@pytest.mark.parametrize("seed", range(3))
def test_a_trained_network_neither_moves_nor_separates_halves(model: CellNorm, seed: int) -> None:
    moved, separated = checked(model, seed=seed)
    assert 0 <= moved < MOVED / 2
    assert 0 <= separated < SEPARATED / 2
    assert type(moved) is type(separated) is float


def test_a_network_that_has_just_started_moves_as_little() -> None:
    x = clouds([[100, 100]]).truth
    net = Autoencoder(AutoencoderConfig(n_features=10, n_batches=1, n_latent=10, n_hidden=64, n_kinds=2, dropout=0.0))
    net.start(torch.from_numpy(x), torch.zeros(len(x), dtype=torch.int64))
    moved, separated = null_check(net, x, 0, 20, np.random.default_rng(0))
    assert moved < MOVED / 2
    assert separated < SEPARATED / 2


def test_halves_forced_apart_are_seen(model: CellNorm) -> None:
    assert checked(model, spoilt(model, 0.0)) == checked(model)
    found = [checked(model, spoilt(model, step)) for step in (0.0, 0.3, 1.0, 5.0)]
    for values in zip(*found, strict=True):
        assert list(values) == sorted(values)
    assert found[-1][0] > MOVED
    assert found[-1][1] > 0.9


def test_statistics_of_halves_without_matching_are_seen(model: CellNorm, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pairs say is exchanged for a wrong offset of the input and of the hidden layer."""

    def wrong(x: Tensor, part: Tensor, pairs: Any, n_parts: int) -> Tensor:
        return torch.linspace(-3, 3, n_parts)[:, None].expand(-1, x.shape[1])

    for module in ("autoencoder", "layers"):
        monkeypatch.setattr(f"cellnorm.{module}.matched_shift", wrong)
    moved, separated = checked(model)
    assert moved > MOVED
    assert separated > SEPARATED


@pytest.mark.parametrize("n", [0, 1, LEAST - 1])
def test_a_batch_of_fewer_than_forty_cells_is_not_split(model: CellNorm, n: int) -> None:
    assert LEAST == 40
    assert np.isnan(checked(model, n=n)).all()
    assert np.isfinite(checked(model, n=LEAST)).all()


def test_units_have_no_say() -> None:
    """The move is told in distances between neighbours."""
    x = clouds([[100, 100]]).truth
    config = AutoencoderConfig(n_features=10, n_batches=1, n_latent=10, n_hidden=8, n_kinds=2, dropout=0.0)
    found = [null_check(Autoencoder(config), k * x, 0, 20, np.random.default_rng(0)) for k in (1, 8)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_split_is_seeded_and_nothing_is_left_behind(model: CellNorm) -> None:
    state = copy.deepcopy(model.net_.state_dict())
    cells, generator = model.sketch_.copy(), torch.get_rng_state()
    assert checked(model) == checked(model)
    assert checked(model) != checked(model, seed=1)
    assert not model.net_.training
    for name, value in model.net_.state_dict().items():
        assert torch.equal(value, state[name]), name
    np.testing.assert_array_equal(model.sketch_, cells)
    assert torch.equal(torch.get_rng_state(), generator)
