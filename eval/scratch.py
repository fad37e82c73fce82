"""The supervised row of a comparison: a network trained with labels on a task's train images alone, from random weights.

It says what the labels of the task are worth without a teacher. Cross-entropy on a linear head, AdamW and one cosine, the
views of the students beside it; the head is thrown away and the features are judged like any others.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

    from .datasets.tasks import Task


def train_from_scratch(
    encoder: Encoder,
    task: Task,
    looks: int,
    views: str = "strong_small",
    lr: float = 1e-3,
    batch: int = 64,
    seed: int = 0,
    device: str = "cpu",
    threads: int = 2,
) -> float:
    """Train an encoder in place for so many looks at the train images; return the seconds it took. It is left in eval mode."""
    import torch
    import torch.nn.functional as F

    from ssl_kd.data.augment import scheme
    from ssl_kd.data.loader import ViewLoader
    from ssl_kd.runtime.devices import sound_gradients

    classes, targets = np.unique(task.train.labels, return_inverse=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = torch.nn.Linear(encoder.dim, len(classes)).to(device)
    encoder.to(device).train().requires_grad_(True)
    loader = ViewLoader(task.train.images, scheme(views)[:1], encoder.preprocessing.size, batch, seed, threads)
    epoch = loader.batches_per_epoch()
    total = max(1, round(looks / len(task.train.images) * epoch))
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rise_and_fall(step, total))
    truth, began, step = torch.from_numpy(targets), time.monotonic(), 0
    while step < total:
        for raw in loader.epoch(step // epoch):
            pixels = loader.finish_all(raw, device).pixels[0]
            loss = F.cross_entropy(head(encoder(pixels).embedding), truth[torch.from_numpy(raw.index)].to(device))
            optimiser.zero_grad()
            with sound_gradients(encoder):
                torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
            step += 1
            if step == total:
                break
    encoder.eval().requires_grad_(False)
    return time.monotonic() - began


def _rise_and_fall(step: int, total: int) -> float:
    """Linear over the first tenth, then a cosine to 0."""
    rise = max(1, total // 10)
    return (step + 1) / rise if step < rise else 0.5 + 0.5 * math.cos(math.pi * (step - rise) / max(1, total - rise))
