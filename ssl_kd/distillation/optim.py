"""The optimiser and the learning-rate schedule of a distillation."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from ssl_kd.distillation.auto import known
from ssl_kd.distillation.config import DistillConfig


def make_optimizer(module: nn.Module, config: DistillConfig, half: bool = False) -> torch.optim.Optimizer:
    """AdamW, SGD or Muon over student and heads; no weight decay on vectors (norms, biases). That exception is our choice.

    module: what is trained; what lies in its `student` is the network, anything else a head. half: Muon's products in bfloat16.
    """
    network = getattr(module, "student", None)
    inside = {id(p) for p in network.parameters()} if isinstance(network, nn.Module) else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            of_head = config.optimizer == "muon" and id(parameter) not in inside
            groups.setdefault((of_head, parameter.ndim <= 1), []).append(parameter)
    lists: list[dict[str, Any]] = []
    for (of_head, is_vector), own in sorted(groups.items(), key=itemgetter(0)):
        decay = 0.0 if is_vector else config.weight_decay
        lists.append({"params": own, "weight_decay": decay} | ({"orthogonal": False} if of_head else {}))
    if config.optimizer == "muon":
        return Muon(lists, lr=known(config.lr), half=half)
    if config.optimizer == "sgd":
        # Not fused: that one fails where a head's first gradient comes later than others' (a term with `start`).
        return torch.optim.SGD(lists, lr=known(config.lr), momentum=0.9)
    return torch.optim.AdamW(lists, lr=known(config.lr), fused=True)


class Rules(TypedDict):
    """What holds for a group of parameters."""

    lr: float
    momentum: float
    ratio: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    orthogonal: bool


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal: every direction of a weight matrix moves equally far.

    For parameters of two axes and more (a convolution counts as the matrix of its output channels): Nesterov momentum, then
    five Newton-Schulz steps, times sqrt(max(1, rows / columns)). Vectors (norms, biases) take AdamW at `ratio` x lr, as
    the step of a matrix is measured in other units. Weight decay is decoupled. For short runs of convolutional students:
    a step has the same size whatever the gradient's, so that a few hundred of them go far.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024 (form and constants). Differs: the
    first convolution takes it as well, and vectors follow its schedule. A group of parameters with `orthogonal` false takes AdamW
    whole: `make_optimizer` says so of an objective's heads, whose matrices are large and are thrown away.

    lr: 1e-2 to 8e-2. half: Newton-Schulz in bfloat16, as its source does. Raises nothing of its own; what is not finite is
    found before the step.
    """

    def __init__(
        self,
        parameters: ParamsT,
        lr: float = 2e-2,
        momentum: float = 0.95,
        ratio: float = 0.2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        half: bool = False,
    ):
        rules = {"lr": lr, "momentum": momentum, "ratio": ratio, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(parameters, rules | {"orthogonal": True})
        self.half = half

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            others: list[nn.Parameter] = []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim > 1 and group.get("orthogonal", True):
                    self._matrix(parameter, cast(Rules, group))
                else:
                    others.append(parameter)
            self._others(others, cast(Rules, group))

    def _matrix(self, parameter: Tensor, group: Rules) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        running = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonal(gradient.lerp(running, group["momentum"]).flatten(1), half=self.half)
        scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)

    def _others(self, parameters: list[nn.Parameter], group: Rules) -> None:
        """AdamW, each parameter by its own count of steps: a head may get its first gradient later than others."""
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state |= {
                    "step": torch.zeros((), device=parameter.device),
                    "mean": torch.zeros_like(parameter),
                    "square": torch.zeros_like(parameter),
                }
            # the fused kernel wants its counts where the parameters are; a state read back may have them elsewhere
            state["step"] = state["step"].to(parameter.device)
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            cast(list[Tensor], parameters),
            [cast(Tensor, parameter.grad) for parameter in parameters],
            [state["mean"] for state in states],
            [state["square"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"] * group["ratio"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
        )


STEP = (3.4445, -4.7750, 2.0315)  # x -> (a + b xx' + c (xx')^2) x, which moves singular values towards 1
WIDE = 2  # columns for each row from which on the steps are taken on x x' alone


def orthogonal(matrix: Tensor, steps: int = 5, half: bool = False) -> Tensor:
    """(R, C) -> (R, C) with the same directions and singular values near 1 (0.7 to 1.2): Newton-Schulz, quintic.

    half: in bfloat16, else in float32. All steps are polynomials in x x', so that in float32 those of a wide matrix (most
    convolutions) are multiplied up first and meet the matrix once, 2.5 to 3 times as fast at 1 x 9. In bfloat16 that loses the
    small singular values.
    """
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    a, b, c = STEP
    if steps and not half and x.shape[1] >= WIDE * x.shape[0]:
        gram = x @ x.T
        product = factor = _factor(gram)
        for _ in range(steps - 1):
            gram = factor @ gram @ factor
            factor = _factor(gram)
            product = factor @ product
        x = product @ x
    else:
        x = x.bfloat16() if half else x
        for _ in range(steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    out: Tensor = x.T if tall else x
    return out.to(matrix.dtype)


def _factor(gram: Tensor) -> Tensor:
    """What a step multiplies x by from the left, from x x'."""
    a, b, c = STEP
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Factor in (0, 1]: linear up over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
