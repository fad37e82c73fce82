"""Random numbers as functions of (seed, index, view, draw): no state, the same on every machine and in every process."""

from __future__ import annotations

import numpy as np


def scrambled(x: np.ndarray) -> np.ndarray:
    """uint64 to uint64, one to one and without a pattern: splitmix64's finaliser."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def uniform(seed: int, index: np.ndarray | int, view: int, draw: int) -> np.ndarray:
    """Numbers in [0, 1), one per index: a splitmix64 hash of (seed, index, view, draw). Shape of `index`, float64."""
    with np.errstate(over="ignore"):
        x = np.asarray(index, dtype=np.uint64)
        for part in (seed, view, draw):
            x = scrambled(x + np.uint64(0x9E3779B97F4A7C15) * np.uint64(part + 1))
        return (x >> np.uint64(11)).astype(np.float64) / float(1 << 53)
