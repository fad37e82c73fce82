"""Features of images under an encoder: read, preprocess, run, and collect into a bank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.data.embedding import embedded
from ssl_kd.data.sources.base import ImageSource, content_key
from ssl_kd.errors import UserError
from ssl_kd.runtime.progress import Progress

from ..banks import FeatureBank, digest_of_parts

if TYPE_CHECKING:
    import torch

    from ssl_kd.models.encoder import Encoder


def extract(
    encoder: Encoder,
    images: ImageSource,
    labels: np.ndarray | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    threads: int = 2,
    quiet: bool = False,
    title: str = "features",
    engine: str = "folded",
) -> FeatureBank:
    """Return the encoder's embeddings of all readable images, in order, as float32 and not normalised.

    Images are decoded, resized and cropped by the encoder's own preprocessing in `threads` threads and travel as uint8
    to the batch. Unreadable images are left out together with their labels. `engine` is a name of `ssl_kd.eval.extraction.engines`; the
    encoder's weights, mode and device are as before afterwards. Raises ImagesError (too many unreadable) and
    NonFinite. `ssl_kd.eval.extraction.feature_cache` does the same through a cache on disk.
    """
    if labels is not None and len(labels) != len(images):
        raise UserError(f"labels: {len(labels)} for {len(images)} images; both must be equal")
    kept: list[int] = []
    features = np.empty((len(images), encoder.dim), np.float32)
    with Progress(title, len(images), "images", quiet) as bar:
        for job, numbers, found in embed(
            encoder, images, (encoder.feature,), 0, batch_size, device, precision, threads, title, engine
        ):
            features[len(kept) : len(kept) + len(numbers)] = found[encoder.feature]
            kept.extend(numbers)
            bar.advance(len(job))
    if not kept:
        raise UserError(f"{title}: none of {len(images)} images could be read")
    return FeatureBank(
        features[: len(kept)],
        None if labels is None else np.asarray(labels)[kept],
        [str(images.ids[i]) for i in kept],
        bank_key(encoder, images, precision, engine=engine),
    )


def embed(
    encoder: Encoder,
    images: ImageSource,
    features: Sequence[str],
    start: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    precision: str = "32-true",
    threads: int = 2,
    title: str = "features",
    engine: str = "folded",
    parity: dict[str, float] | None = None,
) -> Iterator[tuple[range, list[int], dict[str, np.ndarray]]]:
    """Yield, batch by batch from image `start` on: the images asked for, those that were readable, and their features.

    Several named features come from one pass, each (rows, width) float32. `parity` is given the engine's cosine and
    relative error to the eager float32 network. NonFinite names the first bad image.
    """
    from .engines import started

    size = min(batch_size, len(images))
    jobs = [range(i, min(i + size, len(images))) for i in range(start, len(images), size)]
    with started(encoder, features, engine, device, precision, size) as run:

        def asked(pixels: torch.Tensor) -> dict[str, torch.Tensor]:
            found = run(pixels)
            if parity is not None:
                parity.update(run.parity)
            return found

        yield from embedded(asked, encoder, features, images, jobs, threads, title)


def bank_key(encoder: Encoder, images: ImageSource, precision: str, feature: str = "", engine: str = "folded") -> str:
    """Name what decides the features: weights, feature, preprocessing, precision, engine and images."""
    how = precision if engine == "eager" else f"{precision} {engine}"
    return digest_of_parts(
        encoder.digest, feature or encoder.feature, encoder.preprocessing.key(), how, content_key(images)
    )


def any_readable(encoder: Encoder, images: ImageSource, numbers: Sequence[int]) -> bool:
    """Return whether any of these images, which could not be read before, can be now: a lock, a network, a moment.

    All are tried: what is still unreadable counts against the share that is borne (ImagesError).
    """
    from ssl_kd.data.prefetch import batch_reader

    read, found = batch_reader(images, encoder.preprocessing), False
    images.forget_temporary(images.ids[i] for i in numbers)
    for i in numbers:
        found |= bool(read(range(i, i + 1))[0])
    return found
