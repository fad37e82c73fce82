"""What a run says of itself: the README.md of its folder, and the notes inside a student's file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssl_kd.checkpoints.formats.student import LOAD
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.teachers import Teacher
from ssl_kd.errors import shown_name
from ssl_kd.models.encoder import MODULE, Encoder
from ssl_kd.runtime.run_dir import BEST, LAST, STUDENT, environment


def card(
    config: DistillConfig,
    folder: Path,
    teachers: Mapping[str, Teacher],
    student: Encoder,
    facts: Mapping[str, object],
    unreadable: Mapping[str, str],
) -> str:
    """Markdown; `facts` are further rows of its table."""
    skipped = "".join(f"\n- {shown_name(name)}: {shown_name(why)}" for name, why in unreadable.items()) or " none"
    whom = " and ".join(t.encoder.arch for t in teachers.values())
    rows = "\n".join(f"| {name} | {value} |" for name, value in (_who(teachers, student) | dict(facts)).items())
    best = f"\n- `{BEST}`: the student at its best look at the held-out images" if (folder / BEST).exists() else ""
    return f"""# {student.arch}, distilled from {whom}

| | |
| --- | --- |
{rows}

Use it: {_use(folder / STUDENT, student)}

Reproduce it: {_again(config, student)}

- `config.yaml`: every setting; `environment.json`: versions and machine
- `metrics.jsonl` and `metrics.csv`: one line per {config.log_every} steps, and one per look at the held-out images
- `{LAST}`: student, heads, queues, optimiser and position
- `{STUDENT}`: the student alone{best}

Unreadable images:{skipped}
"""


def provenance(teachers: Mapping[str, Teacher]) -> dict[str, Any]:
    """What the student's file says of its teachers: plain values for one, a mapping by name for several."""
    told = {
        name: {
            "teacher": t.encoder.origin,
            "teacher_digest": t.encoder.digest,
            "teacher_arch": t.encoder.arch,
            "objective": t.line.objective,
        }
        for name, t in teachers.items()
    }
    return told[""] if "" in told else {key: {n: told[n][key] for n in told} for key in next(iter(told.values()))}


def _who(teachers: Mapping[str, Teacher], student: Encoder) -> dict[str, object]:
    told: dict[str, object] = {}
    for name, teacher in teachers.items():
        encoder = teacher.encoder
        told[f"teacher {name}".strip()] = (
            f"{encoder.origin} ({encoder.arch}, feature `{encoder.feature}`, {encoder.parameter_count:,} parameters, "
            f"sees {teacher.size} px; objective {teacher.line.objective}, weight {teacher.line.weight:g}; "
            f"SHA-256 {encoder.digest})"
        )
    told["student"] = (
        f"{student.arch}, feature `{student.feature}`, width {student.dim}, {student.parameter_count:,} parameters"
    )
    return told


def _use(path: Path, student: Encoder) -> str:
    if not student.is_module:
        return f'`ssl_kd.load_teacher("{path}")`, or `ssl-kd inspect {path.name}`.'
    pixels, kind = student.preprocessing, student.arch.removeprefix(MODULE)
    return (
        f"the file holds the plain state dict of a module from Python ({kind}), which only its own code can rebuild. Build "
        f"it there, then `{LOAD.format(file=str(path))}`. It sees RGB in [0, 1], {pixels.size} px, normalised by mean "
        f"{pixels.mean} and std {pixels.std}."
    )


def _again(config: DistillConfig, student: Encoder) -> str:
    """The command, or where objects from Python took part, the call that needs them again."""
    objects = [
        name for name, came in (("student", student.is_module), ("images", config.images.startswith("<"))) if came
    ]
    if not objects:
        return (
            f"`{environment()['command']}`, or `ssl-kd distill --config config.yaml --out elsewhere` (every setting is in "
            f"`config.yaml`)."
        )
    given = "".join(f"{name}={name}, " for name in objects)
    return (
        f"`ssl_kd.distill({given}config=ssl_kd.DistillConfig(**yaml.safe_load(open('config.yaml'))), out='elsewhere')` "
        f"with the same {' and '.join(objects)} from Python (every other setting is in `config.yaml`)."
    )
