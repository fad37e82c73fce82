"""Mixup and CutMix before both networks: the teacher looks at the very image, mixed or not, that the student sees.

Each image of a batch meets its neighbour in the (shuffled) batch. Whether, how much and where is a hash of (seed, first
image, epoch), so an interrupted run mixes on as before, and several processes mix as one.
"""

from __future__ import annotations

import torch

from ssl_kd.rng import uniform
from ssl_kd.runtime import distributed
from ssl_kd.types import ViewBatch

MIXES = ("none", "mixup", "cutmix")
_STREAM = 0x317C  # names the stream of random numbers
_WHETHER, _SHARE, _TOP, _LEFT = range(4)


def mixed(views: ViewBatch, kind: str, probability: float, seed: int) -> ViewBatch:
    """Views (B, 3, S, S) in [0, 1], mixed with `probability`; the share lambda is uniform in [0, 1], as in LightlyTrain.

    mixup: lambda x own + (1 - lambda) x neighbour. cutmix: a square of 1 - lambda of the area comes from the neighbour.
    """

    if kind == "none":
        return views
    first = distributed.of_first(int(views.index[0]), views.pixels[0].device)

    def drawn(what: int) -> float:
        return float(uniform(seed ^ _STREAM, first, views.epoch, what))

    if drawn(_WHETHER) >= probability:
        return views
    share, done = drawn(_SHARE), []
    for pixels in views.pixels:
        neighbour = distributed.neighbours(pixels)
        if kind == "mixup":
            pixels = share * pixels + (1 - share) * neighbour
        else:
            whole = pixels.shape[-1]
            side = round(whole * (1 - share) ** 0.5)
            top, left = (round(drawn(where) * (whole - side)) for where in (_TOP, _LEFT))
            pixels = pixels.clone()
            pixels[..., top : top + side, left : left + side] = neighbour[..., top : top + side, left : left + side]
        done.append(pixels.contiguous(memory_format=torch.channels_last))
    return ViewBatch(views.index, views.epoch, tuple(done), views.view_numbers)
