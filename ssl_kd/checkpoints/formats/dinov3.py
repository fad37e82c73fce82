"""DINOv3 (facebookresearch/dinov3), ViT and ConvNeXt of all official sizes: the lab's files, transformers' and timm's.

Read into timm's own networks. The lab's ViT multiplies its bias on queries, keys and values by a mask, which is 0 in the
published files: the bias counts for nothing. Its rotary periods are rounded to bfloat16, and used so. Heads and the epsilon
1e-5 are in no file; they are looked up by width and depth. A ConvNeXt holds its last norm twice, under two names.

Which images a file was trained on decides mean and std. Only the ViT-L of satellite images says so, by two tensors more; the
7B files have those both, and copies in other libraries none: format=dinov3_sat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from ssl_kd.checkpoints.formats import vits
from ssl_kd.checkpoints.formats.weights import (
    Contents,
    Format,
    Place,
    Rules,
    State,
    Weights,
    drop,
    find,
    must,
    must_be_held,
    rename,
    require,
    shown,
)
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import Preprocessing

LAB = Preprocessing(size=256, resize=256, crop=256, square=True)  # the transform of the lab's README
HUGGING_FACE = Preprocessing(size=224, resize=224, crop=224, square=True)
TIMM = Preprocessing(size=256, resize=256, crop=256, interpolation="bicubic")
TIMM_CONVNEXT = Preprocessing(size=224, resize=224, crop=224, interpolation="bicubic")
SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

# (width, blocks, gated MLP) -> timm's name, heads, the lab's name
VITS = {
    (384, 12, False): ("vit_small_patch16_dinov3", 6, "ViT-S"),
    (384, 12, True): ("vit_small_plus_patch16_dinov3", 6, "ViT-S+"),
    (768, 12, False): ("vit_base_patch16_dinov3", 12, "ViT-B"),
    (1024, 24, False): ("vit_large_patch16_dinov3", 16, "ViT-L"),
    (1280, 32, True): ("vit_huge_plus_patch16_dinov3", 20, "ViT-H+"),
    (4096, 40, True): ("vit_7b_patch16_dinov3", 32, "ViT-7B"),
}
# (width of the last stage, blocks of the third) -> timm's name and the lab's
CONVNEXTS = {
    (768, 9): ("convnext_tiny", "ConvNeXt-T"),
    (768, 27): ("convnext_small", "ConvNeXt-S"),
    (1024, 27): ("convnext_base", "ConvNeXt-B"),
    (1536, 27): ("convnext_large", "ConvNeXt-L"),
}
TIMES = (3, 3, None, 3)  # blocks of the other stages

LAB_RULES: Rules = {
    r"^storage_tokens$": "reg_token",
    r"^rope_embed\.periods$": "rope.periods",
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",  # own runs cut the blocks into chunks
    r"\.ls([12])\.gamma$": r".gamma_\1",
    r"\.mlp\.w1\.": ".mlp.fc1_g.",
    r"\.mlp\.w2\.": ".mlp.fc1_x.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}
HF_RULES: Rules = {
    r"^embeddings\.cls_token$": "cls_token",
    r"^embeddings\.register_tokens$": "reg_token",
    r"^embeddings\.patch_embeddings\.": "patch_embed.proj.",
    r"^layer\.": "blocks.",
    r"\.layer_scale([12])\.lambda1$": r".gamma_\1",
    r"\.attention\.o_proj\.": ".attn.proj.",
    r"\.attention\.([qv])_proj\.bias$": r".attn.\1_bias",
    r"\.mlp\.gate_proj\.": ".mlp.fc1_g.",
    r"\.mlp\.up_proj\.": ".mlp.up.",
    r"\.mlp\.down_proj\.": ".mlp.fc2.",
}
LAB_CONVNEXT: Rules = {
    r"^downsample_layers\.0\.": "stem.",
    r"^downsample_layers\.([123])\.": r"stages.\1.downsample.",
    r"^stages\.(\d+)\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"\.dwconv\.": ".conv_dw.",
    r"\.pwconv([12])\.": r".mlp.fc\1.",
    r"^norm\.": "head.norm.",
}
HF_CONVNEXT: Rules = {
    r"^stages\.0\.downsample_layers\.": "stem.",
    r"^stages\.([123])\.downsample_layers\.": r"stages.\1.downsample.",
    r"^stages\.(\d+)\.layers\.(\d+)\.": r"stages.\1.blocks.\2.",
    r"\.depthwise_conv\.": ".conv_dw.",
    r"(\.blocks\.\d+)\.layer_norm\.": r"\1.norm.",
    r"\.pointwise_conv([12])\.": r".mlp.fc\1.",
    r"^layer_norm\.": "head.norm.",
}
LOCAL_NORM = "local_cls_norm."  # of the satellite ViT-L and of both 7B files; evaluation does not use it
TRAINING_ONLY = ("mask_token", LOCAL_NORM, "projectors.")


# ------------------------------------------------------------------------------------------ which file is it?


def is_lab_vit(state: State) -> bool:
    """The lab's names of register tokens and of the rotation."""
    return "storage_tokens" in state and "rope_embed.periods" in state


def is_lab_convnext(state: State) -> bool:
    """A ConvNeXt whose last norm is there twice."""
    return "norms.3.weight" in state and "downsample_layers.0.0.weight" in state


def is_hf(state: State) -> bool:
    """transformers' names, of DINOv3 only."""
    vit = "layer.0.attention.q_proj.weight" in state and "embeddings.register_tokens" in state
    return vit or "stages.0.layers.0.depthwise_conv.weight" in state


def is_timm_vit(state: State) -> bool:
    """Register tokens and layer scale of timm's Eva, and no position embedding."""
    return (
        "blocks.0.gamma_1" in state and "reg_token" in state and "pos_embed" not in state and "rope.freqs" not in state
    )


def is_timm_convnext(state: State) -> bool:
    """A ConvNeXt in timm's names with its last norm and without a classifier."""
    return "stem.0.weight" in state and "stages.0.blocks.0.gamma" in state and "head.norm.weight" in state


def lab_place(file: Contents) -> Place | None:
    """The file itself, or the teacher of a training run."""
    return find(file, lambda s: is_lab_vit(s) or is_lab_convnext(s)) or find(
        file, is_lab_vit, [("teacher",)], ("backbone.", "module.backbone.")
    )


def hf_place(file: Contents) -> Place | None:
    """The file itself, or below the name that a model with a head puts before it."""
    return find(file, is_hf, prefixes=("", "model.", "dinov3_vit.", "dinov3_convnext.", "backbone."))


def timm_place(file: Contents) -> Place | None:
    """The file itself; no classifier beside it."""
    return find(file, lambda s: (is_timm_vit(s) or is_timm_convnext(s)) and not any("head.fc." in n for n in s))


def of_satellites(place: Place) -> bool:
    """The ViT-L of satellite images has a norm more than the other one."""
    return f"{LOCAL_NORM}weight" in place.state and place.state[f"{LOCAL_NORM}weight"].shape[0] == 1024


# ------------------------------------------------------------------------------------------ what is in it?


def described(state: State, rotation: str) -> tuple[str, dict[str, object], str]:
    """Architecture, arguments and the lab's name of a ViT in timm's names. BrokenCheckpoint for any that is not official."""
    width = state["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    gated = "blocks.0.mlp.fc1_g.weight" in state
    if (width, depth, gated) not in VITS:
        raise BrokenCheckpoint(
            f"a DINOv3 ViT of width {width} with {depth} blocks, {'gated' if gated else 'plain'} MLP, is not among the "
            "published ones, and the number of its heads is not in the file: blocks are missing, or it is another network"
        )
    name, heads, size = VITS[width, depth, gated]
    bias = "blocks.0.attn.q_bias" in state
    require(state, expected(depth, gated, bias, rotation == "rotary_stored"), f"DINOv3 {size}")
    if "rope.periods" in state and state["rope.periods"].numel() * 4 * heads != width:
        periods = state["rope.periods"].numel()
        raise BrokenCheckpoint(
            f"DINOv3 {size} has {heads} heads, the {periods} periods in the file are of another number"
        )
    args: dict[str, object] = {"positions": rotation}
    if bias and width < 4096:
        name = name.replace("_dinov3", "_dinov3_qkvb")
    elif bias:
        args["qkv_bias"] = True
    return name, args, size


def expected(depth: int, gated: bool, bias: bool, stored: bool) -> list[str]:
    """Every tensor of timm's network."""
    names = ["cls_token", "reg_token", "norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    names += ["rope.periods"] * stored
    layers = ["norm1", "norm2", "attn.proj", "mlp.fc2", *(["mlp.fc1_g", "mlp.fc1_x"] if gated else ["mlp.fc1"])]
    leaves = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    leaves += ["attn.qkv.weight", "gamma_1", "gamma_2", *(["attn.q_bias", "attn.v_bias"] if bias else [])]
    return names + [f"blocks.{block}.{leaf}" for block in range(depth) for leaf in leaves]


def described_convnext(state: State) -> tuple[str, str]:
    """Architecture and the lab's name of a ConvNeXt in timm's names."""
    counts = [len({n.split(".")[3] for n in state if n.startswith(f"stages.{stage}.blocks.")}) for stage in range(4)]
    width = state["head.norm.weight"].shape[0] if "head.norm.weight" in state else 0
    known = CONVNEXTS.get((width, counts[2]))
    if known is None or any(want not in (None, count) for want, count in zip(TIMES, counts, strict=True)):
        raise BrokenCheckpoint(
            f"a ConvNeXt of width {width} with {'-'.join(map(str, counts))} blocks is none of DINOv3's: blocks are missing?"
        )
    layers = [f"stages.{s}.downsample.{i}" for s in (1, 2, 3) for i in (0, 1)] + ["stem.0", "stem.1", "head.norm"]
    blocks = [f"stages.{stage}.blocks.{block}" for stage, count in enumerate(counts) for block in range(count)]
    layers += [f"{block}.{layer}" for block in blocks for layer in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")]
    wanted = [f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")]
    require(state, [*wanted, *(f"{block}.gamma" for block in blocks)], f"DINOv3 {known[1]}")
    return known


def without_masked_bias(file: Contents, given: State) -> State:
    """The lab's state with q_bias and v_bias where its masked bias counts for something, and without where it does not."""
    state = {name: tensor for name, tensor in given.items() if ".attn.qkv.bias" not in name}
    biases = {name: tensor for name, tensor in given.items() if name.endswith(".attn.qkv.bias")}
    masks = {name: given[f"{name}_mask"] for name in biases if f"{name}_mask" in given}
    file.fill([*biases.values(), *masks.values()])
    real = {name: held(name, bias) * (held(name, masks[name]) if name in masks else 1) for name, bias in biases.items()}
    return state | (split_bias(real) if any(bool(bias.any()) for bias in real.values()) else {})


def held(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A small tensor as float32."""
    return must_be_held(name, tensor).float()


def split_bias(biases: State) -> State:
    """Biases on queries and values. BrokenCheckpoint for one on keys, which no published network has."""
    out: State = {}
    for name, bias in biases.items():
        query, key, value = bias.chunk(3)
        if bool(key.any()):
            raise BrokenCheckpoint(f"{shown([name])} has a bias on keys, which DINOv3 masks")
        block = name.removesuffix("qkv.bias")
        out |= {f"{block}q_bias": query, f"{block}v_bias": value}
    return out


# ------------------------------------------------------------------------------------------ readers


def made(
    file: Contents,
    place: Place,
    used: State,
    state: State,
    whose: str,
    pixels: tuple[Preprocessing, Preprocessing],
    rotation: str,
    sure: bool = True,
) -> Weights:
    """Weights of a ViT or ConvNeXt in timm's names. pixels: of the one and of the other."""
    kept = Place(place.path, place.prefix, used)
    left = [head for head in TRAINING_ONLY if any(n.removeprefix("embeddings.").startswith(head) for n in place.state)]
    branch = kept.where + (f" without {', '.join(left)}" if left else "")
    if "cls_token" in state:
        arch, args, size = described(state, rotation)
        dim, feature, eyes = state["cls_token"].shape[-1], "cls", pixels[0]
    else:
        arch, size = described_convnext(state)
        args, dim, feature, eyes = {"norm_patches": True}, state["head.norm.weight"].shape[0], "pool", pixels[1]
    origin = file.credit(f"{whose} DINOv3".strip(), size, sure, f"{whose}'s DINOv3")
    return Weights(arch, args, dim, state, eyes, feature, origin, branch, kept.used)


def read_lab(file: Contents) -> Weights:
    """The lab's own file. Its bias, mask and periods are read, because they decide what is computed."""
    place = must(lab_place(file), "DINOv3")
    used = drop(place.state, TRAINING_ONLY)
    if is_lab_vit(place.state):
        state = rename(without_masked_bias(file, used), LAB_RULES)
    else:
        file.fill([tensor for name, tensor in used.items() if name.startswith(("norm.", "norms.3."))])
        for leaf in ("weight", "bias"):
            if f"norms.3.{leaf}" not in used or not torch.equal(used[f"norm.{leaf}"], used[f"norms.3.{leaf}"]):
                raise BrokenCheckpoint(f"norm.{leaf} and norms.3.{leaf} are one tensor in DINOv3's files, and two here")
        state = rename({name: t for name, t in used.items() if not name.startswith("norms.")}, LAB_CONVNEXT)
    weights = made(file, place, used, state, "", (LAB, LAB), "rotary_stored")
    teacher = ", teacher of a training checkpoint" if place.path else ""
    unsaid = f"{LOCAL_NORM}weight" in place.state and not of_satellites(place)
    images = ", on images that the file does not tell (read as LVD-1689M)" if unsaid else ""
    return replace(weights, origin=f"{weights.origin}{teacher}{images}")


def read_hf(file: Contents) -> Weights:
    """transformers' names. Query, key and value are three layers; keys have no bias."""
    place = must(hf_place(file), "DINOv3")
    used = {name: tensor for name, tensor in place.state.items() if not name.startswith("embeddings.mask_token")}
    if "stages.0.layers.0.depthwise_conv.weight" in used:
        state = rename(used, HF_CONVNEXT)
    else:
        joined = [tensor for name, tensor in used.items() if re.search(r"\.[qkv]_proj\.", name)]
        file.fill(joined)
        state = vits.join_qkv(
            rename(used, HF_RULES), *(f"blocks.{{block}}.attention.{part}_proj.{{leaf}}" for part in "qkv")
        )
        up = "mlp.fc1_x." if any(".mlp.fc1_g." in name for name in state) else "mlp.fc1."
        state = {name.replace("mlp.up.", up): tensor for name, tensor in state.items()}
    return made(file, place, used, state, "Hugging Face", (HUGGING_FACE, HUGGING_FACE), "rotary")


def read_timm(file: Contents) -> Weights:
    """timm's names are the network's own. Those with a bias are also other labs' (EUPE, LingBot-Vision)."""
    place = must(timm_place(file), "DINOv3")
    biases = {name: tensor for name, tensor in place.state.items() if name.endswith(".attn.qkv.bias")}
    state = {name: tensor for name, tensor in place.state.items() if name not in biases}
    if biases:
        file.fill(biases.values())
        state |= split_bias({name: held(name, bias) for name, bias in biases.items()})
    sure = is_timm_vit(state) and "blocks.0.attn.q_bias" not in state
    return made(file, place, place.state, state, "timm", (TIMM, TIMM_CONVNEXT), "rotary", sure)


def seen_from_above(file: Contents) -> Weights:
    """Any of the three spellings, with the statistics of satellite images."""
    readers: Sequence[tuple[Callable[[Contents], Place | None], Callable[[Contents], Weights]]] = (
        (lab_place, read_lab),
        (hf_place, read_hf),
        (timm_place, read_timm),
    )
    read = next((read for find_place, read in readers if find_place(file)), None)
    if read is None:
        raise BrokenCheckpoint("holds no DINOv3 ViT")
    weights = read(file)
    mean, std = SATELLITE
    origin = f"{weights.origin.partition(', on images')[0]}, on satellite images (SAT-493M)"
    return replace(weights, preprocessing=replace(weights.preprocessing, mean=mean, std=std), origin=origin)


def is_satellite(file: Contents) -> bool:
    """The lab's ViT-L of satellite images; where somebody vouches for it, any DINOv3."""
    place = lab_place(file)
    vouched = file.vouched and (place or hf_place(file) or timm_place(file)) is not None
    return vouched or (place is not None and of_satellites(place))


def is_lab(file: Contents) -> bool:
    """Any file of the lab but the ViT-L of satellite images."""
    place = lab_place(file)
    return place is not None and (file.vouched or not of_satellites(place))


DINOV3 = Format(
    "dinov3",
    "dinov3",
    "facebookresearch/dinov3 `dinov3_*_pretrain_lvd1689m-*.pth`, all ViTs and ConvNeXts, and teachers of own runs",
    "class token, or pooled and normed map",
    LAB,
    is_lab,
    read_lab,
)
DINOV3_SAT = Format(
    "dinov3_sat",
    "dinov3",
    "facebookresearch/dinov3 `dinov3_vitl16_pretrain_sat493m-*.pth`; the 7B one and other spellings with format=dinov3_sat",
    "class token",
    replace(LAB, mean=SATELLITE[0], std=SATELLITE[1]),
    is_satellite,
    seen_from_above,
)
HF_DINOV3 = Format(
    "hf_dinov3",
    "huggingface",
    "transformers DINOv3ViTModel and DINOv3ConvNextModel of facebook/dinov3-*",
    "class token, or pooled and normed map",
    HUGGING_FACE,
    lambda file: hf_place(file) is not None,
    read_hf,
)
TIMM_DINOV3 = Format(
    "timm_dinov3",
    "timm",
    "timm `vit_*_dinov3`, `vit_*_dinov3_qkvb`, `convnext_*.dinov3_lvd1689m`",
    "class token, or pooled and normed map",
    TIMM,
    lambda file: timm_place(file) is not None,
    read_timm,
)
