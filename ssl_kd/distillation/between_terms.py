"""The kinds of terms between the students of one run, and the table of them; `between` puts them together for a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError, one_of
from ssl_kd.objectives import WeightedSum, build_objective
from ssl_kd.objectives.alignment import cosine_distance, distance_by, head_to_teacher
from ssl_kd.objectives.divergences import row_softmax_kl
from ssl_kd.objectives.presets.preset import Spec
from ssl_kd.objectives.relations import unit, without_diagonal
from ssl_kd.objectives.target_norms import TARGET_NORMS
from ssl_kd.registry import Registry
from ssl_kd.types import Features, ViewBatch

TEACHER = "the teacher"  # among those who are followed; no student can have this name
Values = dict[str, Tensor]  # of each student that a term leads

# How members of a group follow each other: alignment behind a head of two layers, and correlation of the batch's cosines.
FOLLOW: tuple[Spec, ...] = (
    {"term": "alignment", "projector": "mlp", "weight": 1.0},
    {"term": "correlation", "relation": "batch", "projector": "identity", "weight": 1.0},
)


class BetweenTerm(nn.Module):
    """A term between students. Built of everyone's embedding width: `Kind({"small": 64, "large": 128}, 384, **options)`.

    leads: the students to which it gives a value. min_views, divisible: as of every term of an objective.
    """

    min_views: int = 1
    divisible: bool = False
    leads: tuple[str, ...] = ()

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """Features of all students and of the teacher on the same rows, view-major -> scalars, float32, by student."""
        raise NotImplementedError


class _Follow(BetweenTerm):
    """Students that follow others by ordinary objectives on embeddings: the mean over those whom each one follows."""

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher: int,
        sources: Mapping[str, Sequence[str]],
        objective: str | Sequence[Spec],
    ):
        super().__init__()
        self.leads = tuple(sources)
        of = {**widths, TEACHER: teacher}
        self.edges = [(student, source) for student, followed in sources.items() for source in followed]
        self.objectives = nn.ModuleList([_on_embeddings(objective, of[a], of[b]) for a, b in self.edges])
        self.min_views = max(part.min_views for part in self._parts())
        self.divisible = not any(part.indivisible for part in self._parts())

    def _parts(self) -> list[WeightedSum]:
        return [part for part in self.objectives if isinstance(part, WeightedSum)]

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """The mean over those whom a student follows, who are constants here."""
        of = {**students, TEACHER: teacher}
        found: dict[str, list[Tensor]] = {name: [] for name in self.leads}
        for (student, source), objective in zip(self.edges, self.objectives, strict=True):
            total, _ = objective(Features(of[student].embedding), Features(of[source].embedding.detach()), batch)
            found[student].append(total)
        return {name: torch.stack(values).mean() for name, values in found.items()}


def _on_embeddings(objective: str | Sequence[Spec], student: int, source: int) -> WeightedSum:
    try:
        built = build_objective(objective, student, source)
    except UserError as error:
        raise UserError(f"between: {error}") from error
    if built.reads_tokens or built.student_layers or built.teacher_layers or built.student_momentum:
        raise UserError(
            "between: students follow each other by embeddings, but this objective reads patches, layers or a moving "
            "average; take one on embeddings such as default_light"
        )
    return built


class Mutual(_Follow):
    """Everybody follows everybody else, by alignment and by correlation.

    teacher: whether the frozen teacher is one of the group, whom all follow as well. objective: how one follows another.
    Source and differences: the row in BETWEEN.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher_width: int,
        students: Sequence[str] = (),
        teacher: bool = False,
        objective: str | Sequence[Spec] = FOLLOW,
    ):
        group = group_of(widths, students, 1 if teacher else 2, "mutual")
        everyone = (*group, TEACHER) if teacher else group
        super().__init__(
            widths, teacher_width, {name: [one for one in everyone if one != name] for name in group}, objective
        )


class Assistant(_Follow):
    """Students follow another student, which follows the teacher: a step in the middle of a large gap in capacity.

    assistant: who is followed; students: who follows (all others). For the plain chain give these the weight 0, so that
    they do not follow the teacher itself.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher_width: int,
        assistant: str = "",
        students: Sequence[str] = (),
        objective: str | Sequence[Spec] = "default_light",
    ):
        assistant = one_of("between: assistant", assistant, widths)
        group = [name for name in group_of(widths, students, 1, "assistant") if name != assistant]
        if not group:
            raise UserError(f"between: nobody is left to follow the assistant {assistant}; name other students")
        super().__init__(widths, teacher_width, {name: [assistant] for name in group}, objective)


class ResidualAssistant(BetweenTerm):
    """One student looks for the teacher, its assistant for what the first one misses: d(g1(s), t) and d(g2(a), t - sg g1(s)).

    The sum of both heads is nearer to the teacher than the first. student, assistant: their names; space, distance,
    projector: as of an alignment.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher_width: int,
        student: str = "",
        assistant: str = "",
        projector: str = "simreg",
        space: str = "standardised",
        distance: str = "mse",
    ):
        super().__init__()
        self.student = one_of("between: student", student, widths)
        self.assistant = one_of("between: assistant", assistant, widths)
        if student == assistant:
            raise UserError(f"between: the assistant of {student} must be another student")
        self.leads = (student, assistant)
        self.heads = nn.ModuleList([head_to_teacher(projector, widths[name], teacher_width) for name in self.leads])
        self.space = TARGET_NORMS[one_of("between: space", space, TARGET_NORMS)](teacher_width)
        self.distance = distance_by(distance)

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """0 for both where the first head is at the teacher and the second at 0."""
        first, second = (h(students[n].embedding) for h, n in zip(self.heads, self.leads, strict=True))
        with torch.autocast(first.device.type, enabled=False):
            t = self.space(teacher.embedding.detach().float())
            first, second = first.float(), second.float()
            return {
                self.student: self.distance(first, t),
                self.assistant: self.distance(second, t - first.detach()),
            }


class Ensemble(BetweenTerm):
    """Students are branches; a gate looks at their embeddings and weighs them into an ensemble, which each one follows.

    Each has a head h_i to the teacher's width. The gate is a linear layer on all embeddings (unit rows, constants) and a
    softmax over students; the ensemble e = sum_i gate_i h_i(s_i) / |h_i(s_i)|. Gate, heads and students are trained by
    2 - 2 cos(e, t), without a label; and each student by 2 - 2 cos(h_i(s_i), sg e) + KL of the batch's cosines to those of
    sg e at `tau`. Every student's value has its share of the first. 0 where all heads are at the teacher.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher_width: int,
        students: Sequence[str] = (),
        projector: str = "mlp",
        tau: float = 0.07,
    ):
        super().__init__()
        self.leads = group_of(widths, students, 2, "ensemble")
        self.heads = nn.ModuleList([head_to_teacher(projector, widths[name], teacher_width) for name in self.leads])
        self.gate = nn.Linear(sum(widths[name] for name in self.leads), len(self.leads))
        self.tau = tau

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """Scalars by student."""
        embeddings = [students[name].embedding for name in self.leads]
        branches = [head(z) for head, z in zip(self.heads, embeddings, strict=True)]
        shares = self.shares(embeddings)
        with torch.autocast(shares.device.type, enabled=False):
            branches = [unit(branch.float()) for branch in branches]
            ensemble = torch.stack([shares[:, i, None] * branch for i, branch in enumerate(branches)]).sum(0)
            own = cosine_distance(ensemble, teacher.embedding.detach().float()) / len(branches)
            followed = unit(ensemble.detach())
            table = without_diagonal(followed @ followed.T)
            return {
                name: own
                + cosine_distance(branch, followed)
                + row_softmax_kl(without_diagonal(branch @ branch.T), table, self.tau, self.tau)
                for name, branch in zip(self.leads, branches, strict=True)
            }

    def shares(self, embeddings: Sequence[Tensor]) -> Tensor:
        """(N, students): what the gate gives each, from embeddings that it does not move. Rows sum to 1."""
        shares: Tensor = self.gate(torch.cat([unit(z.detach().float()) for z in embeddings], dim=1)).float().softmax(1)
        return shares


class OnlineNeighbours(BetweenTerm):
    """Soft targets from a k-NN density estimate in the embedding space of the whole group, found anew in each batch.

    The group's space has all students' unit embeddings side by side (with `teacher` also the teacher's), as constants. In
    it and in each student's own space p(j | i) = softmax_j(-d_ij^2 / (tau r_i^2)), over the other samples j of the batch:
    a kernel whose width r_i is the distance to i's k-th nearest. Each student gets KL(p of the group || p of its own).
    0 where its distances are the group's up to a scale.
    """

    def __init__(
        self,
        widths: Mapping[str, int],
        teacher_width: int,
        students: Sequence[str] = (),
        neighbours: int = 5,
        tau: float = 0.2,
        teacher: bool = False,
    ):
        super().__init__()
        self.leads = group_of(widths, students, 1 if teacher else 2, "online_neighbours")
        if neighbours < 1 or not 0 < tau < float("inf"):
            raise UserError(f"between: neighbours and tau are above 0, got {neighbours} and {tau}")
        self.neighbours, self.tau, self.teacher = neighbours, tau, teacher

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """Scalars by student."""
        own = {name: students[name].embedding for name in self.leads}
        with torch.autocast(next(iter(own.values())).device.type, enabled=False):
            own = {name: unit(z.float()) for name, z in own.items()}
            group = [z.detach() for z in own.values()]
            if self.teacher:
                group.append(unit(teacher.embedding.detach().float()))
            target = neighbour_logits(torch.cat(group, dim=1), self.neighbours)
            return {
                name: row_softmax_kl(neighbour_logits(z, self.neighbours), target, self.tau, self.tau)
                for name, z in own.items()
            }


def neighbour_logits(z: Tensor, neighbours: int) -> Tensor:
    """(N, D) -> (N, N): -d_ij^2 / r_i^2, r_i the distance of the k-th nearest other row; -inf on the diagonal."""
    squares = z.square().sum(1)
    distances = (squares[:, None] + squares[None] - 2 * z @ z.T).clamp_min(1e-12)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    others = distances.masked_fill(own, torch.inf)
    radius = others.topk(min(neighbours, len(z) - 1), dim=1, largest=False).values[:, -1:]
    return (-distances / radius.clamp_min(1e-9)).masked_fill(own, -torch.inf)


def group_of(widths: Mapping[str, int], students: Sequence[str], least: int, what: str) -> tuple[str, ...]:
    """The students that a term is between: those named, or all. UserError for a name that there is not, or too few."""
    if isinstance(students, str) or not isinstance(students, Sequence):
        raise UserError(f"between: students of {what}: expected a list of names, got {students!r}")
    for name in students:
        one_of("between: student", name, widths)
    group = tuple(dict.fromkeys(students or widths))
    if len(group) < least:
        raise UserError(f"between: {what} needs at least {least} students, got {', '.join(group)}")
    return group


@dataclass(frozen=True)
class Row:
    """A kind of term: what makes it of the widths, its source, the idea there, and what is not the same here.

    make: called with {name of a student: width}, the teacher's width, and the options, which are told from its signature.
    evidence: "code" or "abstract" where that is what was read, else "ours".
    """

    make: Callable[..., BetweenTerm]
    source: str = ""
    evidence: str = "ours"
    idea: str = ""
    differs: str = ""


BETWEEN: Registry[Row] = Registry(
    "between",
    {
        "mutual": Row(
            Mutual,
            "deep mutual learning, DML (Zhang et al., CVPR 2018); YingZhangDUT/Deep-Mutual-Learning",
            "code",
            "each network in turn: cross-entropy + sum over the others of KL(p_other || p_own) of class probabilities",
            "embeddings in place of class probabilities: 2 - 2 cos behind a head, and KL of the batch's cosines; the mean over "
            "the others; all students step at once; the teacher may be one of the group",
        ),
        "ensemble": Row(
            Ensemble,
            "on-the-fly native ensemble, ONE (Lan et al., NeurIPS 2018); Lan1991Xu/ONE_NeurIPS2018",
            "code",
            "three branches on shared layers; a gate (linear layer on these, batch norm, ReLU, softmax) weighs their logits; "
            "cross-entropy of branches and ensemble, + 9 KL of each branch to the ensemble at temperature 3, growing over 80 epochs",
            "whole students in place of branches on shared layers, so that the gate reads their embeddings, without batch norm and "
            "ReLU; the ensemble learns from the frozen teacher in place of labels; cosines and batch tables in place of class "
            "probabilities; `warmup` for the growth",
        ),
        "online_neighbours": Row(
            OnlineNeighbours,
            "OSAKD (2108.11798)",
            "abstract",
            "a k-NN density estimate in the output feature space gives posterior class probabilities as soft targets, online",
            "no classes: probabilities of being each other's neighbour; the space is that of all students together; the "
            "kernel and its temperature are ours",
        ),
        "assistant": Row(
            Assistant,
            "teacher assistants for large gaps (Mirzadeh et al., AAAI 2020); imirzadeh/Teacher-Assistant-Knowledge-Distillation",
            "code",
            "the teacher trains an assistant, which, once trained, trains the student: (1 - lambda) cross-entropy + lambda T^2 KL",
            "both learn in the same run, and with `start` the second later; any objective on embeddings in place of "
            "softened class probabilities",
        ),
        "residual_assistant": Row(
            ResidualAssistant,
            "Residual KD (2002.09168)",
            "abstract",
            "the student mimics the teacher's maps, an assistant network learns the residual error",
            "embeddings instead of maps; both are networks of their own sizes, where the paper derives them from one; each "
            "is saved by itself, without the heads whose sum comes near the teacher",
        ),
    },
    group="ssl_kd.between",
    kind=Row,
)
