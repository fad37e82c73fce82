"""How much of a student, and of its teacher, a finished file keeps: `ssl-kd certify FILE.onnx --images FOLDER --student S`.

The file (ONNX, OpenVINO, or any checkpoint) is one more row of an evaluation: on photos without labels beside the student
and the teacher, and by k-NN and a linear probe on tasks with labels. Its size, its speed for one image beside the student's,
and the machine are told with it. `certificate.md` and `.json` in `out` hold the answer, `against_*/report.html` the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_kd.errors import UserError
from ssl_kd.runtime.command_line import guarded, parse
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.ownership import Kind, mark, require_ours

if TYPE_CHECKING:
    from ssl_kd.metrics import Mean
    from ssl_kd.runtime.timing import Timing

    from .results import Results

EXAMPLES = ("ssl-kd certify student.int8.onnx --images photos/ --student student.safetensors --teacher teacher.pth",)
FOLDER = Kind(
    "certificate", "out", "a certificate's folder", ("certificate.md", "certificate.json"), lambda _: False, alone=False
)
FILE, STUDENT, TEACHER = "file", "student", "teacher"
PHOTOS = "photos"


@dataclass
class CertifyConfig:
    """Say how much of its student and teacher a finished file keeps: ONNX, OpenVINO or any checkpoint.

    Args:
        file: the file to judge; ONNX and OpenVINO files need their card beside them or inside
        images: folder or zip of photos, without labels, at least 60
        student: the float student that the file was made of, a checkpoint
        teacher: the student's teacher, a checkpoint or a name such as dino_vits16
        tasks: list of tasks with labels, as ssl-kd eval takes them; each is judged by k-NN and a linear probe
        within: points of overlap with the teacher that the file may lose of the student's
        out: folder for the certificate and the reports behind it
        threads: decoding threads
        quiet: no progress bars
    """

    file: str = ""
    images: str = ""
    student: str = ""
    teacher: str = ""
    tasks: list[Any] = field(default_factory=list)
    within: float = 2.0
    out: str = "runs/certificate"
    threads: int = 2
    quiet: bool = False


@dataclass(frozen=True)
class Certificate:
    """The answer. `lost`: share of neighbours shared with the teacher that the student has and the file has not."""

    tables: Mapping[str, Results]  # by the reference: teacher, student
    sizes: Mapping[str, int]  # bytes
    timings: Mapping[str, Timing]
    machine: str
    threads: int
    within: float
    lost: Mean | None

    @property
    def met(self) -> bool:
        """Whether no more is lost than may be; true where there is no teacher to tell."""
        return self.lost is None or self.lost.value <= self.within / 100

    def lines(self) -> list[str]:
        """The figures that no table holds."""
        told = []
        if self.lost is not None:
            said = "met" if self.met else "MISSED"
            told.append(f"neighbours shared with the teacher: lost {self.lost}; at most {self.within:g} points: {said}")
        sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in self.sizes.items())
        spent = ", ".join(f"{name} {timing}" for name, timing in self.timings.items())
        told.append(f"size: {sizes}")
        told.append(f"one image, without reading it: {spent}; {self.threads} threads on {self.machine}")
        return told

    def markdown(self) -> str:
        """The whole answer as a page."""
        parts = ["# Certificate", "\n".join(f"- {line}" for line in self.lines())]
        for reference, results in self.tables.items():
            parts += [f"## Against the {reference}", results.markdown()]
        return "\n\n".join(parts)

    def record(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "met": self.met,
            "within": self.within,
            "lost": None if self.lost is None else asdict(self.lost),
            "bytes": dict(self.sizes),
            "seconds per image": {name: asdict(timing) for name, timing in self.timings.items()},
            "threads": self.threads,
            "machine": self.machine,
        }


def certify(config: CertifyConfig) -> Certificate:
    """Judge a file and write its certificate into `config.out`. UserError for bad input, before any work."""
    for name in ("file", "images"):
        if not getattr(config, name):
            raise UserError(f"{name}: expected a path; got nothing (see --help)")
    if not (config.student or config.teacher):
        raise UserError("student: give --student, --teacher or both: a file is judged beside what it was made of")
    if not 0 <= config.within <= 100:
        raise UserError(f"within: expected points of overlap from 0 to 100, got {config.within}")
    out = Path(config.out)
    require_ours(out, FOLDER)
    sources = {TEACHER: config.teacher, STUDENT: config.student, FILE: config.file}
    sources = {name: source for name, source in sources.items() if source}
    tables = _tables(config, sources, out)
    mark(out, FOLDER)  # not before: bad input leaves no folder
    timings, machine, threads = _speed(sources)
    sizes = {name: _bytes(Path(source)) for name, source in sources.items() if Path(source).is_file()}
    lost = _lost(tables[TEACHER]) if {TEACHER, STUDENT} <= set(sources) else None
    found = Certificate(tables, sizes, timings, machine, threads, config.within, lost)
    atomic_text(out / "certificate.json", json.dumps(found.record(), indent=1))
    atomic_text(out / "certificate.md", found.markdown())
    return found


def _tables(config: CertifyConfig, sources: Mapping[str, str], out: Path) -> dict[str, Results]:
    """One evaluation against each reference; features are shared, and labels are looked at once."""
    from .evaluation import evaluate
    from .runner.config import EvalConfig

    tables: dict[str, Results] = {}
    for reference in [name for name in (TEACHER, STUDENT) if name in sources]:
        first = not tables
        tables[reference] = evaluate(
            EvalConfig(
                out=str(out / f"against_{reference}"),
                tasks=[{"name": PHOTOS, "photos": config.images}, *(config.tasks if first else [])],
                encoders=[{"name": name, "weights": source} for name, source in sources.items()],
                evaluators=["agreement", "cka", *(["knn", "linear"] if config.tasks and first else [])],
                reference=reference,
                cache=str(out / "features"),
                threads=config.threads,
                quiet=config.quiet,
            ),
            quiet=config.quiet,
        )
    return tables


def _lost(results: Results) -> Mean:
    """The student's share of the teacher's neighbours less the file's, paired by photo."""
    import torch

    from ssl_kd.metrics import mean_of

    cells = {c.encoder: c for c in results.cells if c.task == PHOTOS and c.scores.evaluator == "agreement"}
    mine, own = (cells[name].scores for name in (FILE, STUDENT))
    key = ("overlap", mine.headline_k)
    return mean_of(torch.from_numpy(own.each[key] - mine.each[key]))


def _speed(sources: Mapping[str, str]) -> tuple[dict[str, Timing], str, int]:
    """Median time of each network for one image, in turns."""
    import torch

    from ssl_kd.checkpoints.loading import load_teacher
    from ssl_kd.runtime.timing import machine

    from .extraction.latency import single_images

    encoders = {name: load_teacher(source) for name, source in sources.items()}
    return single_images(encoders), machine(), torch.get_num_threads()


def _bytes(path: Path) -> int:
    """The size of a file, with that of an OpenVINO model's weights."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def main(argv: Sequence[str] | None = None, prog: str = "ssl-kd certify") -> int:
    """Run from a command line: 0 where the file keeps what was asked for, 1 where it does not, 2 for bad input."""
    return guarded(lambda words: _run(words, prog), sys.argv[1:] if argv is None else argv, prog)


def _run(argv: Sequence[str], prog: str) -> int:
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[:1] = ["--file", words[0]]
    config = parse(CertifyConfig, words, prog, examples=EXAMPLES)
    from rich.console import Console

    found = certify(config)
    for reference, results in found.tables.items():
        print(f"Against the {reference}:")
        Console(width=None if sys.stdout.isatty() else 160).print(results.table())
    for line in found.lines():
        print(line)
    print(f"{Path(config.out) / 'certificate.md'} holds it all")
    if found.met:
        print(f"Next: ssl-kd embed --weights {config.file} --images photos/ --out features.npz")
    else:
        print("Next: ssl-kd export with more --images to calibrate on, or a larger --within")
    return 0 if found.met else 1
