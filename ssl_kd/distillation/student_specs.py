"""Several students of one run: the lines of the setting `students`, and what each would be as a run of its own.

    students:
      small: {arch: mobilenetv3_small_100, objective: simreg, lr: 4e-3}
      server: resnet18

Nothing heavy is imported here: the command line checks the lines before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

from ssl_kd.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    from ssl_kd.distillation.config import DistillConfig, NameOrRows

FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
ALONE = ("student", "student_args", "student_weights", "student_digest")  # settings that a line has in another form


@dataclass(frozen=True)
class StudentSpec:
    """One student of a run; what it does not say is as the run says.

    weight: how much its objective counts beside the terms between students; 0: it does not follow the teachers itself.
    seed: of its first weights and its dropout, None for the run's; images and views are the run's in any case.
    """

    arch: str = ""  # a name, or the record of an object from Python
    args: Mapping[str, object] = field(default_factory=dict)
    weights: str = ""
    objective: NameOrRows | None = None
    weight: float = 1.0
    lr: float | None = None
    seed: int | None = None
    digest: str = ""

    def recorded(self, named: Mapping[str, object]) -> dict[str, object]:
        """The line as config.yaml keeps it. named: what `find_student` says of the network that it led to."""
        line = {f.name: getattr(self, f.name) for f in fields(self)}
        found = {key.removeprefix("student_").replace("student", "arch"): value for key, value in named.items()}
        return {key: value for key, value in (line | found).items() if value not in (None, "")}


def student_specs(config: DistillConfig) -> dict[str, StudentSpec]:
    """The students of a config by name; none where it has a single one. UserError for a line that cannot be right."""
    if config.students == "":
        return {}
    if not isinstance(config.students, Mapping) or not config.students:
        raise UserError("students: expected at least one, as in {small: mobilenetv3_small_100}; got none")
    for name in ALONE:
        if getattr(config, name):
            given = one_line(str(getattr(config, name)), 60)
            raise UserError(
                f"{name}: expected a single student or several as students, not both; got {given} and students"
            )
    specs = {(known := _name(name)): _spec(known, given) for name, given in config.students.items()}
    _must_differ(specs)
    return specs


def alone(config: DistillConfig, spec: StudentSpec) -> DistillConfig:
    """The settings of the run that would train this student alone: to the same bits, if no term is between students."""
    return replace(
        config,
        students="",
        between="",
        student=spec.arch,
        student_args=dict(spec.args),
        student_weights=spec.weights,
        student_digest=spec.digest,
        objective=config.objective if spec.objective is None else spec.objective,
        lr=config.lr if spec.lr is None else spec.lr,
        seed=config.seed if spec.seed is None else spec.seed,
    )


def _name(name: object) -> str:
    if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
        raise UserError(
            f"students: each needs a name that a folder can have, of at most 64 letters, digits, _ and - "
            f"(not in front); got {one_line(repr(name), 80)}"
        )
    return name


def _spec(name: str, given: object) -> StudentSpec:
    line: dict[str, object] = dict(given) if isinstance(given, Mapping) else {"arch": given}
    known = [f.name for f in fields(StudentSpec)]
    for key in line:
        if key not in known:
            raise UserError(f"students: {name} has no setting {key!r}.{nearest(str(key), known)} It knows: {known}")
    if not (line.get("arch") or line.get("weights")):
        raise UserError(f"students: {name} needs an architecture, as in {{{name}: resnet18}}; got {given!r}")
    for key, value in line.items():
        kinds, what = _EXPECTED[key]
        good = isinstance(value, kinds) and not isinstance(value, bool)
        if isinstance(value, int | float):
            good = good and 0 <= value < 2**63 and (key != "lr" or value > 0)
        if not good:
            raise UserError(f"students: {key} of {name}: expected {what}, got {one_line(repr(value), 60)}")
    make: Callable[..., StudentSpec] = StudentSpec
    return make(**line)


_NUMBER = (int, float)
_EXPECTED: dict[str, tuple[type | tuple[type, ...], str]] = {
    "arch": (str, "an architecture's name"),
    "args": (Mapping, "a mapping"),
    "weights": (str, "a file's name"),
    "objective": ((str, list), "a preset's name or a list of terms"),
    "weight": (_NUMBER, "a number of at least 0"),
    "lr": (_NUMBER, "a number above 0"),
    "seed": (int, "a whole number from 0 to below 2^63"),
    "digest": (str, "text"),
}


def _must_differ(specs: Mapping[str, StudentSpec]) -> None:
    """UserError for two names that are one folder on some machines."""
    folders: dict[str, str] = {}
    for name in specs:
        if (other := folders.setdefault(name.lower(), name)) != name:
            raise UserError(
                f"students: {other} and {name} differ in capital letters alone, which folders may not; rename one"
            )


def refuse_twins(config: DistillConfig, specs: Mapping[str, StudentSpec], objects: Collection[str]) -> None:
    """UserError for two students that would stay equal; not for those that are objects from Python."""
    seen: dict[str, tuple[DistillConfig, float]] = {}
    for name, spec in specs.items():
        mine = alone(config, spec), spec.weight
        twin = next((other for other, before in seen.items() if before == mine and name not in objects), None)
        if twin is not None:
            raise UserError(
                f"students: {twin} and {name} are equal in all settings and would stay equal to the last bit; give one "
                f"of them another seed, as in {{seed: 1}}"
            )
        seen[name] = mine
