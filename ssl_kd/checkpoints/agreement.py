"""Whether a folder's config.json and its weights speak of the same network; what shapes cannot show, the config decides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from torch import nn

from ssl_kd.checkpoints.by_architecture import best, by_architecture
from ssl_kd.checkpoints.cards import card_of
from ssl_kd.checkpoints.fitted import FLAT
from ssl_kd.checkpoints.folders import CONFIG, PROCESSOR, Folder
from ssl_kd.checkpoints.formats.weights import Contents, Weights
from ssl_kd.checkpoints.reading import Reading
from ssl_kd.errors import BrokenCheckpoint, UserError, one_line
from ssl_kd.models.backbones import VisionTransformerNet
from ssl_kd.models.factory import make, without_numbers

# Settings of timm that decide no tensor, or that are set here.
NOT_OURS = ("num_classes", "dynamic_img_size", "pretrained", "features_only", "drop_rate", "drop_path_rate")
POOLED = {"fc_norm", "attn_pool"}  # behind a pool over the patches, where timm's network has them
CODE = ("mlp_layer", "act_layer", "norm_layer", "embed_layer", "block_fn")  # named as code, which is not run


def agreed(weights: Weights, config: Mapping[str, object]) -> Weights:
    """The weights with the heads and the epsilon of transformers' config. BrokenCheckpoint where they disagree."""
    args = dict(weights.arch_args)
    network = without_numbers(lambda: make(weights.arch, args))
    if isinstance(network, VisionTransformerNet):
        heads, epsilon = config.get("num_attention_heads"), config.get("layer_norm_eps")
        if type(heads) is int and heads != _attention(network.backbone.blocks[0], "num_heads"):
            args["num_heads"] = heads
        if isinstance(epsilon, float) and epsilon != _epsilon(network.backbone):
            args["norm_eps"] = epsilon
        network = without_numbers(lambda: make(weights.arch, args))
    for name, found in facts(network.backbone):
        said = config.get(name)
        if type(said) is int and found is not None and said != found:
            raise BrokenCheckpoint(f"{CONFIG} says {name} {said}, but the weights beside it have {found}")
    return replace(weights, arch_args=args)


def facts(backbone: nn.Module) -> Iterator[tuple[str, int | None]]:
    """What a transformers config calls the facts about a ViT."""
    blocks, patches = getattr(backbone, "blocks", None), getattr(backbone, "patch_embed", None)
    yield "num_channels", 3
    if blocks is None or patches is None:
        return
    yield "hidden_size", getattr(backbone, "embed_dim", None)
    yield "num_hidden_layers", len(blocks)
    yield "num_attention_heads", _attention(blocks[0], "num_heads")
    yield "patch_size", int(patches.patch_size[0])


def _attention(block: object, name: str) -> int | None:
    return getattr(getattr(block, "attn", None), name, None)


def _epsilon(backbone: nn.Module) -> float | None:
    return next((layer.eps for layer in backbone.modules() if isinstance(layer, nn.LayerNorm)), None)


def timms(file: Contents, folder: Folder, given: Reading) -> Weights:
    """The network that timm's config.json names, with its model_args, and with what its card or its weights say beside."""
    arch, args = str(folder.config["architecture"]), folder.config.get("model_args") or {}
    if not isinstance(args, Mapping):
        raise BrokenCheckpoint(f"{CONFIG}: model_args is no mapping")
    pool = folder.config.get("global_pool", args.get("global_pool"))
    flat = {name: folder.config[name] for name in FLAT if name in folder.config and arch.startswith("vit_")}
    card = card_of(folder.name)
    args = {**(card.args if card else {}), **flat, **args}
    args = {name: value for name, value in args.items() if name not in (*NOT_OURS, *CODE, "global_pool")}
    try:
        plain = without_numbers(lambda: make(arch, dict(args))).backbone
    except UserError as error:
        raise type(error)(f"{CONFIG}: {error}") from error
    found = best(file, plain.state_dict()).file
    state = found.state() if isinstance(found.nodes, Mapping) else {}
    if POOLED & {name.partition(".")[0] for name in state} and isinstance(pool, str) and pool:
        args["global_pool"] = pool
    elif pool == "avg" and hasattr(plain, "blocks") and getattr(plain, "global_pool", "") == "token":
        given = replace(given, feature=given.feature or "avg")
    given = replace(given, feature=given.feature or folder.feature)
    origin = f"{folder.name or 'timm folder'} ({folder.config['architecture']})"
    weights = by_architecture(file, arch, args, given, folder.pixels(), origin)
    said = folder.config.get("num_features")
    network = without_numbers(lambda: make(weights.arch, weights.arch_args))
    own = getattr(network.backbone, "num_features", None)
    if type(said) is int and own is not None and said != own:
        raise BrokenCheckpoint(f"{CONFIG} says num_features {said}, but {arch} with its model_args has {own}")
    return weights


def of_transformers(weights: Weights, folder: Folder) -> Weights:
    """A recognised format with what a transformers folder says of it."""
    kind = folder.config.get("model_type")
    if kind is not None and not isinstance(kind, str):
        raise BrokenCheckpoint(f"{CONFIG}: model_type is {one_line(kind)}")
    if not isinstance(kind, str):
        return weights
    name = f"{folder.name}, " if folder.name else ""
    feature = folder.feature or weights.feature
    origin = f"{name}{weights.origin}" + (
        "" if folder.pixels() else f", pixels as its family has them (no {PROCESSOR})"
    )
    return replace(agreed(weights, folder.config), feature=feature, origin=origin)
