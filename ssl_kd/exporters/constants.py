"""What a program that is written out at one input size may hold as a constant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ssl_kd.models.backbones import RotaryNet
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.rotary import FixedRotary


@contextmanager
def fixed_positions(encoder: Encoder) -> Iterator[None]:
    """Inside, the rotary positions of a DINOv3 ViT are a table for its own input size, instead of sines to be computed."""
    network = encoder.network
    if not isinstance(network, RotaryNet):
        yield
        return
    backbone, size = network.backbone, encoder.preprocessing.size
    rotary = backbone.rope
    backbone.rope = FixedRotary(rotary, [size // side for side in backbone.patch_embed.patch_size])
    try:
        yield
    finally:
        backbone.rope = rotary
