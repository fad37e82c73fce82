"""How long a network takes for a single image: what a camera or a search box waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from ssl_kd.runtime import timing

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

ROUNDS, LEAST = 15, 3
SECONDS = 1.0  # per encoder; a large network gets fewer rounds


def latencies(encoders: Mapping[str, Encoder], device: str = "cpu") -> dict[str, float]:
    """Return each encoder's median milliseconds for one image, as `single_images` times it, in at most 15 rounds."""
    spent = single_images(encoders, device, ROUNDS, SECONDS, LEAST)
    return {name: 1000 * one.median for name, one in spent.items()}


def single_images(
    encoders: Mapping[str, Encoder],
    device: str = "cpu",
    rounds: int = timing.ROUNDS,
    seconds: float = timing.SECONDS,
    least: int = timing.LEAST,
) -> dict[str, timing.Timing]:
    """Time each encoder, in turns, on one image of its own size, in fp32, without reading and resizing.

    rounds, seconds, least: see `ssl_kd.runtime.timing.in_turns`. Modes and devices are as before afterwards.
    """
    import torch

    homes = {name: next((p.device for p in encoder.parameters()), None) for name, encoder in encoders.items()}
    modes = {name: encoder.training for name, encoder in encoders.items()}
    try:
        for encoder in encoders.values():
            encoder.eval().to(device)
        with torch.inference_mode():
            calls = {name: _asked(encoder, device) for name, encoder in encoders.items()}
            return timing.in_turns(calls, rounds, seconds, least)
    finally:
        for name, encoder in encoders.items():
            encoder.train(modes[name])
            if homes[name] is not None:
                encoder.to(homes[name])


def _asked(encoder: Encoder, device: str) -> Callable[[], None]:
    import torch

    side = encoder.preprocessing.size
    image = torch.full((1, 3, side, side), 0.5, device=device)

    def ask() -> None:
        encoder(image)
        if image.device.type == "cuda":
            torch.cuda.synchronize()

    return ask
