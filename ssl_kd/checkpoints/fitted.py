"""What a folder's config.json leaves to its card, and the weights of a ViT show: how timm has to be called for them.

Cards pass such things to timm by hand: `init_values` and `img_size` (UNI, H-optimus), registers and SwiGLU layers as code
(Virchow, UNI 2). Width, depth and heads are never taken from the weights: a file that lost blocks would not be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from ssl_kd.checkpoints.formats.vits import ratio

if TYPE_CHECKING:
    from timm.models import VisionTransformer

GATED = "vit_giant_patch14_dinov2"  # timm's ViT whose MLPs are SwiGLU
# Arguments of timm's ViT that older configs have beside `architecture`, and newer ones in model_args.
FLAT = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "reg_tokens", "no_embed_class")


def fitted(plain: nn.Module, args: Mapping[str, object], state: Mapping[str, Tensor]) -> dict[str, object]:
    """The arguments with layer scale, registers and the grid of positions as the weights have them.

    What is already given stays, but for the grid: timm resizes positions when it loads, here they are resized in use.
    """
    import timm

    out = dict(args)
    positions = state.get("pos_embed")
    if type(plain) is not timm.models.VisionTransformer or positions is None or positions.ndim != 3:
        return out
    if "blocks.0.ls1.gamma" in state and isinstance(plain.blocks[0].ls1, nn.Identity):
        out["init_values"] = 1e-5  # its size does not matter: the weights have it
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    if registers and plain.reg_token is None and "reg_tokens" not in out:
        out["reg_tokens"] = registers
    ahead = registers + (plain.cls_token is not None)
    own = bool(plain.no_embed_class)
    for bare in (own,) if "no_embed_class" in out else (own, not own):
        count = positions.shape[1] - (0 if bare else ahead)
        grid = math.isqrt(max(count, 0))
        if grid and grid * grid == count:
            side = grid * int(plain.patch_embed.patch_size[0])
            out |= {"img_size": side} if side != int(plain.patch_embed.img_size[0]) else {}
            return out | ({"no_embed_class": bare} if bare != own else {})
    return out


def with_gates(
    plain: VisionTransformer, arch: str, args: Mapping[str, object], state: Mapping[str, Tensor]
) -> tuple[str, dict[str, object]]:
    """The architecture, or the same with SwiGLU layers where the weights have them and the config could not name code."""
    into, out = state.get("blocks.0.mlp.fc1.weight"), state.get("blocks.0.mlp.fc2.weight")
    if into is None or out is None or into.shape[0] != 2 * out.shape[1] or not hasattr(plain, "reg_token"):
        return arch, dict(args)
    dim = int(plain.embed_dim)
    return GATED, {
        "img_size": int(plain.patch_embed.img_size[0]),
        "patch_size": int(plain.patch_embed.patch_size[0]),
        "embed_dim": dim,
        "depth": len(plain.blocks),
        "num_heads": cast(int, plain.blocks[0].attn.num_heads),
        "mlp_ratio": ratio(into.shape[0], dim),
        "init_values": 1e-5 if "blocks.0.ls1.gamma" in state else None,
        "reg_tokens": 0 if plain.reg_token is None else int(plain.reg_token.shape[1]),
        "no_embed_class": bool(plain.no_embed_class),
    }
