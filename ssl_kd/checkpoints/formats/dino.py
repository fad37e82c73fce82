"""DINO (facebookresearch/dino): backbone files, full and own-training checkpoints; ViT, XCiT and ResNet.

Full checkpoints hold a student and a teacher; the official evaluation reads the teacher. Its keys start with
`backbone.`, or with `module.backbone.` where batch norm made the script wrap the teacher as well. The linear evaluation
of ViT-B interleaves class token and mean patch token channel by channel.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, State, Weights, paths, rename, require, select
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import Preprocessing

BICUBIC = Preprocessing(interpolation="bicubic")
# (width, depth) -> timm's name without patch size, and heads
XCITS = {
    (128, 12): ("xcit_nano_12", 4),
    (192, 12): ("xcit_tiny_12", 4),
    (192, 24): ("xcit_tiny_24", 4),
    (384, 12): ("xcit_small_12", 8),
    (384, 24): ("xcit_small_24", 8),
    (512, 24): ("xcit_medium_24", 8),
    (768, 24): ("xcit_large_24", 16),
}


def is_dino_vit(state: State) -> bool:
    """A plain ViT: no layer scale (DINOv2), no projector inside, no registers."""
    return vits.is_vit(state) and not any(
        name.startswith(("blocks.0.ls1", "blocks.0.0.", "head.", "reg_token", "register_tokens", "pos_embeder"))
        for name in state
    )


def is_xcit(state: State) -> bool:
    """XCiT in the authors' names; timm spells the module pos_embed."""
    return any(name.startswith("pos_embeder.") for name in state)


def read_vit(state: State, where: str, origin: str) -> Weights:
    """A DINO ViT whose names are timm's already."""
    arch, args, dim = vits.describe(state, positions="offset", interleave=True)
    return Weights(
        arch,
        args,
        dim,
        state,
        vits.native(BICUBIC, args),
        "cls",
        f"DINO ViT of width {dim}, patch {args.get('patch_size', 16)}{origin}",
        where or "the whole file",
        paths((where, state)),
    )


def read_xcit(given: State, where: str, origin: str) -> Weights:
    """An XCiT; timm keeps query, key and value of the class attention apart."""
    state: State = {}
    for name, tensor in rename(given, {r"^pos_embeder\.": "pos_embed."}).items():
        if name.startswith("cls_attn_blocks.") and ".attn.qkv." in name and tensor.shape[0] % 3 == 0:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[name.replace(".qkv.", f".{part}.")] = piece
        else:
            state[name] = tensor
    dim = state["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if (dim, depth) not in XCITS:
        raise BrokenCheckpoint(
            f"an XCiT of width {dim} with {depth} blocks is not known: blocks are missing, or it is another network"
        )
    name, heads = XCITS[dim, depth]
    patch = 16 if "patch_embed.proj.6.0.weight" in state else 8
    require_xcit(state, name, patch)
    if state["blocks.0.attn.temperature"].shape[0] != heads:
        raise BrokenCheckpoint(f"{name} has {heads} heads, the file {state['blocks.0.attn.temperature'].shape[0]}")
    return Weights(
        f"{name}_p{patch}_224",
        {},
        dim,
        state,
        BICUBIC,
        "cls",
        f"DINO {name}, patch {patch}{origin}",
        where or "the whole file",
        paths((where, given)),
    )


def require_xcit(state: dict[str, Tensor], name: str, patch: int) -> None:
    """Every block of an XCiT has the same names, so the first shows what the others need."""
    expected = {name for name in state if not name.startswith(("blocks.", "cls_attn_blocks."))}
    for group in ("blocks", "cls_attn_blocks"):
        numbers = {name.split(".")[1] for name in state if name.startswith(f"{group}.")}
        leaves = set(select(state, f"{group}.0."))
        expected |= {f"{group}.{number}.{leaf}" for number in (*numbers, "0") for leaf in leaves}
    require(state, expected, f"{name}_p{patch}")


def teacher(file: Contents) -> tuple[str, State]:
    """Where a training checkpoint keeps the teacher's backbone, and the tensors there.

    People also save the teacher alone; DINO's head beside the backbone then tells that it is one.
    """
    alone = file.state() if any(".last_layer." in name for name in file.state()) else {}
    for path, given in (("teacher/", file.state("teacher")), ("", alone)):
        for prefix in ("module.backbone.", "backbone."):
            if state := select(given, prefix):
                return f"{path}{prefix}", state
    return "teacher/", {}


def matches_backbone(file: Contents) -> bool:
    """A flat ViT. In safetensors it is timm's copy, which is evaluated with other pixels."""
    return is_dino_vit(file.state()) and file.container != "safetensors"


def matches_xcit(file: Contents) -> bool:
    """A flat XCiT."""
    return is_xcit(file.state())


def matches_resnet(file: Contents) -> bool:
    """A flat ResNet whose fc was an identity."""
    return resnets.is_resnet(file.state()) and not any(name.startswith("fc.") for name in file.state())


def convert_resnet(file: Contents) -> Weights:
    """A flat ResNet. DINO published a ResNet-50 alone; of any other it is not known who trained it."""
    weights = resnets.read_resnet(file, "DINO", BICUBIC)
    if (weights.arch, weights.arch_args) == ("resnet50", {}):
        return weights
    return replace(weights, origin=f"{weights.origin.removeprefix('DINO ')} of unknown origin, read as DINO's")


def matches_full(file: Contents) -> bool:
    """A training checkpoint with one of the three kinds of teacher."""
    state = teacher(file)[1]
    return is_dino_vit(state) or is_xcit(state) or resnets.is_resnet(state)


def convert_full(file: Contents) -> Weights:
    """The teacher's backbone."""
    where, state = teacher(file)
    if is_xcit(state):
        return read_xcit(state, where, ", teacher of a training checkpoint")
    if resnets.is_resnet(state):
        path = ["teacher"] if where.startswith("teacher/") else []
        weights = resnets.read_resnet(file, "DINO", BICUBIC, path, where.removeprefix("teacher/"))
        return replace(weights, origin=f"{weights.origin}, teacher of a training checkpoint")
    return read_vit(state, where, ", teacher of a training checkpoint")


DINO_VIT = Format(
    "dino_vit",
    "dino",
    "facebookresearch/dino `dino_*_pretrain.pth`, ViT of any size",
    "class token",
    BICUBIC,
    matches_backbone,
    lambda file: read_vit(file.state(), "", ""),
)
DINO_XCIT = Format(
    "dino_xcit",
    "dino",
    "facebookresearch/dino `dino_xcit_*_pretrain.pth`",
    "class token",
    BICUBIC,
    matches_xcit,
    lambda file: read_xcit(file.state(), "", ""),
)
DINO_RESNET = Format(
    "dino_resnet",
    "dino",
    "facebookresearch/dino `dino_resnet50_pretrain.pth`; any bare torchvision-named ResNet without fc",
    "pooled map",
    BICUBIC,
    matches_resnet,
    convert_resnet,
)
DINO_FULL = Format(
    "dino_full",
    "dino",
    "facebookresearch/dino `*_full_checkpoint.pth` and own runs of main_dino.py: ViT, XCiT, ResNet",
    "teacher; class token or pooled map",
    BICUBIC,
    matches_full,
    convert_full,
)
