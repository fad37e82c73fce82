"""The README.md of a run folder: what the student is, whom it learned from, and how to make it again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ssl_kd.config import DistillConfig
from ssl_kd.encoder import Encoder
from ssl_kd.run import BEST, LAST, STUDENT, environment
from ssl_kd.teaching import Teacher


def card(
    config: DistillConfig,
    folder: Path,
    teachers: Mapping[str, Teacher],
    student: Encoder,
    facts: Mapping[str, object],
    unreadable: Mapping[str, str],
) -> str:
    """Markdown; `facts` are further rows of its table."""
    skipped = "".join(f"\n- {name}: {why}" for name, why in unreadable.items()) or " none"
    whom = " and ".join(t.encoder.arch for t in teachers.values())
    rows = "\n".join(f"| {name} | {value} |" for name, value in (_who(teachers, student) | dict(facts)).items())
    best = f"\n- `{BEST}`: the student at its best look at the held-out images" if (folder / BEST).exists() else ""
    return f"""# {config.student}, distilled from {whom}

| | |
| --- | --- |
{rows}

Use it: `ssl_kd.load_teacher("{folder / STUDENT}")`, or `ssl-kd inspect {STUDENT}`.

Reproduce it: `{environment()["command"]}`, or `ssl-kd distill --config config.yaml --out elsewhere` (every setting is in `config.yaml`).

- `config.yaml`: every setting; `environment.json`: versions and machine
- `metrics.jsonl` and `metrics.csv`: one line per {config.log_every} steps, and one per look at the held-out images
- `{LAST}`: student, heads, queues, optimiser and position
- `{STUDENT}`: the student alone{best}

Unreadable images:{skipped}
"""


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
