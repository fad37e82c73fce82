"""The pictures of an index and of its queries through their encoder, as it is and in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.data.embedding import embedded
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_kd.models.encoder import Encoder


def vectors(
    encoder: Encoder,
    images: ImageSource,
    numbers: np.ndarray,
    batch_size: int = 64,
    threads: int = 2,
    device: str = "cpu",
) -> Iterator[tuple[Sequence[int], list[int], np.ndarray]]:
    """Yield the pictures asked for, those that were readable, and their features (n, D) float32; see `data.embedding`."""
    import torch

    from ssl_kd.runtime.devices import usable

    if batch_size < 1 or threads < 0:
        raise UserError(f"expected batch_size of at least 1 and threads of at least 0, got {batch_size} and {threads}")
    name, where, home = encoder.feature, usable(device), encoder.mean.device

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {name: encoder(pixels.to(where)).embedding.float().cpu()}

    jobs = [numbers[i : i + batch_size].tolist() for i in range(0, len(numbers), batch_size)]
    encoder.eval().to(where)
    try:
        for job, readable, found in embedded(run, encoder, (name,), images, jobs, threads):
            yield job, readable, found[name]
    finally:
        encoder.to(home)
