"""Vision transformers: which one a state dict is, by its shapes, once its tensors have timm's names.

Shapes do not show the number of heads, the epsilon of the norms or how position embeddings are interpolated: the same
tensors are a DINO ViT-S with 6 heads and a MoCo v3 ViT-S with 12. The format knows; `describe` takes its word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_kd.checkpoints.formats.weights import State, must_be_held, require
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import Preprocessing

THUMBNAIL = 64  # pixels; networks of CIFAR and Tiny ImageNet, for which no lab has an evaluation of its own
# timm's name, and the width, depth and heads that it stands for, with patch 16, 224 px and MLP ratio 4.
NAMES: dict[int, tuple[str, int, int]] = {
    192: ("vit_tiny_patch16_224", 12, 3),
    384: ("vit_small_patch16_224", 12, 6),
    768: ("vit_base_patch16_224", 12, 12),
    1024: ("vit_large_patch16_224", 24, 16),
}
# Blocks that a ViT of that width has in every lab. A file with fewer has lost the last ones, which nothing else shows.
DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1536: 40}


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """True for the names of DINO and timm."""
    return "pos_embed" in state and "cls_token" in state and any(n.startswith("blocks.0.") for n in state)


def describe(
    state: Mapping[str, Tensor], heads: int | None = None, depth: int | None = None, **extra: Any
) -> tuple[str, dict[str, Any], int]:
    """Architecture, arguments and width of a ViT in timm's names.

    heads: None is one for every 64 channels, as in all of DINO's and DINOv2's networks. depth: None is what DEPTHS
    says, or the number of blocks in the file for a width that no lab published. extra: our own arguments, such as
    `positions`. BrokenCheckpoint when a tensor is missing or has no place.
    """
    dim = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
    found = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    depth = depth or DEPTHS.get(dim, found)
    if dim % (heads or 64) or not dim:
        raise BrokenCheckpoint(f"a ViT of width {dim} cannot have {heads or dim / 64:g} heads")
    conv_stem = "patch_embed.proj.0.weight" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    layer_scale = "blocks.0.ls1.gamma" in state
    bias = "blocks.0.attn.qkv.bias" in state
    what = f"a ViT of width {dim} with {depth} blocks"
    require(state, expected(depth, conv_stem, bool(registers), layer_scale, bias), what)
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    patch = 16 if conv_stem else state["patch_embed.proj.weight"].shape[-1]
    # With registers the class token's position is folded into the token, as timm does it.
    grid = math.isqrt(state["pos_embed"].shape[1] - (0 if registers else 1))
    if grid * grid + (0 if registers else 1) != state["pos_embed"].shape[1] or not grid:
        count = state["pos_embed"].shape[1]
        raise BrokenCheckpoint(f"{what} has {count} position embeddings, which is no square grid")
    name, usual_depth, usual_heads = NAMES.get(dim, ("vit_base_patch16_224", 12, 12))
    name = "vit_giant_patch14_dinov2" if gated else name
    args: dict[str, Any] = {
        "img_size": grid * patch,
        "patch_size": patch,
        "embed_dim": dim,
        "depth": depth,
        "num_heads": heads or dim // 64,
        "mlp_ratio": ratio(state["blocks.0.mlp.fc1.weight"].shape[0], dim),
    }
    usual = {
        "img_size": 224,
        "patch_size": 16,
        "embed_dim": dim if dim in NAMES else 768,
        "depth": usual_depth,
        "num_heads": usual_heads,
        "mlp_ratio": 4.0,
    }
    args = {key: value for key, value in args.items() if gated or value != usual[key]}
    # timm's giant comes with layer scale; the others have none unless told.
    if layer_scale or gated:
        args["init_values"] = 1e-5 if layer_scale else None
    if registers:
        args |= {"reg_tokens": registers, "no_embed_class": True}
    if not bias:
        args["qkv_bias"] = False
    if conv_stem:
        args["conv_stem"] = True
    return name, {**args, **extra}, dim


def native(pixels: Preprocessing, args: Mapping[str, Any]) -> Preprocessing:
    """The lab's preprocessing; at the network's own size for one that was made for thumbnails."""
    size = int(args.get("img_size", 224))
    return pixels if size > THUMBNAIL else pixels.at(size)


def ratio(hidden: int, dim: int) -> float:
    """The MLP ratio that timm turns back into `hidden` when it truncates dim * ratio."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else (hidden + 0.5) / dim


def expected(depth: int, conv_stem: bool, registers: bool, layer_scale: bool, bias: bool) -> Iterator[str]:
    """Every tensor of a timm ViT without head."""
    yield from ("cls_token", "pos_embed", "norm.weight", "norm.bias")
    if registers:
        yield "reg_token"
    if conv_stem:
        for i in (0, 3, 6, 9):
            yield f"patch_embed.proj.{i}.weight"
            for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                yield f"patch_embed.proj.{i + 1}.{leaf}"
        yield from ("patch_embed.proj.12.weight", "patch_embed.proj.12.bias")
    else:
        yield from ("patch_embed.proj.weight", "patch_embed.proj.bias")
    for block in range(depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            yield f"blocks.{block}.{part}.weight"
            if bias or part != "attn.qkv":
                yield f"blocks.{block}.{part}.bias"
        if layer_scale:
            yield from (f"blocks.{block}.ls1.gamma", f"blocks.{block}.ls2.gamma")


def fold_class_position(state: State) -> State:
    """Move the class token's position embedding into the class token, so that registers can stand between them."""
    position = state["pos_embed"]
    return {**state, "cls_token": state["cls_token"] + position[:, :1], "pos_embed": position[:, 1:]}


def join_qkv(state: State, query: str, key: str, value: str) -> State:
    """Stack query, key and value layers into timm's single one. The names are templates with {block} and {leaf}."""
    out = dict(state)
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    for block in blocks:
        for leaf in ("weight", "bias"):
            names = [template.format(block=block, leaf=leaf) for template in (query, key, value)]
            if all(name in out for name in names):
                out[f"blocks.{block}.attn.qkv.{leaf}"] = torch.cat(
                    [must_be_held(name, out.pop(name)) for name in names]
                )
    return out
