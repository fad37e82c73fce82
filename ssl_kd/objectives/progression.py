"""A target that moves: from the teacher's shallow layers to its deep ones, as the student comes to resemble each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.alignment import target_norm
from ssl_kd.objectives.inputs import Widths, layer, layer_tokens, to_grid, tokens
from ssl_kd.objectives.projectors import over_rows
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch

STAGES = ("stage.1", "stage.2", "stage.3", "stage.4")


class Progression(Term):
    """MSE of g(patches of s) and the cells of one teacher layer, + `summary` x MSE of g'(s) and that layer's summary.

    The layer is at first the one that the untrained student resembles most, by linear CKA of g(patches) and cells over
    all rows of the batch. The next deeper one follows when the CKA, a moving average whose newest value counts
    `smoothing`, reaches `threshold`, or after `most_epochs` epochs. Layers are compared in their own running
    standardisation. The summary is a ViT's class token, or the mean of a map. A teacher need not run deeper than
    `deepest`, where nothing else is asked of it.

    Source: LEAP (arXiv 2606.19483), read in KevinZ0217/LEAP: MSE of a linear head, threshold 0.8 to 0.85, smoothing 1, 5
    epochs, class tokens at 0.05. Differs: four stages unless more layers are named (there every block), standardised
    instead of through the teacher's last LayerNorm; heads of their own for layers of other widths and for the summary.
    """

    place: Tensor
    score: Tensor
    began: Tensor
    needs_tokens = True
    reads_layers_alone = True  # of the teacher

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        teacher_layers: Sequence[str] = STAGES,
        space: str | nn.Module = "standardised",
        threshold: float = 0.85,
        smoothing: float = 1.0,
        most_epochs: int = 5,
        summary: float = 0.05,
    ):
        super().__init__()
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        if not teacher_layers:
            raise UserError("objective: a progression needs the teacher's layers, shallow to deep")
        self.teacher_layers = tuple(teacher_layers)
        self.threshold, self.smoothing, self.most_epochs, self.summary = threshold, smoothing, most_epochs, summary
        self.student_token = student.token
        widths = [teacher.layer(name, "teacher") for name in self.teacher_layers]
        shared = len(set(widths)) == 1
        kinds = widths[:1] if shared else widths
        self.heads = nn.ModuleList(nn.Linear(student.token, width) for width in kinds)
        self.summary_heads = nn.ModuleList(nn.Linear(student.embedding, width) for width in kinds)
        self.spaces = nn.ModuleList(target_norm(space, width) for width in widths)
        self.summary_spaces = nn.ModuleList(target_norm(space, width) for width in widths)
        self.register_buffer("place", torch.tensor(-1))  # not begun
        self.register_buffer("score", torch.zeros(()))
        self.register_buffer("began", torch.zeros((), dtype=torch.long))  # epoch in which this layer became the target

    @property
    def deepest(self) -> str:
        """The teacher's layer that the next step reads; before the first one, the last."""
        return self.teacher_layers[int(self.place)]

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 at a match of the present target."""
        s = tokens(student, "student", self.student_token)
        with torch.autocast(s.device.type, enabled=False):
            s, embedding = s.float(), student.embedding.float()
            if self.training and int(self.place) < 0:
                self._begin(s, teacher, batch.epoch)
            at = max(int(self.place), 0)
            name = self.teacher_layers[at]
            t = layer_tokens(teacher, name, "teacher").detach().float()
            ours = over_rows(self._of(self.heads, at), to_grid(s, t.shape[1]))
            total = F.mse_loss(ours, over_rows(self.spaces[at], t))
            whole = self.summary_spaces[at](summary_of(layer(teacher, name, "teacher").detach().float()))
            total = total + self.summary * F.mse_loss(self._of(self.summary_heads, at)(embedding), whole)
            if self.training:
                new = linear_cka(ours.detach().flatten(0, 1), t.flatten(0, 1))
                self._move(new, batch.epoch)
        return total

    @torch.no_grad()
    def _begin(self, s: Tensor, teacher: Features, epoch: int) -> None:
        """The first target: the layer that the student resembles most."""
        scores = [self._resemblance(s, teacher, at) for at in range(len(self.teacher_layers))]
        self.place.fill_(int(torch.stack(scores).argmax()))
        self.began.fill_(epoch)

    @torch.no_grad()
    def _move(self, resemblance: Tensor, epoch: int) -> None:
        """Behind a step: take the next layer for the next step, where resemblance or epochs say so."""
        self.score.lerp_(resemblance, self.smoothing)
        enough = float(self.score) >= self.threshold or epoch - int(self.began) >= self.most_epochs
        if enough and int(self.place) < len(self.teacher_layers) - 1:
            self.place.add_(1)
            self.score.zero_()
            self.began.fill_(epoch)

    def _resemblance(self, s: Tensor, teacher: Features, at: int) -> Tensor:
        t = layer_tokens(teacher, self.teacher_layers[at], "teacher").float()
        ours = over_rows(self._of(self.heads, at), to_grid(s, t.shape[1]))
        return linear_cka(ours.flatten(0, 1), t.flatten(0, 1))

    @staticmethod
    def _of(heads: nn.ModuleList, at: int) -> nn.Module:
        return heads[at if len(heads) > 1 else 0]


def summary_of(tap: Tensor) -> Tensor:
    """(N, C): the mean of a map (N, C, H, W), the first of tokens (N, 1 + ... + L, C) that are no plain square grid."""
    if tap.ndim == 4:
        return tap.mean((2, 3))
    side = int(tap.shape[1] ** 0.5)
    return tap.mean(1) if side * side == tap.shape[1] else tap[:, 0]


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """|X'Y|_F^2 / (|X'X|_F |Y'Y|_F) of centred rows (N, Dx) and (N, Dy), in [0, 1]; 0 where one of them stands still."""
    x, y = x - x.mean(0), y - y.mean(0)
    scale: Tensor = torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)
    found: Tensor = (x.T @ y).square().sum() / scale.clamp_min(1e-12)
    return found
