"""The model card: the README.md of a run's folder, and the notes inside a student's file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from ssl_kd.checkpoints.formats.student import LOAD
from ssl_kd.checkpoints.licences import UNSTATED, warning
from ssl_kd.data.open import SOURCES
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.members import Member
from ssl_kd.distillation.teachers import Teacher
from ssl_kd.errors import shown_name
from ssl_kd.models.encoder import MODULE, Encoder
from ssl_kd.runtime.objects import code_in, is_record
from ssl_kd.runtime.run_dir import BEST, LAST, STUDENT, STUDENTS, environment
from ssl_kd.validation import About, about


def card(
    config: DistillConfig,
    folder: Path,
    teachers: Mapping[str, Teacher],
    student: Encoder,
    facts: Mapping[str, object],
    unreadable: Mapping[str, str],
    name: str = "",
) -> str:
    """Markdown; `facts` are further rows of its table. name: of one of several students, whose folder is in the run's."""
    above = "../../" if name else ""
    skipped = "".join(f"\n- {shown_name(name)}: {shown_name(why)}" for name, why in unreadable.items()) or " none"
    whom = " and ".join(t.encoder.arch for t in teachers.values())
    rows = "\n".join(f"| {name} | {value} |" for name, value in (_who(teachers, student) | dict(facts)).items())
    sentence = warning([t.encoder.licence for t in teachers.values()])
    best = f"\n- `{BEST}`: the student with its best figures on the held-out images" if (folder / BEST).exists() else ""
    return f"""# {student.arch}, distilled from {whom}

| | |
| --- | --- |
{rows}
{f"{chr(10)}**{sentence}**{chr(10)}" if sentence else ""}
Use it: {_use(folder / STUDENT, student)}

Reproduce it: {_again(config, student) if not name else _again_in_group(name)}

- `{above}config.yaml`: every setting; `{above}environment.json`: versions and machine
- `metrics.jsonl` and `metrics.csv`: one line per {config.log_every} steps, and one per measurement on the held-out images
- `{above}{LAST}`: student, heads, memory banks, optimiser and position
- `{STUDENT}`: the student alone{best}

Unreadable images:{skipped}
"""


def _again_in_group(name: str) -> str:
    """How one of several students is made again: with the others, or alone."""
    return (
        f"it was trained as `{name}` beside others, on the same passes of the teacher; the run is reproduced by "
        f"`{environment()['command']}`, and its own line is `students: {name}` in `../../config.yaml`."
    )


def group_card(
    config: DistillConfig,
    members: Mapping[str, Member],
    facts: Mapping[str, object],
    health: Mapping[str, Mapping[str, str]],
) -> str:
    """Markdown: the README.md of a run with several students. facts: rows of its table; health: of each student's."""
    first = next(iter(members.values()))
    whom = " and ".join(t.encoder.arch for t in first.teachers.values())
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value)
    lines = []
    for name, member in members.items():
        who = _who(member.teachers, member.student)["student"]
        held = "".join(f"; {value}" for value in health[name].values())
        lines.append(f"- [`{STUDENTS}/{name}`]({STUDENTS}/{name}/README.md): {who}{held}")
    between = f"\nTerms between students: `{config.between}`\n" if config.between else ""
    students = "\n".join(lines)
    return f"""# {len(members)} students, distilled from {whom}

| | |
| --- | --- |
{rows}

{students}
{between}
Reproduce it: `{environment()["command"]}`, or `ssl-kd distill --config config.yaml --out elsewhere` where no part of it was an
object from Python.

- `config.yaml`: every setting; `environment.json`: versions and machine
- `metrics.jsonl`: the figures of all students side by side, as `NAME/loss`; each student's folder has its own
- `{LAST}`: students, heads, memory banks, optimisers and position
"""


def provenance(teachers: Mapping[str, Teacher]) -> dict[str, object]:
    """What the student's file keeps of its teachers: plain values for one, a mapping by name for several."""
    origins: dict[str, dict[str, object]] = {
        name: {
            "teacher": t.encoder.origin,
            "teacher_digest": t.encoder.digest,
            "teacher_arch": t.encoder.arch,
            "teacher_licence": t.encoder.licence or UNSTATED,
            "objective": t.line.objective,
        }
        for name, t in teachers.items()
    }
    if "" in origins:
        return origins[""]
    return {key: {name: origin[key] for name, origin in origins.items()} for key in next(iter(origins.values()))}


def _who(teachers: Mapping[str, Teacher], student: Encoder) -> dict[str, object]:
    rows: dict[str, object] = {}
    for name, teacher in teachers.items():
        encoder = teacher.encoder
        rows[f"teacher {name}".strip()] = (
            f"{encoder.origin} ({encoder.arch}, feature `{encoder.feature}`, {encoder.parameter_count:,} parameters, "
            f"input size {teacher.size} px; objective {teacher.line.objective}, weight {teacher.line.weight:g}; "
            f"SHA-256 {encoder.digest})"
        )
        rows[f"licence of teacher {name}".strip()] = encoder.licence or UNSTATED
    rows["student"] = (
        f"{student.arch}, feature `{student.feature}`, width {student.dim}, {student.parameter_count:,} parameters"
    )
    return rows


def _use(path: Path, student: Encoder) -> str:
    if not student.is_module:
        return f'`ssl_kd.load_encoder("{path}")`, or `ssl-kd inspect {path.name}`.'
    pixels, kind = student.preprocessing, student.arch.removeprefix(MODULE)
    return (
        f"the file holds the plain state dict of a module from Python ({kind}), which only its own code can rebuild. Build "
        f"it there, then `{LOAD.format(file=str(path))}`. Its input is RGB in [0, 1], {pixels.size} px, normalised by mean "
        f"{pixels.mean} and std {pixels.std}."
    )


def _again(config: DistillConfig, student: Encoder) -> str:
    """The command, or where objects from Python took part, the call that needs them again."""
    objects, code = _objects(config, student)
    if not objects:
        named = "".join(f" --{name} {shlex.quote(value)}" for name, value in code.items())
        return (
            f"`{environment()['command']}`, or `ssl-kd distill --config config.yaml{named} --out elsewhere` (every setting "
            f"is in `config.yaml`)."
        )
    given = "".join(f"{name}={name}, " for name in objects)
    given += "".join(f"{name}={value!r}, " for name, value in code.items())
    return (
        f"`ssl_kd.distill({given}config=ssl_kd.DistillConfig(**yaml.safe_load(open('config.yaml'))), out='elsewhere')` "
        f"with the same {' and '.join(objects)} from Python (every other setting is in `config.yaml`)."
    )


def _code(value: object, known: About) -> str:
    """A setting that names code, as it is typed; empty for any other."""
    names = code_in(value, known)
    if not names or (known.paths and not any(name in SOURCES for name in names)):
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _objects(config: DistillConfig, student: Encoder) -> tuple[list[str], dict[str, str]]:
    """The settings that were objects, and those that name code, which has to be given beside a config."""
    code = {one.name: value for one in fields(config) if (value := _code(getattr(config, one.name), about(one)))}
    names = ["student"] if student.is_module and "student" not in code else []
    names += ["images"] if config.images.startswith("<") else []
    return names + [name for name in ("teacher", "objective", "views", "log") if is_record(getattr(config, name))], code
