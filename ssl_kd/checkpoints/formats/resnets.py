"""ResNets in torchvision's names: which one a state dict is, by its shapes, and whether all of it is there.

Published ResNets of all labs but SimCLR v2's share these names. A stem wider than 64 means that every stage is (SwAV's
`w2`, SimCLR's `2x`); torchvision's `wide_resnet50_2` widens the 3x3 convolutions only and keeps the stem.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ssl_kd.checkpoints.formats.weights import (
    Contents,
    Place,
    State,
    Weights,
    anywhere,
    drop,
    find,
    paths,
    require,
    select,
)
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import Preprocessing

Described = tuple[str, dict[str, object], int]  # architecture, arguments, width of its feature
# Blocks per stage -> depth. Other counts mean that the file has lost a block, or that no lab trained such a network.
BASIC: dict[tuple[int, ...], int] = {(2, 2, 2, 2): 18, (3, 4, 6, 3): 34}
BOTTLENECK: dict[tuple[int, ...], int] = {
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
    (3, 24, 36, 3): 200,
}

# timm's name for the groups and base widths that have one.
NAMED = {(50, 32, 4): "resnext50_32x4d", (101, 32, 8): "resnext101_32x8d", (50, 1, 128): "wide_resnet50_2"}


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """True for torchvision's names, whatever the depth."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def stage_counts(names: Mapping[str, Tensor], prefix: str = "layer{}.") -> tuple[int, ...]:
    """Blocks in each of the four stages."""
    return tuple(len({n.split(".")[1] for n in names if n.startswith(prefix.format(s))}) for s in (1, 2, 3, 4))


def describe(state: Mapping[str, Tensor], stem_padding: int | None = None) -> Described:
    """Architecture, arguments and feature width of a torchvision-named ResNet without head.

    BrokenCheckpoint when a tensor is missing or has no place in it.
    """
    stages = stage_counts(state)
    bottleneck = "layer1.0.conv3.weight" in state
    depth = (BOTTLENECK if bottleneck else BASIC).get(stages)
    if depth is None:
        counts, kind = "-".join(map(str, stages)), "bottleneck" if bottleneck else "basic"
        raise BrokenCheckpoint(
            f"no known ResNet has {counts} {kind} blocks: some are missing, or it is another network"
        )
    stem = state["conv1.weight"].shape[0]
    narrow = not bottleneck and stem == 64 and state["layer1.0.conv1.weight"].shape[0] != 64
    require(state, expected(stages, bottleneck, shortcut=narrow), f"ResNet-{depth}")
    dim = state[f"layer4.0.conv{3 if bottleneck else 2}.weight"].shape[0]
    args: dict[str, object] = {} if stem_padding is None else {"stem_padding": stem_padding}
    if state["conv1.weight"].shape[-1] == 3:
        args["small_stem"] = True
    if stem != 64:
        if stem % 64 or not bottleneck:
            raise BrokenCheckpoint(f"a ResNet-{depth} with a stem of {stem} channels is not known")
        return f"ssl_kd/resnet{depth}", {"width": stem // 64, **args}, dim
    if narrow:  # own runs of small networks: timm's `channels`
        args["channels"] = [state[f"layer{stage}.0.conv2.weight"].shape[0] for stage in (1, 2, 3, 4)]
    groups, base = grouping(state) if bottleneck else (1, 64)
    if (groups, base) == (1, 64):
        return f"resnet{depth}", args, dim
    name = NAMED.get((depth, groups, base))
    return (name, args, dim) if name else (f"resnet{depth}", {"cardinality": groups, "base_width": base, **args}, dim)


def grouping(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Groups and base width of the 3x3 convolutions (ResNeXt and wide ResNets)."""
    planes = state["layer1.0.conv3.weight"].shape[0] // 4
    width, per_group = state["layer1.0.conv2.weight"].shape[:2]
    groups = max(1, width // max(1, per_group))
    return groups, width // groups * 64 // max(1, planes)


def expected(stages: Sequence[int], bottleneck: bool, shortcut: bool = False) -> Iterator[str]:
    """Every tensor of a torchvision ResNet without fc; `shortcut`: the first stage changes the width too."""
    convolutions = 3 if bottleneck else 2
    yield "conv1.weight"
    yield from norm("bn1")
    for stage, count in enumerate(stages, start=1):
        for block in range(count):
            for i in range(1, convolutions + 1):
                yield f"layer{stage}.{block}.conv{i}.weight"
                yield from norm(f"layer{stage}.{block}.bn{i}")
            if block == 0 and (bottleneck or shortcut or stage > 1):
                yield f"layer{stage}.{block}.downsample.0.weight"
                yield from norm(f"layer{stage}.{block}.downsample.1")


def norm(name: str) -> Iterator[str]:
    """The five tensors of a batch norm."""
    for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        yield f"{name}.{leaf}"


def bare(file: Contents) -> Place | None:
    """A ResNet with nothing around it; where somebody vouches for the format, wherever in the file it lies."""
    return anywhere(file, is_resnet) if file.vouched else find(file, is_bare)


def is_bare(state: Mapping[str, Tensor]) -> bool:
    """A ResNet without a classifier or another head."""
    return is_resnet(state) and not any(n.startswith(("fc.", "projection_head.", "prototypes.")) for n in state)


def from_gpu(file: Contents) -> bool:
    """Whether its tensors lay on a GPU when they were saved."""
    return any(device.startswith("cuda") for device in file.devices)


def read_at(
    file: Contents, place: Place, lab: str, pixels: Preprocessing, heads: Sequence[str] = ("fc.",), sure: bool = True
) -> Weights:
    """The ResNet at a place of a file."""
    return read_resnet(file, lab, pixels, place.path, place.prefix, heads, sure)


def read_resnet(
    file: Contents,
    origin: str,
    preprocessing: Preprocessing,
    path: Sequence[str] = (),
    prefix: str = "",
    heads: Sequence[str] = (),
    sure: bool = True,
    stem_padding: int | None = None,
) -> Weights:
    """Weights of a torchvision-named ResNet below `path`, under `prefix`, without the named heads.

    sure: whether the file decides that it is that lab's.
    A network with a 3x3 stem was trained on thumbnails: unless `preprocessing` says how, it is the same at 32 px.
    """
    state: State = drop(select(file.state(*path), prefix), heads)
    arch, args, dim = describe(state, stem_padding)
    if args.get("small_stem") and preprocessing.size > 64:
        preprocessing = preprocessing.at(32)
    where = "/".join([*path, prefix])
    present = [head for head in heads if any(name.startswith(f"{prefix}{head}") for name in file.state(*path))]
    branch = (where.removesuffix("/") or "the whole file") + (f" without {' and '.join(present)}" if present else "")
    width = f" {args['width']}x" if "width" in args else ""
    origin = file.credit(origin, f"{arch.rpartition('/')[2]}{width}", sure)
    return Weights(arch, args, dim, state, preprocessing, "pool", origin, branch, paths((where, state)))


# What the labs feed their ResNets. Resize is of the shorter side.
IMAGENET = Preprocessing()
PLAIN = replace(IMAGENET, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
