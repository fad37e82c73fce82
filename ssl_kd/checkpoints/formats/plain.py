"""timm's and torchvision's own layouts: DINO and DINOv2 as timm publishes them, and supervised baselines."""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, Place, Rules, Weights, drop, paths, rename, select
from ssl_kd.models.preprocessing import Preprocessing

# crop_pct 0.9 of timm's DINO, 1.0 of its DINOv2
TIMM_DINO = Preprocessing(resize=248, interpolation="bicubic")
IJEPA_WIDTHS = (1280, 1408)  # of I-JEPA's ViT-H and ViT-g; timm's other ViTs without class token (SigLIP's) have others
TIMM_DINOV2 = Preprocessing(size=518, resize=518, crop=518, interpolation="bicubic")
TORCHVISION_VIT: Rules = {
    r"^class_token$": "cls_token",
    r"^conv_proj\.": "patch_embed.proj.",
    r"^encoder\.pos_embedding$": "pos_embed",
    r"^encoder\.ln\.": "norm.",
    r"^encoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
    r"\.ln_([12])\.": r".norm\1.",
    r"\.self_attention\.in_proj_": ".attn.qkv.",
    r"\.self_attention\.out_proj\.": ".attn.proj.",
    r"\.mlp\.(0|linear_1)\.": ".mlp.fc1.",
    r"\.mlp\.(3|linear_2)\.": ".mlp.fc2.",
}


def is_timm_vit(file: Contents) -> bool:
    """DINO's names in safetensors, or DINOv2 with timm's own name for registers and no mask token."""
    state = file.state()
    if is_timm_ijepa(file):
        return True
    if not vits.is_vit(state) or "mask_token" in state or any(name.startswith("head.") for name in state):
        return False
    return (
        "reg_token" in state
        or "blocks.0.ls1.gamma" in state
        or (vits.is_plain(state) and file.container == "safetensors")
    )


def is_timm_ijepa(file: Contents) -> bool:
    """A ViT without class token or anything beside it, of the width of an I-JEPA, in safetensors."""
    state = file.state()
    alone = vits.has_blocks(state) and "cls_token" not in state and not any(n.startswith(vits.EXTRAS) for n in state)
    return alone and file.container == "safetensors" and state["pos_embed"].shape[-1] in IJEPA_WIDTHS


def convert_timm_vit(file: Contents) -> Weights:
    """timm's names are the architecture's own. Layer scale at patch 14 and 518 px is DINOv2's; another ViT may be anybody's."""
    place = Place((), "", file.state())
    if is_timm_ijepa(file):
        like = "timm's I-JEPA"
        weights = vits.read(
            file, place, "timm I-JEPA", TIMM_DINO, False, like=like, feature="avg", positions="antialias"
        )
        size = weights.arch_args.get("img_size", 224)
        whole = 1.0 if isinstance(size, int) and size > 224 else None  # timm cuts nothing off at 448 px
        return replace(weights, preprocessing=TIMM_DINO.at(size, whole) if isinstance(size, int) else TIMM_DINO)
    if "blocks.0.ls1.gamma" not in place.state:
        like = "timm's DINO" if place.state["pos_embed"].shape[-1] != 1280 else "timm's MAE"
        return vits.read(file, place, "timm DINO", TIMM_DINO, sure=False, like=like, interleave=True)
    patch, side = place.state["patch_embed.proj.weight"].shape[-1], TIMM_DINOV2.size
    published = patch == 14 and (side // patch) ** 2 in (place.state["pos_embed"].shape[1] - n for n in (0, 1))
    weights = vits.read(file, place, "timm DINOv2", TIMM_DINOV2, published, like="timm's DINOv2")
    return replace(weights, preprocessing=vits.at_own_size(TIMM_DINOV2, weights.arch_args))


def convert_torchvision_vit(file: Contents) -> Weights:
    """torchvision's ViT in timm's names."""
    given = drop(file.state(), ["heads."])
    state = rename(given, TORCHVISION_VIT)
    arch, args, dim = vits.describe(state, positions="corners")
    side = args.get("img_size")
    pixels = resnets.IMAGENET.at(
        side if isinstance(side, int) else 224
    )  # torchvision takes no other size than a network's own
    origin = f"torchvision ViT of width {dim}, patch {args.get('patch_size', 16)} (supervised)"
    return Weights(arch, args, dim, state, pixels, "cls", origin, "the whole file without heads.", paths(("", given)))


def is_torchvision_resnet(file: Contents) -> bool:
    """A flat ResNet with a classifier."""
    state = file.state()
    return resnets.is_resnet(state) and "fc.weight" in state


def example_prefix(file: Contents) -> str:
    """What DataParallel put before the names."""
    return "module." if "module.fc.weight" in file.state("state_dict") else ""


def is_imagenet_example(file: Contents) -> bool:
    """A classifier beside bookkeeping. A state dict all alone in its file is SimCLR v1's conversion."""
    state = select(file.state("state_dict"), example_prefix(file))
    return resnets.is_resnet(state) and "fc.weight" in state and (example_prefix(file) != "" or file.size() > 1)


TIMM_VIT = Format(
    "timm_vit",
    "timm",
    "timm `vit_*_dinov2` (518 px), `vit_*_gap_*.*_ijepa` and `vit_*.dino` in safetensors; the latter's names are also those of "
    "timm's MAE",
    "class token",
    TIMM_DINO,
    is_timm_vit,
    convert_timm_vit,
)
TORCHVISION_VITS = Format(
    "torchvision_vit",
    "torchvision",
    "torchvision `vit_*.pth`, supervised",
    "class token",
    resnets.IMAGENET,
    lambda file: "class_token" in file.state() and "conv_proj.weight" in file.state(),
    convert_torchvision_vit,
)
TORCHVISION_RESNETS = Format(
    "torchvision_resnet",
    "torchvision",
    "torchvision and timm ResNets with their classifier, supervised",
    "pooled map",
    resnets.IMAGENET,
    is_torchvision_resnet,
    lambda file: resnets.read_resnet(file, "torchvision", resnets.IMAGENET, heads=["fc."], sure=False),
)
IMAGENET_EXAMPLE = Format(
    "imagenet_example",
    "torchvision",
    "checkpoints of PyTorch's ImageNet example and of linear evaluations made from it",
    "pooled map",
    resnets.IMAGENET,
    is_imagenet_example,
    lambda file: resnets.read_resnet(
        file, "ImageNet example", resnets.IMAGENET, ["state_dict"], example_prefix(file), ["fc."], sure=False
    ),
)
