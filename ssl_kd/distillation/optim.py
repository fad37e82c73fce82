"""The optimiser and the learning-rate schedule of a distillation."""

from __future__ import annotations

import math

import torch
from torch import nn

from ssl_kd.distillation.config import DistillConfig


def make_optimizer(module: nn.Module, config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over student and heads; no weight decay on vectors (norms, biases). That exception is our choice."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in module.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    lists = [
        {"params": group, "weight_decay": config.weight_decay if decays else 0.0}
        for decays, group in groups.items()
        if group
    ]
    if config.optimizer == "sgd":
        # Not fused: that one fails where a head's first gradient comes later than others' (a term with `start`).
        return torch.optim.SGD(lists, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(lists, lr=config.lr, fused=True)


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Factor in (0, 1]: linear up over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
