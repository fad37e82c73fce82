"""Alignment: each sample lands where the teacher puts it. Projector x space x distance, on embeddings or on tokens.

Every distance is a mean over samples, zero at a match, computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives.inputs import Widths, cell_widths, cells, to_grid
from ssl_kd.objectives.projectors import must_reach, over_rows
from ssl_kd.objectives.projectors import projector as projector_by
from ssl_kd.objectives.target_norms import TARGET_NORMS
from ssl_kd.objectives.term import Term
from ssl_kd.registry import Registry
from ssl_kd.types import Features, ViewBatch


def cosine_distance(s: Tensor, t: Tensor) -> Tensor:
    """2 - 2 cos(s, t), mean over rows: the squared distance of the unit vectors, in [0, 4] (SimReg; DLKD)."""
    return 2 - 2 * F.cosine_similarity(s, t, dim=1, eps=1e-6).mean()


def squared_distance(s: Tensor, t: Tensor) -> Tensor:
    """Mean over samples and dimensions of (s - t)^2."""
    return F.mse_loss(s, t)


def smooth_l1(s: Tensor, t: Tensor) -> Tensor:
    """Huber distance with a corner at 1, mean over samples and dimensions."""
    return F.smooth_l1_loss(s, t)


def pearson_distance(s: Tensor, t: Tensor) -> Tensor:
    """1 - Pearson correlation of each sample's numbers with the teacher's, mean over rows, in [0, 2].

    The value-based half of R2KD's correlation distance (its abstract; the exact form was not available to us).
    """
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    return 1 - F.cosine_similarity(s, t, dim=1, eps=1e-6).mean()


def cosine_and_l1(cosine: float, l1: float) -> Callable[[Tensor, Tensor], Tensor]:
    """cosine x (1 - cos) + l1 x smooth L1."""

    def mixed(s: Tensor, t: Tensor) -> Tensor:
        return cosine * (1 - F.cosine_similarity(s, t, dim=1, eps=1e-6).mean()) + l1 * F.smooth_l1_loss(s, t)

    mixed.__doc__ = f"{cosine} (1 - cos) + {l1} smooth L1."
    return mixed


def balanced(s: Tensor, t: Tensor) -> Tensor:
    """0.9 (1 - cos) + 0.1 smooth L1 with its corner at 2: the "balanced" loss of RADIO's training code."""
    cosines = F.cosine_similarity(s, t, dim=1, eps=1e-8)
    return 0.9 * (1 - cosines.mean()) + 0.1 * F.smooth_l1_loss(s, t, beta=2.0)


def dampened(s: Tensor, t: Tensor) -> Tensor:
    """Half the squared error up to 1, then 2 sqrt(error) - 1.5: far outliers pull less than near misses.

    Source: the dampened squared error of RADIO's training code (NVIDIA-TAO/tao-pytorch).
    """
    gap = (s - t).abs()
    root = 2 * torch.sqrt(torch.where(gap < 1, 1, gap) + 1e-8) - 1.5
    return torch.where(gap < 1, gap.square() / 2, root).mean()


def difference(s: Tensor, t: Tensor) -> Tensor:
    """Mean over pairs i != j of ||(s_i - s_j) - (t_i - t_j)||^2 / Dt: what is left when all are moved alike.

    Equals 2 N / (N - 1) x the variance of the residual s - t over the batch, so that no pairs need be formed.
    Source: the comparisons of Comparative KD (its abstract); the identity is ours.
    """
    residual = s - t
    return 2 * len(s) / (len(s) - 1) * (residual - residual.mean(0)).square().mean()


def unit_squared(s: Tensor, t: Tensor) -> Tensor:
    """Mean over samples and dimensions of the squared difference of unit rows: CLKD's match per instance."""
    return F.mse_loss(F.normalize(s, dim=1), F.normalize(t, dim=1))


def unit_softmax_kl(s: Tensor, t: Tensor, tau: float = 0.2) -> Tensor:
    """Mean over samples of KL(softmax(t / tau) || softmax(s / tau)), rows of length 1, dimensions for classes.

    Source: the distillation loss of S2-BNN (CVPR 2021), read in szq0214/S2-BNN, with MoCo v2's temperature as there.
    """
    log_q, log_p = (F.log_softmax(F.normalize(z, dim=1) / tau, dim=1) for z in (s, t))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def unit_columns(s: Tensor, t: Tensor) -> Tensor:
    """The same of unit columns, each dimension over the batch: CLKD's match per class, with dimensions for classes."""
    return F.mse_loss(F.normalize(s, dim=0), F.normalize(t, dim=0))


DISTANCES: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry(
    "distances",
    {
        "cosine": cosine_distance,
        "mse": squared_distance,
        "smooth_l1": smooth_l1,
        "pearson": pearson_distance,
        "theia": cosine_and_l1(0.9, 0.1),  # Theia's published mixture
        "unic": cosine_and_l1(0.5, 0.5),  # UNIC's
        "balanced": balanced,
        "dampened": dampened,
        "difference": difference,
        "unit_mse": unit_squared,
        "unit_columns": unit_columns,
        "unit_kl": unit_softmax_kl,
    },
    group="ssl_kd.distances",
)


ACROSS_SAMPLES = ("difference", "unit_columns")  # all other distances are means over samples
WHOLE_MAPS = ("theia",)  # of tokens, these see an image's map as one long vector, as published


class Alignment(Term):
    """The distance between the projected student and the teacher, per sample (`of: embedding`) or per patch (`tokens`).

    The defaults are SimReg's: its four-layer head and 2 - 2 cos on the backbone features. Student tokens on another
    grid are brought onto the teacher's. With one of the student's and one of the teacher's layers named, `tokens` are the
    cells of these.
    Source: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge
    Distillation", BMVC 2021 (constants read in its code). With projector "dlkd": Ding et al., DLKD, TNNLS 35(2).
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "simreg",
        space: str | nn.Module = "raw",
        distance: str | Callable[[Tensor, Tensor], Tensor] = "cosine",
        of: str = "embedding",
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
    ):
        super().__init__()
        one_of("of", of, ("embedding", "tokens"))
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.of = of
        self.student_layers, self.teacher_layers = tuple(student_layers), tuple(teacher_layers)
        if of == "embedding" and (student_layers or teacher_layers):
            raise UserError(
                "objective: an alignment of embeddings reads no layers; with `of: tokens` it reads their cells"
            )
        self.widths = student.embedding, teacher.embedding
        if of == "tokens":
            self.widths = cell_widths(student, teacher, student_layers, teacher_layers)
        self.needs_tokens = of == "tokens" and not student_layers
        self.projector = head_to_teacher(projector, *self.widths)
        self.space = target_norm(space, self.widths[1])
        self.distance = distance_by(distance)
        self.whole_map = of == "tokens" and distance in WHOLE_MAPS
        self.divisible = distance not in ACROSS_SAMPLES

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 at a match. Embeddings are (N, Ds) and (N, Dt)."""
        if self.of == "tokens":
            s = cells(student, "student", self.widths[0], self.student_layers)
            t = cells(teacher, "teacher", self.widths[1], self.teacher_layers)
            s, t = self.on_one_grid(s, t)
            s, t = over_rows(self.projector, s).flatten(0, 1), t.flatten(0, 1)
        else:
            s, t = self.projector(student.embedding), teacher.embedding
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float(), self.space(t.detach().float())
            if self.whole_map:
                s, t = (z.reshape(len(student.embedding), -1) for z in (s, t))
            return self.distance(s, t)

    def on_one_grid(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, Ds) and (N, L', Dt) with as many cells: the student's are brought onto the teacher's."""
        return to_grid(s, t.shape[1]), t


def distance_by(given: str | Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """A distance by its name, or any function of (N, D) and (N, D) that gives a scalar."""
    return DISTANCES[one_of("distance", given, DISTANCES)] if isinstance(given, str) else given


def target_norm(given: str | nn.Module, width: int) -> nn.Module:
    """A target norm by its name, or any module (N, Dt) -> (N, Dt)."""
    return TARGET_NORMS[one_of("space", given, TARGET_NORMS)](width) if isinstance(given, str) else given


def head_to_teacher(given: str | nn.Module, student_dim: int, teacher_dim: int) -> nn.Module:
    """A projector by its name, or any module (N, Ds) -> (N, Dt). UserError where it keeps another width than the teacher's."""
    if isinstance(given, nn.Module):
        return given
    must_reach(given, student_dim, teacher_dim)
    return projector_by(given, student_dim, teacher_dim)
