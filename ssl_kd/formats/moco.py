"""MoCo v1 and v2 (facebookresearch/moco): the query encoder under `module.encoder_q.`, published or own training."""

from __future__ import annotations

from ssl_kd.encoder import Preprocessing
from ssl_kd.formats import resnets
from ssl_kd.formats.weights import Contents, Format, Weights, drop, select

PREFIX = "module.encoder_q."


def matches_moco(file: Contents) -> bool:
    return resnets.is_resnet(select(file.state("state_dict"), PREFIX))


def convert_moco(file: Contents) -> Weights:
    state = drop(select(file.state("state_dict"), PREFIX), ["fc."])
    arch, args = resnets.describe(state)
    two = f"{PREFIX}fc.2.weight" in file.state("state_dict")
    return Weights(
        arch,
        args,
        state,
        Preprocessing(),
        "pool",
        f"MoCo {'v2' if two else 'v1'} {arch}, query encoder",
        f"state_dict/{PREFIX} without fc.",
        tuple(f"state_dict/{PREFIX}{name}" for name in state),
    )


MOCO = Format("moco", "moco", "facebookresearch/moco, v1 and v2", matches_moco, convert_moco)
