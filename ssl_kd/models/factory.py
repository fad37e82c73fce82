"""Networks by name: `NAME` and `timm/NAME` from timm, `torchvision/NAME`, and the few of our own under `ssl_kd/`.

A few arguments are ours, because timm has no word for them and two checkpoints with equal shapes may differ in them:

- `small_stem` (ResNets): 3x3 stride 1, no max-pool, for 32 px images; `stem_padding=2` is solo-learn's habit.
- `norm_eps`, `conv_stem` (MoCo v3), `positions` and `interleave` (ViTs): see `backbones.VisionTransformerNet`;
  `positions="rotary"`, or `"rotary_stored"` with the periods of the file, for DINOv3's ViTs: see `backbones.RotaryNet`.
- `norm_patches` (ConvNeXt of DINOv3): see `backbones.NormedMapNet`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ssl_kd.errors import UserError, nearest, one_line
from ssl_kd.models.backbones import (
    Network,
    NormedMapNet,
    PooledNet,
    RotaryNet,
    TorchvisionNet,
    VisionTransformerNet,
    WideNet,
)
from ssl_kd.models.rotary import has_rotary
from ssl_kd.registry import Registry

if TYPE_CHECKING:
    from timm.models import VisionTransformer

M = TypeVar("M", bound=nn.Module)
OUR_ARGUMENTS = ("small_stem", "stem_padding", "norm_eps", "conv_stem", "positions", "interleave", "norm_patches")
ROTARY = {"rotary": False, "rotary_stored": True}  # values of `positions`: whether the periods are in the weights
# What the libraries raise for arguments that do not fit.
BAD_ARGUMENTS = (
    *(TypeError, ValueError, AssertionError, RuntimeError, LookupError, AttributeError, ArithmeticError),
    *(OSError, MemoryError),
)


def make(arch: str, arch_args: dict[str, object]) -> Network:
    """The network of that name with random weights; UserError for an unknown name or argument."""
    source, _, name = arch.rpartition("/")
    if source not in SOURCES:
        raise UserError(
            f"{arch}: architectures are named NAME, {', '.join(f'{known}/NAME' for known in SOURCES if known)}, "
            f"not {source}/NAME"
        )
    try:
        network = SOURCES[source](name, dict(arch_args))
    except UserError:
        raise
    except BAD_ARGUMENTS as error:
        raise UserError(f"{arch}: cannot be built with {arch_args}: {one_line(error, 160)}") from error
    if not isinstance(network, Network):
        raise UserError(f"{arch}: networks/{source} gave {type(network).__name__}, expected a Network")
    return network


class _NothingDrawn(TorchFunctionMode):
    """Skips what fills tensors without memory with numbers: torch works through each such call in Python."""

    FILLS = frozenset(
        getattr(torch.Tensor, f"{name}_")
        for name in ["uniform", "normal", "erfinv", "mul", "add", "clamp", "fill", "zero"]
    )

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func in self.FILLS and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            others = (*args[1:], *(kwargs or {}).values())
            if not any(isinstance(other, torch.Tensor) for other in others):
                return args[0]
        return func(*args, **(kwargs or {}))


def without_numbers(build: Callable[[], M]) -> M:
    """The module that `build` makes, with the shapes of its tensors and no memory for their numbers.

    A constructor that calculates by an operation which this torch cannot do without numbers (RegNets' `unique` in 2.9) runs as
    usual, and its module is emptied after. UserError as from `make`.
    """
    try:
        with torch.device("meta"), _NothingDrawn():
            return build()
    except (UserError, RuntimeError) as error:
        if "meta tensor" not in str(error.__cause__ or error).lower():
            raise
    state = torch.get_rng_state()
    try:
        return build().to("meta")
    finally:
        torch.set_rng_state(state)


def known_to_be_wrong(arch: str) -> str:
    """Why no network can have that name, in one line; empty where only building it would tell. Nothing is built."""
    source, _, name = arch.rpartition("/")
    if source not in SOURCES:
        return f"{arch}: expected NAME or {', '.join(f'{known}/NAME' for known in SOURCES if known)}"
    if source in ("", "timm"):
        import timm

        if not timm.is_model(name.split(".")[0]):
            return f"{name}: timm has no such architecture.{nearest(name, timm.list_models())}"
    return ""


def must_be_an_architecture(what: str, arch: str | None) -> None:
    """UserError, before anything is loaded, where no network can have that name; nothing is no name."""
    if arch and (why := known_to_be_wrong(arch)):
        raise UserError(f"{what}: {why}")


def make_timm(name: str, arch_args: dict[str, object]) -> Network:
    """A timm network without its classifier."""
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"{name}: timm has no such architecture.{nearest(name, timm.list_models())}")
    ours = {key: arch_args.pop(key) for key in OUR_ARGUMENTS if key in arch_args}
    if "norm_eps" in ours:
        norm: Callable[..., nn.Module] = nn.LayerNorm
        arch_args["norm_layer"] = partial(norm, eps=ours.pop("norm_eps"))
    if arch_args.get("in_chans", 3) != 3:
        raise UserError(
            f"{name}: in_chans is {one_line(arch_args['in_chans'], 40)}, and images have three channels (RGB): networks of "
            "more channels or bands are not read, give three of them to one that takes three"
        )
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arch_args.items()}
    create: Callable[..., nn.Module] = timm.create_model
    backbone = create(name, pretrained=False, num_classes=0, **given)
    if type(backbone) is timm.models.VisionTransformer and not read_by_us(backbone, ours):
        # of any size all the same: timm reads it so, with its own interpolation
        backbone = create(name, pretrained=False, num_classes=0, **{"dynamic_img_size": True, **given})
    change_stem(backbone, name, ours)
    if ours.pop("conv_stem", False):
        if not hasattr(backbone, "patch_embed"):
            raise UserError(f"{name}: conv_stem is for ViTs")
        backbone.get_submodule("patch_embed").proj = convolutional_stem(cast(int, backbone.embed_dim))
    if type(backbone) is timm.models.VisionTransformer and read_by_us(backbone, ours):
        read: Callable[..., Network] = VisionTransformerNet
        return read(backbone, **ours)
    if ours.keys() == {"positions"} and ours["positions"] in ROTARY and has_rotary(backbone):
        return RotaryNet(backbone, ROTARY[ours["positions"]])
    if ours == {"norm_patches": True} and isinstance(backbone, timm.models.ConvNeXt):
        return NormedMapNet(backbone)
    if ours:
        raise UserError(f"{name}: does not take {', '.join(ours)}")
    net = PooledNet(backbone)
    size = arch_args.get("img_size", net.size)
    net.size = int(size[0] if isinstance(size, list | tuple) else cast(int, size))
    return net


def read_by_us(vit: VisionTransformer, ours: Mapping[str, object]) -> bool:
    """Whether a timm ViT is read at any size and by several features: with a class token, or where a format asks for it."""
    return vit.global_pool == "token" if vit.cls_token is not None else "positions" in ours


def change_stem(backbone: nn.Module, name: str, ours: dict[str, object]) -> None:
    """Apply and remove the stem arguments."""
    padding = ours.pop("stem_padding", 1)
    if ours.pop("small_stem", False):
        old = getattr(backbone, "conv1", None)
        if not hasattr(backbone, "maxpool") or not isinstance(old, nn.Conv2d):
            raise UserError(f"{name}: small_stem is for ResNets")
        conv: Callable[..., nn.Conv2d] = nn.Conv2d
        new = conv(3, old.out_channels, 3, stride=1, padding=padding, bias=False)
        backbone.conv1 = new
        if not old.weight.is_meta:
            nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()


def convolutional_stem(dim: int) -> nn.Sequential:
    """MoCo v3's patch embedding: four strided 3x3 convolutions with batch norm, then 1x1; 16 px per token."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (dim // 8, dim // 4, dim // 2, dim):
        layers += [
            nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(dim, dim, 1))


def make_ours(name: str, arch_args: dict[str, object]) -> Network:
    """A `WideResNet` by depth; arguments `width` and `selective`."""
    from ssl_kd.models.wide_resnet import LAYERS, WideResNet

    known = {f"resnet{depth}": depth for depth in LAYERS}
    if name not in known:
        raise UserError(f"ssl_kd/{name}: not one of ssl_kd/{', ssl_kd/'.join(known)}.{nearest(name, list(known))}")
    try:
        wide: Callable[..., nn.Module] = WideResNet
        net = WideNet(wide(known[name], arch_args.pop("width", 1), arch_args.pop("selective", 0.0)))
    except BAD_ARGUMENTS as error:
        raise UserError(f"ssl_kd/{name}: width is a whole number, selective a ratio: {one_line(error, 120)}") from error
    change_stem(net.backbone, name, arch_args)
    if arch_args:
        raise UserError(f"ssl_kd/{name}: does not take {', '.join(arch_args)}")
    return net


def make_torchvision(name: str, arch_args: dict[str, object]) -> Network:
    """A torchvision classifier without its last layer."""
    from torchvision import models

    known = models.list_models(module=models)  # classifiers: its detectors and the like fetch weights as they are built
    if name not in known:
        raise UserError(f"torchvision/{name}: torchvision has no such classifier.{nearest(name, known)}")
    return TorchvisionNet(models.get_model(name, weights=None, **arch_args), name)


# By what stands before the last `/`: (NAME, arguments) -> a Network with random weights.
SOURCES: Registry[Callable[[str, dict[str, object]], Network]] = Registry(
    "networks",
    {
        "": make_timm,
        "timm": make_timm,
        "torchvision": make_torchvision,
        "ssl_kd": make_ours,
    },
    group="ssl_kd.networks",
)
