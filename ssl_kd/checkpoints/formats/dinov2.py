"""DINOv2 (facebookresearch/dinov2): backbones with and without registers, and own training runs.

Without registers position embeddings are interpolated with DINO's offset, with registers to the size and with
antialias. Training checkpoints cut the blocks into chunks: `blocks.1.3.` is chunk 1, block 3 of the whole network.
"""

from __future__ import annotations

from ssl_kd.checkpoints.formats import vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, State, Weights, drop, paths, rename, select
from ssl_kd.models.preprocessing import Preprocessing

BICUBIC = Preprocessing(interpolation="bicubic")
RULES = {
    r"^blocks\.\d+\.(\d+)\.": r"blocks.\1.",  # drop the chunk; the second number counts through all blocks
    r"^register_tokens$": "reg_token",
    r"\.mlp\.w12\.": ".mlp.fc1.",
    r"\.mlp\.w3\.": ".mlp.fc2.",
}


def is_dinov2(state: State) -> bool:
    """Layer scale and the mask token of the authors' own code."""
    return vits.is_vit(state) and "mask_token" in state and any(name.endswith(".ls1.gamma") for name in state)


def read_dinov2(given: State, where: str, origin: str) -> Weights:
    """A DINOv2 ViT in the authors' names, below `where`."""
    wanted = drop(given, ["mask_token"])
    state = rename(wanted, RULES)
    registers = "reg_token" in state
    if registers:
        state = vits.fold_class_position(state)
    arch, args, dim = vits.describe(state, positions="antialias" if registers else "offset")
    return Weights(
        arch,
        args,
        dim,
        state,
        vits.native(BICUBIC, args),
        "cls",
        f"DINOv2 ViT of width {dim}, patch {args.get('patch_size', 16)}{', registers' if registers else ''}{origin}",
        f"{where or 'the whole file'} without mask_token",
        paths((where, wanted)),
    )


def teacher(file: Contents) -> State:
    """The teacher's backbone of a training checkpoint."""
    return select(file.state("teacher"), "backbone.")


DINOV2 = Format(
    "dinov2",
    "dinov2",
    "facebookresearch/dinov2 `dinov2_vit*14[_reg4]_pretrain.pth`, S, B, L and g",
    "class token",
    BICUBIC,
    lambda file: is_dinov2(file.state()),
    lambda file: read_dinov2(file.state(), "", ""),
)
DINOV2_TRAIN = Format(
    "dinov2_train",
    "dinov2",
    "facebookresearch/dinov2 `teacher_checkpoint.pth` of own runs, chunked blocks or not",
    "teacher; class token",
    BICUBIC,
    lambda file: is_dinov2(teacher(file)),
    lambda file: read_dinov2(teacher(file), "teacher/backbone.", ", teacher of a training checkpoint"),
)
