"""The pictures on which an exported file is compared with its Encoder."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ssl_kd.data.open import open_without_limit_setting
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder

PICTURES = 6


def measured_on(images: Tensor | str | os.PathLike[str] | None, encoder: Encoder) -> Tensor:
    """What is measured on: (B, 3, S, S) in [0, 1]."""
    if images is None:
        return pictures(PICTURES, encoder.preprocessing.size)
    if isinstance(images, Tensor):
        return images
    opened = open_without_limit_setting(images)
    read = [opened.prepared(i, encoder.preprocessing) for i in range(min(len(opened), 4 * PICTURES))]
    seen = [pixels for pixels in read if pixels is not None]
    if len(seen) < 2:
        raise UserError(f"images: expected at least 2 readable pictures in {images}, got {len(seen)}")
    return torch.stack(seen).float() / 255


def pictures(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise with the spectrum of photographs (amplitude 1 / frequency), colours correlated: (count, 3, S, S) in [0, 1]."""
    drawn = torch.Generator().manual_seed(seed)
    across, down = torch.fft.rfftfreq(size)[None], torch.fft.fftfreq(size)[:, None]
    amplitude = (across.square() + down.square()).sqrt().clamp_min(1 / size).reciprocal()
    grey = torch.randn(count, 1, size, size, generator=drawn)
    noise = grey + 0.5 * torch.randn(count, 3, size, size, generator=drawn)
    x: Tensor = torch.fft.irfft2(torch.fft.rfft2(noise) * amplitude, s=(size, size))
    x = (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)
    return (0.45 + 0.25 * x).clamp(0, 1)
