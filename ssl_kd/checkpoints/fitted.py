"""What the weights of a ViT show of how timm has to be called for them, where neither a config nor a person says it.

Cards pass such things to timm by hand: `init_values` and `img_size` (UNI, H-optimus), registers, SwiGLU layers as code
(Virchow, UNI 2). Width, depth and heads are never taken from the weights: a file that lost blocks would not be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from ssl_kd.checkpoints.formats.vits import ratio

if TYPE_CHECKING:
    from timm.models import VisionTransformer

GATED = "vit_giant_patch14_dinov2"  # timm's ViT whose MLPs are SwiGLU
# Arguments of timm's ViT that older configs have beside `architecture`, and newer ones in model_args.
FLAT = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "no_embed_class")


def fitted(
    plain: nn.Module, arch: str, args: Mapping[str, object], state: Mapping[str, Tensor]
) -> tuple[str, dict[str, object]]:
    """Architecture and arguments with what the weights have: layer scale, registers, the grid of positions, SwiGLU layers.

    What is already given stays, but for the grid: timm resizes positions when it loads, here they are resized in use.
    """
    import timm

    out = dict(args)
    positions = state.get("pos_embed")
    if type(plain) is not timm.models.VisionTransformer or positions is None or positions.ndim != 3:
        return arch, out
    block: Any = plain.blocks[0]
    if "blocks.0.ls1.gamma" in state and isinstance(block.ls1, nn.Identity):
        out["init_values"] = 1e-5  # its size does not matter: the weights have it
    if "reg_token" in state and plain.reg_token is None and "reg_tokens" not in out:
        out["reg_tokens"] = state["reg_token"].shape[1]
    out |= _grid(plain, out, positions.shape[1], state)
    into, back = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if into is None or back is None or into.shape[0] != 2 * back.shape[1]:
        return arch, out
    if (block.mlp.fc1.weight.shape, block.mlp.fc2.weight.shape) == (into.shape, back.shape):
        return arch, out  # it is one of timm's that have them
    return GATED, _gated(plain, out, into.shape[0])


def _grid(
    plain: VisionTransformer, args: Mapping[str, object], count: int, state: Mapping[str, Tensor]
) -> dict[str, object]:
    """The image size that so many positions are for, and whether they are of the patches alone; nothing if no square is."""
    ahead = (state["reg_token"].shape[1] if "reg_token" in state else 0) + (plain.cls_token is not None)
    own = bool(plain.no_embed_class)
    for bare in (own,) if "no_embed_class" in args else (own, not own):
        patches = count - (0 if bare else ahead)
        grid = math.isqrt(max(patches, 0))
        if grid and grid * grid == patches:
            side = grid * int(plain.patch_embed.patch_size[0])
            found: dict[str, object] = {} if side == int(plain.patch_embed.img_size[0]) else {"img_size": side}
            return found if bare == own else found | {"no_embed_class": bare}
    return {}


def _gated(plain: VisionTransformer, args: Mapping[str, object], hidden: int) -> dict[str, object]:
    """The arguments of GATED for the network that was meant."""
    dim, block = int(plain.embed_dim), cast(Any, plain.blocks[0])
    own: dict[str, object] = {
        "img_size": int(plain.patch_embed.img_size[0]),
        "patch_size": int(plain.patch_embed.patch_size[0]),
        "embed_dim": dim,
        "depth": len(plain.blocks),
        "num_heads": int(block.attn.num_heads),
        "init_values": None if isinstance(block.ls1, nn.Identity) else 1e-5,
        "reg_tokens": 0 if plain.reg_token is None else int(plain.reg_token.shape[1]),
        "no_embed_class": bool(plain.no_embed_class),
    }
    return {**own, **args, "mlp_ratio": ratio(hidden, dim)}
