"""A ladder of heads: every named layer of the student speaks for the teacher, and what they say is added up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives.alignment import ACROSS_SAMPLES, WHOLE_MAPS, distance_by, target_norm
from ssl_kd.objectives.inputs import Widths, layer, layer_tokens, to_grid, tokens
from ssl_kd.objectives.progression import STAGES, summary_of
from ssl_kd.objectives.projectors import over_rows
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch


class Ladder(Term):
    """d(sum over layers of g_l(layer l of s), t), per sample (`of: embedding`) or per patch (`tokens`).

    g_l: Linear -> `hidden`, GELU, Linear -> Dt, in the last layer `last_hidden` wide. Of a ViT's layer the class token stands
    for the embedding, of a map its mean. Source: the ladder of projectors of UNIC (ECCV 2024), read in naver/unic: every
    block, 768 and 3,072 wide. Differs: four stages unless more layers are named; weights as torch begins them.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        student_layers: Sequence[str] = STAGES,
        space: str | nn.Module = "standardised",
        distance: str | Callable[[Tensor, Tensor], Tensor] = "unic",
        of: str = "embedding",
        hidden: int = 768,
        last_hidden: int = 3072,
    ):
        super().__init__()
        one_of("of", of, ("embedding", "tokens"))
        if not student_layers:
            raise UserError("objective: a ladder needs the student's layers, shallow to deep")
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.student_layers, self.of = tuple(student_layers), of
        self.needs_tokens = of == "tokens"
        self.teacher_width = teacher.token if self.needs_tokens else teacher.embedding
        widths = [student.layer(name, "student") for name in self.student_layers]
        hiddens = [hidden] * (len(widths) - 1) + [last_hidden]
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, self.teacher_width))
            for width, wide in zip(widths, hiddens, strict=True)
        )
        self.space = target_norm(space, self.teacher_width)
        self.distance = distance_by(distance)
        self.whole_map = self.needs_tokens and distance in WHOLE_MAPS
        self.divisible = distance not in ACROSS_SAMPLES

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where the sum is at the teacher."""
        t = tokens(teacher, "teacher", self.teacher_width) if self.needs_tokens else teacher.embedding
        rungs = [
            over_rows(head, self._rung(student, name, t.shape[1]))
            for head, name in zip(self.heads, self.student_layers, strict=True)
        ]
        s = torch.stack(rungs).sum(0)
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float().flatten(0, -2), self.space(t.detach().float().flatten(0, -2))
            if self.whole_map:
                s, t = (z.reshape(len(student.embedding), -1) for z in (s, t))
            return self.distance(s, t)

    def _rung(self, student: Features, name: str, length: int) -> Tensor:
        """(N, C), or (N, L, C) on the teacher's grid of `length` cells."""
        if self.needs_tokens:
            return to_grid(layer_tokens(student, name, "student"), length)
        return summary_of(layer(student, name, "student"))
