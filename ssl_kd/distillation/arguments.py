"""What a call gives, in names and objects, as one config of text and numbers that YAML can keep, and the objects beside it.

Paths become text, numpy's numbers Python's, tuples lists; whatever has another type than its field is refused in one line.
An object is recorded by its name (`ssl_kd.runtime.objects`), and a run that had one is resumed by giving it again.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from torch import nn

from ssl_kd.data.augment import Recipe
from ssl_kd.data.open import normal_path
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.view_settings import as_views, views_record
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError, one_line
from ssl_kd.models.encoder import MODULE, Encoder
from ssl_kd.registry import load_object
from ssl_kd.runtime.loggers import LightningLogger, logger_of
from ssl_kd.runtime.objects import is_record, names_code, record_of
from ssl_kd.validation import with_settings

# What makes a criterion is called with, and what it has to return.
SHAPES = {
    "objective": (
        "it is called with the widths of student and teacher, two numbers, or with nothing, and must return a module: class "
        "Mine(torch.nn.Module): def forward(self, student, teacher): return LOSS (docs/objects.md)"
    ),
    "between": (
        "it is called with {student: width} and the teacher's width, or with nothing, and must return a module: class "
        "Mine(torch.nn.Module): def forward(self, students, teacher, batch): return {student: LOSS} (docs/objects.md)"
    ),
}
CODE = ("objective", "views", "log", "student", "between")  # settings that may name an object as package.module:name


@dataclass(frozen=True)
class Objects:
    """The settings of a call that are no text: the config has their names.

    student: what `package.module:name` led to. objectives: a criterion, or what makes one of two widths, by the
    teacher's name; of a single teacher, and of all that have none of their own, under "". views: None for those that
    the config names. students: what the lines of several students had, their objectives under "".
    between: a module with the terms between students, or what makes one.
    """

    student: object = None
    objectives: Mapping[str, object] = field(default_factory=dict)
    views: tuple[Recipe, ...] | None = None
    loggers: tuple[LightningLogger, ...] = ()
    students: Mapping[str, Objects] = field(default_factory=dict)
    between: object = None

    def of(self, name: str, own_objective: bool) -> Objects:
        """Those of one of several students. own_objective: it has one of its own, which takes the place of the run's."""
        own = self.students.get(name, NOTHING)
        kept = {teacher: found for teacher, found in self.objectives.items() if teacher or not own_objective}
        return replace(self, student=own.student, objectives={**kept, **own.objectives}, students={})


NOTHING = Objects()


def merge(
    config: DistillConfig | None, teacher: object, student: object, images: object, settings: Mapping[str, object]
) -> tuple[DistillConfig, Objects]:
    """One config of what was given in three ways, and the objects among it.

    UserError for a setting that does not exist, or of a wrong type, and for an object that the config names (as the
    config.yaml of a run does) but the call does not give.
    """
    named = {"teacher": _teacher(teacher), "student": _student(student), "images": _images(images)}
    given = dict(settings) | {key: value for key, value in named.items() if value}
    objects = _objects(given)
    merged = with_settings(config or DistillConfig(), given, "distill")
    merged = replace(merged, images=normal_path(merged.images))
    for name in CODE:
        _must_be_given(name, getattr(merged, name), name in given)
    if "students" not in given:
        _must_be_plain(merged.students)
    return merged, objects


def _must_be_plain(students: object) -> None:
    """UserError where the students of a config name objects or code, which this call has not given itself."""
    for name, line in students.items() if isinstance(students, Mapping) else ():
        for key, value in line.items() if isinstance(line, Mapping) else (("arch", line),):
            if key in ("arch", "objective") and (is_record(value) or names_code(value)):
                raise UserError(
                    f"students: {key} of {name} was an object or names code ({value}), and a config runs none; give it "
                    f"from Python, as ssl_kd.distill(students={{...}})"
                )


def _objects(given: dict[str, object]) -> Objects:
    """The objects among the settings of a call, which are replaced there by their names."""
    student, objectives = None, {}
    if names_code(given.get("student")):
        student = load_object(str(given["student"]), "student")
    if (objective := given.get("objective")) is not None and (names_code(objective) or callable(objective)):
        objectives[""], given["objective"] = _objective(objective)
    if isinstance(teachers := given.get("teachers"), Mapping):
        given["teachers"] = {name: _own_objective(name, line, objectives) for name, line in teachers.items()}
    members: dict[str, Objects] = {}
    if isinstance(students := given.get("students"), Mapping):
        given["students"] = {name: _own_objects(name, line, members) for name, line in students.items()}
    between = None
    if (terms := given.get("between")) is not None and (names_code(terms) or callable(terms)):
        between, given["between"] = _objective(terms, "between")
    views = given.get("views")
    found = as_views(load_object(str(views), "views") if names_code(views) else views)
    if found is not None:
        given["views"] = views if names_code(views) else views_record(found)
    loggers: list[LightningLogger] = []
    if "log" in given:
        given["log"] = ",".join(_log(one, loggers) for one in _listed(given["log"]))
    return Objects(student, objectives, found, tuple(loggers), members, between)


def _own_objects(name: str, line: object, members: dict[str, Objects]) -> dict[str, object]:
    """A student's line; objects in it, of which their names stay, go to the others."""
    line_of: dict[str, object] = dict(line) if isinstance(line, Mapping) else {"arch": line}
    student: object = None
    objectives = {}
    if isinstance(arch := line_of.get("arch"), nn.Module):
        student, line_of["arch"] = arch, _student(arch)
    elif names_code(arch):
        student = load_object(str(arch), f"students: {name}")
    if (objective := line_of.get("objective")) is not None and (names_code(objective) or callable(objective)):
        objectives[""], line_of["objective"] = _objective(objective)
    if student is not None or objectives:
        members[name] = Objects(student, objectives)
    return line_of


def _objective(given: object, what: str = "objective") -> tuple[object, str]:
    """A criterion or what makes one, and its name."""
    if isinstance(given, str):
        found, name = load_object(given, what), given
    else:
        found, name = given, record_of(given)
    if not callable(found):
        raise UserError(f"{what}: expected a module or what makes one, got {type(found).__name__} ({name})")
    return found, name


def _own_objective(teacher: str, line: object, objectives: dict[str, object]) -> object:
    """A teacher's line; an object as its objective goes to the objects."""
    if not isinstance(line, Mapping):
        return line
    own = line.get("objective")
    if own is None or not (callable(own) or names_code(own)):
        return line
    objectives[teacher], name = _objective(own)
    return {**line, "objective": name}


def _listed(given: object) -> list[object]:
    if isinstance(given, str):
        return [one.strip() for one in given.split(",")]
    return list(given) if isinstance(given, list | tuple) else [given]


def _log(one: object, loggers: list[LightningLogger]) -> str:
    """The name of a log; a logger from Python goes to the others."""
    if isinstance(one, str) and not names_code(one):
        return one
    loggers.append(logger_of(one))
    return one if isinstance(one, str) else record_of(one)


def _must_be_given(name: str, value: object, given: bool) -> None:
    """UserError where a config names an object, or code to import, that this call has not given itself."""
    if is_record(value) and not given:
        raise UserError(f"{name}: {value} was an object from Python; give it again, as ssl_kd.distill({name}=...)")
    if names_code(value) and not given:
        raise UserError(
            f"{name}: the config names code ({value}), and a config runs none; give it as {name}={value!r} beside it"
        )


def criterion_of(found: object, name: str, student_width: int, teacher_width: int) -> nn.Module:
    """A criterion that was given as an object: itself, or what a class or function makes, of both widths if it takes them.

    UserError where no module comes out.
    """
    return _made("objective", found, name, student_width, teacher_width)


def made_of(found: object, name: str, widths: Mapping[str, int], teacher_width: int) -> nn.Module:
    """Terms between students that were given as an object: itself, or what makes one of everyone's width."""
    return _made("between", found, name, dict(widths), teacher_width)


def _made(what: str, found: object, name: str, student: object, teacher_width: int) -> nn.Module:
    if isinstance(found, nn.Module):
        return found
    make, widths = cast(Callable[..., object], found), (student, teacher_width)
    try:
        made = make(*widths) if _takes(make, *widths) else make()
    except UserError:
        raise
    except Exception as error:  # whatever anybody's class or function raises
        raise UserError(
            f"{what}: {name} cannot be built for widths {student} and {teacher_width}: {type(error).__name__}: "
            f"{one_line(error, 160)}; {SHAPES[what]}"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{what}: expected {name} to make a module, got {type(made).__name__}; {SHAPES[what]}")
    return made


def _takes(make: Callable[..., object], *arguments: object) -> bool:
    """Whether it may be called with these; a module without a constructor of its own seems to take anything."""
    if inspect.isclass(make) and make.__init__ is nn.Module.__init__:
        return False
    try:
        inspect.signature(make).bind(*arguments)
    except (TypeError, ValueError):  # ValueError: a builtin without a signature
        return False
    return True


def is_path(source: object) -> bool:
    """Whether images are given by a path, which the config holds."""
    return isinstance(source, str | os.PathLike)


def _teacher(given: object) -> str | dict[str, object]:
    if isinstance(given, nn.Module):
        return given.origin if isinstance(given, Encoder) else record_of(given)
    if isinstance(given, Mapping):
        return dict(given)
    if given is None or is_path(given):
        return str(given or "")
    raise UserError(f"teacher: expected a file, a name, a mapping, an Encoder or a module, got {type(given).__name__}")


def _student(given: object) -> str:
    if isinstance(given, nn.Module):
        return given.arch if isinstance(given, Encoder) else f"{MODULE}{type(given).__name__}"
    if given is None or isinstance(given, str):
        return given or ""
    raise UserError(f"student: expected an architecture's name, an Encoder or a module, got {type(given).__name__}")


def _images(given: object) -> str:
    """A path as it is; of objects how many pictures they hold. What cannot be opened is left for `open_images` to say."""
    if given is None or is_path(given):
        return str(given or "")
    if not isinstance(given, ImageSource) and isinstance(given, list | tuple) and given and all(map(is_path, given)):
        return "::".join(map(str, given))
    return f"<{len(given)} images from Python>" if hasattr(given, "__len__") else f"<{type(given).__name__}>"
