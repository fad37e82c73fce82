"""Correlation: samples relate to each other as they do for the teacher. Projector x relation x comparison."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives.alignment import must_reach_the_teacher
from ssl_kd.objectives.dense_relations import (
    AllTokensTable,
    AttentionMapTable,
    ClassAttentionTable,
    ContextTable,
    FlowTable,
    TokensTable,
)
from ssl_kd.objectives.divergences import DIVERGENCES
from ssl_kd.objectives.inputs import Widths, cell_widths, cells, onto_coarser, to_grid
from ssl_kd.objectives.memory_bank import TeacherQueue, TwoQueues
from ssl_kd.objectives.projectors import over_rows, projector, width_after
from ssl_kd.objectives.relations import (
    AcrossTable,
    AnglesTable,
    BatchTable,
    DimensionsTable,
    DistancesTable,
    GramTable,
    KernelTable,
    PearsonTable,
    ProductsTable,
    Relation,
    ViewsTable,
    keys_of,
)
from ssl_kd.types import Features, ViewBatch

RELATIONS: dict[str, type[Relation]] = {
    "views": ViewsTable,
    "batch": BatchTable,
    "queue": TeacherQueue,
    "two_queues": TwoQueues,
    "gram": GramTable,
    "products": ProductsTable,
    "distances": DistancesTable,
    "angles": AnglesTable,
    "pearson": PearsonTable,
    "across": AcrossTable,
    "kernel": KernelTable,
    "dims": DimensionsTable,
    "tokens": TokensTable,
    "all_tokens": AllTokensTable,
    "context": ContextTable,
    "attention_map": AttentionMapTable,
    "flow": FlowTable,
    "class_attention": ClassAttentionTable,
}


WHOLE_TABLES = ("frobenius", "rows_and_columns", "pkt")  # all other comparisons are means over rows or entries


class Correlation(nn.Module):
    """Compare the student's similarity table with the teacher's, row by row.

    relation="views" with projector="square" and tau 0.5 is DLKD's correlation: augmented against plain views,
    divided by the number of rows. Source: Ding et al., TNNLS 35(2):2425-2435 and its published code.

    teacher_width: look at the teacher through a fixed random linear map of that width (RRD). What follows belongs to
    single relations and comparisons; `options_of` tells which knows what.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        relation: str = "queue",
        comparison: str = "softmax_kl",
        projector_name: str = "linear",
        tau_student: float = 0.07,
        tau_teacher: float = 0.07,
        teacher_width: int | None = None,
        size: int | None = None,
        batch: str | None = None,
        momentum: float | None = None,
        rows: int | None = None,
        per_image: int | None = None,
        gamma: float | None = None,
        order: int | None = None,
        student_layers: Sequence[str] | None = None,
        teacher_layers: Sequence[str] | None = None,
        neighbours: int | None = None,
        strength: float | None = None,
        every_slot: bool | None = None,
        sampled: bool | None = None,
    ):
        given = {k: v for k, v in locals().items() if k in OWN_OPTIONS and v is not None}
        super().__init__()
        for what, name, table in (("relation", relation, RELATIONS), ("comparison", comparison, DIVERGENCES)):
            one_of(what, name, table)
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        kind, known = RELATIONS[relation], options_of(relation, comparison)
        for key in given:
            if key not in known:
                raise UserError(
                    f"objective: {relation} with {comparison} has no {key!r}; it knows {', '.join(known) or 'no options'}"
                )
        self.student_layers, self.teacher_layers = tuple(student_layers or ()), tuple(teacher_layers or ())
        self.widths = student.embedding, teacher.embedding
        if kind.of == "tokens":
            self.widths = cell_widths(student, teacher, self.student_layers, self.teacher_layers)
        ds, dt = self.widths[0], teacher_width or self.widths[1]
        if kind.needs_teacher_width:
            must_reach_the_teacher(projector_name, ds, dt)
        self.of = kind.of
        after = Widths(width_after(projector_name, ds, dt), None, student.layers), Widths(dt, None, teacher.layers)
        self.relation = kind.build(*after, **_chosen(given, kind.__init__))
        if self.of != "layers":
            self.projector = projector(projector_name, ds, dt)
        self.view_of_teacher: nn.Module = nn.Identity()
        if teacher_width:  # frozen: it gets no gradient in the published code either
            self.view_of_teacher = nn.Linear(self.widths[1], teacher_width, bias=False).requires_grad_(False)
        if self.relation.student_momentum and projector_name != "identity":
            raise UserError("objective: a queue of the student's moving average takes projector identity")
        self.min_views = self.relation.min_views
        # A memory takes the parts of a batch in one after another, each meeting the ones before: near enough.
        self.divisible = comparison not in WHOLE_TABLES and (
            self.relation.divisible or isinstance(self.relation, TeacherQueue)
        )
        self.comparison = partial(DIVERGENCES[comparison], **_chosen(given, DIVERGENCES[comparison]))
        self.tau_student, self.tau_teacher = tau_student, tau_teacher

    def forward(self, student: Features, teacher: Features, views: ViewBatch) -> Tensor:
        """Scalar, float32; 0 at a match, where the relation says nothing else. Rows are view-major."""
        s, t = self._read(student, teacher)
        keys = keys_of(student, bool(self.relation.student_momentum))
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float(), self.view_of_teacher(t.detach().float())
            tables = self.relation(s, t, views) if keys is None else self.relation(s, t, views, keys)
            if not tables[0].shape[1]:  # a queue that is still empty
                return s.sum() * 0
            return self.comparison(*tables, self.tau_student, self.tau_teacher)

    def _read(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        if self.of == "layers":
            return self.relation.read(student, teacher)  # type: ignore[operator]
        if self.of == "embedding":
            return self.projector(student.embedding), teacher.embedding
        s = cells(student, "student", self.widths[0], self.student_layers)
        t = cells(teacher, "teacher", self.widths[1], self.teacher_layers)
        if isinstance(self.relation, AttentionMapTable):
            s, t = onto_coarser(s, t)
        else:
            s = to_grid(s, t.shape[1], sampled=getattr(self.relation, "sampled", False))
        return over_rows(self.projector, s), t


# The arguments of Correlation that only some relations or comparisons know.
OWN_OPTIONS = tuple(inspect.signature(Correlation.__init__).parameters)[9:]


def options_of(relation: str, comparison: str) -> list[str]:
    """Which of its own options a relation and a comparison know."""
    known = (
        *inspect.signature(RELATIONS[relation].__init__).parameters,
        *inspect.signature(DIVERGENCES[comparison]).parameters,
    )
    layers = ("student_layers", "teacher_layers") if RELATIONS[relation].of == "tokens" else ()
    return [name for name in OWN_OPTIONS if name in (*known, *layers)]


def _chosen(given: Mapping[str, Any], call: Any) -> dict[str, Any]:
    return {k: v for k, v in given.items() if k in inspect.signature(call).parameters}
