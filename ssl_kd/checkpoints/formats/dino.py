"""DINO (facebookresearch/dino): backbone files, full and own-training checkpoints; ViT, XCiT and ResNet.

Full checkpoints hold a student and a teacher; the official evaluation reads the teacher. Its keys start with
`backbone.`, or with `module.backbone.` where batch norm made the script wrap the teacher as well. The linear evaluation
of ViT-B interleaves class token and mean patch token channel by channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.weights import (
    Contents,
    Format,
    Place,
    State,
    Weights,
    anywhere,
    find,
    must,
    paths,
    rename,
    require,
    select,
)
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


def is_xcit(state: State) -> bool:
    """XCiT in the authors' names; timm spells the module pos_embed."""
    return any(name.startswith("pos_embeder.") for name in state)


def read_vit(file: Contents, place: Place, sure: bool = True, note: str = "") -> Weights:
    """A DINO ViT whose names are timm's already. One of width 1280 is read as MAE's: DINO published none."""
    lab = "MAE" if place.state["pos_embed"].shape[-1] == 1280 and not sure else "DINO"
    return vits.read(file, place, lab, BICUBIC, sure, note=note, positions="offset", interleave=True)


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


HEADS = (".last_layer.", "head.mlp.", "projection_head.", "prototypes.")  # of today's code and of that before June 2021
MASK_HEADS = (".last_layer2.", ".mlp2.", "masked_embed")  # iBOT's, which is trained like DINO in all else
TEACHERS = ("module.backbone.", "backbone.")


def teacher(file: Contents) -> Place:
    """Where a training checkpoint keeps the teacher's backbone.

    People also save the teacher alone; DINO's head beside the backbone then tells that it is one.
    """
    alone = any(".last_layer." in name for name in file.without_values().state())
    places: list[tuple[str, ...]] = [("teacher",), ()] if alone else [("teacher",)]
    return find(file, bool, places, TEACHERS) or Place(("teacher",), "", {})


def has(file: Contents, heads: Sequence[str]) -> bool:
    """Whether student or teacher hold a tensor of one of these names."""
    file = file.without_values()
    names = [*file.state("teacher"), *file.state("student"), *file.state()]
    return any(head in name for name in names for head in heads)


def bare(file: Contents) -> Place | None:
    """A ViT with nothing around it; where somebody vouches for the format, wherever in the file it lies."""
    return anywhere(file, vits.is_plain) if file.vouched else find(file, vits.is_plain)


def matches_backbone(file: Contents) -> bool:
    """A flat ViT. In safetensors it is timm's copy, which is evaluated with other pixels."""
    return (file.vouched or file.container != "safetensors") and bare(file) is not None


def convert_backbone(file: Contents) -> Weights:
    """DINO published this layout, and so may anybody: nothing in it says who trained it."""
    return read_vit(file, must(bare(file), "a ViT"), sure=False)


def matches_xcit(file: Contents) -> bool:
    """A flat XCiT."""
    return is_xcit(file.state())


def matches_resnet(file: Contents) -> bool:
    """A flat ResNet whose fc was an identity, not saved from a GPU: DINO's lay on the CPU."""
    return resnets.bare(file) is not None and (file.vouched or not resnets.from_gpu(file))


def convert_resnet(file: Contents) -> Weights:
    """DINO published a ResNet-50 in this layout, and so may anybody."""
    return resnets.read_at(file, must(resnets.bare(file), "a ResNet"), "DINO", BICUBIC, sure=False)


def matches_full(file: Contents) -> bool:
    """A training checkpoint with one of the three kinds of teacher, and no head for masked patches."""
    state = teacher(file).state
    return (vits.is_plain(state) or is_xcit(state) or resnets.is_resnet(state)) and not has(file, MASK_HEADS)


def convert_full(file: Contents) -> Weights:
    """The teacher's backbone. Without DINO's head beside it, it may be that of another method with a teacher."""
    place, sure, note = teacher(file), has(file, HEADS), ", teacher of a training checkpoint"
    if is_xcit(place.state):
        file.fill(place.state.values())
        return read_xcit(place.state, "/".join([*place.path, place.prefix]), note)
    if resnets.is_resnet(place.state):
        weights = resnets.read_at(file, place, "DINO", BICUBIC, sure=sure)
        return replace(weights, origin=f"{weights.origin}{note}")
    return read_vit(file, place, sure, note)


DINO_VIT = Format(
    "dino_vit",
    "dino",
    "facebookresearch/dino `dino_*_pretrain.pth`; any bare ViT in its names, which is told to be of unknown origin",
    "class token",
    BICUBIC,
    matches_backbone,
    convert_backbone,
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
    "facebookresearch/dino `dino_resnet50_pretrain.pth`; any bare ResNet saved from a CPU, of unknown origin",
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
