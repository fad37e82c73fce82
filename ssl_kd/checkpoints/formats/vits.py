"""Vision transformers: which one a state dict is, by its shapes, once its tensors have timm's names.

Shapes do not show the number of heads, the epsilon of the norms or how position embeddings are interpolated: the same
tensors are a DINO ViT-S with 6 heads and a MoCo v3 ViT-S with 12. The format knows; `describe` takes its word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ssl_kd.checkpoints.formats.weights import Contents, Place, State, Weights, drop, must_be_held, require
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
# Heads of the widths that have others than one for every 64 channels: ViT-H (MAE, I-JEPA, timm, torchvision) and I-JEPA's g.
HEADS = {1280: 16, 1408: 16}
# Blocks that a ViT of that width has in every lab. A file with fewer has lost the last ones, which nothing else shows.
DEPTHS = {192: 12, 384: 12, 768: 12, 1024: 24, 1280: 32, 1408: 40, 1536: 40}
# Beside a backbone: what only training needs, and what says that it is no plain ViT.
EXTRAS: tuple[str, ...] = (
    *("head.", "fc.", "fc_norm.", "decoder", "mask_token", "masked_embed", "predictor", "norm_pre."),
    *("reg_token", "register_tokens", "storage_tokens", "rope_embed.", "pos_embeder"),
    *("blocks.0.ls1", "blocks.0.gamma_", "blocks.0.0."),
)


def is_vit(state: Mapping[str, Tensor]) -> bool:
    """True for the names of DINO and timm."""
    return "cls_token" in state and has_blocks(state)


def has_blocks(state: Mapping[str, Tensor]) -> bool:
    """True for those names with or without a class token (I-JEPA has none)."""
    return "pos_embed" in state and any(n.startswith("blocks.0.") for n in state)


def is_plain(state: Mapping[str, Tensor]) -> bool:
    """A ViT with a class token and nothing else: no layer scale, registers, head, decoder or mask token."""
    return is_vit(state) and not any(name.startswith(EXTRAS) for name in state)


def summary(dim: int, args: Mapping[str, object], sure: bool = True) -> str:
    """A ViT in words. The heads are said where nothing in the file tells whose network it is."""
    heads = args.get("num_heads", dim // 64)
    return f"ViT of width {dim}, patch {args.get('patch_size', 16)}" + ("" if sure else f", {heads} heads")


def describe(
    state: Mapping[str, Tensor],
    heads: int | None = None,
    depth: int | None = None,
    positions: str = "",
    interleave: bool = False,
    norm_eps: float | None = None,
) -> tuple[str, dict[str, object], int]:
    """Architecture, arguments and width of a ViT in timm's names.

    heads: None is one for every 64 channels, or what HEADS says. depth: None is what DEPTHS
    says, or the number of blocks in the file for a width that no lab published. positions, interleave, norm_eps: see
    `models.factory`. BrokenCheckpoint when a tensor is missing or has no place.
    """
    dim = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
    heads = heads or HEADS.get(dim)
    found = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    depth = depth or DEPTHS.get(dim, found)
    if dim % (heads or 64) or not dim:
        raise BrokenCheckpoint(f"a ViT of width {dim} cannot have {heads or dim / 64:g} heads")
    conv_stem = "patch_embed.proj.0.weight" in state
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    layer_scale = "blocks.0.ls1.gamma" in state
    bias = "blocks.0.attn.qkv.bias" in state
    what = f"a ViT of width {dim} with {depth} blocks"
    class_token = "cls_token" in state
    require(state, expected(depth, conv_stem, bool(registers), layer_scale, bias, class_token), what)
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] != state["blocks.0.mlp.fc2.weight"].shape[1]
    patch = 16 if conv_stem else state["patch_embed.proj.weight"].shape[-1]
    # With registers the class token's position is folded into the token, as timm does it.
    alone = 0 if registers or not class_token else 1  # positions that belong to no patch
    grid = math.isqrt(max(0, state["pos_embed"].shape[1] - alone))
    if grid * grid + alone != state["pos_embed"].shape[1] or not grid:
        count = state["pos_embed"].shape[1]
        raise BrokenCheckpoint(f"{what} has {count} position embeddings, which is no square grid")
    name, usual_depth, usual_heads = NAMES.get(dim, ("vit_base_patch16_224", 12, 12))
    name = "vit_giant_patch14_dinov2" if gated else name
    args: dict[str, object] = {
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
    if not class_token:  # timm would put the norm behind the mean
        args |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    ours = {"positions": positions or None, "interleave": interleave or None, "norm_eps": norm_eps}
    return name, {**args, **{key: value for key, value in ours.items() if value is not None}}, dim


def read(
    file: Contents,
    place: Place,
    lab: str,
    pixels: Preprocessing,
    sure: bool = True,
    heads: Sequence[str] = (),
    feature: str = "cls",
    like: str = "",
    note: str = "",
    positions: str = "",
    interleave: bool = False,
) -> Weights:
    """A ViT in timm's names at a place of a file, without the heads that are named."""
    kept = Place(place.path, place.prefix, drop(place.state, heads))
    arch, args, dim = describe(kept.state, positions=positions, interleave=interleave)
    origin = file.credit(lab, summary(dim, args, sure or file.vouched), sure, like) + note
    dropped = [head for head in heads if any(name.startswith(head) for name in place.state)]
    branch = kept.where + (f" without {' and '.join(dropped)}" if dropped else "")
    return Weights(arch, args, dim, kept.state, native(pixels, args), feature, origin, branch, kept.used)


def native(pixels: Preprocessing, args: Mapping[str, object]) -> Preprocessing:
    """The lab's preprocessing; at the network's own size for one that was made for thumbnails."""
    size = args.get("img_size", 224)
    return pixels.at(size) if isinstance(size, int) and size <= THUMBNAIL else pixels


def at_own_size(pixels: Preprocessing, args: Mapping[str, object]) -> Preprocessing:
    """The lab's preprocessing at the size that the network's position embeddings are for."""
    size = args.get("img_size", 224)
    return pixels.at(size) if isinstance(size, int) else pixels


def ratio(hidden: int, dim: int) -> float:
    """The MLP ratio that timm turns back into `hidden` when it truncates dim * ratio."""
    exact = hidden / dim
    return exact if int(dim * exact) == hidden else (hidden + 0.5) / dim


def expected(
    depth: int, conv_stem: bool, registers: bool, layer_scale: bool, bias: bool, class_token: bool = True
) -> Iterator[str]:
    """Every tensor of a timm ViT without head."""
    yield from ("pos_embed", "norm.weight", "norm.bias")
    if class_token:
        yield "cls_token"
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
