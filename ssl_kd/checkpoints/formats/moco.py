"""MoCo v1, v2 (facebookresearch/moco) and v3 (facebookresearch/moco-v3), published files and own training runs.

v1 and v2 are read from the query encoder, v3 from `base_encoder`; neither from the momentum copy. All ViTs of v3 have
twelve heads, also the small one, whose shapes are those of DINO's ViT-S with six.
"""

from __future__ import annotations

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.weights import Contents, Format, State, Weights, drop, paths, select

HEADS = 12


def branch(file: Contents, name: str) -> tuple[list[str], str]:
    """Path and prefix below which this file has that encoder.

    Usually `state_dict` and DistributedDataParallel's `module.`; people also save the state dict alone, or unwrapped.
    """
    for path in (["state_dict"], []):
        for prefix in (f"module.{name}.", f"{name}."):
            if any(key.startswith(prefix) for key in file.state(*path)):
                return path, prefix
    return ["state_dict"], f"module.{name}."


def encoder(file: Contents, name: str) -> State:
    """The tensors of one of the encoders, without prefix."""
    path, prefix = branch(file, name)
    return select(file.state(*path), prefix)


def convert_moco(file: Contents) -> Weights:
    """The query encoder. v2 has a second layer in its head."""
    path, prefix = branch(file, "encoder_q")
    version = "v2" if f"{prefix}fc.2.weight" in file.state(*path) else "v1"
    return resnets.read_resnet(file, f"MoCo {version}", resnets.IMAGENET, path, prefix, ["fc."])


def matches_v3(file: Contents) -> bool:
    """A base encoder of either kind."""
    state = encoder(file, "base_encoder")
    return resnets.is_resnet(state) or vits.is_vit(state)


def convert_v3(file: Contents) -> Weights:
    """The base encoder without its projector, which is called fc in a ResNet and head in a ViT."""
    path, prefix = branch(file, "base_encoder")
    state = encoder(file, "base_encoder")
    if resnets.is_resnet(state):
        return resnets.read_resnet(file, "MoCo v3", resnets.IMAGENET, path, prefix, ["fc."])
    kept = drop(state, ["head."])
    return read_v3_vit(kept, kept, "/".join([*path, prefix]), " without head.")


def read_v3_vit(state: State, given: State, where: str, without: str) -> Weights:
    """A MoCo v3 ViT in timm's names; `given` are the same tensors as the file names them.

    The lab's code takes 224 px only. At other sizes position embeddings are interpolated as mmpretrain does for it.
    """
    convolutional = "patch_embed.proj.0.weight" in state
    published = state["pos_embed"].shape[-1] in vits.DEPTHS  # of another width, the file is the only word on its depth
    depth = (11 if convolutional else 12) if published else None
    arch, args, dim = vits.describe(state, heads=HEADS, depth=depth, positions="size")
    stem = "convolutional stem" if convolutional else f"patch {args.get('patch_size', 16)}"
    return Weights(
        arch,
        # Said even where it is timm's default, because it is what people get wrong.
        {**args, "num_heads": HEADS},
        dim,
        state,
        vits.native(resnets.IMAGENET, args),
        "cls",
        f"MoCo v3 ViT of width {dim}, {HEADS} heads, {stem}",
        f"{where}{without}",
        paths((where, given)),
    )


MOCO = Format(
    "moco",
    "moco",
    "facebookresearch/moco v1 and v2, published and own runs, any torchvision ResNet",
    "query encoder; pooled map",
    resnets.IMAGENET,
    lambda file: resnets.is_resnet(encoder(file, "encoder_q")),
    convert_moco,
)
MOCO_V3 = Format(
    "moco_v3",
    "moco",
    "facebookresearch/moco-v3, published and own runs: ResNet, ViT, ViT with convolutional stem",
    "base encoder; class token or pooled map",
    resnets.IMAGENET,
    matches_v3,
    convert_v3,
)
