"""Pictures through an encoder, batch by batch, read ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.data.prefetch import batch_reader, prefetch
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import NonFinite, UserError, shown_name

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder


def embedded(
    encoder: Encoder,
    images: ImageSource,
    numbers: np.ndarray,
    batch_size: int = 64,
    threads: int = 2,
    device: str = "cpu",
) -> Iterator[tuple[Sequence[int], list[int], np.ndarray]]:
    """Yield the pictures asked for, those that were readable, and their features (n, D) float32.

    ImagesError where too many cannot be read, NonFinite for a feature that is no number.
    """
    import torch

    from ssl_kd.runtime.devices import usable

    if batch_size < 1 or threads < 0:
        raise UserError(f"expected batch_size of at least 1 and threads of at least 0, got {batch_size} and {threads}")

    jobs = [numbers[i : i + batch_size].tolist() for i in range(0, len(numbers), batch_size)]
    where, home = usable(device), encoder.mean.device
    encoder.eval().to(where)
    try:
        for job, (readable, pixels) in zip(
            jobs, prefetch(batch_reader(images, encoder.preprocessing), jobs, threads), strict=True
        ):
            if pixels is None:
                yield job, [], np.empty((0, encoder.dim), np.float32)
                continue
            with torch.inference_mode():
                rows = encoder(pixels.to(where)).embedding.float().cpu().numpy()
            if bad := np.flatnonzero(~np.isfinite(rows).all(1)).tolist():
                name = shown_name(images.ids[readable[bad[0]]])
                raise NonFinite(f"{encoder.arch} gives numbers that are not finite for {name}; look at the weights")
            yield job, readable, rows
    finally:
        encoder.to(home)
