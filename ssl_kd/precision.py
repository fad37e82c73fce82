"""The device and the number format. Is bfloat16 faster here? Measured, never assumed.

With AMX or a GPU bf16 is several times faster than fp32; on processors without bf16 instructions it is up to eleven
times slower. So `precision="auto"` times a small product and a small convolution in both types once per process.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Literal

import torch

from ssl_kd.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@functools.cache
def bf16_pays(device_type: str = "cpu") -> bool:
    """True where a bf16 network step beats its fp32 twin by a tenth or more (about 50 ms, once per process)."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported()
    if device_type != "cpu":
        return False
    conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.ones(16, 128, 14, 14).to(memory_format=torch.channels_last)
    with torch.no_grad():
        return _best_of(conv, x, bf16=True) < 0.9 * _best_of(conv, x, bf16=False)


def _best_of(conv: torch.nn.Module, x: torch.Tensor, bf16: bool, runs: int = 4) -> float:
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            conv(x)
        times.append(time.perf_counter() - began)
    return min(times)


def resolve(precision: str, device_type: str) -> Literal["32-true", "bf16-mixed"]:
    """Turn 'auto' into Fabric's '32-true' or 'bf16-mixed' for this device."""
    bf16 = precision == "bf16-mixed" or (precision == "auto" and bf16_pays(device_type))
    return "bf16-mixed" if bf16 else "32-true"


def make_fabric(accelerator: str, precision: str) -> tuple[Fabric, str]:
    """A Fabric on one device (auto: a GPU if there is one) and the precision that was chosen for it.

    UserError when CUDA is asked for and absent, or when several processes were started: one device for now.
    """
    import logging
    import os

    from lightning_fabric import Fabric

    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator: cuda was asked for, but this torch sees no GPU; use auto or cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("several processes were started (WORLD_SIZE > 1), but training runs on one device so far")
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    kind = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    chosen = resolve(precision, kind)
    return Fabric(accelerator=kind, devices=1, precision=chosen), chosen
