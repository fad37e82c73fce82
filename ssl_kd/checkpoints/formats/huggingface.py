"""Hugging Face transformers: ViT (facebook/dino-*) and Dinov2Model (facebook/dinov2-*, with registers or not).

Query, key and value are three layers. Position embeddings are resized to the size, without DINO's offset, so features
differ a little from the labs' own at sizes other than the stored one. facebook/dino-*'s config says eps 1e-12.
"""

from __future__ import annotations

from typing import Any

from ssl_kd.checkpoints.formats import vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, Rules, State, Weights, drop, paths, rename, select
from ssl_kd.models.preprocessing import Preprocessing

BICUBIC = Preprocessing(interpolation="bicubic")
RULES: Rules = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.register_tokens$": "reg_token",
    r"^embeddings\.position_embeddings$": "pos_embed",
    r"^embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"^layernorm\.": "norm.",
    r"^encoder\.layer\.": "blocks.",
    r"\.attention\.output\.dense\.": ".attn.proj.",
    r"\.layernorm_before\.": ".norm1.",
    r"\.layernorm_after\.": ".norm2.",
    r"\.intermediate\.dense\.": ".mlp.fc1.",
    r"\.output\.dense\.": ".mlp.fc2.",
    r"\.layer_scale([12])\.lambda1$": r".ls\1.gamma",
    r"\.mlp\.weights_in\.": ".mlp.fc1.",
    r"\.mlp\.weights_out\.": ".mlp.fc2.",
}
PART = "blocks.{{block}}.attention.attention.{}.{{leaf}}"
# What a model with a classifier on top puts before the names.
PREFIXES = ("dinov2_with_registers.", "dinov2.", "vit.", "")
NOT_BACKBONE = ("embeddings.mask_token", "pooler.", "classifier.")


def backbone(file: Contents) -> tuple[str, State]:
    """The prefix of the backbone, and its tensors without it."""
    state = file.state()
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in state) or not p)
    return prefix, select(state, prefix)


def is_dinov2(state: State) -> bool:
    """A Dinov2Model, which keeps the mask token."""
    return "embeddings.mask_token" in state and "encoder.layer.0.layer_scale1.lambda1" in state


def is_dino(file: Contents) -> bool:
    """A ViT as DINO's conversion wrote it. A pooler or a classifier would mean another model, with other pixels."""
    _, state = backbone(file)
    others = any(name.startswith(NOT_BACKBONE) for name in (*state, *file.state()))
    return "encoder.layer.0.layernorm_before.weight" in state and not others


def read_hf(file: Contents) -> Weights:
    """Either model in timm's names."""
    prefix, whole = backbone(file)
    given = drop(whole, NOT_BACKBONE)
    state = rename(given, RULES)
    state = vits.join_qkv(state, *(PART.format(part) for part in ("query", "key", "value")))
    second = is_dinov2(whole)
    registers = "reg_token" in state
    if registers:
        state = vits.fold_class_position(state)
    extra: dict[str, Any] = {} if second else {"norm_eps": 1e-12}
    arch, args, dim = vits.describe(state, positions="antialias" if registers else "size", **extra)
    return Weights(
        arch,
        args,
        dim,
        state,
        vits.native(BICUBIC, args),
        "cls",
        f"Hugging Face {'DINOv2' if second else 'DINO'} ViT of width {dim}, patch {args.get('patch_size', 16)}",
        f"{prefix or 'the whole file'}{' without embeddings.mask_token' if second else ''}",
        paths((prefix, given)),
    )


HF_DINO = Format(
    "hf_dino",
    "huggingface",
    "transformers ViTModel of facebook/dino-vits16, vits8, vitb16, vitb8 (`.bin` or `.safetensors`)",
    "class token",
    BICUBIC,
    is_dino,
    read_hf,
)
HF_DINOV2 = Format(
    "hf_dinov2",
    "huggingface",
    "transformers Dinov2Model of facebook/dinov2-*, with registers or not",
    "class token",
    BICUBIC,
    lambda file: is_dinov2(backbone(file)[1]),
    read_hf,
)
