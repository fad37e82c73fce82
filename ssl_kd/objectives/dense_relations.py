"""Relations between patches and between layers: where in the image, and how one layer becomes the next.

They need what not every network gives: patch tokens or map cells (`Features.tokens`), or tapped layers
(`Features.layers`, which the training loop must ask for). What is missing is one clear line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths, layer, layer_tokens, named_layers, onto_coarser
from ssl_kd.objectives.projectors import over_rows
from ssl_kd.objectives.relations import Relation, Tables, unit, without_diagonal
from ssl_kd.types import Features, ViewBatch


class TokensTable(Relation):
    """Cosines of all patches of an image with each other, image by image, each network with itself.

    sampled: a student's finer grid is read at the centres of the teacher's cells, as published, instead of averaged.
    Source: the local term of LightlyTrain's distillation v3 (its code), a row softmax of the patch Gram matrix.
    """

    of = "tokens"
    divisible = True

    def __init__(self, sampled: bool = False):
        super().__init__()
        self.sampled = sampled

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, L, Ds), (N, L, Dt) -> two (N L, L) tables."""
        s, t = unit(s), unit(t)
        return (s @ s.mT).flatten(0, 1), (t @ t.mT).flatten(0, 1)


class AllTokensTable(Relation):
    """Cosines of patches of different images: `per_image` patches of each, evenly spread, all against all.

    Our reading of the global half of the token relation graph (TRG, its abstract).
    """

    of = "tokens"

    def __init__(self, per_image: int = 4):
        super().__init__()
        self.per_image = per_image

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, L, Ds), (N, L, Dt) -> two (N P, N P) tables with -inf on the diagonal, P = min(L, per_image)."""
        length, count = s.shape[1], min(s.shape[1], self.per_image)
        picked = torch.div((2 * torch.arange(count, device=s.device) + 1) * length, 2 * count, rounding_mode="floor")
        s, t = (unit(z[:, picked].flatten(0, 1)) for z in (s, t))
        return without_diagonal(s @ s.T), without_diagonal(t @ t.T)


class ContextTable(Relation):
    """Cosine of each patch with the mean patch of its image: TRG's inner-instance context, as we read its abstract."""

    of = "tokens"
    divisible = True

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, L, Ds), (N, L, Dt) -> two (N, L) tables."""
        s, t = unit(s), unit(t)
        return tuple((z @ unit(z.mean(1, keepdim=True)).mT).squeeze(2) for z in (s, t))  # type: ignore[return-value]


class AttentionMapTable(Relation):
    """Where the energy is: mean square over channels of each cell, each image's map a unit vector.

    Source: attention transfer (AT), read in RepDistiller's code; the larger map is pooled to the smaller as there.
    """

    of = "tokens"
    divisible = True

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, L, Ds), (N, L, Dt) -> two (N, L) tables."""
        return tuple(unit(z.square().mean(2)) for z in (s, t))  # type: ignore[return-value]


class FlowTable(Relation):
    """How an earlier layer turns into a later one: mean over cells of the products of their channels (FSP).

    Where the student's layers are narrower than the teacher's, a linear map per layer comes first (ours: the published
    form demands equal widths). The larger maps are pooled to the smaller.
    Source: the flow of solution procedure, read in RepDistiller's code.
    """

    of = "layers"
    divisible = True

    heads: nn.ModuleList

    def __init__(self, student_layers: Sequence[str] = (), teacher_layers: Sequence[str] = ()):
        super().__init__()
        named_layers(student_layers, teacher_layers, 2, "flow compares two layers, an earlier and a later")
        self.student_layers, self.teacher_layers = tuple(student_layers), tuple(teacher_layers)

    def fit(self, student: Widths, teacher: Widths) -> None:
        """Heads from the widths of the tapped layers."""
        ours = [student.layer(name, "student") for name in self.student_layers]
        theirs = [teacher.layer(name, "teacher") for name in self.teacher_layers]
        self.heads = nn.ModuleList(
            nn.Identity() if ds == dt else nn.Linear(ds, dt) for ds, dt in zip(ours, theirs, strict=True)
        )

    def read(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """(N, m n) products of channels of both networks."""
        early_s, late_s = (
            over_rows(head, layer_tokens(student, name, "student"))
            for head, name in zip(self.heads, self.student_layers, strict=True)
        )
        early_t, late_t = (layer_tokens(teacher, name, "teacher").detach() for name in self.teacher_layers)
        return self._flow(early_s, late_s), self._flow(early_t, late_t)

    @staticmethod
    def _flow(early: Tensor, late: Tensor) -> Tensor:
        early, late = onto_coarser(early.float(), late.float())
        return (early.mT @ late / early.shape[1]).flatten(1)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """The flows are the tables."""
        return s, t


class ClassAttentionTable(Relation):
    """What the class token of the last block looks at: log attention to itself and to all patches, per head.

    Taps are attention probabilities (N, heads, tokens, tokens), as timm's `blocks.N.attn.attn_drop` gives them where
    fused attention is off. The teacher's map is brought to the student's grid with the class token's share kept. With
    other numbers of heads, the logs are summed over heads and made probabilities again at temperature 10.
    Source: AttnDistill (BMVC 2022), read in its code. Differs: what bicubic makes negative is 0 before the
    share is given back, there behind it.
    """

    of = "layers"
    divisible = True
    temperature = 10.0
    smallest, largest = 1e-5, 0.996  # the published clamp

    def __init__(self, student_layers: Sequence[str] = (), teacher_layers: Sequence[str] = ()):
        super().__init__()
        named_layers(student_layers, teacher_layers, 1, "class_attention compares one layer")
        self.student_layers, self.teacher_layers = tuple(student_layers), tuple(teacher_layers)

    def read(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """(N, heads, 1 + L) attention of both class tokens, on the student's grid."""
        s = self._class_row(layer(student, self.student_layers[0], "student"), "student")
        t = self._class_row(layer(teacher, self.teacher_layers[0], "teacher").detach(), "teacher")
        return s.float(), self._on_grid(t.float(), s.shape[2] - 1)

    @staticmethod
    def _class_row(attention: Tensor, whose: str) -> Tensor:
        if attention.ndim != 4 or attention.shape[2] != attention.shape[3]:
            raise UserError(
                f"objective: expected attention (N, heads, tokens, tokens) of the {whose}, got {tuple(attention.shape)}; "
                f"tap a ViT's attention probabilities, with fused attention off"
            )
        patches = math.isqrt(attention.shape[3] - 1) ** 2  # what stands between are register tokens
        row = attention[:, :, 0]
        return torch.cat([row[:, :, :1], row[:, :, -patches:]], dim=2)

    @staticmethod
    def _on_grid(row: Tensor, length: int) -> Tensor:
        if row.shape[2] - 1 == length:
            return row
        side, wanted = math.isqrt(row.shape[2] - 1), math.isqrt(length)
        own, patches = row[:, :, :1], row[:, :, 1:].reshape(*row.shape[:2], side, side)
        resized = F.interpolate(patches, size=(wanted, wanted), mode="bicubic").clamp_min(0).flatten(2)
        share = patches.sum((2, 3))[:, :, None] / resized.sum(2, keepdim=True).clamp_min(1e-12)
        return torch.cat([own, resized * share], dim=2)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, heads, 1 + L) each -> two (N heads, 1 + L) tables of log probabilities."""
        one_for_all = s.shape[1] != t.shape[1]
        return self._log_rows(s, one_for_all), self._log_rows(t, one_for_all)

    def _log_rows(self, row: Tensor, one_for_all: bool) -> Tensor:
        if one_for_all:
            summed = row.clamp_min(self.smallest).log().sum(1, keepdim=True)
            row = F.softmax(summed / self.temperature, dim=2)
        return row.clamp(self.smallest, self.largest).log().flatten(0, 1)
