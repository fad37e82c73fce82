"""Libraries that train with Lightning: lightly and solo-learn. The head beside the backbone tells which.

lightly's examples wrap the network in nn.Sequential, so that layers are numbered; its benchmarks keep the names.
solo-learn's networks for CIFAR have a 3x3 stem with padding 2; before a renaming it called the backbone `encoder`.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets
from ssl_kd.checkpoints.formats.weights import Contents, Format, Rules, State, Weights, drop, paths, rename, select
from ssl_kd.models.preprocessing import Preprocessing

# torchvision's children in order; 2, 3 and 8 (ReLU, max-pool, average pool) hold no tensors.
NUMBERED: Rules = {r"^0\.": "conv1.", r"^1\.": "bn1.", r"^([4-7])\.": lambda m: f"layer{int(m[1]) - 3}."}
CIFAR = Preprocessing((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261), size=32, resize=None, crop=None)


def beside(file: Contents, *heads: str) -> bool:
    """True when the state dict has a head of one of these names."""
    return any(name.startswith(heads) for name in file.state("state_dict"))


def lightly_backbone(file: Contents) -> tuple[State, State]:
    """lightly's backbone as the file names it and as torchvision does."""
    given = select(file.state("state_dict"), "backbone.")
    return given, rename(given, NUMBERED) if "0.weight" in given else given


def matches_lightly(file: Contents) -> bool:
    """lightly calls its head projection_head."""
    return beside(file, "projection_head.") and resnets.is_resnet(lightly_backbone(file)[1])


def convert_lightly(file: Contents) -> Weights:
    """The backbone in torchvision's names."""
    given, state = lightly_backbone(file)
    weights = resnets.read_resnet(replace(file, nodes=state), "lightly", resnets.IMAGENET, heads=["fc."])
    return replace(weights, branch="state_dict/backbone.", used=paths(("state_dict/backbone.", drop(given, ["fc."]))))


def solo_prefix(file: Contents) -> str:
    """The backbone's name before or after the renaming."""
    return "backbone." if beside(file, "backbone.") else "encoder."


def matches_solo(file: Contents) -> bool:
    """solo-learn has a projector, an online classifier, or both."""
    return beside(file, "projector.", "classifier.") and resnets.is_resnet(
        select(file.state("state_dict"), solo_prefix(file))
    )


def convert_solo(file: Contents) -> Weights:
    """The backbone, with padding 2 in a 3x3 stem."""
    prefix = solo_prefix(file)
    stem = file.state("state_dict")[f"{prefix}conv1.weight"]
    small = stem.shape[-1] == 3
    pixels = CIFAR if small else resnets.IMAGENET
    return resnets.read_resnet(
        file, "solo-learn", pixels, ["state_dict"], prefix, ["fc."], stem_padding=2 if small else None
    )


LIGHTLY = Format(
    "lightly",
    "lightly",
    "lightly examples and benchmarks (`epoch=*-step=*.ckpt`), numbered layers or named",
    "backbone; pooled map",
    resnets.IMAGENET,
    matches_lightly,
    convert_lightly,
)
SOLO = Format(
    "solo",
    "solo-learn",
    "solo-learn checkpoints, new and old key names; ImageNet pixels with an ImageNet stem",
    "backbone; pooled map",
    CIFAR,
    matches_solo,
    convert_solo,
)
