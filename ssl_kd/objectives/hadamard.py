"""Orthogonal matrices whose entries are as equal in size as they can be: they spread variance evenly over dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def even_rotation(width: int) -> Tensor:
    """(width, width), float64, orthogonal: a Hadamard matrix / sqrt(width) where one is known here, else Hartley's.

    Known are the widths 2^k (q + 1) for k >= 0 and q = 0, 1 or a prime with q mod 4 = 3 (Sylvester, Paley): 192, 384, 768,
    1,024, 1,280, 1,536 and 2,048 among them. Hartley's matrix, cos + sin of 2 pi j k / width, is orthogonal for every width; the
    squares of its entries are even on average only.
    """
    found = _hadamard(width)
    if found is None:
        angle = 2 * torch.pi * torch.outer(*(torch.arange(width, dtype=torch.float64),) * 2) / width
        found = torch.cos(angle) + torch.sin(angle)
    return found / math.sqrt(width)


def _hadamard(width: int) -> Tensor | None:
    """Entries of 1 and -1, float64; None where none is known here."""
    core = width
    while core > 2 and core % 2 == 0 and not _is_paley(core):
        core //= 2
    if core > 2 and not _is_paley(core):
        return None
    found = _paley(core) if core > 2 else torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:core, :core]
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    while len(found) < width:
        found = torch.kron(pair, found)
    return found


def _is_paley(size: int) -> bool:
    q = size - 1
    return q % 4 == 3 and all(q % k for k in range(2, int(q**0.5) + 1))


def _paley(size: int) -> Tensor:
    """Paley's first construction: 1 + S, S skew-symmetric, made of which differences are squares modulo q = size - 1."""
    q = size - 1
    numbers = torch.arange(q)
    character = torch.full((q,), -1.0, dtype=torch.float64)
    character[numbers.square() % q] = 1
    character[0] = 0
    skew = torch.zeros(size, size, dtype=torch.float64)
    skew[0, 1:], skew[1:, 0] = 1, -1
    skew[1:, 1:] = character[(numbers[:, None] - numbers[None]) % q]
    return skew + torch.eye(size, dtype=torch.float64)
