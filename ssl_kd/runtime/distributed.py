"""Several processes that act as one: rows gathered with their gradients, batch norm over the whole batch.

The aim is that N processes give the losses and the student of one process with the same global batch. So every rank sees
the whole batch's embeddings (relations, queues and statistics are the batch's, not the rank's), computes the whole loss,
and the gradients of all ranks are averaged: gathering sends back the sum over ranks, averaging divides it again.

With one process everything here does nothing.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_kd.types import Features


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def counts(rows: int, device: torch.device) -> list[int]:
    """How many rows each rank has."""
    if world_size() == 1:
        return [rows]
    gathered = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(world_size())]
    dist.all_gather(gathered, torch.tensor([rows], device=device))
    return [int(n) for n in gathered]


class _Sizes(Protocol):
    """What a gathering remembers for its gradient."""

    sizes: list[int]


class _Gather(torch.autograd.Function):
    """Rows of all ranks, in rank order; the gradient of a row is the sum of what all ranks say about it."""

    @staticmethod
    def forward(ctx: _Sizes, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: _Sizes, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None


def gather(x: Tensor, sizes: list[int]) -> Tensor:
    """(n_r, ...) of every rank -> (sum of n_r, ...), differentiable; `sizes` as `counts` gives them."""
    return x if len(sizes) == 1 else _Gather.apply(x.contiguous(), sizes)


def gather_views(x: Tensor, views: int, sizes: list[int]) -> Tensor:
    """View-major rows (V x b_r, D) of every rank -> view-major rows of the whole batch (V x B, D)."""
    if len(sizes) == 1:
        return x
    by_sample = x.reshape(views, -1, *x.shape[1:]).transpose(0, 1)
    return gather(by_sample, sizes).transpose(0, 1).flatten(0, 1)


def neighbours(x: Tensor) -> Tensor:
    """Each row's predecessor in the whole batch (of the first, the last): one row travels per rank. No gradient."""
    if world_size() == 1:
        return x.roll(1, 0)
    lasts = [x.new_empty(x.shape[1:]) for _ in range(world_size())]
    dist.all_gather(lasts, x[-1].detach().contiguous())
    return torch.cat([lasts[rank() - 1][None], x[:-1]])


def of_first(value: int, device: torch.device) -> int:
    """The first rank's number, on every rank."""
    if world_size() == 1:
        return value
    told = torch.tensor([value], device=device)
    dist.broadcast(told, 0)
    return int(told.item())


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank as soon as it is on one."""
    if world_size() == 1:
        return flag
    vote = torch.tensor([float(flag)], device=device)
    dist.all_reduce(vote, op=dist.ReduceOp.MAX)
    return bool(vote.item())


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def _normalise(module: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm by the statistics of all ranks' rows, in float32. torch's own SyncBatchNorm knows GPUs only."""
    if not module.training:
        return nn.functional.batch_norm(
            x, module.running_mean, module.running_var, module.weight, module.bias, False, 0.0, module.eps
        )
    kind, x = x.dtype, x.float()
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    here = torch.cat([x.sum(dims), x.new_tensor([x.numel() / x.shape[1]])])
    everywhere: Tensor = _Sum.apply(here)
    count = everywhere[-1].detach()
    mean = everywhere[:-1] / count
    # Two passes, as in one process: the mean of squares minus the square of the mean loses digits.
    centred = x - mean.view(shape)
    var = _Sum.apply(centred.square().sum(dims)) / count
    steps = module.num_batches_tracked
    if module.running_mean is not None and module.running_var is not None and steps is not None:
        steps.add_(1)
        rate = 1 / steps.item() if module.momentum is None else module.momentum
        with torch.no_grad():
            module.running_mean.lerp_(mean, rate)
            module.running_var.lerp_(var * count / (count - 1), rate)
    out: Tensor = centred * torch.rsqrt(var + module.eps).view(shape)
    if module.weight is not None:
        out = out * module.weight.view(shape) + module.bias.view(shape)
    return out.to(kind)


def synchronise_norms(network: nn.Module) -> None:
    """Let every batch norm of a network count the rows of all ranks; names, weights and state stay as they are."""
    if world_size() == 1:
        return
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.__class__ = _synchronised(type(module))


_KNOWN: dict[type, type] = {}


def _synchronised(kind: type) -> type:
    if kind not in _KNOWN:

        def forward(self: _BatchNorm, x: Tensor) -> Tensor:
            x = _normalise(self, x)
            # timm's BatchNormAct2d drops and activates in the same module.
            act, drop = getattr(self, "act", None), getattr(self, "drop", None)
            out: Tensor = x if act is None or drop is None else act(drop(x))
            return out

        _KNOWN[kind] = type(f"Synchronised{kind.__name__}", (kind,), {"forward": forward})
    return _KNOWN[kind]


def whole_batch(features: Features, views: int, sizes: list[int]) -> Features:
    """The features of every rank's rows, as one process would have them."""
    if len(sizes) == 1:
        return features
    return Features(
        gather_views(features.embedding, views, sizes),
        None if features.tokens is None else gather_views(features.tokens, views, sizes),
        {name: gather_views(layer, views, sizes) for name, layer in features.layers.items()},
    )


def whole_index(index: np.ndarray, sizes: list[int], device: torch.device) -> np.ndarray:
    """The sample numbers of every rank's rows, in rank order."""
    if len(sizes) == 1:
        return index
    with torch.no_grad():
        return gather(torch.from_numpy(index).to(device), sizes).cpu().numpy()
