"""Hugging Face transformers: ViT (facebook/dino-*), Dinov2Model (with registers or not), ViTMSN, ViTMAE and IJepa.

The names of DINO, MSN and an MAE without its decoder are the same: the config.json beside the file tells them apart, and
without it the file is of unknown origin. Heads and epsilon are taken from there as well.

Query, key and value are three layers. Position embeddings are resized to the size, without DINO's offset, so features
differ a little from the labs' own at sizes other than the stored one. facebook/dino-*'s config says eps 1e-12.
"""

from __future__ import annotations

from collections.abc import Callable

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, Rules, State, Weights, drop, paths, rename, select
from ssl_kd.models.preprocessing import Preprocessing

BICUBIC = Preprocessing(interpolation="bicubic")
LAB_EPS = 1e-6  # of the labs' own code and of timm
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
PREFIXES = ("dinov2_with_registers.", "dinov2.", "ijepa.", "vit.", "")
# model_type in config.json -> whose, its preprocessing, the feature, and the epsilon that the library's class has.
KINDS = {
    "vit": ("DINO", BICUBIC, "cls", 1e-12),
    "vit_msn": ("MSN", resnets.IMAGENET, "cls", 1e-6),
    "vit_mae": ("MAE", BICUBIC, "cls", 1e-12),
    "ijepa": ("I-JEPA", resnets.IMAGENET, "avg", 1e-12),
}
NOT_BACKBONE = ("embeddings.mask_token", "pooler.", "classifier.")


def backbone(file: Contents) -> tuple[str, State]:
    """The prefix of the backbone, and its tensors without it."""
    state = file.state()
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in state) or not p)
    return prefix, select(state, prefix)


def is_dinov2(state: State) -> bool:
    """A Dinov2Model, which keeps the mask token."""
    return "embeddings.mask_token" in state and "encoder.layer.0.layer_scale1.lambda1" in state


def kind(file: Contents) -> tuple[str, bool]:
    """Which of KINDS the file is, and whether it says so; ("", False) for none of them.

    A pooler or a classifier would mean a model that was trained with labels, with other pixels.
    """
    file = file.without_values()
    _, state = backbone(file)
    if "encoder.layer.0.layernorm_before.weight" not in state:
        return "", False
    if any(name.startswith("decoder.") for name in file.state()):
        return "vit_mae", True
    if any(name.startswith(NOT_BACKBONE) for name in (*state, *file.state())):
        return "", False
    said = str(file.config.get("model_type"))
    if "embeddings.cls_token" not in state:
        return "ijepa", True
    return (said, True) if said in KINDS and said not in ("vit", "ijepa") else ("vit", False)


def is_kind(name: str) -> Callable[[Contents], bool]:
    """Whether a file is of that kind; where somebody vouches for it, any of them may be."""
    return lambda file: bool(kind(file)[0]) if file.vouched else kind(file)[0] == name


def read_kind(name: str) -> Callable[[Contents], Weights]:
    """A reader of files of that kind."""

    def read(file: Contents) -> Weights:
        lab, pixels, feature, eps = KINDS[name]
        prefix, whole = backbone(file)
        given = drop(whole, NOT_BACKBONE)
        state = vits.join_qkv(rename(given, RULES), *(PART.format(part) for part in ("query", "key", "value")))
        width = state["pos_embed"].shape[-1] if "pos_embed" in state else 0
        eps = float(number(file, "layer_norm_eps", 1e-15, 1e-2) or eps)
        heads = number(file, "num_attention_heads", 1, 256) if number(file, "hidden_size", 1, 2**16) == width else None
        own = None if eps == LAB_EPS else eps
        arch, args, dim = vits.describe(state, int(heads) if heads else None, positions="size", norm_eps=own)
        sure = kind(file)[1]
        origin = file.credit(
            f"Hugging Face {lab}", vits.summary(dim, args, sure or file.vouched), sure, f"Hugging Face's {lab}"
        )
        pixels = vits.at_own_size(pixels, args) if name == "ijepa" else vits.native(pixels, args)
        return Weights(
            arch, args, dim, state, pixels, feature, origin, prefix or "the whole file", paths((prefix, given))
        )

    return read


def number(file: Contents, name: str, least: float, most: float) -> float | None:
    """A number that config.json gives, where it is one within these bounds."""
    found = file.config.get(name)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) and least <= found <= most else None


def read_dinov2(file: Contents) -> Weights:
    """A Dinov2Model in timm's names."""
    prefix, whole = backbone(file)
    given = drop(whole, NOT_BACKBONE)
    state = rename(given, RULES)
    state = vits.join_qkv(state, *(PART.format(part) for part in ("query", "key", "value")))
    registers = "reg_token" in state
    if registers:
        state = vits.fold_class_position(state)
    arch, args, dim = vits.describe(state, positions="antialias" if registers else "size")
    return Weights(
        arch,
        args,
        dim,
        state,
        vits.native(BICUBIC, args),
        "cls",
        f"Hugging Face DINOv2 {vits.summary(dim, args)}",
        f"{prefix or 'the whole file'} without embeddings.mask_token",
        paths((prefix, given)),
    )


HF_DINO = Format(
    "hf_dino",
    "huggingface",
    "transformers ViTModel of facebook/dino-vits16, vits8, vitb16, vitb8; of unknown origin, see MSN",
    "class token",
    BICUBIC,
    is_kind("vit"),
    read_kind("vit"),
)
HF_MSN = Format(
    "hf_msn",
    "huggingface",
    "transformers ViTMSNModel of facebook/vit-msn-*, beside its `config.json`",
    "class token",
    resnets.IMAGENET,
    is_kind("vit_msn"),
    read_kind("vit_msn"),
)
HF_MAE = Format(
    "hf_mae",
    "huggingface",
    "transformers ViTMAEForPreTraining of facebook/vit-mae-*; without the decoder, beside its `config.json`",
    "encoder, no mask; class token",
    BICUBIC,
    is_kind("vit_mae"),
    read_kind("vit_mae"),
)
HF_IJEPA = Format(
    "hf_ijepa",
    "huggingface",
    "transformers IJepaModel of facebook/ijepa_vit*",
    "mean patch token",
    resnets.IMAGENET,
    is_kind("ijepa"),
    read_kind("ijepa"),
)
HF_DINOV2 = Format(
    "hf_dinov2",
    "huggingface",
    "transformers Dinov2Model of facebook/dinov2-*, with registers or not",
    "class token",
    BICUBIC,
    lambda file: is_dinov2(backbone(file)[1]),
    read_dinov2,
)
