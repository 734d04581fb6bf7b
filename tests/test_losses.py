"""Loss terms against cases worked by hand."""

import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellnorm import losses
from cellnorm.anchors import find_anchors
from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.losses import REACH, contrast, reconstruction, squared_distances
from cellnorm.training import TrainingConfig, train


def kinship(u: torch.Tensor, z: torch.Tensor, batch: torch.Tensor, n_pairs: int) -> torch.Tensor:
    return losses.kinship(squared_distances(u, u), squared_distances(z, z), batch, n_pairs)


def geometry(u: torch.Tensor, z: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return losses.geometry(squared_distances(u, u), squared_distances(z, z), batch)


SEEDS = st.integers(0, 10**6)


def embeddings(seed: int, n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=rng), torch.randn(n, 3, generator=rng)


# -- what is trained on ----------------------------------------------------------------------------------------------


def trained(n_steps: int, **weights: float) -> dict[str, np.ndarray]:
    """The terms of a small training; each term weighs what is given, or as much as if its weight were not one."""
    x = embeddings(0, 60)[0].numpy()
    batch = np.arange(60) % 2
    plain = {
        "n_steps": n_steps,
        "n_pairs": 16,
        "n_others": 4,
        "n_neighbors": 5,
        "learning_rate": 0.02,
        "weight_decay": 0.0,
    }
    optional = {field.name: 1.0 for field in fields(TrainingConfig)} | weights
    config = TrainingConfig(**{**optional, **plain})
    torch.manual_seed(0)
    net = Autoencoder(AutoencoderConfig(n_features=3, n_batches=2, n_latent=2, n_hidden=5, n_kinds=2, dropout=0.0))
    return train(net, x, batch, find_anchors(x, batch, 5), config, np.random.default_rng(0))[1].terms


@pytest.mark.parametrize("weights", [{}, {"contrast": 0.0, "geometry": 0.0}, {"contrast": 0.3, "geometry": 0.5}])
def test_the_loss_is_the_sum_of_its_terms(weights: dict[str, float]) -> None:
    loss, *terms = (values for values in trained(8, **weights).items())
    assert loss[0] == "loss"
    assert all((values[1:] > 0).all() for _, values in terms)
    assert set(weights) <= {name for name, _ in terms}
    np.testing.assert_allclose(loss[1], sum(weights.get(name, 1.0) * values for name, values in terms), rtol=1e-5)


def test_the_geometry_is_kept_where_it_weighs() -> None:
    light, heavy = (trained(60, geometry=weight)["geometry"][-10:].mean() for weight in (0.0, 30.0))
    assert heavy < 0.9 * light


# -- reconstruction --------------------------------------------------------------------------------------------------


def test_reconstruction_of_a_known_case() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    decoded = torch.tensor([[3.0, 4.0], [1.0, 2.0]])
    assert float(reconstruction(decoded, x)) == (25 + 1) / 2


@given(seed=SEEDS, factor=st.floats(0.1, 10))
def test_reconstruction_is_a_square_that_is_zero_when_nothing_is_lost(seed: int, factor: float) -> None:
    decoded, x = embeddings(seed)
    assert float(reconstruction(x, x)) == 0
    assert float(reconstruction(factor * decoded, factor * x)) == pytest.approx(
        factor**2 * float(reconstruction(decoded, x)), rel=1e-4
    )


# -- contrast --------------------------------------------------------------------------------------------------------


def test_contrast_of_a_known_case() -> None:
    """Two pairs on a line: 0 with 1 and 2 with 2; squared distances 1, 4 / 1, 0."""
    left, right = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [2.0]])

    def lost(own: float, other: float) -> float:
        return -math.log(math.exp(-own) / (math.exp(-own) + math.exp(-other)))

    from_left, from_right = (lost(1, 4) + lost(0, 1)) / 2, (lost(1, 1) + lost(0, 4)) / 2
    assert float(contrast(left, right)) == pytest.approx((from_left + from_right) / 2, rel=1e-5)


@given(seed=SEEDS, n=st.integers(1, 30))
def test_contrast_is_that_of_a_loop(seed: int, n: int) -> None:
    left, right = (side.double().numpy() for side in embeddings(seed, n))
    lost = []
    for one, other in ((left, right), (right, left)):
        for i in range(n):
            distance = np.array([np.square(one[i] - other[j]).sum() for j in range(n)])
            lost.append(distance[i] + math.log(np.exp(-distance).sum()))
    found = contrast(*embeddings(seed, n))
    assert float(found) == pytest.approx(np.mean(lost), rel=1e-4, abs=1e-5)


@given(seed=SEEDS)
def test_contrast_knows_no_sides_and_no_order(seed: int) -> None:
    left, right = embeddings(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    plain = float(contrast(left, right))
    assert float(contrast(right, left)) == pytest.approx(plain, rel=1e-4)
    assert float(contrast(left[order], right[order])) == pytest.approx(plain, rel=1e-4)
    assert float(contrast(left + 7, right + 7)) == pytest.approx(plain, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize(("apart", "expected"), [(0.0, math.log(8)), (100.0, 0.0)])
def test_contrast_is_that_of_guessing_or_of_knowing(apart: float, expected: float) -> None:
    places = apart * torch.arange(8.0)[:, None]
    assert float(contrast(places, places)) == pytest.approx(expected, abs=1e-4)


def test_contrast_pulls_partners_together_and_pushes_others_apart() -> None:
    left, right = torch.tensor([[0.0], [1.0]], requires_grad=True), torch.tensor([[0.6], [0.4]])
    before = contrast(left, right)
    before.backward()
    assert left.grad is not None
    assert left.grad[0] < 0  # past the nearer stranger at 0.4 towards the partner at 0.6
    assert left.grad[1] > 0
    assert contrast(left.detach() - 0.1 * left.grad, right) < before


def test_contrast_of_one_pair_is_zero_and_of_none_too() -> None:
    one = torch.randn(1, 3)
    assert float(contrast(one, one + 5)) == pytest.approx(0, abs=1e-6)
    none = torch.zeros(0, 3, requires_grad=True)
    lost = contrast(none, none)
    assert lost.item() == 0
    lost.backward()
    assert none.grad is not None


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e3])
def test_contrast_has_finite_gradients(scale: float) -> None:
    left, right = (scale * side for side in embeddings(0))
    left.requires_grad_()
    contrast(left, right).backward()
    assert left.grad is not None
    assert torch.isfinite(left.grad).all()


# -- geometry --------------------------------------------------------------------------------------------------------


def turned(u: torch.Tensor, seed: int) -> torch.Tensor:
    """The same cells seen from elsewhere."""
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(seed))).Q
    return u @ rotation + 5


@given(seed=SEEDS)
def test_geometry_is_kept_by_turning_and_by_moving_a_whole_batch(seed: int) -> None:
    u, _ = embeddings(seed, 12)
    batch = torch.arange(12) % 3
    moves = 4 * torch.randn(3, 3, generator=torch.Generator().manual_seed(seed + 1))
    assert geometry(u, u, batch).item() == 0
    assert geometry(u, turned(u, seed), batch).item() < 1e-4
    assert geometry(u, u + moves[batch], batch).item() < 1e-4
    assert geometry(u, 2 * u, batch).item() > 0.01


def test_geometry_of_a_known_case() -> None:
    """A batch of two cells, 1 apart and then 3, and another whose two cells lie 2 apart and stay so."""
    u = torch.tensor([[0.0], [1.0], [50.0], [52.0]])
    z = torch.tensor([[0.0], [3.0], [90.0], [92.0]])
    batch = torch.tensor([0, 0, 1, 1])
    near, far = math.exp(-1 / (2 * REACH)), math.exp(-4 / (2 * REACH))
    assert geometry(u, z, batch).item() == pytest.approx(4 * near / (near + far), rel=1e-4)


@given(seed=SEEDS, n=st.integers(2, 20))
def test_geometry_is_that_of_a_loop(seed: int, n: int) -> None:
    u, z = embeddings(seed, n)
    batch = np.random.default_rng(seed).integers(0, 3, n)
    total = weights = 0.0
    for i in range(n):
        for j in range(n):
            if i != j and batch[i] == batch[j]:
                before, after = math.dist(u[i].tolist(), u[j].tolist()), math.dist(z[i].tolist(), z[j].tolist())
                weight = math.exp(-(before**2) / (2 * REACH))
                total, weights = total + weight * (before - after) ** 2, weights + weight
    expected = total / weights if weights else 0.0
    assert geometry(u, z, torch.from_numpy(batch)).item() == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_geometry_cares_for_near_cells_first() -> None:
    u = torch.tensor([[0.0], [1.0], [8.0]])
    batch = torch.zeros(3, dtype=torch.long)
    near_moved, far_moved = torch.tensor([[0.0], [2.0], [8.0]]), torch.tensor([[0.0], [1.0], [9.0]])
    assert geometry(u, near_moved, batch) > 10 * geometry(u, far_moved, batch)


def test_geometry_of_batches_of_one_cell_is_zero() -> None:
    u, z = embeddings(0, 4)
    assert geometry(u, z, torch.arange(4)).item() == 0
    assert geometry(u[:0], z[:0], torch.arange(0)).item() == 0


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 1e3])
def test_geometry_has_finite_gradients(scale: float) -> None:
    u, z = (scale * side for side in embeddings(0))
    z = z.requires_grad_()
    geometry(u, z, torch.zeros(6, dtype=torch.long)).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()


@given(seed=SEEDS)
def test_squared_distances_are_those_of_a_loop(seed: int) -> None:
    a, b = embeddings(seed, 5)
    expected = [[math.dist(i, j) ** 2 for j in b.tolist()] for i in a.tolist()]
    np.testing.assert_allclose(squared_distances(a, b).numpy(), expected, rtol=1e-3, atol=1e-4)
    assert (squared_distances(a + 100, a + 100) >= 0).all()


# -- kinship ---------------------------------------------------------------------------------------------------------


def softmax(rows: list[float]) -> np.ndarray:
    return np.exp(rows) / np.exp(rows).sum()


def test_kinship_of_a_known_case() -> None:
    # one pair (cells 0 and 1), one other cell of each of their batches
    u = torch.tensor([[0.0], [10.0], [1.0], [12.0]])
    z = torch.tensor([[0.0], [0.5], [1.0], [2.0]])
    batch = torch.tensor([0, 1, 0, 1])
    right = softmax([0, -4]) @ -np.log(softmax([-0.25, -4]))  # cell 0 looks at cells 1 and 3 as cell 1 saw them
    left = softmax([0, -1]) @ -np.log(softmax([-0.25, -0.25]))  # cell 1 looks at cells 0 and 2 as cell 0 saw them
    assert kinship(u, z, batch, 1).item() == pytest.approx((left + right) / 2, rel=1e-5)


@given(seed=SEEDS)
def test_kinship_is_least_where_partners_coincide_and_nothing_else_moved(seed: int) -> None:
    base, noise = embeddings(seed, 8)
    batch = torch.arange(2).repeat_interleave(8)
    u = torch.cat([base, base + 5.0])  # the same cells in two batches, the second one shifted
    merged = torch.cat([base, base])
    best = kinship(u, merged, batch, 8)
    assert best < kinship(u, u, batch, 8)
    assert best <= kinship(u, merged + 0.3 * torch.cat([noise, noise.flip(0)]), batch, 8) + 1e-6


def test_kinship_holds_kin_together_where_contrast_pushes_them_apart() -> None:
    spread = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    u, batch = torch.zeros(16, 2), torch.arange(2).repeat_interleave(8)  # one type: all cells alike
    together, apart = torch.zeros(16, 2), torch.cat([spread, spread])
    assert kinship(u, apart, batch, 8) > kinship(u, together, batch, 8)
    assert contrast(apart[:8], apart[8:]) < contrast(together[:8], together[8:])


def test_kinship_of_no_pairs_is_zero_and_gradients_are_finite() -> None:
    z = torch.zeros(4, 3, requires_grad=True)
    assert kinship(z.detach(), z, torch.tensor([0, 0, 1, 1]), 0).item() == 0
    kinship(z.detach(), z, torch.tensor([0, 0, 1, 1]), 2).backward()
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
