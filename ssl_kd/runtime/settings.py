"""The settings that every training command has: how it uses the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssl_kd.validation import SEEDS, setting


@dataclass
class MachineSettings:
    """Machine and reproducibility."""

    seed: int = setting(0, "of weights, shuffling and views", least=0, below=SEEDS)
    threads: int = setting(2, "threads that decode images", least=1)
    precision: Literal["auto", "32-true", "bf16-mixed"] = setting(
        "auto", "auto (bf16 where a short trial finds it faster), 32-true or bf16-mixed"
    )
    accelerator: Literal["auto", "cpu", "cuda"] = setting("auto", "auto, cpu or cuda")
    quiet: bool = setting(False, "no progress bar")
