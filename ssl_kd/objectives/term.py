"""What every term of an objective shares: it takes features or plain embeddings, with or without the batch they come from."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths
from ssl_kd.types import Features, Index, ViewBatch


def batch_of(rows: int, batch: ViewBatch | None, index: Index | None, min_views: int, what: str) -> ViewBatch:
    """The batch that was given, or one view of each of `rows` images; UserError where more views are needed."""
    if batch is None:
        if min_views > 1:
            raise UserError(
                f"objective: {what} compares {min_views} views of each image; say which rows are views of one image, "
                f"as in batch=ViewBatch.of_rows({rows}, views={min_views})"
            )
        return ViewBatch.of_rows(rows, index=index)
    if index is not None:
        raise UserError("objective: index names the images where there is no batch; give one of the two")
    return batch


class Term(nn.Module):
    """A part of an objective: features of student and teacher on the same rows -> a scalar, float32.

    Subclasses write `compare`. Options in a config are the arguments of the constructor behind the two widths.
    """

    min_views: int = 1
    divisible: bool = False  # whether the value over a batch is the mean of the values over its parts
    student_layers: tuple[str, ...] = ()
    teacher_layers: tuple[str, ...] = ()
    student_momentum: float = 0.0
    needs_tokens: bool = False
    masks: bool = False  # reads what the student says of masked images (see `masked`)
    at_boundary: bool = False  # reads what both say of images that were moved (see `boundary`)

    def forward(
        self,
        student: Features | Tensor,
        teacher: Features | Tensor,
        batch: ViewBatch | None = None,
        *,
        index: Index | None = None,
    ) -> Tensor:
        """Features, or embeddings (N, Ds) and (N, Dt) -> scalar, float32; 0 at a match unless the class says otherwise.

        batch: the views that the rows show, view-major; without it each row is another image. index: (N,) numbers of
        the images, where there is no batch: a memory bank then hides older views of an image from itself.
        """
        s, t = Features.of(student), Features.of(teacher)
        what = type(self).__name__
        return self.compare(s, t, batch_of(len(s.embedding), batch, index, self.min_views, what))

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """The term's value."""
        raise NotImplementedError

    @classmethod
    def options(cls) -> dict[str, object]:
        """The options that a config may give, with their defaults."""
        return {p.name: p.default for p in list(inspect.signature(cls.__init__).parameters.values())[3:]}

    @classmethod
    def from_options(cls, student_dim: int | Widths, teacher_dim: int | Widths, **options: object) -> Term:
        """The term from a config's flat options."""
        return cls(student_dim, teacher_dim, **options)
