"""Students that take their steps together: one alone, or several that terms between students tie to each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ssl_kd.distillation.members import Randomness
from ssl_kd.distillation.module import Batch, DistillationModule

Answer = tuple[Tensor, dict[str, Tensor]]  # the total loss of a student, and its terms without a gradient


class Cohort(nn.Module):
    """Students by name, a single one under "", each with its own stream of random numbers."""

    def __init__(self, students: Mapping[str, DistillationModule], streams: Mapping[str, Randomness]):
        super().__init__()
        self.names, self.streams = tuple(students), dict(streams)
        self.modules_of_students = nn.ModuleList(students.values())

    @property
    def students(self) -> dict[str, DistillationModule]:
        """Student, objective and moving average, by the student's name."""
        return dict(zip(self.names, self.modules_of_students, strict=True))  # type: ignore[arg-type]  # a list of them

    def forward(self, batch: Batch) -> dict[str, Answer]:
        """Each student's total loss and terms on one batch of views."""
        answers = {}
        for name, module in self.students.items():
            with self.streams[name].own():
                answers[name] = module(batch)
        return answers

    def follow(self) -> None:
        """After a step: moving averages move towards their students."""
        for module in self.students.values():
            module.follow()

    def measure_gradients(self, wanted: bool) -> None:
        """Have the gradient norm of each term among the values, or not."""
        for module in self.students.values():
            module.objective.measure_gradients = wanted
