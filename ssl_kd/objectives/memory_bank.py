"""Memories: rings of unit embeddings that a run saves and restores, bit for bit.

Empty slots never take part, and no image meets an older view of itself: the own sample is counted once, as itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.relations import Relation, Tables, unit
from ssl_kd.objectives.term import batch_of
from ssl_kd.types import Index, ViewBatch

# Where the batch itself stands when it meets the queue. In all cases it is in the queue for the next batch.
BATCH_PLACES = {
    "beside": "all of the batch, and the queue",
    "inside": "the queue after the batch went in: the batch, and the queue but its oldest (RRD, LightlyTrain)",
    "own": "for each sample its own teacher embedding, and the queue (SEED)",
    "none": "the queue alone (CompRess)",
}


class MemoryBank(Relation):
    """Both networks against the teacher's outputs on the batch and on earlier images, kept in a ring buffer.

    The student is projected to the teacher's width, so this is a mixture of correlation and alignment. `batch` says
    where the batch itself stands: see BATCH_PLACES. The memory, `size` x Dt float32, is part of the saved state.

    Source: the teacher queue of SEED (Fang et al., ICLR 2021), CompRess-1q (Koohpayegani et al., NeurIPS 2020) and
    LightlyTrain's distillation v1. Differs: a valid-count instead of random or zero slots, own sample masked by index.
    `every_slot` takes both differences back as LightlyTrain has them, for comparisons with it: slots that are still
    empty are zero vectors (a cosine of 0), and older views of the own image take part.
    """

    needs_teacher_width = True
    bank: Tensor
    index: Tensor
    filled: Tensor
    head: Tensor

    def __init__(self, size: int = 8192, batch: str = "beside", every_slot: bool = False, dim: int | None = None):
        super().__init__()
        least = 2 if batch == "none" else 1  # alone with itself, a sample would have nothing to look at
        if size < least:
            raise UserError(f"queue size: expected at least {least}, got {size}")
        one_of("batch", batch, BATCH_PLACES)
        if every_slot and batch != "inside":
            raise UserError(
                f"every_slot: only a queue with the batch inside shows all of its slots, got batch {batch!r}"
            )
        self.size, self.batch, self.every_slot = size, batch, every_slot
        if dim is not None:
            self.lay_out(dim)

    def lay_out(self, dim: int) -> None:
        """Make room for `size` embeddings of that width."""
        self.register_buffer("bank", torch.zeros(self.size, dim))
        self.register_buffer("index", torch.full((self.size,), -1, dtype=torch.long))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self.register_buffer("head", torch.zeros((), dtype=torch.long))

    def fit(self, student: Widths, teacher: Widths) -> None:
        """The memory has the teacher's width."""
        self.lay_out(teacher.embedding)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Dt), (N, Dt) -> two (N, N + filled) tables; what stands for the batch comes first."""
        s, t = unit(s), unit(t)
        rows, teacher_views = rows_of(batch, t), teacher_rows(batch, t)
        if self.every_slot:
            # Of a batch the last are forgotten first, as there.
            columns, newest = self.bank.clone(), t[:teacher_views].flip(0)
            columns[self.next_slots(teacher_views)] = newest[-self.size :]
            if self.training:
                self.enqueue(newest, rows[:teacher_views].flip(0))
            return s @ columns.T, t @ columns.T
        # A copy: the bank changes below, before the gradient is taken.
        queue, hidden = self.bank[: int(self.filled)].clone(), self.hidden_from(rows, teacher_views)
        if self.batch in ("beside", "inside"):
            own = torch.eye(len(t), dtype=torch.bool, device=t.device)
            hidden = torch.cat([(rows[:, None] == rows[None]) & ~own, hidden], dim=1)
            # Two products: joining the tables moves less memory than joining what they are made of.
            tables = [torch.cat([z @ t.T, z @ queue.T], dim=1).masked_fill_(hidden, -torch.inf) for z in (s, t)]
        else:
            tables = [(z @ queue.T).masked_fill_(hidden, -torch.inf) for z in (s, t)]
            if self.batch == "own":
                tables = [
                    torch.cat([(z * t).sum(1, keepdim=True), table], 1) for z, table in zip((s, t), tables, strict=True)
                ]
        if self.training:
            self.enqueue(t[:teacher_views], rows[:teacher_views])
        return tables[0], tables[1]

    def hidden_from(self, rows: Tensor, teacher_views: int) -> Tensor:
        """(N, filled): which slots each row must not see: its own image, and with "inside" what the batch overwrites.

        heard: how many of the rows will be remembered.
        """
        filled = int(self.filled)
        hidden = rows[:, None] == self.index[:filled][None]
        if self.batch == "inside":
            slots = self.next_slots(teacher_views)
            hidden[:, slots[slots < filled]] = True
        return hidden

    def next_slots(self, count: int) -> Tensor:
        """The slots that the next `count` embeddings go to."""
        return (int(self.head) + torch.arange(min(count, self.size), device=self.bank.device)) % self.size

    @torch.no_grad()
    def enqueue(self, t: Tensor, index: Tensor) -> None:
        """Remember unit embeddings (N, D) of the images `index`, in place of the oldest."""
        t, index = t[-self.size :], index[-self.size :]
        slots = self.next_slots(len(t))
        self.bank[slots] = t.to(self.bank.dtype)
        self.index[slots] = index
        self.head.fill_((int(self.head) + len(t)) % self.size)
        self.filled.fill_(min(int(self.filled) + len(t), self.size))


class TwoMemoryBanks(MemoryBank):
    """Each network against its own memory of the same images: the student never needs the teacher's width.

    The student's queue holds what a moving average of the student said (`momentum`, kept by the training loop and read
    from layers["ema"]), or with momentum 0 what the student itself said.
    Source: CompRess-2q (Koohpayegani et al., NeurIPS 2020), read in its code, which has both kinds. Differs: a
    valid-count instead of random slots, and the own image masked by index.
    """

    needs_teacher_width = False
    student_bank: Tensor

    def __init__(self, size: int = 8192, momentum: float = 0.0):
        super().__init__(size, batch="none")
        self.student_momentum = momentum

    def fit(self, student: Widths, teacher: Widths) -> None:
        """One memory of each width."""
        self.lay_out(teacher.embedding)
        self.register_buffer("student_bank", torch.zeros(self.size, student.embedding))

    def forward(
        self,
        s: Tensor,
        t: Tensor,
        batch: ViewBatch | None = None,
        *,
        index: Index | None = None,
        keys: Tensor | None = None,
    ) -> Tables:
        """As of every relation; keys: (N, Ds) of the student's moving average, to be remembered in the student's place."""
        return self.tables(s, t, batch_of(len(s), batch, index, self.min_views, type(self).__name__), keys)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch, keys: Tensor | None = None) -> Tables:
        """(N, Ds), (N, Dt) and the (N, Ds) to be remembered -> two (N, filled) tables."""
        s, t = unit(s), unit(t)
        rows, teacher_views, filled = rows_of(batch, t), teacher_rows(batch, t), int(self.filled)
        hidden = self.hidden_from(rows, teacher_views)
        student = (s @ self.student_bank[:filled].clone().T).masked_fill(hidden, -torch.inf)
        teacher = (t @ self.bank[:filled].T).masked_fill(hidden, -torch.inf)
        if self.training:
            slots = self.next_slots(teacher_views)
            kept = s if keys is None else unit(keys.float())
            self.student_bank[slots] = kept.detach()[:teacher_views][-self.size :].to(self.student_bank.dtype)
            self.enqueue(t[:teacher_views], rows[:teacher_views])
        return student, teacher


def rows_of(batch: ViewBatch, t: Tensor) -> Tensor:
    """(N,) which image each row shows."""
    return torch.as_tensor(batch.index, device=t.device).repeat(len(t) // len(batch))


def teacher_rows(batch: ViewBatch, t: Tensor) -> int:
    """How many rows teachers have looked at themselves: all but those of small crops, which come last."""
    return len(t) * batch.teacher_views // len(batch.pixels)
