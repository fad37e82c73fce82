"""Encoders with the weights that timm and torchvision publish themselves: `timm/NAME`, `torchvision/NAME`.

The libraries download and cache with their own clients; what they say about preprocessing is taken over.
"""

from __future__ import annotations

from typing import Any

from ssl_kd.architectures import make
from ssl_kd.encoder import Encoder, Preprocessing
from ssl_kd.errors import CheckpointError, nearest, one_line
from ssl_kd.networks import Network

PUBLISHERS = ("timm/", "torchvision/")


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
    return Encoder(network, name, {}, feature, pixels, f"{name}, pretrained")


def timm_weights(network: Network, name: str) -> Preprocessing:
    """Fill the network with timm's weights and return timm's preprocessing."""
    import timm

    tags = timm.list_pretrained(f"{name.split('.')[0]}*")
    if not (name in tags or any(tag.startswith(f"{name}.") for tag in tags)):
        raise CheckpointError(f"timm/{name}: timm publishes no weights for it.{nearest(name, tags)}")
    published: Any = timm.create_model(name, pretrained=True, num_classes=0)
    network.backbone.load_state_dict(published.state_dict())
    config = published.pretrained_cfg
    size = int(config["input_size"][-1])
    resize = int(size / config.get("crop_pct", 0.875))
    return Preprocessing(
        tuple(config["mean"]), tuple(config["std"]), size, resize, size, config.get("interpolation", "bicubic")
    )


def torchvision_weights(network: Network, name: str) -> Preprocessing:
    """Fill the network with torchvision's default weights and return their preprocessing."""
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
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
