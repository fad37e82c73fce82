"""Encoders with the weights that timm and torchvision publish themselves: `timm/NAME`, `torchvision/NAME`.

The libraries download and cache with their own clients; what they say about preprocessing is taken over. Where
SSL_KD_OFFLINE forbids the network, only what their caches hold is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch

from ssl_kd.checkpoints.licences import stated
from ssl_kd.errors import CheckpointError, nearest, one_line
from ssl_kd.models.backbones import Network
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.factory import make
from ssl_kd.models.preprocessing import Preprocessing, timm_pixels
from ssl_kd.runtime.network import offline

PUBLISHERS = ("timm/", "torchvision/")
NOT_HERE = "SSL_KD_OFFLINE is set, and its weights ({}) are not in the library's cache; unset it, or pass a file"


def load(name: str, feature: str | None = None) -> Encoder:
    """The Encoder of `timm/NAME` or `torchvision/NAME`, pretrained. CheckpointError when it cannot be had."""
    source, _, rest = name.partition("/")
    network = make(name, {})
    try:
        pixels = timm_weights(network, rest) if source == "timm" else torchvision_weights(network, rest)
    except CheckpointError:
        raise
    except Exception as error:  # whatever a download client raises, the answer is the same
        raise CheckpointError(f"{name}: its weights could not be had: {one_line(error, 160)}") from error
    encoder = Encoder(network, name, {}, feature, pixels, f"{name}, pretrained")
    encoder.licence = licence_of(source, rest)
    return encoder


def licence_of(source: str, name: str) -> str:
    """What timm says of its weights; torchvision says nothing."""
    if source != "timm":
        return "not stated by torchvision"
    import timm

    config = timm.get_pretrained_cfg(name)
    return stated(getattr(config, "license", None)) or "not stated by timm"


def timm_weights(network: Network, name: str) -> Preprocessing:
    """Fill the network with timm's weights and return timm's preprocessing."""
    import timm

    tags = timm.list_pretrained(f"{name.split('.')[0]}*")
    if not (name in tags or any(tag.startswith(f"{name}.") for tag in tags)):
        raise CheckpointError(f"timm/{name}: timm publishes no weights for it.{nearest(name, tags)}")
    file = {"file": timm_file(name), "custom_load": False} if offline() else None
    published = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, num_classes=0)
    network.backbone.load_state_dict(published.state_dict())
    return timm_pixels(cast(Mapping[str, object], published.pretrained_cfg))


def timm_file(name: str) -> str:
    """The file that timm's client has in its cache for these weights; CheckpointError where it has none."""
    import timm
    from huggingface_hub import try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    assert config is not None  # timm publishes weights of that name
    files = [config.hf_hub_filename] if config.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
    repository = config.hf_hub_id or ""
    for file in files if repository else ():
        if isinstance(found := try_to_load_from_cache(repository, file), str):
            return found
    raise CheckpointError(f"timm/{name}: {NOT_HERE.format(repository or config.url)}")


def torchvision_weights(network: Network, name: str) -> Preprocessing:
    """Fill the network with torchvision's default weights and return their preprocessing."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    if offline() and not cached.exists():
        raise CheckpointError(f"torchvision/{name}: {NOT_HERE.format(cached)}")
    state = weights.get_state_dict(progress=True, check_hash=True)
    wanted = set(network.backbone.state_dict())
    network.backbone.load_state_dict({key: value for key, value in state.items() if key in wanted})
    given = weights.transforms()
    return Preprocessing(
        tuple(given.mean),
        tuple(given.std),
        given.crop_size[0],
        given.resize_size[0],
        given.crop_size[0],
        given.interpolation.value,
    )
