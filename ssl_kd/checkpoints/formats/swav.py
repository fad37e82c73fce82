"""SwAV and DeepCluster-v2 (facebookresearch/swav), widths 1, 2, 4 and 5; and anything trained with VISSL.

SwAV's std starts with 0.228, in training and evaluation alike; VISSL uses the usual 0.229.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets
from ssl_kd.checkpoints.formats.weights import Contents, Format, State, Weights, select

SWAV_PIXELS = replace(resnets.IMAGENET, std=(0.228, 0.224, 0.225))
HEADS = ("projection_head.", "prototypes.")
TRUNK = ("classy_state_dict", "base_model", "model", "trunk")


def place(file: Contents) -> tuple[list[str], str]:
    """Path and prefix: the published files are the state dict itself, training checkpoints keep it one level down."""
    for path in ([], ["state_dict"]):
        for prefix in ("module.", ""):
            state = select(file.state(*path), prefix)
            if resnets.is_resnet(state) and any(name.startswith(HEADS) for name in state):
                return list(path), prefix
    return [], ""


def matches_swav(file: Contents) -> bool:
    """A ResNet beside a projection head or prototypes."""
    path, prefix = place(file)
    state = select(file.state(*path), prefix)
    return resnets.is_resnet(state) and any(name.startswith(HEADS) for name in state)


def convert_swav(file: Contents) -> Weights:
    """DeepCluster-v2 differs in that it has several sets of prototypes."""
    path, prefix = place(file)
    several = f"{prefix}prototypes.prototypes0.weight" in file.state(*path)
    sure = any(name.startswith(f"{prefix}prototypes.") for name in file.state(*path))
    lab = "DeepCluster-v2" if several else "SwAV"
    return resnets.read_resnet(file, lab, SWAV_PIXELS, path, prefix, HEADS, sure)


def vissl_trunk(file: Contents) -> State:
    """The trunk, four levels down."""
    return select(file.state(*TRUNK), "_feature_blocks.")


def convert_vissl(file: Contents) -> Weights:
    """The trunk; the heads beside it tell the method."""
    heads = file.state(*TRUNK[:-1], "heads")
    method = "SwAV" if any("prototypes" in name for name in heads) else "SimCLR or another method"
    return resnets.read_resnet(file, f"VISSL ({method})", resnets.IMAGENET, TRUNK, "_feature_blocks.")


SWAV = Format(
    "swav",
    "swav",
    "facebookresearch/swav: SwAV and DeepCluster-v2, widths 1, 2, 4, 5, published and own runs",
    "pooled map",
    SWAV_PIXELS,
    matches_swav,
    convert_swav,
)
VISSL = Format(
    "vissl",
    "vissl",
    "VISSL `model_final_checkpoint_phase*.torch`: SimCLR, SwAV and others, ResNets of any width",
    "trunk; pooled map",
    resnets.IMAGENET,
    lambda file: resnets.is_resnet(vissl_trunk(file)),
    convert_vissl,
)
