"""How long a network takes for a single image: what a camera or a search box waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from ssl_kd.models.encoder import Encoder

ROUNDS, LEAST = 15, 3
SECONDS = 1.0  # per encoder; a large network gets fewer rounds


def latencies(encoders: Mapping[str, Encoder], device: str = "cpu") -> dict[str, float]:
    """Return each encoder's median milliseconds for one image of its own size, in fp32, without reading and resizing.

    The encoders take turns, so that a machine that is busy for a while is busy for all of them.
    """
    import torch

    inputs = {name: _one_image(encoder) for name, encoder in encoders.items()}
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    homes = {name: next((p.device for p in encoder.parameters()), None) for name, encoder in encoders.items()}
    modes = {name: encoder.training for name, encoder in encoders.items()}
    try:
        for name, encoder in encoders.items():
            encoder.eval().to(device)
            inputs[name] = inputs[name].to(device)
        with torch.inference_mode():
            for name, encoder in encoders.items():
                encoder(inputs[name])  # the first call sets things up
            for turn in range(ROUNDS):
                for name, encoder in encoders.items():
                    if turn < LEAST or sum(taken[name]) < SECONDS:
                        taken[name].append(_seconds(encoder, inputs[name], device))
    finally:
        for name, encoder in encoders.items():
            encoder.train(modes[name])
            if homes[name] is not None:
                encoder.to(homes[name])
    return {name: 1000 * statistics.median(seconds) for name, seconds in taken.items()}


def _one_image(encoder: Encoder) -> torch.Tensor:
    import torch

    side = encoder.preprocessing.size
    return torch.full((1, 3, side, side), 0.5)


def _seconds(encoder: Encoder, image: torch.Tensor, device: str) -> float:
    import torch

    began = time.perf_counter()
    encoder(image)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
