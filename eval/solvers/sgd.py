"""Linear heads by stochastic gradient descent on features in memory, several learning rates in one product.

The published scripts train their heads behind a network and a data loader; on cached features the same updates are two
small products per step over slices of a shuffled tensor, and heads that differ in learning rate share them. What this
cannot give is augmentation: features are of centre crops, where the DINO, DINOv2 and MoCo scripts crop at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..banks import blocks
from .deterministic import Pieces, fixed_rounding
from .lbfgs import Fits, into_probabilities, unseen
from .out_of_core import Rows

Ready = Callable[[Tensor | Rows], Tensor | Rows]  # features to what a probe is fitted to, unread where they were

FLOOR = 1e-5  # added to a dimension's variance before features are divided by its root, as the script does
ALONE = 1 << 24  # multiplications of one product, up to which one thread does all
SPAN = 64  # rows of a batch, and
PART = 1 << 25  # multiplications of a group of columns, that are a piece of work where there is more


@dataclass(frozen=True)
class SGDProtocol:
    """What a linear probe's name fixes when it is trained by SGD with momentum 0.9.

    `lrs` are learning rates at the stated batch; more than one are chosen among on a `holdout` share of train.
    `drops` are epochs after which the rate falls tenfold; without any it follows a cosine to 0, at every step or
    (`by_epoch`) once per epoch. `standardise` makes
    features unit vectors and then gives each dimension about the mean 0 and variance 1 of the train rows (`standardiser`).
    """

    name: str
    lrs: tuple[float, ...]
    epochs: int
    batch: int = 256
    drops: tuple[int, ...] = ()
    by_epoch: bool = False
    weight_decay: float = 0.0
    standardise: bool = False
    holdout: float = 0.1
    source: str = ""

    knob = "lr"

    @property
    def choices(self) -> tuple[float, ...]:
        """The learning rates that a sweep tries."""
        return self.lrs


_DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)

SGD_PROTOCOLS: dict[str, SGDProtocol] = {
    row.name: row
    for row in (
        # its 8 GPUs x 128 images at 0.001 x 1024 / 256 are, by its own scaling rule, 256 images at 0.001
        SGDProtocol("dino-linear", (1e-3,), 100, by_epoch=True, source="facebookresearch/dino eval_linear.py"),
        SGDProtocol("dinov2-sweep", _DINOV2_RATES, 10, source="facebookresearch/dinov2 eval/linear.py"),
        SGDProtocol("moco-linear", (30.0,), 100, drops=(60, 80), source="facebookresearch/moco main_lincls.py"),
        SGDProtocol(
            "compress-linear",
            (0.01,),
            40,
            drops=(15, 30),
            weight_decay=1e-4,
            standardise=True,
            source="UMBCvision/CompRess eval_linear.py",
        ),
    )
}


def rate(protocol: SGDProtocol, step: int, steps: int) -> float:
    """Return the factor of the learning rate at a step of `steps`."""
    epoch = step * protocol.epochs // steps
    if protocol.drops:
        return 0.1 ** sum(epoch >= drop for drop in protocol.drops)
    return (1 + math.cos(math.pi * (epoch / protocol.epochs if protocol.by_epoch else step / steps))) / 2


def fit_sgd(
    x: Tensor | Rows,
    y: Tensor,
    classes: int,
    lrs: Tensor,
    protocol: SGDProtocol,
    seed: int = 0,
    advance: Callable[..., None] = unseen,
) -> Fits:
    """Train one head per learning rate (R,) on features (N, D) float32 and class numbers (N,), side by side.

    All heads start from the same normal(0, 0.01) weights and see the same batches. `objective` is the mean
    cross-entropy of the last epoch, `converged` says that it is a number, `gradient` is not measured (NaN).
    `advance(n, epoch=...)` hears of every epoch, and at the end of all heads.
    """
    draw = torch.Generator().manual_seed(seed)
    r, (n, width) = len(lrs), x.shape
    weights = (0.01 * torch.randn(classes, width, generator=draw)).to(x.device)
    weights = weights.repeat(r, 1)  # (R C, D): heads outside, classes inside, as in the solver
    bias, speed = weights.new_zeros(r * classes), torch.zeros_like(weights)
    bias_speed, per_row = torch.zeros_like(bias), lrs.to(weights).repeat_interleave(classes)
    errors = weights.new_empty(min(protocol.batch, n), r * classes)
    large = x.device.type == "cpu" and errors.numel() * width > ALONE
    span_size = SPAN if large else len(errors)
    groups = list(blocks(len(weights), max(1, PART // (len(errors) * width)) if large else len(weights)))

    def judge(span: slice) -> Tensor:
        """Fill a span of `errors`, the gradient of each row's loss by its logits / rows; return the losses (R,)."""
        right = labels[span]
        logits = torch.addmm(bias, part[span], weights.T, out=errors[span]).view(len(right), r, classes)
        lost, own = into_probabilities(logits, right)
        logits.view(-1)[own] -= 1
        logits /= len(part)
        return lost

    def learn(group: slice) -> None:
        """Take one step with a group of the columns' weights."""
        wrong, fast, bias_fast = errors[: len(part), group], speed[group].mul_(0.9), bias_speed[group].mul_(0.9)
        if protocol.weight_decay:
            fast.add_(weights[group], alpha=protocol.weight_decay)
            bias_fast.add_(bias[group], alpha=protocol.weight_decay)
        pace = per_row[group] * factor
        weights[group].addcmul_(fast.addmm_(wrong.T, part), pace[:, None], value=-1)
        bias[group].addcmul_(bias_fast.add_(wrong.sum(0)), pace, value=-1)

    steps = protocol.epochs * math.ceil(n / protocol.batch)
    loss, step = torch.zeros(r, device=x.device), 0
    with fixed_rounding(x.device) as pieces:
        share = pieces if large else Pieces()
        for epoch in range(protocol.epochs):
            advance(0, epoch=f"{epoch + 1} of {protocol.epochs}")
            loss.zero_()
            for rows in torch.split(torch.randperm(n, generator=draw).to(x.device), protocol.batch):
                part, labels = x.index_select(0, rows), y[rows]  # x[rows] would take 2.5 times as long
                factor = rate(protocol, step, steps)
                for lost in share(judge, blocks(len(rows), span_size)):
                    loss += lost
                for _done in share(learn, groups):
                    pass
                step += 1
    advance(r)
    heads = weights.view(r, classes, width)
    sound = heads.isfinite().all(2).all(1) & loss.isfinite()
    epochs = torch.full((r,), float(protocol.epochs))
    return Fits(heads, bias.view(r, classes), loss / n, torch.full((r,), math.nan), epochs, sound)


def standardiser(train: Tensor | Rows) -> Ready:
    """Return what makes features unit vectors less their mean, over sqrt(variance + 1e-5), both measured on `train`.

    The variance is unbiased. Of wide unit vectors many dimensions have less than 1e-5, so that the 1e-5 counts: they
    stay small instead of being blown up. Source: UMBCvision/CompRess eval_linear.py, FullBatchNorm.
    """
    unit = torch.nn.functional.normalize
    if isinstance(train, Rows):
        mean, n = replace(train, ready=unit).mean(), len(train)
        variance = replace(train, ready=lambda rows: (unit(rows) - mean).square()).mean() * (n / max(n - 1, 1))
    else:
        rows = unit(train)
        mean, variance = rows.mean(0), rows.var(0, correction=min(1, len(rows) - 1))
    spread = (variance + FLOOR).sqrt()

    def ready(rows: Tensor) -> Tensor:
        return (unit(rows) - mean) / spread

    return lambda part: replace(part, ready=ready) if isinstance(part, Rows) else ready(part)


def standardised(train: Tensor | Rows, *others: Tensor | Rows) -> list[Tensor | Rows]:
    """Return train rows and others through the `standardiser` of train."""
    ready = standardiser(train)
    return [ready(part) for part in (train, *others)]
