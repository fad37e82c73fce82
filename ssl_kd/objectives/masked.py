"""Masked patches: the student sees parts of an image and shall give the teacher's outputs on the whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.alignment import distance_by, head_to_teacher, target_norm
from ssl_kd.objectives.inputs import Widths, to_grid, tokens
from ssl_kd.objectives.projectors import over_rows
from ssl_kd.objectives.teacher_heads import TeacherHead, assignment_gaps
from ssl_kd.objectives.term import Term
from ssl_kd.rng import uniform
from ssl_kd.types import Features, ViewBatch

MASKED, MASK = "masked tokens", "mask"  # the layers in which a term finds the second look and what it hid
SHARE = 0.5  # of images, and of the patches of each of these
_CHOOSING = 0x3A5C  # names the stream of random numbers


class MaskedTokens(Term):
    """d(g(patches of the student that sees a masked image), patches of the teacher that sees all of it), hidden ones only.

    The training loop looks a second time, at images half of whose patches are grey, for half of the images of a batch, and
    gives the patches in layers["masked tokens"] and what was hidden in layers["mask"], (N, L) ones and zeros.
    Source: the third term of Proteus (CVPR 2025), read in BeSpontaneous/Proteus-pytorch: probability 0.5, ratio 0.5.
    Differs: single patches instead of blocks, hidden as grey pixels instead of by a mask token, which few students have.
    """

    needs_tokens = True
    masks = True

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "layernorm",
        space: str | nn.Module = "raw",
        distance: str | Callable[[Tensor, Tensor], Tensor] = "mse",
    ):
        super().__init__()
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.width = teacher.token
        self.projector = head_to_teacher(projector, student.token, self.width)
        self.space = target_norm(space, self.width)
        self.distance = distance_by(distance)

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 at a match; 0 where nothing was hidden."""
        s, t, hidden = hidden_tokens(student, teacher, self.width)
        s = over_rows(self.projector, s)
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float(), over_rows(self.space, t.detach().float())
            return self.distance(s[hidden], t[hidden]) if bool(hidden.any()) else s.sum() * 0


class MaskedHead(Term):
    """KL(sinkhorn(head_t(patches of t that sees all) / tau_t) || softmax(head_s(patches of s that sees a masked image) / 0.1)).

    On hidden patches only: the mean over those of an image, summed over images and divided by all images. head_t is the
    teacher's own for patches, frozen, with its centre where its file has one; head_s one like it, trained.
    Source: the iBOT term of distillation with frozen heads, read in facebookresearch/dinov3. Differs: KL instead of CE (the
    same gradient); what is hidden, and how, as of `MaskedTokens`.
    """

    needs_tokens = True
    masks = True

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        tau_student: float = 0.1,
        tau_teacher: float = 1.0,
    ):
        super().__init__()
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.width, self.taus = teacher.token, (tau_student, tau_teacher)
        self.relation = TeacherHead(patches=True)
        self.relation.fit(Widths(student.token), Widths(teacher.token))

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where nothing was hidden."""
        s, t, hidden = hidden_tokens(student, teacher, self.width)
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float(), t.detach().float()
            ours, theirs = self.relation.tables(s[hidden], t[hidden], batch)
            if not ours.numel():
                nothing: Tensor = s.sum() * 0
                return nothing
            share = (1 / hidden.sum(1).clamp_min(1))[:, None].expand_as(hidden)[hidden]
            total: Tensor = (assignment_gaps(ours, theirs, *self.taus) * share).sum()
            return total / len(s)


def hidden_tokens(student: Features, teacher: Features, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """(N, L, Ds) of the second look on the teacher's grid, (N, L, Dt), and which were hidden, (N, L). UserError without such a look."""
    if MASKED not in student.layers or MASK not in student.layers:
        raise UserError("objective: it compares masked patches, and this loop does not look at masked images")
    t = tokens(teacher, "teacher", width)
    return to_grid(student.layers[MASKED], t.shape[1]), t, on_grid(student.layers[MASK], t.shape[1])


def drawn(index: np.ndarray, epoch: int, view: int, patches: int) -> Tensor:
    """(B, L) ones where a patch is hidden: half of the patches of about half of the images, a function of index and epoch."""
    count = int(SHARE * patches)
    order = np.stack([uniform(_CHOOSING + epoch, index, view, 1 + k) for k in range(patches)], axis=1)
    ranks = order.argsort(1, kind="stable").argsort(1, kind="stable")
    chosen = uniform(_CHOOSING + epoch, index, view, 0) < SHARE
    return torch.from_numpy((ranks < count) & chosen[:, None]).float()


def on_grid(mask: Tensor, length: int) -> Tensor:
    """(N, L) ones and zeros on a grid of `length` cells, each as the cell at its centre; bool."""
    side, wanted = math.isqrt(mask.shape[1]), math.isqrt(length)
    grid = mask.reshape(len(mask), 1, side, side)
    return F.interpolate(grid, size=(wanted, wanted), mode="nearest-exact").flatten(1) > 0


def hide(pixels: Tensor, mask: Tensor, grey: Tensor) -> Tensor:
    """Views (N, 3, S, S) with the cells of a square grid (N, L) hidden behind a colour (1, 3, 1, 1)."""
    side = math.isqrt(mask.shape[1])
    hidden = F.interpolate(mask.reshape(len(mask), 1, side, side), size=pixels.shape[-2:], mode="nearest-exact")
    return torch.where(hidden.to(pixels.device) > 0, grey.to(pixels), pixels)
