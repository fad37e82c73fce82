"""Correlation: samples relate to each other as they do for the teacher. Projector x relation x comparison."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives.alignment import target_norm
from ssl_kd.objectives.dense_relations import (
    AllTokensTable,
    AttentionMapTable,
    ClassAttentionTable,
    ContextTable,
    FlowTable,
    TokensTable,
)
from ssl_kd.objectives.divergences import DIVERGENCES, Divergence
from ssl_kd.objectives.inputs import Widths, cell_widths, cells, onto_coarser, to_grid
from ssl_kd.objectives.memory_bank import MemoryBank, TwoMemoryBanks
from ssl_kd.objectives.projectors import must_reach, over_rows, width_after
from ssl_kd.objectives.projectors import projector as projector_by
from ssl_kd.objectives.prototypes import Prototypes
from ssl_kd.objectives.relations import (
    AcrossTable,
    AnglesTable,
    BatchTable,
    CrossTable,
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
from ssl_kd.objectives.teacher_heads import TeacherHead
from ssl_kd.objectives.term import Term
from ssl_kd.registry import Registry
from ssl_kd.types import Features, ViewBatch

RELATIONS: Registry[type[Relation]] = Registry(
    "relations",
    {
        "views": ViewsTable,
        "batch": BatchTable,
        "queue": MemoryBank,
        "two_queues": TwoMemoryBanks,
        "prototypes": Prototypes,
        "teacher_head": TeacherHead,
        "gram": GramTable,
        "products": ProductsTable,
        "distances": DistancesTable,
        "angles": AnglesTable,
        "pearson": PearsonTable,
        "across": AcrossTable,
        "cross": CrossTable,
        "kernel": KernelTable,
        "dims": DimensionsTable,
        "tokens": TokensTable,
        "all_tokens": AllTokensTable,
        "context": ContextTable,
        "attention_map": AttentionMapTable,
        "flow": FlowTable,
        "class_attention": ClassAttentionTable,
    },
    group="ssl_kd.relations",
)


STEADY = 0.01  # by which share a batch moves the running lengths


class Correlation(Term):
    """Compare the student's similarity table with the teacher's, row by row.

    relation, divergence, projector: objects, or names with the constants that stand behind them:

        Correlation(384, 512, relation=MemoryBank(8192), divergence=SoftmaxKL(0.07), projector="mlp")

    teacher_width: look at the teacher through a fixed random linear map of that width (RRD). student_layers,
    teacher_layers: tapped layers whose cells take the place of patch tokens, for relations between patches.
    relation="views" with projector="square" and tau 0.5 is DLKD's correlation: augmented against plain views,
    divided by the number of rows. Source: Ding et al., TNNLS 35(2):2425-2435 and its published code.
    """

    lengths: Tensor | None

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        relation: str | Relation = "queue",
        divergence: str | Callable[[Tensor, Tensor], Tensor] = "softmax_kl",
        projector: str | nn.Module = "linear",
        teacher_width: int | None = None,
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
        space: str | nn.Module = "raw",
    ):
        super().__init__()
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        relation = relation_by(relation) if isinstance(relation, str) else relation
        self.of = relation.of
        self.student_layers = tuple(relation.student_layers or student_layers)
        self.teacher_layers = tuple(relation.teacher_layers or teacher_layers)
        self.needs_tokens = self.of == "tokens" and not self.student_layers
        self.widths = student.embedding, teacher.embedding
        if self.of == "tokens":
            self.widths = cell_widths(student, teacher, self.student_layers, self.teacher_layers)
        ds, dt = self.widths[0], teacher_width or self.widths[1]
        if relation.needs_teacher_width and isinstance(projector, str):
            must_reach(projector, ds, dt)
        width = width_after(projector, ds, dt) if isinstance(projector, str) else dt
        relation.fit(Widths(width, None, student.layers), Widths(dt, None, teacher.layers))
        self.relation = relation
        if self.of != "layers":
            self.projector = projector_by(projector, ds, dt) if isinstance(projector, str) else projector
        self.view_of_teacher: nn.Module = nn.Identity()
        if teacher_width:  # frozen: it gets no gradient in the published code either
            self.view_of_teacher = nn.Linear(self.widths[1], teacher_width, bias=False).requires_grad_(False)
        if space != "raw" and self.of != "embedding":
            raise UserError(f"objective: space {space!r} is for relations of embeddings, not of {self.of}")
        self.space = target_norm(space, dt)
        # The usual lengths of the student's and the teacher's rows there: a cosine sees none, and the way into the teacher's own
        # coordinates needs them. From zero both grow alike, so that their ratio holds from the first batch on.
        self.register_buffer("lengths", None if isinstance(self.space, nn.Identity) else torch.zeros(2))
        self.student_momentum = relation.student_momentum
        if self.student_momentum and projector != "identity":
            raise UserError("objective: a queue of the student's moving average takes projector identity")
        self.min_views = relation.min_views
        self.divergence = divergence_by(divergence) if isinstance(divergence, str) else divergence
        # A memory takes the parts of a batch in one after another, each meeting the ones before: near enough.
        in_parts = relation.divisible or isinstance(relation, MemoryBank)
        self.divisible = in_parts and not getattr(self.divergence, "whole_table", True)

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32; 0 at a match, where the relation says nothing else. Rows are view-major."""
        s, t = self._read(student, teacher)
        keys = keys_of(student, bool(self.relation.student_momentum))
        with torch.autocast(s.device.type, enabled=False):
            s, t = s.float(), self.space(self.view_of_teacher(t.detach().float()))
            if self.training and self.lengths is not None:
                found = torch.stack([z.detach().norm(dim=1).mean() for z in (s, t)])
                self.lengths.lerp_(found, STEADY)
            ours, theirs = self.relation(s, t, batch, **({} if keys is None else {"keys": keys}))
            if not ours.shape[1]:  # a memory that is still empty
                return s.sum() * 0
            return self.divergence(ours, theirs)

    @classmethod
    def options(cls) -> dict[str, Any]:
        """The options that a config may give, with their defaults; not every relation and divergence knows all."""
        return FLAT | dict.fromkeys(OWN_OPTIONS)

    @classmethod
    def from_options(cls, student_dim: int | Widths, teacher_dim: int | Widths, **options: Any) -> Correlation:
        """The term from a config's flat options: each goes to the part whose signature has it."""
        flat = FLAT | {name: options.pop(name) for name in FLAT if name in options}
        relation, comparison = (
            one_of(w, flat[w], k) for w, k in (("relation", RELATIONS), ("comparison", DIVERGENCES))
        )
        given = {name: value for name, value in options.items() if value is not None}
        known = options_of(relation, comparison)
        for key in given:
            if key not in known:
                raise UserError(
                    f"objective: {relation} with {comparison} has no {key!r}; it knows {', '.join(known) or 'no options'}"
                )
        taus = {name: flat[name] for name in ("tau_student", "tau_teacher")}
        kind, measure = RELATIONS[relation], DIVERGENCES[comparison]
        return cls(
            student_dim,
            teacher_dim,
            kind(**_chosen(given, kind)),
            measure(**_chosen(given | taus, measure)),
            flat["projector"],
            flat["teacher_width"],
            given.get("student_layers", ()),
            given.get("teacher_layers", ()),
            flat["space"],
        )

    def _read(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        if self.of == "layers":
            return self.relation.read(student, teacher)
        if self.of == "embedding":
            return self.projector(student.embedding), teacher.embedding
        s = cells(student, "student", self.widths[0], self.student_layers)
        t = cells(teacher, "teacher", self.widths[1], self.teacher_layers)
        if isinstance(self.relation, AttentionMapTable):
            s, t = onto_coarser(s, t)
        else:
            s = to_grid(s, t.shape[1], sampled=getattr(self.relation, "sampled", False))
        return over_rows(self.projector, s), t


# What a config may say of every correlation, with its defaults, and what only some relations or divergences know.
FLAT: dict[str, Any] = {
    "relation": "queue",
    "comparison": "softmax_kl",
    "projector": "linear",
    "tau_student": 0.07,
    "tau_teacher": 0.07,
    "teacher_width": None,
    "space": "raw",
}
OWN_OPTIONS = (
    "size",
    "batch",
    "momentum",
    "rows",
    "per_image",
    "gamma",
    "order",
    "student_layers",
    "teacher_layers",
    "neighbours",
    "strength",
    "prototypes",
    "refresh",
    "own_head",
    "tau",
    "temperature",
    "target",
    "others",
    "own",
    "wrong",
    "right",
    "every_slot",
    "sampled",
)


def options_of(relation: str, comparison: str) -> list[str]:
    """Which of its own options a relation and a divergence know."""
    known = (*_parameters(RELATIONS[relation]), *_parameters(DIVERGENCES[comparison]))
    layers = ("student_layers", "teacher_layers") if RELATIONS[relation].of == "tokens" else ()
    return [name for name in OWN_OPTIONS if name in (*known, *layers)]


def relation_by(name: str) -> Relation:
    """A relation by its name, with its own defaults."""
    return RELATIONS[one_of("relation", name, RELATIONS)]()


def divergence_by(name: str) -> Divergence:
    """A divergence by its name, with its own defaults."""
    return DIVERGENCES[one_of("comparison", name, DIVERGENCES)]()


def _parameters(call: Callable[..., object]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(call).parameters


def _chosen(given: Mapping[str, Any], call: Callable[..., object]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in _parameters(call)}
