"""Pictures through a network, batch by batch, read ahead in threads: the one loop behind features, indexes and searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ssl_kd.data.prefetch import batch_reader, prefetch
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import NonFinite, shown_name

if TYPE_CHECKING:
    from torch import Tensor

    from ssl_kd.models.encoder import Encoder

Job = TypeVar("Job", bound=Sequence[int])


def embedded(
    run: Callable[[Tensor], Mapping[str, Tensor]],
    encoder: Encoder,
    features: Sequence[str],
    images: ImageSource,
    jobs: Sequence[Job],
    threads: int = 2,
    title: str = "",
) -> Iterator[tuple[Job, list[int], dict[str, np.ndarray]]]:
    """Yield for each job the pictures asked for, those that were readable, and their features, (n, width) float32 each.

    run: uint8 pixels (B, 3, S, S), as the encoder's preprocessing makes them, to float32 features by name. ImagesError where too
    many pictures cannot be read; NonFinite, which names the first picture, for a feature that is no number.
    """
    batches = prefetch(batch_reader(images, encoder.preprocessing), jobs, threads)
    for job, (readable, pixels) in zip(jobs, batches, strict=True):
        if pixels is None:
            yield job, [], {name: np.empty((0, encoder.width(name)), np.float32) for name in features}
            continue
        found = {name: rows.numpy() for name, rows in run(pixels).items()}
        for name, rows in found.items():
            if bad := np.flatnonzero(~np.isfinite(rows).all(1)).tolist():
                raise NonFinite(
                    f"{f'{title}: ' if title else ''}{encoder.arch} gives {name} features that are not finite for "
                    f"{shown_name(str(images.ids[readable[bad[0]]]))}; look at the weights, or use precision 32-true"
                )
        yield job, readable, found
