"""Relations: who is compared with whom. Each gives the student's and the teacher's similarity table, row by row.

Tables are cosines in float32, (R, C). Rows of N = V x B samples are view-major: row v * B + i is view v of image i.
A column that must not take part in a row holds -inf in both tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.views import Views

Tables = tuple[Tensor, Tensor]  # student's (R, C), teacher's (R, C)


class Relation(nn.Module):
    """What every relation says of itself: how many views it needs, and whether the student must have width Dt."""

    min_views: int = 1
    needs_teacher_width: bool = False


class ViewsTable(Relation):
    """Augmented views (rows, (V-1) B) against the plain views (columns, B) of the batch, each network with itself.

    The own image's column takes part. Source: DLKD's published code (view 0 is the plain one).
    """

    min_views = 2

    def forward(self, s: Tensor, t: Tensor, views: Views) -> Tables:
        """(N, Ds), (N, Dt) -> two ((V-1) B, B) tables."""
        b = len(views)
        s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        return s[b:] @ s[:b].T, t[b:] @ t[:b].T


class BatchTable(Relation):
    """Every sample of the batch against every other, each network with itself; the diagonal is left out."""

    def forward(self, s: Tensor, t: Tensor, views: Views) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables with -inf on the diagonal."""
        s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        own = torch.eye(len(s), dtype=torch.bool, device=s.device)
        return (s @ s.T).masked_fill(own, -torch.inf), (t @ t.T).masked_fill(own, -torch.inf)


class TeacherQueue(Relation):
    """Both networks against what the teacher said of the batch and of earlier images, kept in a ring buffer.

    The student is projected to the teacher's width, so this is a mixture of correlation and alignment. Empty slots never
    take part, and no image meets an older view of itself: the own sample is counted once, as itself.
    The memory, `size` x Dt float32, is part of the state that a run saves and restores.

    Source: the teacher queue of SEED (Fang et al., ICLR 2021), CompRess-1q (Koohpayegani et al., NeurIPS 2020) and
    LightlyTrain's distillation v1. Differs: a valid-count instead of random or zero slots, own sample masked by index.
    """

    min_views = 1
    needs_teacher_width = True
    bank: Tensor
    index: Tensor
    filled: Tensor
    head: Tensor

    def __init__(self, dim: int, size: int = 8192):
        super().__init__()
        if size < 1:
            raise UserError(f"queue size: expected at least 1, got {size}")
        self.size = size
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("index", torch.full((size,), -1, dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    def forward(self, s: Tensor, t: Tensor, views: Views) -> Tables:
        """(N, Dt), (N, Dt) -> two (N, N + filled) tables; the batch's columns come first."""
        s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        rows = torch.as_tensor(views.index, device=t.device).repeat(len(t) // len(views))
        filled = int(self.filled)
        columns = torch.cat([t, self.bank[:filled]])
        same = rows[:, None] == torch.cat([rows, self.index[:filled]])[None]
        same[:, : len(t)] &= ~torch.eye(len(t), dtype=torch.bool, device=t.device)
        tables = tuple((z @ columns.T).masked_fill(same, -torch.inf) for z in (s, t))
        if self.training:
            self._enqueue(t, rows)
        return tables[0], tables[1]

    @torch.no_grad()
    def _enqueue(self, t: Tensor, index: Tensor) -> None:
        t, index = t[-self.size :], index[-self.size :]
        slots = (int(self.head) + torch.arange(len(t), device=t.device)) % self.size
        self.bank[slots] = t
        self.index[slots] = index
        self.head.fill_((int(self.head) + len(t)) % self.size)
        self.filled.fill_(min(int(self.filled) + len(t), self.size))


RELATIONS: dict[str, Callable[[int, int], Relation]] = {
    "views": lambda dim, size: ViewsTable(),
    "batch": lambda dim, size: BatchTable(),
    "queue": TeacherQueue,
}
