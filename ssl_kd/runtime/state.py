"""The saved state of a run: written whole or not at all, read back as data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ssl_kd.runtime.files import atomically


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a torch file so that `path` holds either the old state or the whole new one, never a part."""
    atomically(path, lambda file: torch.save(dict(state), file))


def load_state(path: Path) -> dict[str, Any]:
    """Read back what `save_state` wrote, as plain data on the CPU. Foreign files go through `ssl_kd.checkpoints.loading`."""
    return torch.load(path, map_location="cpu", weights_only=True)
