"""Students that take their steps together: one alone, or several that terms between students tie to each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ssl_kd.distillation.between import Between, one_teacher
from ssl_kd.distillation.members import Randomness
from ssl_kd.distillation.module import Batch, DistillationModule, finite
from ssl_kd.types import Features

Answer = tuple[Tensor, dict[str, Tensor]]  # the total loss of a student, and its terms without a gradient


class Cohort(nn.Module):
    """Students by name, a single one under "", each with its own stream of random numbers.

    between: what ties them to each other, and its stream; None where each learns by itself.
    """

    def __init__(
        self,
        students: Mapping[str, DistillationModule],
        streams: Mapping[str, Randomness],
        between: Between | None = None,
        between_stream: Randomness | None = None,
    ):
        super().__init__()
        self.between, self.between_stream = between, between_stream or Randomness()
        self.names, self.streams = tuple(students), dict(streams)
        self.modules_of_students = nn.ModuleList(students.values())

    @property
    def students(self) -> dict[str, DistillationModule]:
        """Student, objective and moving average, by the student's name."""
        return dict(zip(self.names, self.modules_of_students, strict=True))  # type: ignore[arg-type]  # a list of them

    def forward(self, batch: Batch) -> dict[str, Answer]:
        """Each student's total loss and terms on one batch of views."""
        answers: dict[str, Answer] = {}
        if self.between is not None:
            return self._tied(self.between, batch)
        for name, module in self.students.items():
            with self.streams[name].own():
                answers[name] = module(batch)
        return answers

    def _tied(self, between: Between, batch: Batch) -> dict[str, Answer]:
        """All students look first; then each is judged by its objective, and by what the others say."""
        seen: dict[str, Features] = {}
        for name, module in self.students.items():
            with self.streams[name].own():
                seen[name] = module.features(batch)
        if not (batch.whole.finite and all(map(finite, seen.values()))):
            return {name: (student.embedding.sum() * float("nan"), {}) for name, student in seen.items()}
        answers: dict[str, Answer] = {}
        for name, module in self.students.items():
            with self.streams[name].own():
                answers[name] = module.judged(seen[name], batch)
        with self.between_stream.own():
            more = between(seen, one_teacher(batch.whole.teacher_outputs), batch.whole.views)
        for name, (total, terms) in more.items():
            answers[name] = (answers[name][0] + total, answers[name][1] | terms)
        return answers

    def follow(self) -> None:
        """After a step: moving averages move towards their students."""
        for module in self.students.values():
            module.follow()

    def measure_gradients(self, wanted: bool) -> None:
        """Have the gradient norm of each term among the values, or not."""
        for module in self.students.values():
            module.objective.measure_gradients = wanted
