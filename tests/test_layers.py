"""Matched batch normalisation: what it finds, what it ignores, and where it does not trust itself."""

import copy
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cellnorm import layers
from cellnorm.covariates import level_codes
from cellnorm.layers import Levels, MatchedBatchNorm, Pairs, matched_shift, matched_spread

SEEDS = st.integers(0, 10**6)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs_of(left: list[int], right: list[int]) -> Pairs:
    return Pairs(torch.tensor(left).long(), torch.tensor(right).long(), torch.ones(len(left)))


def first_pairs(pairs: Pairs, n: int) -> Pairs:
    return Pairs(*(part[:n] for part in pairs[:3]))


NO_PAIRS = pairs_of([], [])


def random_case(seed: int, n_batches: int = 3, n_cells: int = 60, n_pairs: int = 25) -> tuple[Tensor, Tensor, Pairs]:
    """Scattered cells of several batches, and pairs of cells of different batches."""
    rng = np.random.default_rng(seed)
    batch = rng.permutation(np.arange(n_cells) % n_batches)
    left, right = rng.integers(0, n_cells, (2, 10 * n_pairs))
    valid = np.flatnonzero(batch[left] != batch[right])[:n_pairs]
    x = torch.from_numpy(rng.normal(size=(n_cells, 4)).astype(np.float32))
    return x, torch.from_numpy(batch), pairs_of(left[valid].tolist(), right[valid].tolist())


def typed_cells(
    n_of_types: list[list[int]], effect: Tensor, seed: int = 0, noise: float = 0.3
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of types that lie far apart, plus the effect of their batch; n_of_types[batch][type]. x, batch, type."""
    table = torch.tensor(n_of_types)
    batch = torch.repeat_interleave(torch.arange(len(table)), table.sum(1))
    kind = torch.cat([torch.repeat_interleave(torch.arange(table.shape[1]), row) for row in table])
    centres = 5 * torch.randn(table.shape[1], effect.shape[1], generator=generator(seed))
    scatter = noise * torch.randn(len(batch), effect.shape[1], generator=generator(seed + 1))
    return centres[kind] + effect[batch] + scatter, batch, kind


def same_type_pairs(batch: Tensor, kind: Tensor, n: int) -> Pairs:
    """n pairs of one type for every two batches and every type that they share."""
    left, right = [], []
    for t in kind.unique().tolist():
        cells = [torch.nonzero((kind == t) & (batch == b))[:, 0].tolist() for b in range(int(batch.max()) + 1)]
        for one, other in combinations([c for c in cells if c], 2):
            left += [one[i % len(one)] for i in range(n)]
            right += [other[i % len(other)] for i in range(n)]
    return pairs_of(left, right)


def differences(per_batch: Tensor) -> Tensor:
    """Every batch less the first: what a common frame leaves free is the frame itself."""
    return per_batch - per_batch[0]


def plain_shift(x: Tensor, batch: Tensor) -> Tensor:
    """What statistics per batch without matching would take for the batch effect."""
    return torch.stack([x[batch == b].mean(0) for b in range(int(batch.max()) + 1)])


# -- the shift of a batch --------------------------------------------------------------------------------------------


@given(seed=SEEDS, n=st.integers(1, 200))
def test_two_batches_are_shrunk_by_n_over_n_plus_ten(seed: int, n: int) -> None:
    effect = torch.randn(4, generator=generator(seed))
    own = torch.randn(n, 4, generator=generator(seed + 1))
    x, batch = torch.cat([own, own + effect]), torch.arange(2 * n) // n
    found = matched_shift(x, batch, pairs_of(list(range(n)), list(range(n, 2 * n))), 2)
    torch.testing.assert_close(found[1] - found[0], effect * n / (n + 10), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], -found[1], rtol=1e-4, atol=1e-5)


@given(seed=SEEDS, n_batches=st.integers(2, 5), prior=st.floats(0.5, 50))
def test_the_shifts_are_the_ridge_solution(seed: int, n_batches: int, prior: float) -> None:
    x, batch, pairs = random_case(seed, n_batches)
    n = len(pairs.left)
    design = np.zeros((n + n_batches, n_batches))
    design[np.arange(n), batch[pairs.left]] += 1
    design[np.arange(n), batch[pairs.right]] -= 1
    design[n:] = np.sqrt(2 * prior) * np.eye(n_batches)
    wanted = np.vstack([(x[pairs.left] - x[pairs.right]).numpy(), np.zeros((n_batches, 4))])
    expected = np.linalg.lstsq(design, wanted, rcond=None)[0]
    np.testing.assert_allclose(matched_shift(x, batch, pairs, n_batches, prior).numpy(), expected, atol=1e-4)


@given(seed=SEEDS, n_batches=st.integers(2, 5), chunk=st.integers(1, 9))
def test_the_shifts_of_many_pairs_are_added_up_in_chunks(seed: int, n_batches: int, chunk: int) -> None:
    given_ = random_case(seed, n_batches)
    expected = matched_shift(*given_, n_batches)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "CHUNK_PAIRS", chunk)
        torch.testing.assert_close(matched_shift(*given_, n_batches), expected, rtol=1e-4, atol=1e-5)


@given(seed=SEEDS)
def test_the_sides_and_the_order_of_the_pairs_do_not_matter(seed: int) -> None:
    x, batch, pairs = random_case(seed)
    order = torch.randperm(len(pairs.left), generator=generator(seed))
    swapped = Pairs(pairs.right[order], pairs.left[order], pairs.weight[order])
    for statistic in (matched_shift, matched_spread):
        torch.testing.assert_close(statistic(x, batch, swapped, 3), statistic(x, batch, pairs, 3), rtol=1e-4, atol=1e-5)


@given(seed=SEEDS)
def test_a_weight_counts_as_so_many_pairs(seed: int) -> None:
    x, batch, pairs = random_case(seed, n_pairs=12)
    times = torch.arange(12) % 3
    repeated = Pairs(*(part.repeat_interleave(times) for part in pairs[:3]))
    weighted = Pairs(pairs.left, pairs.right, times.float())
    for statistic in (matched_shift, matched_spread):
        torch.testing.assert_close(
            statistic(x, batch, weighted, 3), statistic(x, batch, repeated, 3), rtol=1e-4, atol=1e-5
        )


@given(seed=SEEDS, move=st.floats(-100, 100))
def test_moving_all_cells_changes_no_shift(seed: int, move: float) -> None:
    x, batch, pairs = random_case(seed)
    torch.testing.assert_close(
        matched_shift(x + move, batch, pairs, 3), matched_shift(x, batch, pairs, 3), rtol=1e-3, atol=1e-3
    )


def test_cells_without_a_partner_have_no_say() -> None:
    x, batch, pairs = random_case(0)
    alone = torch.ones(len(x), dtype=torch.bool)
    alone[pairs.left] = alone[pairs.right] = False
    assert alone.sum() >= 10
    moved = x + 1000.0 * alone[:, None]
    for statistic in (matched_shift, matched_spread):
        assert torch.equal(statistic(moved, batch, pairs, 3), statistic(x, batch, pairs, 3))


def test_a_batch_without_pairs_has_the_shared_statistics() -> None:
    x, batch, pairs = random_case(0, n_batches=2)
    for n_batches in (2, 3):
        assert (matched_shift(x, batch, NO_PAIRS, n_batches) == 0).all()
        torch.testing.assert_close(matched_spread(x, batch, NO_PAIRS, n_batches), torch.ones(n_batches, 4))
    torch.testing.assert_close(matched_shift(x, batch, pairs, 3)[2], torch.zeros(4))
    torch.testing.assert_close(matched_spread(x, batch, pairs, 3)[2], torch.ones(4))
    torch.testing.assert_close(matched_shift(x, batch, pairs, 3)[:2], matched_shift(x, batch, pairs, 2))


# -- composition -----------------------------------------------------------------------------------------------------

EFFECT = torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 1.5], [-1.0, 2.0, 1.0, -2.0]])


@pytest.mark.parametrize("composition", [[[900, 100], [100, 900]], [[500, 500], [20, 980]], [[990, 10], [500, 500]]])
def test_the_shift_of_two_batches_ignores_their_composition(composition: list[list[int]]) -> None:
    x, batch, kind = typed_cells(composition, EFFECT[:2])
    pairs = same_type_pairs(batch, kind, 500)
    found = differences(matched_shift(x, batch, pairs, 2))[1]
    assert (found - EFFECT[1]).norm() < 0.1 * EFFECT[1].norm()
    assert (differences(plain_shift(x, batch))[1] - EFFECT[1]).norm() > EFFECT[1].norm()


def test_pairs_that_favour_one_type_do_no_harm() -> None:
    x, batch, kind = typed_cells([[900, 100], [100, 900]], EFFECT[:2])
    both = same_type_pairs(batch, kind, 400)
    of_first = kind[both.left] == 0
    few = torch.cumsum(~of_first, 0) <= 40
    pairs = Pairs(*(part[of_first | few] for part in both[:3]))
    found = differences(matched_shift(x, batch, pairs, 2))[1]
    assert (found - EFFECT[1]).norm() < 0.1 * EFFECT[1].norm()


@pytest.mark.parametrize(
    "composition",
    [
        [[500, 500, 0], [0, 500, 500], [500, 0, 500]],  # every two share one type
        [[500, 500, 0], [0, 100, 900], [0, 0, 500]],  # the first and the last share nothing
        [[900, 50, 50], [50, 900, 50], [50, 50, 900]],
    ],
)
def test_the_shifts_of_three_batches_that_overlap_in_part(composition: list[list[int]]) -> None:
    x, batch, kind = typed_cells(composition, EFFECT)
    found = differences(matched_shift(x, batch, same_type_pairs(batch, kind, 400), 3))
    plain = differences(plain_shift(x, batch))
    for b in (1, 2):
        assert (found[b] - EFFECT[b]).norm() < 0.12 * EFFECT[b].norm()
        assert (plain[b] - EFFECT[b]).norm() > 0.5 * EFFECT[b].norm()


def test_the_spread_ignores_composition() -> None:
    # one type is tight and one is loose; the second batch stretches both alike
    loose = torch.tensor([1.0] * 900 + [5.0] * 100 + [1.0] * 100 + [5.0] * 900)
    batch, stretch = torch.arange(2000) // 1000, 1.5
    x = torch.randn(2000, 4, generator=generator(0)) * loose[:, None] * torch.where(batch == 1, stretch, 1.0)[:, None]
    kind = (loose > 2).long()
    found = matched_spread(x, batch, same_type_pairs(batch, kind, 900), 2)
    torch.testing.assert_close(found[1] / found[0], torch.full((4,), stretch), rtol=0.1, atol=0)
    plain = torch.stack([x[batch == b].std(0) for b in (0, 1)])
    assert (plain[1] / plain[0] > 2 * stretch).all()


# -- the spread of a batch -------------------------------------------------------------------------------------------


@given(seed=SEEDS, stretch=st.floats(0.2, 5))
def test_the_spread_of_many_pairs_is_their_ratio(seed: int, stretch: float) -> None:
    n = 2000
    own = torch.randn(n, 3, generator=generator(seed))
    x, batch = torch.cat([own, stretch * own]), torch.arange(2 * n) // n
    found = matched_spread(x, batch, pairs_of(list(range(n)), list(range(n, 2 * n))), 2)
    torch.testing.assert_close(found[1] / found[0], torch.full((3,), stretch), rtol=0.05, atol=0)
    torch.testing.assert_close(found.square().mean(0), torch.ones(3), rtol=1e-4, atol=0)  # around 1


@given(seed=SEEDS, n_batches=st.integers(2, 4))
def test_the_spread_is_that_of_a_loop(seed: int, n_batches: int) -> None:
    x, batch, pairs = random_case(seed, n_batches)
    values, sides = x.double().numpy(), list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    both = [(np.square(values[i]) + np.square(values[j])) / 2 for i, j in sides]
    common = 10 * np.mean(both, axis=0)
    expected = np.empty((n_batches, 4))
    for b in range(n_batches):
        own, pooled = common.copy(), common.copy()
        for (i, j), mean in zip(sides, both, strict=True):
            for cell in (i, j):
                if int(batch[cell]) == b:
                    own += np.square(values[cell])
                    pooled += mean
        expected[b] = np.sqrt(own / pooled)
    np.testing.assert_allclose(matched_spread(x, batch, pairs, n_batches).numpy(), expected, rtol=1e-4)


# -- few matched cells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_matched_cells_change_little(n: int) -> None:
    """However far the few cells lie from each other, the rest of their batch keeps close to the shared statistics."""
    x, batch, pairs = random_case(3, n_batches=2, n_cells=200)
    pairs = first_pairs(pairs, n)
    shift = matched_shift(x, batch, pairs, 2)
    apart = (x[pairs.left] - x[pairs.right]).abs().amax(0) if n else torch.zeros(4)
    assert ((shift[1] - shift[0]).abs() <= apart * n / (n + 10) + 1e-6).all()
    spread = matched_spread(x, batch, pairs, 2)
    assert ((spread - 1).abs() <= 0.1).all()

    torch.manual_seed(0)
    norm, shared = (MatchedBatchNorm(4, 2) for _ in range(2))
    out, plain = norm(x, batch, pairs), shared(x, batch, NO_PAIRS)
    assert torch.isfinite(out).all()
    assert (out - plain).abs().max() <= (0.75 if n else 1e-6)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("same", [False, True], ids=["scattered", "at one place"])
def test_few_matched_cells_give_finite_values_and_gradients(n: int, same: bool) -> None:
    x, batch, pairs = random_case(3, n_batches=2)
    x = (torch.ones_like(x) if same else x).requires_grad_()
    norm = MatchedBatchNorm(4, 2)
    out = norm(x, batch, first_pairs(pairs, n))
    out.square().sum().backward()
    assert x.grad is not None
    assert norm.gamma is not None
    assert norm.gamma.grad is not None
    for values in (out, x.grad, norm.gamma.grad, *norm.frozen()):
        assert torch.isfinite(values).all()


def test_a_batch_of_one_cell_is_finite() -> None:
    x, batch = torch.randn(9, 4, generator=generator(0)), torch.tensor([0] * 8 + [1])
    norm = MatchedBatchNorm(4, 2)
    for pairs in (NO_PAIRS, pairs_of([0], [8])):
        assert torch.isfinite(norm(x, batch, pairs)).all()
    assert torch.isfinite(norm.eval()(x[8:], batch[8:])).all()


def test_a_feature_that_never_varies_is_finite() -> None:
    x, batch, pairs = random_case(0)
    x[:, 1] = 7
    assert torch.isfinite(MatchedBatchNorm(4, 3)(x, batch, pairs)).all()


# -- the norm --------------------------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_what_comes_out_has_mean_zero_and_variance_one(seed: int) -> None:
    x, batch, pairs = random_case(seed)
    out = MatchedBatchNorm(4, 3)(3 * x + 5, batch, pairs)
    torch.testing.assert_close(out.mean(0), torch.zeros(4), rtol=0, atol=0.25)
    torch.testing.assert_close(out.square().mean(0), torch.ones(4), rtol=1e-3, atol=0)


def test_without_pairs_it_is_batch_normalisation() -> None:
    x, batch, _ = random_case(0)
    plain = nn.BatchNorm1d(4)
    torch.testing.assert_close(MatchedBatchNorm(4, 3)(x, batch, NO_PAIRS), plain(x), rtol=1e-4, atol=1e-4)


def test_batches_meet_where_batch_normalisation_leaves_them_apart() -> None:
    x, batch, kind = typed_cells([[900, 100], [100, 900]], EFFECT[:2])
    pairs = same_type_pairs(batch, kind, 500)
    matched, plain = MatchedBatchNorm(4, 2)(x, batch, pairs), nn.BatchNorm1d(4)(x)

    def apart(z: Tensor) -> Tensor:
        return (z[(batch == 0) & (kind == 0)].mean(0) - z[(batch == 1) & (kind == 0)].mean(0)).norm()

    assert apart(matched) < 0.15 * apart(plain)
    types = (matched[kind == 0].mean(0) - matched[kind == 1].mean(0)).norm()
    assert types > 1  # while the types stay apart


@given(seed=SEEDS)
def test_a_bias_before_the_norm_has_no_effect(seed: int) -> None:
    x, batch, pairs = random_case(seed)
    torch.manual_seed(seed)
    with_bias = nn.Linear(4, 6)
    without = nn.Linear(4, 6, bias=False)
    without.weight.data = with_bias.weight.data
    nn.init.normal_(with_bias.bias, std=3)
    norms = [MatchedBatchNorm(6, 3) for _ in range(2)]
    out = norms[0](with_bias(x), batch, pairs)
    torch.testing.assert_close(out, norms[1](without(x), batch, pairs), rtol=1e-3, atol=1e-3)
    out.pow(3).sum().backward()
    assert with_bias.bias.grad is not None
    assert with_bias.weight.grad is not None
    assert with_bias.bias.grad.abs().max() < 1e-3 * with_bias.weight.grad.abs().max()


@given(seed=SEEDS, scale=st.floats(0.1, 100))
def test_scaling_the_weights_before_the_norm_leaves_the_output(seed: int, scale: float) -> None:
    x, batch, pairs = random_case(seed)
    weight = torch.randn(4, 6, generator=generator(seed))
    out = MatchedBatchNorm(6, 3)(x @ weight, batch, pairs)
    torch.testing.assert_close(MatchedBatchNorm(6, 3)(x @ (scale * weight), batch, pairs), out, rtol=1e-2, atol=1e-2)


def test_gamma_and_beta_come_last() -> None:
    x, batch, pairs = random_case(0)
    affine, bare = MatchedBatchNorm(4, 3), MatchedBatchNorm(4, 3, affine=False)
    assert affine.gamma is not None
    assert affine.beta is not None
    affine.gamma.data, affine.beta.data = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 0.0, -1.0])
    torch.testing.assert_close(affine(x, batch, pairs), bare(x, batch, pairs) * affine.gamma + affine.beta)
    assert list(bare.parameters()) == []
    assert {name for name, _ in affine.named_parameters()} == {"gamma", "beta"}


# -- training and evaluation -----------------------------------------------------------------------------------------


def test_training_needs_pairs_and_evaluation_does_not() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3)
    with pytest.raises(TypeError, match="pairs"):
        norm(x, batch)
    norm.eval()
    assert torch.equal(norm(x, batch), norm(x, batch, pairs))


def test_evaluation_changes_nothing() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3)
    norm(x, batch, pairs)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    norm(x, batch)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


def test_running_averages_take_a_step_towards_the_minibatch() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3, momentum=0.25)
    norm(x, batch, pairs)
    shift = matched_shift(x, batch, pairs, 3)
    centred = x - shift[batch]
    mean = centred.mean(0)
    spread = matched_spread(centred - mean, batch, pairs, 3)
    var = ((centred - mean) / spread[batch]).square().mean(0)
    old = torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(4), torch.ones(4)
    for found, start, new in zip(norm.frozen(), old, (shift, spread, mean, var), strict=True):
        torch.testing.assert_close(found, 0.75 * start + 0.25 * new)
        assert not found.requires_grad


def test_on_one_minibatch_for_ever_both_statistics_agree() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3)
    for _ in range(200):
        trained = norm(x, batch, pairs)
    assert (trained - MatchedBatchNorm(4, 3).eval()(x, batch)).abs().max() > 0.1  # fresh statistics do not
    torch.testing.assert_close(norm.eval()(x, batch), trained, rtol=1e-3, atol=1e-3)


def test_over_many_minibatches_both_statistics_agree() -> None:
    x, batch, kind = typed_cells([[300, 100], [100, 300]], EFFECT[:2])
    norm, rng = MatchedBatchNorm(4, 2), generator(0)
    pairs = same_type_pairs(batch, kind, 100)
    for _ in range(300):
        chosen = torch.randperm(200, generator=rng)[:64]
        norm(x, batch, Pairs(*(part[chosen] for part in pairs[:3])))
    trained = norm(x, batch, first_pairs(pairs, 200))
    assert (norm.eval()(x, batch) - trained).square().mean().sqrt() < 0.15


def test_a_frozen_cell_does_not_depend_on_its_companions() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3)
    norm(x, batch, pairs)
    norm.eval()
    together = norm(x, batch)
    for i in (0, 7, 59):
        assert torch.equal(norm(x[i : i + 1], batch[i : i + 1]), together[i : i + 1])
    norm.train()
    assert not torch.allclose(norm(x[:30], batch[:30], NO_PAIRS), together[:30], atol=1e-2)


def test_a_frozen_cell_is_moved_by_its_own_batch() -> None:
    x, batch, pairs = random_case(0)
    norm = MatchedBatchNorm(4, 3)
    for _ in range(50):
        norm(x + 4 * batch[:, None], batch, pairs)
    norm.eval()
    cell = torch.zeros(3, 4)
    moved = norm(cell, torch.arange(3))
    assert (moved[0] > moved[1]).all()
    assert (moved[1] > moved[2]).all()


# -- batches that are split further ----------------------------------------------------------------------------------


def frozen_norm(seed: int, n_features: int = 4) -> MatchedBatchNorm:
    """A norm with statistics of three batches that differ."""
    norm = MatchedBatchNorm(n_features, 3)
    for i, values in enumerate(norm.frozen()):
        drawn = torch.randn(values.shape, generator=generator(seed + i))
        values.copy_(drawn if i in (0, 2) else drawn.exp())
    return norm.eval()


@given(seed=SEEDS, n_parts=st.integers(1, 4))
def test_parts_without_pairs_are_their_batches(seed: int, n_parts: int) -> None:
    x, batch, _ = random_case(seed)
    norm, part = frozen_norm(seed), torch.arange(60) % n_parts
    torch.testing.assert_close(norm.forward_parts(x, batch, part, NO_PAIRS), norm(x, batch), rtol=1e-4, atol=1e-5)


@given(seed=SEEDS, n=st.sampled_from([50, 1000]))
def test_a_known_offset_between_parts_is_removed(seed: int, n: int) -> None:
    """But for the shrinkage of n pairs; the cells of a third part, without pairs, stay."""
    own, offset = torch.randn(n, 4, generator=generator(seed)), 5 * torch.randn(4, generator=generator(seed + 1))
    x, part = torch.cat([own, own + offset, own]), torch.arange(3 * n) // n
    norm, batch = frozen_norm(seed), torch.ones(3 * n, dtype=torch.long)
    out = norm.forward_parts(x, batch, part, pairs_of(list(range(n)), list(range(n, 2 * n))))
    plain = norm(x, batch)
    apart, apart_before = ((z[n : 2 * n] - z[:n]).mean(0) for z in (out, plain))
    assert (apart.abs() <= 2.2 * apart_before.abs() * 10 / (n + 10) + 1e-4).all()
    torch.testing.assert_close(out[2 * n :], plain[2 * n :], rtol=1e-4, atol=1e-4)
    middle = (x[:n] + x[n : 2 * n]) / 2
    torch.testing.assert_close(out[: 2 * n].mean(0), norm(middle, batch[:n]).mean(0), rtol=0.1, atol=0.1)


@given(seed=SEEDS, stretch=st.floats(0.3, 3))
def test_a_known_spread_between_parts_is_removed(seed: int, stretch: float) -> None:
    n, norm, batch = 2000, frozen_norm(seed), torch.full((4000,), 2)
    shift, spread, mean, _ = norm.frozen()
    own, centre = torch.randn(n, 4, generator=generator(seed)) * spread[2], mean + shift[2]
    x, part = torch.cat([own, stretch * own]) + centre, torch.arange(2 * n) // n
    out = norm.forward_parts(x, batch, part, pairs_of(list(range(n)), list(range(n, 2 * n))))
    torch.testing.assert_close(out[n:].std(0), out[:n].std(0), rtol=0.05, atol=0)
    plain = norm(x, batch)
    torch.testing.assert_close(plain[n:].std(0), stretch * plain[:n].std(0), rtol=1e-3, atol=0)


def test_batches_keep_their_own_statistics_under_their_parts() -> None:
    """Cells that lie where their batch lies come out alike, whatever part of it they are in."""
    n, norm = 500, frozen_norm(0)
    shift, spread, mean, _ = norm.frozen()
    own = torch.randn(n, 4, generator=generator(0))
    x = torch.cat([own * spread[b] + mean + shift[b] for b in (0, 0, 1, 1)])
    part, batch = torch.arange(4 * n) // n, torch.arange(4 * n) // (2 * n)
    pairs = pairs_of([*range(n), *range(2 * n, 3 * n)], [*range(n, 2 * n), *range(3 * n, 4 * n)])
    out = norm.forward_parts(x, batch, part, pairs)
    torch.testing.assert_close(out, norm(x, batch), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(out[:n], out[2 * n : 3 * n], rtol=1e-3, atol=1e-3)


def test_parts_change_no_statistic() -> None:
    x, batch, pairs = random_case(0)
    norm = frozen_norm(0)
    before = copy.deepcopy(norm.state_dict())
    norm.forward_parts(x, batch, torch.arange(60) % 2, pairs)
    assert all(torch.equal(before[key], value) for key, value in norm.state_dict().items())


# -- several covariates ----------------------------------------------------------------------------------------------


def levels_of(rows: list[list[int]]) -> Levels:
    """Levels of each batch, numbered through all covariates."""
    codes = torch.tensor(rows)
    design = torch.zeros(len(rows), int(codes.max()) + 1).scatter_(1, codes, 1.0)
    assert (level_codes(design.numpy()) == codes.numpy()).all()
    return Levels(design, codes)


CROSSED = levels_of([[d, 3 + p] for d in range(3) for p in range(2)])
NESTED = levels_of([[0, 4], [1, 4], [2, 5], [3, 5]])


@given(seed=SEEDS, crossed=st.booleans(), prior=st.floats(0.5, 50))
def test_the_shifts_of_levels_are_the_ridge_solution(seed: int, crossed: bool, prior: float) -> None:
    levels = CROSSED if crossed else NESTED
    design, n = levels.design.double().numpy(), 40
    x, batch, pairs = random_case(seed, len(design), 80, n)
    n = len(pairs.left)
    rows = design[batch[pairs.left]] - design[batch[pairs.right]]
    system = np.vstack([rows, np.sqrt(2 * prior) * np.eye(design.shape[1])])
    wanted = np.vstack([(x[pairs.left] - x[pairs.right]).numpy(), np.zeros((design.shape[1], 4))])
    expected = design @ np.linalg.lstsq(system, wanted, rcond=None)[0]
    found = matched_shift(x, batch, pairs._replace(levels=levels), len(design), prior)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_levels_that_are_the_batches_change_nothing() -> None:
    x, batch, pairs = random_case(0)
    same = pairs._replace(levels=levels_of([[0], [1], [2]]))
    for statistic in (matched_shift, matched_spread):
        torch.testing.assert_close(statistic(x, batch, same, 3), statistic(x, batch, pairs, 3))


def additive(levels: Levels, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The effects of batches, which add up from those of their levels; and cells with them: x, batch, type."""
    effect = levels.design @ torch.randn(levels.design.shape[1], 5, generator=generator(seed))
    return effect, *typed_cells([[60, 60]] * len(effect), effect, seed)


@pytest.mark.parametrize("levels", [CROSSED, NESTED], ids=["crossed", "nested"])
def test_additive_effects_are_found(levels: Levels) -> None:
    effect, x, batch, kind = additive(levels)
    pairs = same_type_pairs(batch, kind, 400)._replace(levels=levels)
    found = matched_shift(x, batch, pairs, len(effect))
    torch.testing.assert_close(found - found.mean(0), effect - effect.mean(0), atol=0.15, rtol=0.1)


def test_a_batch_without_a_pair_has_what_its_levels_have_elsewhere() -> None:
    effect, x, batch, kind = additive(CROSSED)
    pairs = same_type_pairs(batch, kind, 400)
    known = (batch[pairs.left] != 5) & (batch[pairs.right] != 5)
    pairs = Pairs(*(part[known] for part in pairs[:3]))
    alone = matched_shift(x, batch, pairs, 6)
    assert (alone[5] == 0).all()
    found = matched_shift(x, batch, pairs._replace(levels=CROSSED), 6)
    torch.testing.assert_close(found[5] - found[:5].mean(0), effect[5] - effect[:5].mean(0), atol=0.15, rtol=0.1)


def test_the_spreads_of_levels_are_multiplied() -> None:
    scale = torch.tensor([0.5, 1.0, 2.0, 0.7, 1.4])
    batch = torch.arange(6).repeat_interleave(300)
    factor = scale[CROSSED.codes].prod(1)
    x = torch.randn(1800, 3, generator=generator(0)) * factor[batch, None]
    pairs = same_type_pairs(batch, torch.zeros(1800).long(), 300)._replace(levels=CROSSED)
    found = matched_spread(x, batch, pairs, 6).mean(1).log()
    for low, high in ((0, 1), (2, 3), (4, 5)):  # another protocol of the same donor
        assert found[high] - found[low] == pytest.approx(float(factor[high].log() - factor[low].log()), rel=0.25)
    for low, high in ((0, 2), (2, 4), (1, 5)):  # another donor with the same protocol
        assert found[high] - found[low] == pytest.approx(float(factor[high].log() - factor[low].log()), rel=0.25)


@pytest.mark.parametrize("statistic", [matched_shift, matched_spread])
def test_two_columns_that_say_the_same_are_one_up_to_the_ridge(statistic: Callable[..., Tensor]) -> None:
    x, batch, pairs = random_case(1, n_cells=600, n_pairs=300)
    x = x * torch.tensor([1.0, 1.3, 0.8])[batch, None] + batch[:, None]
    twice = pairs._replace(levels=levels_of([[0, 3], [1, 4], [2, 5]]))
    torch.testing.assert_close(statistic(x, batch, twice, 3), statistic(x, batch, pairs, 3), atol=0.06, rtol=0.05)


def test_pairs_within_a_level_say_nothing_of_its_spread() -> None:
    x, batch, pairs = random_case(2, n_batches=4, n_cells=80, n_pairs=60)
    levels = levels_of([[0, 2], [0, 3], [1, 2], [1, 3]])
    donor = levels.codes[batch, 0]
    across = pairs.weight * (donor[pairs.left] != donor[pairs.right])
    one = levels_of([[0], [0], [1], [1]])
    found = matched_spread(x, batch, pairs._replace(levels=one), 4)
    expected = matched_spread(x, donor, Pairs(pairs.left, pairs.right, across), 2)
    torch.testing.assert_close(found, expected[[0, 0, 1, 1]])
