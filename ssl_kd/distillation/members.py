"""The students of a run, from their lines to what is trained; a single one has the name "".

Each begins with the random numbers that it would have as the only student of a run, and keeps a stream of its own, so that
it is trained to the same bits whoever is trained beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_kd.distillation.arguments import Objects, made_of
from ssl_kd.distillation.between import AnyBetween, Between, build_between, specs_of
from ssl_kd.distillation.config import DistillConfig, NameOrRows, TeacherSpec, teacher_specs
from ssl_kd.distillation.module import Objective
from ssl_kd.distillation.student_specs import StudentSpec, alone, refuse_twins, student_specs
from ssl_kd.distillation.teachers import Teacher
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.factory import known_to_be_wrong
from ssl_kd.objectives import Weight, taps


class Randomness:
    """A student's own stream of torch's random numbers, drawn from inside `own`; without a state it is the process's.

    own_seed: the student's, where it is not the run's.
    """

    def __init__(self, state: Tensor | None = None, own_seed: int | None = None):
        self.state, self.own_seed = state, own_seed
        self.cuda_state: Tensor | None = None

    @classmethod
    def begun(cls, seed: int, of_run: int, state: Tensor) -> Randomness:
        """A stream that begins at `state` where the seed is the run's, else at the beginning of that seed."""
        if seed == of_run:
            return cls(state)
        return cls(torch.Generator().manual_seed(seed).get_state(), seed)

    def to(self, device: torch.device) -> None:
        """Have numbers on that device as well, if it has a stream of its own; call it before the first was drawn there."""
        if self.state is not None and device.type == "cuda":
            begun = torch.Generator(device)
            begun.manual_seed(torch.cuda.initial_seed() if self.own_seed is None else self.own_seed)
            self.cuda_state = begun.get_state()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Random numbers that are drawn inside come from this stream and move on no other."""
        if self.state is None:
            yield
            return
        outer, outer_cuda = torch.get_rng_state(), None
        torch.set_rng_state(self.state)
        if self.cuda_state is not None:
            outer_cuda = torch.cuda.get_rng_state()
            torch.cuda.set_rng_state(self.cuda_state)
        try:
            yield
        finally:
            self.state = torch.get_rng_state()
            torch.set_rng_state(outer)
            if outer_cuda is not None:
                self.cuda_state = torch.cuda.get_rng_state()
                torch.cuda.set_rng_state(outer_cuda)

    def saved(self) -> dict[str, Tensor | None]:
        """For the run's saved state."""
        return {"torch_rng": self.state, "cuda_rng": self.cuda_state}

    def restore(self, saved: Mapping[str, Tensor | None]) -> None:
        """The inverse of `saved`."""
        self.state = saved["torch_rng"]
        self.cuda_state = saved["cuda_rng"] if self.cuda_state is not None else None


@dataclass(frozen=True)
class Member:
    """A student of a run: the settings and teachers (with their objectives) that it would have alone, and its parts."""

    name: str
    spec: StudentSpec
    config: DistillConfig
    teachers: Mapping[str, Teacher]
    student: Encoder
    objective: Objective
    randomness: Randomness


@dataclass(frozen=True)
class Tie:
    """What is between the students: the terms, and their own stream of random numbers."""

    terms: Between
    randomness: Randomness


@dataclass(frozen=True)
class Asked:
    """A student before anything is built: its line, its settings, the objects among them, and what its teachers' lines say."""

    spec: StudentSpec
    config: DistillConfig
    objects: Objects
    lines: Mapping[str, TeacherSpec]


def asked_students(config: DistillConfig, objects: Objects) -> dict[str, Asked]:
    """The students that a config asks for, by name; a single one has the name "".

    UserError where one of several has an unknown architecture or objective, before anything is loaded.
    """
    specs = student_specs(config)
    if not specs:
        return {"": Asked(StudentSpec(), config, objects, teacher_specs(config))}
    refuse_twins(config, specs, [name for name, found in objects.students.items() if found.student is not None])
    found = {}
    for name, spec in specs.items():
        own, his = alone(config, spec), objects.of(name, spec.objective is not None)
        found[name] = Asked(spec, own, his, teacher_specs(own))
        if his.student is None and spec.arch and (why := known_to_be_wrong(spec.arch)):
            raise UserError(f"students: arch of {name}: {why}")
        if "" not in his.objectives:
            _objective_must_be_known(name, own.objective)
    if config.between and objects.between is None:
        specs_of(config.between, found)
    return found


def tied(
    config: DistillConfig, given: object, members: Mapping[str, Member], teachers: Mapping[str, Teacher], views: int
) -> Tie | None:
    """The terms between students that a config asks for, or None. given: an object in place of their names.

    UserError where they do not suit the run, or a student would have nothing to follow.
    """
    if not config.between:
        _all_must_be_led(members, None)
        return None
    widths = {name: member.student.dim for name, member in members.items()}
    theirs = sum(teacher.encoder.dim for teacher in teachers.values())
    stream = Randomness(torch.Generator().manual_seed(config.seed).get_state())
    with stream.own():
        if given is None:
            terms = build_between(config.between, widths, theirs)
        else:
            made = made_of(given, str(config.between), widths, theirs)
            terms = Between([AnyBetween(made, members)], [Weight()], [type(made).__name__])
    if terms.min_views > views:
        raise UserError(
            f"views: a term between students needs at least {terms.min_views} views, got {views}; use multi"
        )
    if config.accumulate > 1 and terms.indivisible:
        raise UserError(
            f"accumulate: {', '.join(terms.indivisible)} relates all samples of a batch to each other, which its parts "
            f"cannot; use accumulate 1"
        )
    _all_must_be_led(members, terms)
    return Tie(terms, stream)


def _all_must_be_led(members: Mapping[str, Member], terms: Between | None) -> None:
    """UserError for a student that in some epoch follows neither the teacher nor anybody else."""
    turns = {0} | ({rule.until for rule in terms.weights if rule.until is not None} if terms else set())
    for name, member in members.items():
        epoch = next((e for e in sorted(turns) if not terms or name not in terms.leads(e)), None)
        if not member.spec.weight and epoch is not None:
            raise UserError(
                f"students: {name} has weight 0 and no term between students leads it in epoch {epoch}: it would have "
                f"nothing to follow; give it a weight, or a term from epoch 0 to the end"
            )


def _objective_must_be_known(name: str, objective: NameOrRows) -> None:
    try:
        taps(objective)
    except UserError as error:
        raise UserError(f"students: {name}: {error}") from error
