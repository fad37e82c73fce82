"""How much of a student, and of its teacher, a finished file keeps: `ssl-kd certify FILE.onnx --images FOLDER --student S`.

The file (ONNX, OpenVINO, or any checkpoint) is one more row of an evaluation: on photos without labels beside the student
and the teacher, and by k-NN and a linear probe on tasks with labels. A random network beside the student tells whether there was
anything to keep. Size and speed for one image are told with the engine that ran it, beside the student exported in floats to the
same engine, which is what the file stands in for. `certificate.md` and `.json` in `out` hold the answer, `against_*/report.html` the rest.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ssl_kd.errors import UserError
from ssl_kd.runtime.command_line import guarded, parse
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.ownership import Kind, mark, require_ours
from ssl_kd.validation import described

if TYPE_CHECKING:
    from ssl_kd.metrics import Mean
    from ssl_kd.models.encoder import Encoder
    from ssl_kd.runtime.timing import Timing

    from .results import Results
    from .results.neighbour_verdict import NeighbourVerdict
    from .runner.config import EncoderConfig

# (student, file, a place to write to) -> the student in floats for the file's engine, None where it cannot be made
FloatForm = Callable[["Encoder", Path, Path], "Path | None"]

EXAMPLES = ("ssl-kd certify student.int8.onnx --images photos/ --student student.safetensors --teacher teacher.pth",)
FOLDER = Kind(
    "certificate", "out", "a certificate's folder", ("certificate.md", "certificate.json"), lambda _: False, alone=False
)
FILE, STUDENT, TEACHER = "file", "student", "teacher"
RANDOM, FLOATS = "random", "student in floats"
ENGINES = {
    "program/onnx": "onnxruntime",
    "program/openvino": "OpenVINO",
}  # by architecture; all others are run by PyTorch
PHOTOS = "photos"


@dataclass
class CertifyConfig:
    """Say how much of its student and teacher a finished file keeps: ONNX, OpenVINO or any checkpoint.

    Args:
        file: the file to judge; ONNX and OpenVINO files need their card beside them or inside
        images: folder or zip of photos, without labels, at least 60; better not those that an int8 file was made with
        student: the float student that the file was made of, a checkpoint
        teacher: the student's teacher, a checkpoint, a name such as dino_vits16, or a mapping {path, size, arch, mean, std, ...}: it is judged at the size that the student learned it at, unless size says otherwise
        tasks: list of tasks with labels, as ssl-kd eval takes them; each is judged by k-NN and a linear probe
        within: points of overlap with the teacher that the file may lose of the student's
        out: folder for the certificate and the reports behind it
        threads: decoding threads
        quiet: no progress bars
    """  # noqa: E501  the parser takes each setting's help from one line

    file: str = ""
    images: str = ""
    student: str = ""
    teacher: str | dict[str, object] = field(
        default="", metadata=described("", expects="a file, a name, or a mapping with a path")
    )
    tasks: list[Any] = field(default_factory=list)
    within: float = 2.0
    out: str = "runs/certificate"
    threads: int = 2
    quiet: bool = False


@dataclass(frozen=True)
class Certificate:
    """The answer. `lost`: share of neighbours shared with the teacher that the student has and the file has not.

    `sizes` in bytes, `timings` and `engines` (what ran it) are by row: teacher, student, file, and "student in floats", the
    student exported to the file's engine, where that could be done. `teacher_size` says where the teacher is not judged at its own.
    """

    tables: Mapping[str, Results]  # by the reference: teacher, student
    sizes: Mapping[str, int]
    timings: Mapping[str, Timing]
    engines: Mapping[str, str]
    machine: str
    threads: int
    within: float
    lost: Mean | None
    teacher_size: str = ""

    @property
    def met(self) -> bool:
        """Whether no more is lost than may be; true where there is no teacher to tell."""
        return self.lost is None or self.lost.value <= self.within / 100

    @property
    def useless(self) -> bool:
        """Whether the student itself cannot be told from chance, so that no file of it is worth anything."""
        return self.student is not None and self.student.is_chance

    @property
    def student(self) -> NeighbourVerdict | None:
        """What the student itself shares of the teacher's neighbours; None where not both were given."""
        found = self.tables[TEACHER].neighbour_verdicts() if TEACHER in self.tables else []
        return next((one for one in found if (one.task, one.encoder) == (PHOTOS, STUDENT)), None)

    def lines(self) -> list[str]:
        """The figures that no table holds."""
        told = [self.teacher_size] * bool(self.teacher_size)
        if self.lost is not None:
            said = "met" if self.met else "MISSED"
            told.append(f"neighbours shared with the teacher: lost {self.lost}; at most {self.within:g} points: {said}")
        if (own := self.student) is not None:
            told.append(own.sentence(TEACHER))
            if self.useless:
                told.append(
                    "so there was nothing to lose: the student itself is of no use here, and no file of it can be"
                )
        from ssl_kd.runtime.timing import threads_said

        sizes = ", ".join(f"{_called(name)} {size / 1e6:.1f} MB" for name, size in self.sizes.items())
        spent = ", ".join(f"{name} by {self.engines[name]} {timing}" for name, timing in self.timings.items())
        told.append(f"size: {sizes}")
        told.append(f"one image, without reading it: {spent}; {threads_said(self.threads)} on {self.machine}")
        return told + self._beside_floats()

    def _beside_floats(self) -> list[str]:
        """Whether the file is quicker than what it stands in for."""
        if FLOATS not in self.timings:
            unlike = {self.engines[name] for name in (STUDENT, FILE) if name in self.engines}
            return ["student and file ran by other engines: their times do not compare the networks"] * (
                len(unlike) > 1
            )
        file, floats = self.timings[FILE], self.timings[FLOATS]
        times = f"{1000 * file.median:.2f} ms against {1000 * floats.median:.2f} ms of the student in floats"
        if file.high < floats.low:
            return [f"the file is {floats.median / file.median:.1f} times as quick, {times}"]
        word = "slower" if file.low > floats.high else "not clearly quicker"
        return [f"the file is {word} here, {times} by the same engine"]

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
            "engines": dict(self.engines),
            "student": None if self.student is None else asdict(self.student) | {"is_chance": self.student.is_chance},
            "threads": self.threads,
            "machine": self.machine,
        }


def _called(name: str) -> str:
    """A file's name for its size: a checkpoint holds more than the network that is read."""
    return f"{name}'s checkpoint, with its heads" if name in (TEACHER, STUDENT) else name


def certify(config: CertifyConfig, float_form: FloatForm | None = None) -> Certificate:
    """Judge a file and write its certificate into `config.out`. UserError for bad input, before any work.

    float_form: how the student is exported in floats to the file's engine; its size and time then stand beside the file's.
    """
    for name in ("file", "images"):
        if not getattr(config, name):
            raise UserError(f"{name}: expected a path; got nothing (see --help)")
    if not (config.student or config.teacher):
        raise UserError("student: give --student, --teacher or both: a file is judged beside what it was made of")
    if not 0 <= config.within <= 100:
        raise UserError(f"within: expected points of overlap from 0 to 100, got {config.within}")
    out = Path(config.out)
    require_ours(out, FOLDER)
    config, said = _at_learned_size(config)
    if said and not config.quiet:
        print(said, file=sys.stderr)
    teacher = _teacher(config)
    sources = {TEACHER: teacher.source if teacher else "", STUDENT: config.student, FILE: config.file}
    sources = {name: source for name, source in sources.items() if source}
    tables = _tables(config, sources, out)
    mark(out, FOLDER)  # not before: bad input leaves no folder
    with tempfile.TemporaryDirectory(prefix="ssl_kd.certify.") as folder:
        rows = _with_floats(sources, float_form, Path(folder))
        timings, engines, machine, threads = _speed(rows, teacher)
        sizes = {name: _bytes(Path(source)) for name, source in rows.items() if Path(source).is_file()}
    lost = _lost(tables[TEACHER]) if {TEACHER, STUDENT} <= set(sources) else None
    found = Certificate(tables, sizes, timings, engines, machine, threads, config.within, lost, said)
    atomic_text(out / "certificate.json", json.dumps(found.record(), indent=1))
    atomic_text(out / "certificate.md", found.markdown())
    return found


def _given(config: CertifyConfig) -> dict[str, object]:
    return dict(config.teacher) if isinstance(config.teacher, Mapping) else {"weights": config.teacher}


def _teacher(config: CertifyConfig) -> EncoderConfig | None:
    """The teacher's row of the tables, checked."""
    from .runner.config import EncoderConfig, entry_of

    return entry_of(EncoderConfig, {**_given(config), "name": TEACHER}, TEACHER) if config.teacher else None


def _at_learned_size(config: CertifyConfig) -> tuple[CertifyConfig, str]:
    """The settings with the teacher at the size at which the student learned it, and a line where that is not its own."""
    from ssl_kd.checkpoints.loading import load_teacher
    from ssl_kd.models.encoder import learned_at

    from .runner.build import open_encoders

    row = _teacher(config)
    if row is None or row.size is not None or not config.student:
        return config, ""
    teacher = cast("Encoder", open_encoders([row])[TEACHER])
    alike = learned_at(load_teacher(config.student), teacher)
    if alike is None:
        return config, ""
    eyes: dict[str, object] = {"size": alike.size, "crop_ratio": alike.crop_ratio}
    return replace(config, teacher=_given(config) | eyes), (
        f"the teacher is judged at {alike.size} px, where its student learned it; with size: {teacher.preprocessing.size} in "
        "--teacher '{path: ..., size: ...}' at its own"
    )


def _tables(config: CertifyConfig, sources: Mapping[str, str], out: Path) -> dict[str, Results]:
    """One evaluation against each reference; features are shared, and labels are looked at once."""
    from ssl_kd.checkpoints.programs import is_program

    from .evaluation import evaluate
    from .runner.config import EvalConfig

    tables: dict[str, Results] = {}
    for reference in [name for name in (TEACHER, STUDENT) if name in sources]:
        first = not tables
        rows: dict[str, dict[str, object]] = {n: {"name": n, "weights": source} for n, source in sources.items()}
        if isinstance(config.teacher, Mapping):
            rows[TEACHER] = {**config.teacher, "name": TEACHER}
        encoders: list[object] = [*rows.values()]
        if {TEACHER, STUDENT} <= sources.keys() and not is_program(Path(sources[STUDENT])):
            encoders.append({"name": RANDOM, "like": STUDENT})  # a program cannot be built anew
        if not config.quiet:
            print(f"Against the {reference}:", file=sys.stderr)
        tables[reference] = evaluate(
            EvalConfig(
                out=str(out / f"against_{reference}"),
                tasks=[{"name": PHOTOS, "photos": config.images}, *(config.tasks if first else [])],
                encoders=encoders,
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


def _with_floats(sources: Mapping[str, str], float_form: FloatForm | None, folder: Path) -> dict[str, str]:
    """The rows with the student exported in floats before the file, where file is a program and student none."""
    from ssl_kd.checkpoints.loading import load_teacher
    from ssl_kd.checkpoints.programs import is_program

    rows, file = dict(sources), Path(sources[FILE])
    if float_form is None or STUDENT not in rows or not is_program(file) or is_program(Path(rows[STUDENT])):
        return rows
    student, program = load_teacher(rows[STUDENT]), load_teacher(str(file))
    with suppress(UserError):  # of a file whose card names no feature of this network
        student.read_as(program.feature)
    alike = (student.dim, student.preprocessing.size) == (program.dim, program.preprocessing.size)
    made = float_form(student, file, folder) if alike else None
    last = rows.pop(FILE)
    return rows | ({} if made is None else {FLOATS: str(made)}) | {FILE: last}


def _speed(
    sources: Mapping[str, str], teacher: EncoderConfig | None
) -> tuple[dict[str, Timing], dict[str, str], str, int]:
    """Median time of each network for one image, in turns, and what ran it."""
    import torch

    from ssl_kd.checkpoints.loading import load_teacher
    from ssl_kd.runtime.timing import machine

    from .extraction.latency import single_images
    from .runner.build import open_encoders

    encoders = {name: load_teacher(source) for name, source in sources.items() if name != TEACHER}
    if teacher is not None:
        encoders = {TEACHER: cast("Encoder", open_encoders([teacher])[TEACHER]), **encoders}
    engines = {name: ENGINES.get(encoder.arch, "PyTorch") for name, encoder in encoders.items()}
    return single_images(encoders), engines, machine(), torch.get_num_threads()


def _bytes(path: Path) -> int:
    """The size of a file, with that of an OpenVINO model's weights."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.is_file() else 0)


def main(argv: Sequence[str] | None = None, prog: str = "ssl-kd certify", float_form: FloatForm | None = None) -> int:
    """Run from a command line: 0 where the file keeps what was asked for, 1 where it or its student does not, 2 for bad input."""
    return guarded(lambda words: _run(words, prog, float_form), sys.argv[1:] if argv is None else argv, prog)


def _run(argv: Sequence[str], prog: str, float_form: FloatForm | None) -> int:
    words = list(argv)
    if words and not words[0].startswith("-"):
        words[:1] = ["--file", words[0]]
    config = parse(CertifyConfig, words, prog, examples=EXAMPLES)
    from rich.console import Console

    found = certify(config, float_form)
    for reference, results in found.tables.items():
        print(f"Against the {reference}:")
        Console(width=None if sys.stdout.isatty() else 160).print(results.table())
    for line in found.lines():
        print(line)
    print(f"{Path(config.out) / 'certificate.md'} holds it all")
    if found.useless:
        print(
            "Next: ssl-kd distill with more --epochs, more images or a larger --student: this one has learnt too little"
        )
    elif found.met:
        print(f"Next: ssl-kd embed --weights {config.file} --images photos/ --out features.npz")
    else:
        print("Next: ssl-kd export with more --images to calibrate on, or a larger --within")
    return 0 if found.met and not found.useless else 1
