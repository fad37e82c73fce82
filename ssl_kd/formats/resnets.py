"""ResNets in torchvision's names: which one is it, by its shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ssl_kd.errors import BrokenCheckpoint

# Stages -> depth. A file with other counts has lost a block, or is not a ResNet that any of the labs trained.
BASIC = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECK = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """True for torchvision's names, whatever the depth."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def describe(state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Architecture and arguments of a torchvision-named ResNet; BrokenCheckpoint when blocks are missing."""
    stages = tuple(len({n.split(".")[1] for n in state if n.startswith(f"layer{s}.")}) for s in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    depth = (BOTTLENECK if bottleneck else BASIC).get(stages)
    if depth is None:
        raise BrokenCheckpoint(
            f"a ResNet with {', '.join(map(str, stages))} {'bottleneck' if bottleneck else 'basic'} blocks per stage "
            f"is not known: a block is missing or the architecture is a variant"
        )
    args: dict[str, Any] = {}
    if state["conv1.weight"].shape[-1] == 3:
        args["small_stem"] = True
    return f"resnet{depth}", args
