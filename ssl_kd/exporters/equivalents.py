"""A network in its library's own words: what to type to have the same one without ssl_kd, and that very network.

A state dict is of use only to somebody who can build what it fits. A `Twin` holds the call (`lines`, put into the
exported file's card) and makes the module by the same call, so that an export is checked through the library's door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn

from ssl_kd.errors import UserError
from ssl_kd.models.backbones import RotaryNet, VisionTransformerNet
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.factory import OUR_ARGUMENTS, change_stem, without_numbers

# The lab's rotary periods are part of the weights; timm computes its own, and keeps them out of the state dict.
KEEP_PERIODS = "model.rope.register_buffer('periods', model.rope.periods)"
# Both libraries have these, with the same names of parameters and the same arithmetic.
IN_BOTH = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)


@dataclass(frozen=True)
class Twin:
    """The same network by its library's call: Python lines that end with `model`, and what makes it here."""

    lines: tuple[str, ...]
    build: Callable[[], nn.Module]


def timm_twin(encoder: Encoder) -> Twin:
    """The network by `timm.create_model`; UserError where timm has no such network."""
    source, _, name = encoder.arch.rpartition("/")
    args: dict[str, object] = {key: value for key, value in encoder.arch_args.items() if key not in OUR_ARGUMENTS}
    ours = {key: value for key, value in encoder.arch_args.items() if key in OUR_ARGUMENTS}
    if source not in ("", "timm") and not (source == "torchvision" and name in IN_BOTH and not args):
        raise UserError(f"timm: expected one of timm's networks, got {encoder.arch}; export to safetensors or onnx")
    if ours.get("conv_stem"):
        raise UserError(f"timm: {encoder.arch} with conv_stem is not timm's network; export to safetensors or onnx")
    shown = {key: repr(value) for key, value in args.items()}
    args = {key: tuple(value) if isinstance(value, list) else value for key, value in args.items()}
    if "norm_eps" in ours:
        norm: Callable[..., nn.Module] = nn.LayerNorm
        args["norm_layer"] = partial(norm, eps=ours["norm_eps"])
        shown["norm_layer"] = f"functools.partial(torch.nn.LayerNorm, eps={ours['norm_eps']!r})"
    rotary = isinstance(encoder.network, RotaryNet)
    if rotary:  # timm would take the mean patch token
        args["global_pool"], shown["global_pool"] = "token", "'token'"
    stored = ours.get("positions") == "rotary_stored"
    if (
        isinstance(encoder.network, VisionTransformerNet)
        and not rotary
        and encoder.preprocessing.size != encoder.network.size
    ):
        args["dynamic_img_size"] = True
        shown["dynamic_img_size"] = "True"
    words = "".join(f", {key}={value}" for key, value in shown.items())
    lines = (
        "import functools, timm, torch" if "norm_eps" in ours else "import timm, torch",
        f"model = timm.create_model({name!r}, num_classes=0{words})",
        *([KEEP_PERIODS] if stored else []),
        *stem_lines(encoder, ours),
    )

    def build() -> nn.Module:
        import timm

        create: Callable[..., nn.Module] = timm.create_model
        model = create(name, num_classes=0, **args)
        if stored:
            rope = model.get_submodule("rope")
            rope.register_buffer("periods", cast(torch.Tensor, rope.periods))
        change_stem(model, name, dict(ours))
        return model

    return Twin(lines, build)


def torchvision_twin(encoder: Encoder) -> Twin:
    """The network by `torchvision.models` without its classifier; UserError where torchvision has no such network."""
    source, _, name = encoder.arch.rpartition("/")
    args: dict[str, object] = {key: value for key, value in encoder.arch_args.items() if key not in OUR_ARGUMENTS}
    if source != "torchvision" and (source not in ("", "timm") or name not in IN_BOTH or args):
        what = f"{encoder.arch} with {', '.join(args)}" if args and name in IN_BOTH else encoder.arch
        raise UserError(
            f"torchvision: expected torchvision/NAME or one of {', '.join(IN_BOTH)} at its full width, got {what}; "
            f"export to timm, safetensors or onnx"
        )
    ours = {key: value for key, value in encoder.arch_args.items() if key in OUR_ARGUMENTS}
    last = "fc" if name in IN_BOTH else _last_linear(name, args)
    parent, _, leaf = last.rpartition(".")
    words = "".join(f", {key}={value!r}" for key, value in args.items())
    lines = (
        "import torch, torchvision",
        f"model = torchvision.models.get_model({name!r}, weights=None{words})",
        f"setattr(model.get_submodule({parent!r}), {leaf!r}, torch.nn.Identity())"
        if parent
        else f"model.{leaf} = torch.nn.Identity()",
        *stem_lines(encoder, ours),
    )

    def build() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None, **args)
        setattr(model.get_submodule(parent), leaf, nn.Identity())
        change_stem(model, name, dict(ours))
        return model

    return Twin(lines, build)


def _last_linear(name: str, args: Mapping[str, object]) -> str:
    """Path of the classifier in a torchvision network, as `backbones.drop_last_linear` finds it."""
    from torchvision import models

    get: Callable[..., nn.Module] = models.get_model
    network = without_numbers(lambda: get(name, weights=None, **args))
    linear: list[str] = [path for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    return linear[-1]


def stem_lines(encoder: Encoder, ours: Mapping[str, object]) -> tuple[str, ...]:
    """What `small_stem` does to a ResNet, in Python: neither library has an argument for it."""
    if not ours.get("small_stem"):
        return ()
    stem = cast(nn.Conv2d, encoder.backbone.conv1)
    channels, padding = stem.out_channels, ours.get("stem_padding", 1)
    return (
        f"model.conv1 = torch.nn.Conv2d(3, {channels}, 3, stride=1, padding={padding}, bias=False)",
        "model.maxpool = torch.nn.Identity()",
    )
