"""The optimiser and its schedule: torch's own, step by step."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cellnorm.autoencoder import Autoencoder, AutoencoderConfig
from cellnorm.optimizer import AdamW, one_cycle, parameter_groups


def network(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    net = Autoencoder(
        AutoencoderConfig(n_features=6, n_batches=2, n_latent=4, n_hidden=5, n_kinds=2, dropout=0.0)
    ).eval()
    for p in net.parameters():
        nn.init.normal_(p)
    return net


def loss_of(net: Autoencoder, step: int) -> Tensor:
    rng = torch.Generator().manual_seed(step)
    x, batch = torch.randn(9, 6, generator=rng), torch.arange(9) % 2
    return (net.decode(net.encode(x, batch), batch) - x).square().mean()


def torchs(net: nn.Module, weight_decay: float) -> torch.optim.AdamW:
    decayed, kept = parameter_groups(net)
    return torch.optim.AdamW([{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}])


def torchs_rates(n_steps: int, peak: float) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=n_steps)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no step was taken
        for _ in range(n_steps):
            rates.append(float(optimizer.param_groups[0]["lr"]))
            schedule.step()
    return rates


# -- what is decayed -------------------------------------------------------------------------------------------------


def test_weight_matrices_decay_and_nothing_else_does() -> None:
    net = network()
    names = {id(p): name for name, p in net.named_parameters()}
    decayed, kept = ({names[id(p)] for p in group} for group in parameter_groups(net))
    assert decayed == {f"{part}.{layer}.weight" for part in ("encoder", "decoder") for layer in ("expand", "reduce")}
    assert {name.rsplit(".", 1)[1] for name in kept} == {"gamma", "beta", "bias"}
    assert decayed | kept == set(names.values())
    assert decayed & kept == set()


def test_a_step_without_slope_shrinks_the_matrices_alone() -> None:
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    nothing = torch.stack([p.sum() for p in net.parameters()]).sum() * 0
    AdamW(net, weight_decay=0.5).step(nothing, learning_rate=0.1)
    for name, p in net.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim > 1 else 1.0))


# -- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_steps_are_those_of_torch(weight_decay: float) -> None:
    ours, theirs = network(), network()
    optimizer, reference = AdamW(ours, weight_decay), torchs(theirs, weight_decay)
    for step in range(30):
        rate = one_cycle(step, 30, 0.05)
        optimizer.step(loss_of(ours, step), rate)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.zero_grad()
        loss_of(theirs, step).backward()
        reference.step()
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert max((p - q).abs().max() for p, q in zip(ours.parameters(), network().parameters(), strict=True)) > 0.1


def test_a_step_leaves_no_gradients_behind() -> None:
    net = network()
    AdamW(net, 0.1).step(loss_of(net, 0), 0.01)
    assert [p for p in net.parameters() if p.grad is not None or not p.requires_grad or not p.is_leaf] == []


# -- the schedule ----------------------------------------------------------------------------------------------------


@given(n_steps=st.integers(4, 2000), peak=st.floats(1e-5, 1))
def test_the_schedule_is_torchs(n_steps: int, peak: float) -> None:
    assert [one_cycle(step, n_steps, peak) for step in range(n_steps)] == pytest.approx(torchs_rates(n_steps, peak))


@pytest.mark.parametrize("n_steps", [1, 2, 3, 5, 10])
def test_the_shortest_schedules_stay_between_nothing_and_the_peak(n_steps: int) -> None:
    rates = [one_cycle(step, n_steps, 1e-3) for step in range(n_steps)]
    assert all(0 < rate <= 1e-3 for rate in rates)
    assert rates[-1] == pytest.approx(1e-3 / 250_000)
