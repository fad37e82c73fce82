"""ViTs of the methods that mask patches, next door to DINO: iBOT, MSN, MAE and I-JEPA, published and training files.

A training file says whose it is by what lies beside the backbone: a head for masked patches (iBOT), a decoder (MAE), a
predictor (I-JEPA), prototypes (MSN). Alone, the backbones have DINO's names and shapes, and are told to be of unknown origin.
"""

from __future__ import annotations

from dataclasses import replace

from ssl_kd.checkpoints.formats import resnets, vits
from ssl_kd.checkpoints.formats.dino import BICUBIC, MASK_HEADS, has
from ssl_kd.checkpoints.formats.dino import teacher as dino_teacher
from ssl_kd.checkpoints.formats.weights import Contents, Format, Place, State, Weights, anywhere, find, must

MASKED = ("masked_embed",)
DECODER = ("mask_token", "decoder_")  # MAE's own names, beside those of its encoder


def ibot_place(file: Contents) -> Place | None:
    """The teacher of a run with a head for masked patches, or a backbone alone under `state_dict`."""
    place = dino_teacher(file)
    if vits.is_plain(place.state):
        return place if has(file, MASK_HEADS) or file.vouched else None
    if file.vouched:
        return anywhere(file, vits.is_plain)
    return find(file, lambda state: vits.is_plain(drop_masked(state)), [("state_dict",)])


def drop_masked(state: State) -> State:
    """Without the embedding of masked patches, which only iBOT's student has."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(MASKED)}


def convert_ibot(file: Contents) -> Weights:
    """iBOT interpolates as DINO does, and puts the mean patch token behind the class token, channels not mixed."""
    place = must(ibot_place(file), "iBOT's ViT")
    sure = place.path == ("teacher",) or "masked_embed" in place.state or has(file, MASK_HEADS)
    return vits.read(file, place, "iBOT", BICUBIC, sure, MASKED, positions="offset")


def msn_place(file: Contents) -> Place | None:
    """The target encoder, with MSN's projection head (`fc.`) or without."""
    if file.state("predictor"):
        return None
    return find(file, vits.is_vit, [("target_encoder",)]) or (anywhere(file, vits.is_vit) if file.vouched else None)


def convert_msn(file: Contents) -> Weights:
    """MSN's evaluations read the class token before the final norm."""
    place = must(msn_place(file), "MSN's ViT")
    sure = any(name.startswith("fc.") for name in place.state) or file.at("prototypes") is not None
    return vits.read(file, place, "MSN", resnets.IMAGENET, sure, ["fc."], "cls_prenorm", positions="size")


def is_mae(state: State) -> bool:
    """A ViT beside MAE's decoder."""
    return vits.is_vit(state) and any(name.startswith("decoder_") for name in state)


def mae_place(file: Contents) -> Place | None:
    """An encoder beside a decoder, or an encoder alone under `model`."""
    found = find(file, is_mae, [("model",), (), ("state_dict",)]) or find(file, vits.is_plain, [("model",)])
    return found or (anywhere(file, vits.is_plain) if file.vouched else None)


def convert_mae(file: Contents) -> Weights:
    """MAE's linear probe sees all patches, and the class token after the final norm."""
    place = must(mae_place(file), "MAE's ViT")
    return vits.read(file, place, "MAE", BICUBIC, is_mae(place.state), DECODER, positions="size")


def ijepa_place(file: Contents) -> Place | None:
    """The target encoder of a file with a predictor, which has no class token."""
    if not file.vouched and not file.state("predictor"):
        return None
    found = find(file, is_ijepa, [("target_encoder",), ("encoder",)] if file.vouched else [("target_encoder",)])
    return found or (anywhere(file, is_ijepa) if file.vouched else None)


def is_ijepa(state: State) -> bool:
    """A ViT without class token."""
    return vits.has_blocks(state) and "cls_token" not in state


def convert_ijepa(file: Contents) -> Weights:
    """I-JEPA is evaluated by the mean of the target encoder's patch tokens, each network at the size it was trained at."""
    weights = vits.read(
        file, must(ijepa_place(file), "I-JEPA's ViT"), "I-JEPA", resnets.IMAGENET, feature="avg", positions="size"
    )
    return replace(weights, preprocessing=vits.at_own_size(resnets.IMAGENET, weights.arch_args))


IBOT = Format(
    "ibot",
    "ibot",
    "bytedance/ibot: `checkpoint_teacher.pth`, own runs with a head for masked patches; any bare ViT under `state_dict`",
    "teacher; class token",
    BICUBIC,
    lambda file: ibot_place(file) is not None,
    convert_ibot,
)
MSN = Format(
    "msn",
    "msn",
    "facebookresearch/msn `vit*_*ep.pth.tar` and own runs",
    "target encoder; class token before the final norm",
    resnets.IMAGENET,
    lambda file: msn_place(file) is not None,
    convert_msn,
)
MAE = Format(
    "mae",
    "mae",
    "facebookresearch/mae `mae_pretrain_vit_*.pth`, with the decoder or without, own runs; any bare ViT under `model`",
    "encoder; class token",
    BICUBIC,
    lambda file: mae_place(file) is not None,
    convert_mae,
)
IJEPA = Format(
    "ijepa",
    "ijepa",
    "facebookresearch/ijepa `IN*-vit*.pth.tar` and own runs",
    "target encoder; mean patch token",
    resnets.IMAGENET,
    lambda file: ijepa_place(file) is not None,
    convert_ijepa,
)
