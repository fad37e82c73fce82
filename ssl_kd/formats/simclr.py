"""SimCLR (google-research/simclr) as converted to PyTorch, v1 and v2; and the two PyTorch reimplementations.

All four look at plain pixels in [0, 1]. The conversion of v1 evaluates 256 px, not 224. Names of v2 are its own;
selective kernels (`sk1`) come with another stem and an average-pooled shortcut.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.formats import resnets
from ssl_kd.formats.weights import Contents, Format, State, Weights, drop, paths, rename, select

V1_PIXELS = replace(resnets.PLAIN, size=256, resize=256, crop=256)
SPIJKERVET_PIXELS = replace(resnets.PLAIN, resize=224, crop=None)
STHALLES_PIXELS = replace(resnets.PLAIN, size=96, resize=None, crop=None)

BLOCKS = {
    r"^net\.([1-4])\.blocks\.(\d+)\.": r"layer\1.\2.",
    r"\.projection\.shortcut\.(2\.)?weight$": ".downsample.0.weight",
    r"\.projection\.bn\.0\.": ".downsample.1.",
    r"\.net\.0\.": ".conv1.",
    r"\.net\.1\.0\.": ".bn1.",
}
PLAIN_RULES = {
    r"^net\.0\.0\.": "conv1.",
    r"^net\.0\.1\.0\.": "bn1.",
    **BLOCKS,
    r"\.net\.2\.weight$": ".conv2.weight",
    r"\.net\.3\.0\.": ".bn2.",
    r"\.net\.4\.weight$": ".conv3.weight",
    r"\.net\.5\.0\.": ".bn3.",
}
SELECTIVE_RULES = {
    r"^net\.0\.([024])\.weight$": r"conv1.\1.weight",
    r"^net\.0\.([13])\.0\.": r"conv1.\1.",
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
    state = file.state("state_dict")
    return resnets.is_resnet(state) and "fc.weight" in state and len(file.tree) == 1


def matches_v2(file: Contents) -> bool:
    return "net.0.0.weight" in file.state("resnet")


def convert_v2(file: Contents) -> Weights:
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


def describe_selective(state: State) -> tuple[str, dict[str, object], int]:
    """Architecture, arguments and width of a SimCLR v2 ResNet with selective kernels."""
    stages = resnets.stage_counts(state)
    depth = resnets.BOTTLENECK.get(stages)
    stem = state["conv1.4.weight"].shape[0]
    if depth is None or stem % 64:
        raise BrokenCheckpoint(
            f"a SimCLR v2 network with {'-'.join(map(str, stages))} blocks and {stem} channels is not known: blocks are missing?"
        )
    squeezed = state["layer4.0.conv2.squeeze.weight"].shape
    args = {"width": stem // 64, "selective": round(squeezed[0] / squeezed[1], 6)}
    return f"ssl_kd/resnet{depth}", args, state["layer4.0.conv3.weight"].shape[0]


def matches_spijkervet(file: Contents) -> bool:
    state = file.state()
    return resnets.is_resnet(select(state, "encoder.")) and any(name.startswith("projector.") for name in state)


def matches_sthalles(file: Contents) -> bool:
    state = select(file.state("state_dict"), "backbone.")
    return resnets.is_resnet(state) and "fc.0.weight" in state and "fc.2.weight" in state


SIMCLR_V1 = Format(
    "simclr_v1",
    "simclr",
    "google-research/simclr v1 converted (`resnet50-1x.pth`, 2x, 4x)",
    matches_v1,
    lambda file: resnets.read_resnet(file, "SimCLR v1", V1_PIXELS, ["state_dict"], "", ["fc."]),
)
SIMCLR_V2 = Format(
    "simclr_v2",
    "simclr",
    "google-research/simclr v2 converted (`r50_1x_sk0.pth` ... `r152_3x_sk1.pth`), any depth and width",
    matches_v2,
    convert_v2,
)
SPIJKERVET = Format(
    "simclr_spijkervet",
    "simclr",
    "Spijkervet/SimCLR `checkpoint_*.tar`",
    matches_spijkervet,
    lambda file: resnets.read_resnet(file, "SimCLR (Spijkervet)", SPIJKERVET_PIXELS, [], "encoder."),
)
STHALLES = Format(
    "simclr_sthalles",
    "simclr",
    "sthalles/SimCLR `checkpoint_*.pth.tar`",
    matches_sthalles,
    lambda file: resnets.read_resnet(file, "SimCLR (sthalles)", STHALLES_PIXELS, ["state_dict"], "backbone.", ["fc."]),
)
