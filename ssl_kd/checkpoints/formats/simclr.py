"""SimCLR (google-research/simclr) as converted to PyTorch, v1 and v2; and the two PyTorch reimplementations.

All four look at plain pixels in [0, 1]. The conversion of v1 evaluates 256 px, not 224. Names of v2 are its own;
selective kernels (`sk1`) come with another stem and an average-pooled shortcut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets
from ssl_kd.checkpoints.formats.weights import (
    Contents,
    Format,
    Rules,
    State,
    Weights,
    drop,
    paths,
    rename,
    require,
    select,
)
from ssl_kd.errors import BrokenCheckpoint

V1_PIXELS = replace(resnets.PLAIN, size=256, resize=256, crop=256)
SPIJKERVET_PIXELS = replace(resnets.PLAIN, resize=224, crop=None)
STHALLES_PIXELS = replace(resnets.PLAIN, size=96, resize=None, crop=None)

BLOCKS: Rules = {
    r"^net\.([1-4])\.blocks\.(\d+)\.": r"layer\1.\2.",
    r"\.projection\.shortcut\.(2\.)?weight$": ".downsample.0.weight",
    r"\.projection\.bn\.0\.": ".downsample.1.",
    r"\.net\.0\.": ".conv1.",
    r"\.net\.1\.0\.": ".bn1.",
}
PLAIN_RULES: Rules = {
    r"^net\.0\.0\.": "conv1.",
    r"^net\.0\.1\.0\.": "bn1.",
    **BLOCKS,
    r"\.net\.2\.weight$": ".conv2.weight",
    r"\.net\.3\.0\.": ".bn2.",
    r"\.net\.4\.weight$": ".conv3.weight",
    r"\.net\.5\.0\.": ".bn3.",
}
SELECTIVE_RULES: Rules = {
    # Behind each pair of convolution and norm our stem counts the ReLU as well, which the file does not.
    r"^net\.0\.([024])\.weight$": lambda m: f"conv1.{int(m[1]) * 3 // 2}.weight",
    r"^net\.0\.([13])\.0\.": lambda m: f"conv1.{int(m[1]) * 3 // 2}.",
    r"^net\.0\.5\.0\.": "bn1.",
    **BLOCKS,
    r"\.net\.2\.main_conv\.0\.": ".conv2.main.",
    r"\.net\.2\.main_conv\.1\.0\.": ".conv2.main_bn.",
    r"\.net\.2\.mixing_conv\.0\.": ".conv2.squeeze.",
    r"\.net\.2\.mixing_conv\.1\.0\.": ".conv2.squeeze_bn.",
    r"\.net\.2\.mixing_conv\.2\.": ".conv2.mix.",
    r"\.net\.3\.weight$": ".conv3.weight",
    r"\.net\.4\.0\.": ".bn3.",
}


def matches_v1(file: Contents) -> bool:
    """The converter saves the state dict, with its linear probe as fc, and nothing beside it."""
    state = file.state("state_dict")
    return resnets.is_resnet(state) and "fc.weight" in state and file.size() == 1


def matches_v2(file: Contents) -> bool:
    """The converter's own names."""
    return "net.0.0.weight" in file.state("resnet")


def convert_v2(file: Contents) -> Weights:
    """Without selective kernels the network is an ordinary ResNet."""
    given = drop(file.state("resnet"), ["fc."])
    selective = any(".mixing_conv." in name for name in given)
    state = rename(given, SELECTIVE_RULES if selective else PLAIN_RULES)
    arch, args, dim = describe_selective(state) if selective else resnets.describe(state)
    width = args.get("width", 1)
    return Weights(
        arch,
        args,
        dim,
        state,
        resnets.PLAIN,
        "pool",
        f"SimCLR v2 {arch.rpartition('/')[2]} {width}x, {'selective kernels' if selective else 'no selective kernels'}",
        "resnet without fc.",
        paths(("resnet/", given)),
    )


def describe_selective(state: State) -> resnets.Described:
    """Architecture, arguments and width of a SimCLR v2 ResNet with selective kernels."""
    stages = resnets.stage_counts(state)
    depth = resnets.BOTTLENECK.get(stages)
    if depth is None:
        counts = "-".join(map(str, stages))
        raise BrokenCheckpoint(f"a SimCLR v2 network with {counts} blocks is not known: blocks are missing?")
    require(state, expected_selective(stages), f"SimCLR v2 ResNet-{depth}")
    squeezed, planes = state["layer4.0.conv2.squeeze.weight"].shape[:2]
    args: dict[str, object] = {"width": state["conv1.6.weight"].shape[0] // 64, "selective": squeezed / planes}
    return f"ssl_kd/resnet{depth}", args, state["layer4.0.conv3.weight"].shape[0]


def expected_selective(stages: Sequence[int]) -> Iterator[str]:
    """Every tensor of a ResNet with selective kernels, in our names: torchvision's but for the stem and the 3x3."""
    for name in resnets.expected(stages, bottleneck=True):
        if ".conv2." in name:
            block = name.removesuffix("weight")
            yield from (f"{block}{part}.weight" for part in ("main", "squeeze", "mix"))
            yield from resnets.norm(f"{block}main_bn")
            yield from resnets.norm(f"{block}squeeze_bn")
        elif ".bn2." not in name and name != "conv1.weight":
            yield name
    yield from (f"conv1.{i}.weight" for i in (0, 3, 6))
    yield from resnets.norm("conv1.1")
    yield from resnets.norm("conv1.4")


def matches_spijkervet(file: Contents) -> bool:
    """A flat file with an encoder and a projector."""
    state = file.state()
    return resnets.is_resnet(select(state, "encoder.")) and any(name.startswith("projector.") for name in state)


def matches_sthalles(file: Contents) -> bool:
    """The projection head is inside the backbone, as its fc."""
    state = select(file.state("state_dict"), "backbone.")
    return resnets.is_resnet(state) and "fc.0.weight" in state and "fc.2.weight" in state


SIMCLR_V1 = Format(
    "simclr_v1",
    "simclr",
    "google-research/simclr v1 converted (`resnet50-1x.pth`, 2x, 4x)",
    "pooled map",
    V1_PIXELS,
    matches_v1,
    lambda file: resnets.read_resnet(file, "SimCLR v1", V1_PIXELS, ["state_dict"], "", ["fc."], sure=False),
)
SIMCLR_V2 = Format(
    "simclr_v2",
    "simclr",
    "google-research/simclr v2 converted (`r50_1x_sk0.pth` ... `r152_3x_sk1.pth`), any depth and width",
    "pooled map",
    resnets.PLAIN,
    matches_v2,
    convert_v2,
)
SPIJKERVET = Format(
    "simclr_spijkervet",
    "simclr",
    "Spijkervet/SimCLR `checkpoint_*.tar`",
    "encoder; pooled map",
    SPIJKERVET_PIXELS,
    matches_spijkervet,
    lambda file: resnets.read_resnet(file, "SimCLR (Spijkervet)", SPIJKERVET_PIXELS, [], "encoder."),
)
STHALLES = Format(
    "simclr_sthalles",
    "simclr",
    "sthalles/SimCLR `checkpoint_*.pth.tar`",
    "backbone; pooled map",
    STHALLES_PIXELS,
    matches_sthalles,
    lambda file: resnets.read_resnet(file, "SimCLR (sthalles)", STHALLES_PIXELS, ["state_dict"], "backbone.", ["fc."]),
)
