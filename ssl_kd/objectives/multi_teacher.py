"""Several teachers at once: each has its own objective, with its own heads, statistics and queues; the student is one.

objective = build_several({"dino": "unic", "swav": "default"}, student_width, {"dino": 384, "swav": 2048}, drop=0.5)
total, terms = objective(student_features, {"dino": dino_features, "swav": swav_features}, views)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.factory import build_objective
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.presets.preset import Spec
from ssl_kd.objectives.weighted_sum import WeightedSum
from ssl_kd.rng import uniform
from ssl_kd.types import Features, ViewBatch

_DROPPING = 0x7EAC4E5  # names the stream of random numbers
_TAKEN = {name.rstrip("_") for name in dir(nn.ModuleDict())}  # attributes, which a module's parts cannot be called


class MultiTeacher(nn.Module):
    """The mean over teachers of weight x total; in training the easier teachers of a step are dropped with `drop`.

    The teacher with the largest weighted total always stays. Which others do is a function of the batch (its first
    sample and the epoch), so that runs resume to the same bits and all processes of a run agree.
    Source: teacher dropping of UNIC (Sariyildiz et al., ECCV 2024), read in naver/unic with p = 0.5. Differs: there
    each image drops its own teachers, here the whole batch does.
    """

    def __init__(
        self, objectives: Mapping[str, WeightedSum], weights: Mapping[str, float] | None = None, drop: float = 0
    ):
        super().__init__()
        if not objectives or any("." in name or not name for name in objectives):
            raise UserError(f"teachers: expected names without dots, got {', '.join(map(repr, objectives)) or 'none'}")
        if not 0 <= drop < 1:
            raise UserError(f"teachers: drop is a probability from 0 to below 1, got {drop}")
        self.weights = dict.fromkeys(objectives, 1.0) | dict(weights or {})
        if set(self.weights) != set(objectives) or not all(0 < w < float("inf") for w in self.weights.values()):
            raise UserError(
                f"teachers: weights need a number above 0 for names among {', '.join(objectives)}; got {weights}"
            )
        self.objectives = nn.ModuleDict({_key(name): part for name, part in objectives.items()})
        self.names = tuple(objectives)
        self.drop = drop
        parts = list(objectives.values())
        self.min_views = max(part.min_views for part in parts)
        self.student_momentum = max(part.student_momentum for part in parts)
        self.indivisible = tuple(f"{name}.{term}" for name, part in objectives.items() for term in part.indivisible)
        self.reads_tokens = any(part.reads_tokens for part in parts)
        self.masks = any(part.masks for part in parts)
        self.at_boundary = any(part.at_boundary for part in parts)
        self.student_layers = tuple(dict.fromkeys(name for part in parts for name in part.student_layers))
        self.teacher_layers = {name: part.teacher_layers for name, part in objectives.items()}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Each teacher's objective, by the teacher's name."""
        return dict(zip(self.names, self.objectives.values(), strict=True))

    @property
    def measure_gradients(self) -> bool:
        """Whether each term's gradient norm is among the values, as in WeightedSum."""
        return all(part.measure_gradients for part in self.objectives.values())

    @measure_gradients.setter
    def measure_gradients(self, wanted: bool) -> None:
        for part in self.objectives.values():
            part.measure_gradients = wanted  # type: ignore[assignment]

    def forward(
        self, student: Features, teachers: Mapping[str, Features], views: ViewBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of the student and of each teacher on the same rows -> scalar total, {"teacher.term": value}."""
        totals: list[Tensor] = []
        told: dict[str, Tensor] = {}
        for name, objective in self.parts.items():
            total, terms = objective(student, teachers[name], views)
            totals.append(self.weights[name] * total)
            told |= {f"{name}.{term}": value for term, value in terms.items()}
        stacked = torch.stack(totals)
        kept = self._kept(stacked.detach(), views)
        return (stacked * kept).sum() / kept.sum(), told

    def _kept(self, totals: Tensor, views: ViewBatch) -> Tensor:
        """(teachers,) ones and zeros."""
        kept = torch.ones_like(totals)
        if self.training and self.drop:
            drawn = [float(uniform(_DROPPING, int(views.index[0]), views.epoch, i)) for i in range(len(totals))]
            kept = (torch.tensor(drawn) >= self.drop).to(totals)
            kept[totals.argmax()] = 1
        return kept


def _key(name: str) -> str:
    """What a teacher's objective is called in a state: its name, with one more "_" behind `training`, `keys`, `keys_`, ..."""
    return f"{name}_" if name.rstrip("_") in _TAKEN else name


def build_several(
    objectives: Mapping[str, str | Sequence[Spec]],
    student_dim: int | Widths,
    teacher_dims: Mapping[str, int | Widths],
    weights: Mapping[str, float] | None = None,
    drop: float = 0,
) -> MultiTeacher:
    """One objective per teacher name, each as `build_objective` makes it."""
    if set(objectives) != set(teacher_dims):
        raise UserError(f"teachers: objectives for {', '.join(objectives)}, but teachers are {', '.join(teacher_dims)}")
    parts = {name: build_objective(spec, student_dim, teacher_dims[name]) for name, spec in objectives.items()}
    return MultiTeacher(parts, weights, drop)
