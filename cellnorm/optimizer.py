"""AdamW with a one-cycle schedule.

The same arithmetic as torch.optim.AdamW and OneCycleLR, against which it is tested. Those import torch's compiler on
their first call, which takes longer than a quarter of the training itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["AdamW", "one_cycle", "parameter_groups"]

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
# One-cycle: warm-up over this share of the steps, starting at 1/25 and ending at 1/250,000 of the largest rate.
WARM_UP, START, END = 0.3, 1 / 25, 1 / 250_000


def one_cycle(step: int, n_steps: int, peak: float) -> float:
    """Learning rate of a step: up along a cosine, then down along a cosine (Smith and Topin 2019)."""
    top = WARM_UP * n_steps - 1
    if step <= top:
        return _cosine(START * peak, peak, step / top)
    return _cosine(peak, END * peak, (step - top) / (n_steps - 1 - top))


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


def parameter_groups(net: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that decay (weight matrices) and those that do not (gamma, beta and biases)."""
    parameters = list(net.parameters())
    return [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]


class AdamW:
    """Adam with decoupled weight decay of the weight matrices (Loshchilov and Hutter 2019).

    Parameters
    ----------
    net
        The network whose parameters are changed in place.
    weight_decay
        Decay per unit of learning rate.
    """

    def __init__(self, net: nn.Module, weight_decay: float) -> None:
        decayed, kept = parameter_groups(net)
        self.parameters: list[tuple[nn.Parameter, float]] = [(p, weight_decay) for p in decayed]
        self.parameters += [(p, 0.0) for p in kept]
        self.moments: list[tuple[Tensor, Tensor]] = [
            (torch.zeros_like(p), torch.zeros_like(p)) for p, _ in self.parameters
        ]
        self.steps = 0

    def step(self, loss: Tensor, learning_rate: float) -> None:
        """Differentiate a loss and change the parameters."""
        self.steps += 1
        gradients = torch.autograd.grad(loss, [p for p, _ in self.parameters])
        bias1, bias2 = 1 - BETA1**self.steps, 1 - BETA2**self.steps
        with torch.no_grad():
            for (p, decay), (mean, square), gradient in zip(self.parameters, self.moments, gradients, strict=True):
                p.mul_(1 - learning_rate * decay)
                mean.lerp_(gradient, 1 - BETA1)
                square.mul_(BETA2).addcmul_(gradient, gradient, value=1 - BETA2)
                p.addcdiv_(mean, (square.sqrt() / math.sqrt(bias2)).add_(EPS), value=-learning_rate / bias1)
