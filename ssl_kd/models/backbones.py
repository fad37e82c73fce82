"""How networks are read: pixels in, named embeddings and tokens out, one small class per kind of network.

A `Network` wraps a module of timm, torchvision, Python or our own (`.backbone`), which keeps its parameter names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError, nearest
from ssl_kd.models.rotary import Rotary

PRENORM = "cls_prenorm"
T = TypeVar("T")
STAGES = 4  # of a network: `stage.1` to `stage.4`
Reading = tuple[dict[str, Tensor], Tensor | None]  # {feature: (B, D)} and tokens (B, L, D') or None


class Network(nn.Module):
    """A backbone and the way to read it; the simple ones have a single feature, `default`, of width `dim`."""

    backbone: Any
    default: str = "pool"
    dim: int
    size: int = 224  # side in pixels that the architecture was made for

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def width(self, feature: str) -> int:
        """Numbers per image of a feature; UserError when this network has no such feature."""
        if feature != self.default:
            raise self.unknown(feature, (self.default,))
        return self.dim

    @property
    def parameter_count(self) -> int:
        """Numbers that were or can be learnt."""
        return sum(p.numel() for p in self.parameters())

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """Normalised pixels (B, 3, H, W) to {feature: (B, D)} and tokens (B, L, D') or None."""
        raise NotImplementedError

    def unknown(self, feature: str, known: Sequence[str]) -> UserError:
        """The error for a feature that this network does not have."""
        return UserError(
            f"no feature {feature!r} in {type(self.backbone).__name__}; it has {', '.join(known)}."
            f"{nearest(feature, list(known))}"
        )


def stages(backbone: nn.Module) -> tuple[str, ...]:
    """Names of the modules that end the network's four stages, shallow to deep; of a plain transformer its quarters.

    timm's networks tell; others are asked for layer1 to layer4, as ResNets call them. UserError where nothing says.
    """
    told = getattr(backbone, "feature_info", None) or ()
    ends = [(row["module"], row.get("reduction")) for row in getattr(told, "info", told)]
    if len({reduction for _, reduction in ends}) == 1:
        return tuple(ends[-(-len(ends) * k // STAGES) - 1][0] for k in range(1, STAGES + 1))
    if len(ends) >= STAGES:
        return tuple(name for name, _ in ends[-STAGES:])
    layers = tuple(f"layer{k}" for k in range(1, STAGES + 1))
    if all(isinstance(getattr(backbone, name, None), nn.Module) for name in layers):
        return layers
    raise UserError(f"{type(backbone).__name__} does not say where its {STAGES} stages end; name its own modules.")


def flatten_map(x: Tensor, channels_last: bool = False) -> Tensor:
    """A map (B, C, H, W), or (B, H, W, C), as row-major tokens (B, H*W, C)."""
    return x.flatten(1, 2) if channels_last else x.flatten(2).transpose(1, 2)


class PooledNet(Network):
    """Any timm network read as its own classifier would read it: the pooled features before the last layer."""

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)
        self.default = "cls" if getattr(backbone, "global_pool", "avg") == "token" else "pool"
        self.prefix = int(getattr(backbone, "num_prefix_tokens", 1 if self.default == "cls" else 0))
        self.channels_last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        self.dim = int(getattr(backbone, "head_hidden_size", None) or self.backbone.num_features)
        self.size = int(getattr(backbone, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1])

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        out = self.backbone.forward_features(x)
        pooled = self.backbone.forward_head(out, pre_logits=True)
        tokens = flatten_map(out, self.channels_last) if out.ndim == 4 else out[:, self.prefix :]
        return dict.fromkeys(features, pooled), tokens


def resize_with_offset(grid: Tensor, height: int, width: int) -> Tensor:
    """DINO and DINOv2 without registers: bicubic by a scale factor with 0.1 added against rounding, no antialias."""
    factor = ((height + 0.1) / grid.shape[-2], (width + 0.1) / grid.shape[-1])
    return F.interpolate(grid, scale_factor=factor, mode="bicubic")


def resize_to_size(grid: Tensor, height: int, width: int, **how: bool) -> Tensor:
    """Bicubic to that very size."""
    return F.interpolate(grid, size=(height, width), mode="bicubic", **how)


# How position embeddings reach another grid. The labs differ, by 0.003 to 0.2 on features of size 0.8.
POSITIONS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "antialias": partial(resize_to_size, antialias=True),  # timm, DINOv2 with registers
    "offset": resize_with_offset,  # DINO, DINOv2
    "size": resize_to_size,  # Hugging Face, mmpretrain
    "corners": partial(resize_to_size, align_corners=True),  # torchvision
}


class VisionTransformerNet(Network):
    """A timm ViT, read at any input size.

    Features: `cls` (class token after the final norm), `avg` (mean patch token), `clsN` (class tokens of the last N
    blocks, each through the final norm, oldest first), `cls_avg`, `clsN_avg` (with the mean patch token behind), and
    `cls_prenorm` (class token of the last block before the final norm, as MSN is evaluated). Without a class token: `avg`.
    `interleave=True` mixes the two halves of `cls_avg` channel by channel, as DINO's linear evaluation does.
    `positions` names the interpolation of the position embedding (a key of POSITIONS).
    """

    default = "cls"

    def __init__(self, backbone: nn.Module, positions: str = "antialias", interleave: bool = False):
        super().__init__(backbone)
        if positions not in POSITIONS:
            raise UserError(
                f"positions={positions!r} is not one of {', '.join(POSITIONS)}.{nearest(positions, list(POSITIONS))}"
            )
        self.resize = POSITIONS[positions]
        self.interleave = interleave
        self.size = int(self.backbone.patch_embed.img_size[0])
        self.default = "cls" if self.backbone.cls_token is not None else "avg"

    def parse(self, feature: str) -> tuple[int, bool]:
        """How many class tokens and whether the mean patch token: 'cls4_avg' is (4, True), 'avg' is (0, True)."""
        depth = len(self.backbone.blocks)
        if self.default == "avg" and feature != "avg":
            raise self.unknown(feature, ("avg",))
        if feature == PRENORM:
            return 1, False
        match = re.fullmatch(r"cls([1-9]\d*)?(_avg)?", feature)
        count = int(match.group(1) or 1) if match else 0
        if feature != "avg" and (match is None or count > depth):
            known = ("cls", "avg", "cls_avg", PRENORM, f"cls2..cls{depth}", f"cls2_avg..cls{depth}_avg")
            raise self.unknown(feature, known)
        return count, match is None or match.group(2) is not None

    def width(self, feature: str) -> int:
        """The embedding width once for each class token and once for the mean."""
        count, mean = self.parse(feature)
        return (count + mean) * int(self.backbone.embed_dim)

    def embed(self, x: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) to the token sequence before the first block: class token, registers, patches."""
        vit = self.backbone
        patch = vit.patch_embed.patch_size
        if x.shape[-2] < patch[0] or x.shape[-1] < patch[1]:
            raise UserError(
                f"images of {x.shape[-2]}x{x.shape[-1]} px are smaller than one {patch[0]}x{patch[1]} patch"
            )
        x = vit.patch_embed.proj(x)
        height, width = x.shape[-2:]
        x = vit.patch_embed.norm(flatten_map(x))
        prefix = [token for token in (vit.cls_token, vit.reg_token) if token is not None]
        if not prefix:
            return x + self.patch_positions(height, width)
        start = torch.cat(prefix, dim=1).expand(x.shape[0], -1, -1)
        if vit.pos_embed is None:
            return torch.cat([start, x], dim=1)
        if not vit.no_embed_class:
            start = start + vit.pos_embed[:, : start.shape[1]]
        x = x + self.patch_positions(height, width)
        return torch.cat([start, x], dim=1)

    def patch_positions(self, height: int, width: int) -> Tensor:
        """Position embedding of the patches at a grid, (1, height*width, D)."""
        vit = self.backbone
        stored: Tensor = vit.pos_embed if vit.no_embed_class else vit.pos_embed[:, vit.num_prefix_tokens :]
        rows, columns = vit.patch_embed.grid_size
        if (height, width) == (rows, columns):
            return stored
        grid = stored.float().reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
        return flatten_map(self.resize(grid, height, width)).to(stored.dtype)

    def block_arguments(self, x: Tensor) -> dict[str, Tensor]:
        """What every block is given beside the tokens of these pixels."""
        return {}

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        vit = self.backbone
        wanted = {name: self.parse(name) for name in features}
        last = max([1, *(count for count, _ in wanted.values())])
        positions = self.block_arguments(x)
        x = vit.norm_pre(vit.pos_drop(self.embed(x)))
        outs = []
        for depth, block in enumerate(vit.blocks, start=1):
            x = block(x, **positions)
            if depth > len(vit.blocks) - last:
                outs.append(x)
        final = vit.norm(x)
        # LayerNorm works on each token alone, so the older blocks' class tokens can be normed without their patches.
        classes = [vit.norm(out[:, 0]) for out in outs[:-1]] + [final[:, 0]]
        tokens = final[:, vit.num_prefix_tokens :]
        found = {name: self.join(classes, tokens, *spec) for name, spec in wanted.items()}
        if PRENORM in found:
            found[PRENORM] = outs[-1][:, 0]
        return found, tokens

    def join(self, classes: list[Tensor], tokens: Tensor, count: int, mean: bool) -> Tensor:
        """The last `count` class tokens and the mean patch token, in one row per image."""
        parts = classes[len(classes) - count :]
        if mean:
            parts = [*parts, tokens.mean(dim=1)]
        if self.interleave and mean and count == 1:
            return torch.stack(parts, dim=-1).flatten(1)
        return torch.cat(parts, dim=1)


class RotaryNet(VisionTransformerNet):
    """timm's `Eva` as DINOv3: no position embedding, queries and keys of the patches are rotated in every block.

    Features as those of a ViT. `stored`: whether the periods of the rotation are part of the weights.
    """

    def __init__(self, backbone: nn.Module, stored: bool = False):
        super().__init__(backbone)
        self.backbone.rope = Rotary(self.backbone.blocks[0].attn.head_dim, stored)

    def block_arguments(self, x: Tensor) -> dict[str, Tensor]:
        """The rotation at the grid of these pixels."""
        patch = self.backbone.patch_embed.patch_size
        table: Tensor = self.backbone.rope.get_embed((x.shape[-2] // patch[0], x.shape[-1] // patch[1]))
        return {"rope": table}


class NormedMapNet(Network):
    """timm's ConvNeXt as DINOv3 reads it: the pooled map through the final norm, and each of its cells through it as well.

    Features: `cls` and `pool` (the normed mean), `avg` (the mean of the normed cells, which is another thing), `cls_avg`.
    """

    default = "pool"
    names = ("pool", "cls", "avg", "cls_avg")

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)
        self.dim = int(self.backbone.num_features)

    def width(self, feature: str) -> int:
        """The width of the map, twice for `cls_avg`."""
        if feature not in self.names:
            raise self.unknown(feature, self.names)
        return self.dim * (2 if feature == "cls_avg" else 1)

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        out = self.backbone.forward_features(x)
        norm = self.backbone.head.norm
        pooled = norm(out.mean((2, 3), keepdim=True)).flatten(1)
        tokens = flatten_map(norm(out))
        mean = tokens.mean(dim=1)
        known = {"pool": pooled, "cls": pooled, "avg": mean, "cls_avg": torch.cat([pooled, mean], dim=1)}
        return {name: known[name] for name in features}, tokens


class WideNet(Network):
    """A `WideResNet`, read by its global average pool."""

    def __init__(self, backbone: nn.Module):
        super().__init__(backbone)
        self.dim = self.backbone.num_features

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        out = self.backbone(x)
        return dict.fromkeys(features, out.mean((2, 3))), flatten_map(out)


class TorchvisionNet(Network):
    """A torchvision classifier without its last linear layer; tokens are what enters its average pool."""

    def __init__(self, backbone: nn.Module, name: str):
        super().__init__(backbone)
        self.default = "cls" if name.startswith("vit_") else "pool"
        self.dim = drop_last_linear(backbone, name)
        self.tap = "encoder" if self.default == "cls" else "avgpool"

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        seen: list[Tensor] = []
        tap = getattr(self.backbone, self.tap, None)
        handle = (
            tap.register_forward_hook(lambda _, given, out: seen.append(given[0] if self.tap == "avgpool" else out))
            if tap
            else None
        )
        try:
            pooled = main_output(self.backbone(x)).flatten(1)
        finally:
            if handle:
                handle.remove()
        tokens = None
        if seen:
            tokens = seen[0][:, 1:] if self.default == "cls" else flatten_map(seen[0])
        return dict.fromkeys(features, pooled), tokens


def main_output(out: T) -> T:
    """What a network is for, where it gives auxiliary outputs beside it in train mode, as GoogLeNet and Inception do."""
    main: T = getattr(out, "logits", out) if isinstance(out, tuple) else out
    return main


def drop_last_linear(module: nn.Module, name: str) -> int:
    """Replace the network's last linear layer by the identity and return how many features enter it."""
    path, last = next(
        ((path, part) for path, part in reversed(list(module.named_modules())) if isinstance(part, nn.Linear)),
        ("", None),
    )
    if last is None:
        raise UserError(f"torchvision/{name} has no linear classifier to take off; wrap it with Encoder.from_module.")
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Identity())
    return last.in_features


class ModuleNet(Network):
    """A module from Python: it may return (B, D), a map (B, C, H, W) that is pooled here, or `Features`."""

    def __init__(self, backbone: nn.Module, dim: int):
        super().__init__(backbone)
        self.dim = dim

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        out, tokens = main_output(self.backbone(x)), None
        if hasattr(out, "embedding"):
            out, tokens = out.embedding, out.tokens
        elif out.ndim == 4:
            out, tokens = out.mean((2, 3)), flatten_map(out)
        if out.ndim != 2 or out.shape[1] != self.dim:
            raise UserError(
                f"{type(self.backbone).__name__} returned {tuple(out.shape)} where (B, {self.dim}) was declared"
            )
        return dict.fromkeys(features, out), tokens
