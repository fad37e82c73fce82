"""How long a network takes for a single image: what a camera or a search box waits for."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING

from ssl_kd.runtime import timing

from ..results.latency import Latency

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

ROUNDS, LEAST = 15, 5
SECONDS = 0.6  # per network and number of threads; a large network gets fewer rounds


def latencies(encoders: Mapping[str, Encoder], device: str = "cpu") -> dict[str, Latency]:
    """Return what one image costs each encoder, as `single_images` times it: on one thread, and on all that torch has.

    Encoders that are one network with other weights are measured as one, so that the noise of a clock is not shown as a
    difference between them.
    """
    import torch

    alike: dict[Hashable, list[str]] = {}
    for name, encoder in encoders.items():
        alike.setdefault(_network(encoder), []).append(name)
    first = {names[0]: encoders[names[0]] for names in alike.values()}
    every = torch.get_num_threads()
    counts = sorted({1, every}) if device == "cpu" else [every]
    taken: dict[int, dict[str, timing.Timing]] = {}
    try:
        for threads in counts:
            torch.set_num_threads(threads)
            taken[threads] = single_images(first, device, ROUNDS, SECONDS, LEAST)
    finally:
        torch.set_num_threads(every)
    return {
        name: Latency(device, {threads: found[names[0]] for threads, found in taken.items()})
        for names in alike.values()
        for name in names
    }


def _network(encoder: Encoder) -> Hashable:
    """What decides an encoder's cost: architecture, tensors' shapes, what is read off it, and the size of its images.

    Heads that are kept beside the network cost nothing, but for the one through which it is read.
    """
    head = encoder.head(encoder.feature)
    parts = [encoder.network] if head is None else [encoder.network, head]
    shapes = tuple((name, tuple(one.shape)) for part in parts for name, one in part.state_dict().items())
    return encoder.arch, str(encoder.arch_args), shapes, encoder.feature, encoder.preprocessing.size


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
