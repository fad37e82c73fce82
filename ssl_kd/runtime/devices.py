"""The device and the number format. Is bfloat16 faster here? Measured, never assumed.

With AMX or a GPU bf16 is several times faster than fp32; on processors without bf16 instructions it is up to eleven
times slower. So `precision="auto"` times a small product and a small convolution in both types once per process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import torch

from ssl_kd.errors import UserError
from ssl_kd.runtime.memory import keep_freed_blocks

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RUNS = 8  # of each type in the probe


@functools.cache
def bf16_pays(device_type: str = "cpu") -> bool:
    """True where a bf16 network step beats its fp32 twin by a tenth or more (about 50 ms, once per process)."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if device_type != "cpu":
        return False
    with torch.random.fork_rng(devices=[]):  # its weights must not change what a seed draws afterwards
        conv = torch.nn.Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.ones(16, 128, 14, 14).to(memory_format=torch.channels_last)
    best = {True: float("inf"), False: float("inf")}
    with torch.no_grad():
        for bf16 in (True, False) * RUNS:  # in turn, and the best of each: a busy machine slows both
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                began = time.perf_counter()
                conv(x)
                best[bf16] = min(best[bf16], time.perf_counter() - began)
    return best[True] < 0.9 * best[False]


def resolve(precision: str, device_type: str) -> Literal["32-true", "bf16-mixed"]:
    """Turn 'auto' into Fabric's '32-true' or 'bf16-mixed' for this device."""
    bf16 = precision == "bf16-mixed" or (precision == "auto" and bf16_pays(device_type))
    return "bf16-mixed" if bf16 else "32-true"


def writes_out_of_bounds(network: torch.nn.Module) -> bool:
    """Has it a layer whose gradient oneDNN writes outside its memory on this processor?

    On processors with AVX2 and no AVX-512, torch 2.14.1 does so for convolutions of 1 x 1 with a stride whose channels are no
    multiple of 8 (2, 4 and 6 tried: a crash sooner or later; 8 and 16: none).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2" and any(
        isinstance(part, torch.nn.Conv2d)
        and part.kernel_size == (1, 1)
        and max(part.stride) > 1
        and (part.in_channels % 8 or part.out_channels % 8)
        for part in network.modules()
    )


@contextmanager
def sound_gradients(network: torch.nn.Module) -> Iterator[None]:
    """A backward pass goes in here: without oneDNN where that would write outside its memory."""
    if not (torch.backends.mkldnn.enabled and writes_out_of_bounds(network)):
        yield
        return
    torch._C._set_mkldnn_enabled(False)  # type: ignore[attr-defined]  # torch.backends.mkldnn.flags warns of TF32
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(True)  # type: ignore[attr-defined]


def device_kind(accelerator: str) -> str:
    """cpu or cuda, for auto, cpu or cuda; UserError when CUDA is asked for and absent."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("accelerator: cuda was asked for, but this torch sees no GPU; use auto or cpu")
    return "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"


def make_fabric(accelerator: str, precision: str) -> tuple[Fabric, str]:
    """A launched Fabric (auto: on a GPU if there is one) and the precision that was chosen for it.

    Under torchrun it joins the processes that were started, one device each. `auto` then means fp32 on CPUs: a probe
    might answer differently on every rank.
    """
    import inspect
    import logging
    import os

    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    kind = device_kind(accelerator)
    if kind == "cpu":
        keep_freed_blocks()
    logging.getLogger("lightning_fabric.utilities.rank_zero").setLevel(logging.WARNING)
    world, local = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if world == 1:
        chosen = resolve(precision, kind)
        return Fabric(accelerator=kind, devices=1, precision=chosen), chosen
    chosen = "32-true" if precision == "auto" and kind == "cpu" else resolve(precision, kind)
    # Queues and statistics are computed alike on every rank: none needs to be sent around at each step.
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    fabric = Fabric(
        accelerator=kind,
        # Heads of terms that do not count in this epoch get no gradient, as in one process.
        strategy=DDPStrategy(find_unused_parameters=True, **{name: False}),  # type: ignore[arg-type]
        devices=local,
        num_nodes=world // local,
        precision=chosen,
    )
    fabric.launch()
    return fabric, chosen


def usable(device: str | torch.device) -> torch.device:
    """Return that device; UserError for another than the processor or a GPU that torch sees here."""
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise UserError(f"device: expected cpu or cuda, got {str(device)!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device: {device} was asked for, but torch does not see that GPU here; use cpu")
    return found
