"""The command line: `ssl-kd COMMAND`. Parsing needs no torch; a command imports what it runs.

Exit codes: 0 done, 2 bad input (one line on standard error), 130 stopped by Ctrl-C or SIGTERM with the state saved.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_kd.checkpoints.reading import add_options, from_options, spelled
from ssl_kd.errors import nearest
from ssl_kd.registry import admit, objects_in
from ssl_kd.runtime.command_line import OneLineParser, guarded, parse
from ssl_kd.runtime.objects import names_code
from ssl_kd.validation import about

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from ssl_kd.checkpoints.formats.report import Report
    from ssl_kd.distillation.config import DistillConfig
    from ssl_kd.distillation.distilled import Distilled, DistilledGroup
    from ssl_kd.exporters.card import Exported
    from ssl_kd.models.encoder import Encoder

LONGER = 4  # times the length of a run whose student is no better than chance
FORMAT_TABLES = {"": ["ssl_kd.checkpoints.formats:FORMATS"]}


def distill(argv: Sequence[str]) -> int:
    """Distil a teacher into a student on unlabelled images."""
    from ssl_kd.distillation.config import DistillConfig, check

    config = parse(
        DistillConfig,
        argv,
        "ssl-kd distill",
        examples=(
            "ssl-kd distill --teacher swav_800ep_pretrain.pth.tar --student resnet18 --images photos/ --out runs/x",
            "ssl-kd distill --config configs/distill/cifar10_moco_r18.yaml --epochs 10 --out runs/short",
        ),
    )
    check(config)
    from ssl_kd.distillation.trainer import distill as run
    from ssl_kd.runtime import distributed

    done = run(config=config, **named_code(config))
    if distributed.rank():
        return 0  # of several processes the first prints
    several = getattr(done, "students", None)
    for one in several.values() if several else (done,):
        losses = ", ".join(f"{k} {v:.4g}" for k, v in one.last.items())
        print(
            f"{one.path}: {one.student.arch}, width {one.student.dim}, after {one.seconds / 60:.1f} minutes ({losses})"
        )
        if one.overlap is not None:
            verdict = "" if one.overlap.above_chance else "; not above chance: train longer"
            print(
                f"{one.path}: {one.overlap} of the teacher's neighbours on held-out images, "
                f"chance {100 * one.overlap.chance:.1f} %{verdict}"
            )
    print(f"Next: {_after(done, config)}")
    return 0


def _after(done: Distilled | DistilledGroup, config: DistillConfig) -> str:
    """The command that follows a finished run: export its student, or train longer where no student is above chance."""
    import yaml

    students = list(getattr(done, "students", {"": done}).values())
    good = [one for one in students if one.overlap is None or one.overlap.above_chance]
    if good:
        path = str(good[-1].path)
        export = f"ssl-kd export {shlex.quote(path)} --to timm --out student_timm.safetensors"
        return f"{export}; {_is_it_good(path, good[-1].student.preprocessing.size, config)}"
    kept = yaml.safe_load((done.out / "config.yaml").read_text())
    length = "steps" if kept["steps"] else "epochs"
    words = ["ssl-kd", "distill", "--config", str(done.out / "config.yaml"), f"--{length}", str(LONGER * kept[length])]
    words += ["--warmup", "auto"] if config.warmup == "auto" else []
    for name, value in named_code(config).items():
        words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join([*words, "--out", f"{str(done.out).rstrip('/')}_longer"])


def _is_it_good(path: str, size: int, config: DistillConfig) -> str:
    """The evaluation on photos without labels, beside the teacher and random weights; its help where several teachers taught."""
    if not isinstance(config.teacher, str) or not config.teacher:
        return "ssl-kd eval --help"
    settings = ("feature", "format", "branch", "arch", "arch_args", "mean", "std")
    by_hand = {name: value for name in settings if (value := getattr(config, f"teacher_{name}"))}
    by_hand |= {"crop_ratio": config.crop_ratio} if config.crop_ratio else {}
    rows = [
        {"name": "teacher", "weights": config.teacher, "size": config.teacher_size or size, **by_hand},
        {"name": "student", "weights": path},
        {"name": "random", "like": "student"},
    ]
    tasks = [{"name": "photos", "photos": "heldout/"}]
    words = ["ssl-kd", "eval", "--encoders", json.dumps(rows), "--tasks", json.dumps(tasks), "--out", "runs/good"]
    return shlex.join(words)


def targets(argv: Sequence[str]) -> int:
    """Store the teacher's outputs on replayed views ahead of distill (same settings)."""
    from ssl_kd.distillation.config import DistillConfig, check

    config = parse(
        DistillConfig,
        argv,
        "ssl-kd targets",
        examples=("ssl-kd targets --replay 4 ... (then the same with ssl-kd distill)",),
    )
    check(config)
    from ssl_kd.distillation.trainer import fill_targets
    from ssl_kd.runtime import distributed
    from ssl_kd.runtime.run_dir import without_overwrite

    stores = fill_targets(config=config, **named_code(config))
    if distributed.rank():
        return 0
    for name, store in stores.items():
        whose = f"{name}: " if name else ""
        print(f"{whose}{store.path}: {store.filled():.1%} of {store.shape[0]} views of {store.shape[1]:,} images")
    print(f"Next: {shlex.join(['ssl-kd', 'distill', *without_overwrite(argv)])}")
    return 0


def pretrain(argv: Sequence[str]) -> int:
    """Train a small self-supervised teacher (MoCo v2, SimCLR) on unlabelled images."""
    from ssl_kd.pretraining.config import PretrainConfig, check

    config = parse(
        PretrainConfig,
        argv,
        "ssl-kd pretrain",
        examples=("ssl-kd pretrain --images photos/ --arch resnet18 --size 48 --epochs 30 --out runs/teacher.pth.tar",),
    )
    check(config)
    from ssl_kd.pretraining.trainer import pretrain as run

    path = run(config, **named_code(config))
    print(path)
    print(f"Next: ssl-kd distill --teacher {path} --images {config.images} --out runs/student")
    return 0


def evaluate(argv: Sequence[str]) -> int:
    """Measure encoders on tasks with k-NN and linear probes."""
    from ssl_kd.eval.cli import main

    code: int = main(list(argv), prog="ssl-kd eval")
    return code


def report(argv: Sequence[str]) -> int:
    """Make one report of finished runs and evaluations, and compare them."""
    from ssl_kd.cli.report import main

    return main(argv)


def compare(argv: Sequence[str]) -> int:
    """Compare objectives on equal budgets, with intervals over seeds."""
    from ssl_kd.compare.run import main

    return main(list(argv))


def embed(argv: Sequence[str]) -> int:
    """Write the features of any pictures to a file: .npz, .npy or Parquet."""
    from ssl_kd.eval.embed import main

    code: int = main(list(argv), prog="ssl-kd embed")
    return code


def certify(argv: Sequence[str]) -> int:
    """Say how much of its student and teacher a finished file (ONNX, OpenVINO) keeps."""
    from ssl_kd.eval.certify import main

    code: int = main(list(argv), prog="ssl-kd certify", float_form=_float_form)
    return code


def _float_form(student: Encoder, file: Path, folder: Path) -> Path | None:
    """The student exported in floats to a program's own engine; None where it cannot be, as without what exports it."""
    from ssl_kd.errors import UserError
    from ssl_kd.exporters.export import export as run

    to = {".onnx": "onnx", ".xml": "openvino"}[file.suffix.lower()]
    try:
        return run(student, to, folder / f"floats{file.suffix.lower()}")[0].path
    except UserError:
        return None


def inspect(argv: Sequence[str]) -> int:
    """Show what a checkpoint file is, or why it is not one we know."""
    parser = OneLineParser("ssl-kd inspect", description=inspect.__doc__)
    parser.add_argument(
        "file", help="checkpoint in any supported layout, a folder of transformers or timm, or hf-hub:ORG/NAME"
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    given = from_options(options)
    admit("format", options.format, FORMAT_TABLES)
    from ssl_kd.checkpoints.loading import inspect as report_of

    found = report_of(options.file, **given)
    print(found.to_json() if options.json else found)
    if not (found.problem or options.json):
        beside = "".join(f" {word}" for word in spelled(given))
        print(f"Next: {_after_inspect(options.file, found, beside)}")
    return 2 if found.problem else 0


def _after_inspect(file: str, found: Report, beside: str) -> str:
    """A program is finished and a student of ours is there to be judged; all else may teach."""
    if found.family == "program":
        return f"ssl-kd certify {file} --student student.safetensors --images photos/"
    if found.format == "student" and "teacher" in found.card:
        rows = f"{{name: teacher, weights: teacher.pth}}, {{name: student, weights: {file}}}, {{name: random, like: student}}"
        return f"ssl-kd eval --tasks '[{{name: mine, photos: photos/}}]' --encoders '[{rows}]' --out runs/eval"
    return f"ssl-kd distill --teacher {file}{beside} --images photos/ --out runs/student"


def export(argv: Sequence[str]) -> int:
    """Write a student for timm, torchvision, ONNX or TorchScript, each read back and measured."""
    parser = OneLineParser("ssl-kd export", description=export.__doc__)
    parser.add_argument("student", help="student or teacher: a checkpoint file, or a name such as dino_vits16")
    parser.add_argument(
        "--to",
        nargs="+",
        required=True,
        metavar="FORMAT",
        help="timm, torchvision, safetensors, torchscript, onnx, onnx-fp16, onnx-int8, openvino, openvino-int8, or hub (a folder "
        "for timm and the Hugging Face hub)",
    )
    parser.add_argument("--out", required=True, help="file to write; a folder where there are several formats")
    parser.add_argument("--feature", help="cls, pool, ...; default: the file's own")
    add_options(parser)
    parser.add_argument(
        "--images", help="folder or zip to measure on; default: noise like photographs; int8 and fp16 need photos"
    )
    parser.add_argument("--teacher", help="int8, fp16: the teacher, whose neighbours are kept: a file or a name")
    parser.add_argument(
        "--within",
        type=float,
        default=2.0,
        metavar="POINTS",
        help="int8, fp16: points of overlap with the teacher that may be lost (default: %(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        metavar="PERCENT",
        help="int8, fp16: share of the float student's neighbours that must stay (default: 90 without a teacher)",
    )
    parser.add_argument(
        "--figures", metavar="FOLDER", help="hub: out folder of an ssl-kd eval, whose figures go into the card"
    )
    options = parser.parse_args(argv)
    admit("format", options.format, FORMAT_TABLES)
    admit("to", options.to, {"": ["ssl_kd.exporters.export:TARGETS"]})
    admit("images", options.images, {"": ["ssl_kd.data.open:SOURCES"]}, paths=True)
    from ssl_kd.exporters.export import export as run

    given = from_options(options)
    made = run(
        options.student,
        options.to,
        options.out,
        options.images,
        options.feature,
        teacher=options.teacher,
        within=options.within,
        keep=options.keep,
        figures=options.figures,
        **given,
    )
    for done in made:
        print(done)
    if not all(done.met for done in made):
        return 1
    print(f"Next: {_after_export(options.student, made, options.teacher)}")
    return 0


def _after_export(student: str, made: Sequence[Exported], teacher: str | None = None) -> str:
    """What to do with the files: certify a program, read what our loader reads, and else use the line in the card."""
    last = made[-1]
    if last.path.suffix in (".onnx", ".xml"):
        beside = f" --teacher {teacher}" if teacher else ""
        return f"ssl-kd certify {last.path} --student {student}{beside} --images photos/"
    if last.format in ("safetensors", "hub"):
        weights = last.path / "model.safetensors" if last.path.is_dir() else last.path
        return f"ssl-kd embed --weights {weights} --images photos/ --out features.npz"
    return f"open {last.card}, whose `load` says how to read the file in Python"


def demo(argv: Sequence[str]) -> int:
    """Train a teacher, distil and evaluate a student on images that ship with scikit-learn, in a few minutes."""
    parser = OneLineParser("ssl-kd demo", description=demo.__doc__)
    parser.add_argument("--out", default="runs/demo", help="run folder (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the student, shuffling and views (default: %(default)s)"
    )
    parser.add_argument("--fresh-teacher", action="store_true", help="train the teacher anew, not from the cache")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(argv)
    return _demo(Path(options.out), options.seed, options.fresh_teacher, options.quiet)


def _demo(out: Path, seed: int, fresh_teacher: bool, quiet: bool) -> int:
    """Labels stay in ssl_kd.eval.demo: only bare images are handed over to the trainers."""
    import tempfile

    from rich.console import Console

    from ssl_kd.cli.demo import distilled, teacher, teacher_file
    from ssl_kd.data.sources.array import ArrayImages
    from ssl_kd.eval import demo as labelled
    from ssl_kd.runtime.files import atomically
    from ssl_kd.runtime.ownership import require_ours
    from ssl_kd.runtime.run_dir import RUN

    require_ours(out, RUN)
    console = Console(width=None if sys.stdout.isatty() else 160)
    tasks = labelled.demo_tasks()
    images = ArrayImages(labelled.unlabelled(tasks), name="digits and temple patches")
    console.print(f"1. A teacher: SimCLR on {len(images):,} unlabelled images (kept for the next time)")
    taught = teacher(images, fresh_teacher, quiet)
    console.print(f"2. A student, from the teacher's file {taught.origin}: no labels", markup=False)
    student = distilled(taught, images, out, seed, quiet).student
    console.print("3. Teacher, student and random weights on three tasks")
    with tempfile.TemporaryDirectory() as features:
        results = labelled.measure(taught, student, tasks, seed, quiet, out / "eval", Path(features))
        shown = labelled.picture(taught, student, tasks, out / "neighbours.png", seed, features=Path(features))
    labelled.handed_out(tasks, out)
    atomically(out / "teacher.pth.tar", lambda file: file.write(teacher_file(images).read_bytes()))
    verdict = labelled.claims(results, tasks)
    for holds, claim in verdict:
        console.print(f"[{'green' if holds else 'red'}]{'holds ' if holds else 'FAILS '}[/] {claim}", highlight=False)
    console.print(f"Picture: {shown}\nReport: {out / 'eval' / 'report.html'}, which opens with:\n", markup=False)
    for answer in results.answers():
        console.print(f"{answer}.", highlight=False, markup=False, soft_wrap=True)
    console.print(results.table())
    last = f"Run folder: {out} (README.md in it explains every file)\n"
    last += f"Next: ssl-kd distill --teacher {out}/teacher.pth.tar --images {out}/photos.zip --epochs 2 --out runs/mine"
    console.print(last, highlight=False, markup=False)
    return 0 if all(holds for holds, _ in verdict) else 1


def index(argv: Sequence[str]) -> int:
    """Index pictures on disk: build, add, remove, train, info, verify."""
    from ssl_kd.cli.index import main

    return main(list(argv))


def search(argv: Sequence[str]) -> int:
    """Find the pictures of an index that are nearest to others."""
    from ssl_kd.cli.index import search as run

    return run(list(argv))


def zoo(argv: Sequence[str]) -> int:
    """List, show and download published teachers."""
    from ssl_kd.cli.zoo import main

    return main(list(argv))


def configs(argv: Sequence[str]) -> int:
    """List, show or copy the example configs that come with the package."""
    from ssl_kd.cli.configs import main

    return main(argv)


def doctor(argv: Sequence[str]) -> int:
    """Show versions, devices, the cache, and what is missing for which extra."""
    from ssl_kd.cli.doctor import main

    return main(argv)


def completion(argv: Sequence[str]) -> int:
    """Print what makes a shell complete commands and options."""
    from ssl_kd.cli.completion import main

    return main(argv, list(COMMANDS))


def named_code(config: DataclassInstance) -> dict[str, Any]:
    """The settings that name code as package.module:name: they come from the command line, for a file's are refused."""
    values = {one.name: getattr(config, one.name) for one in fields(config) if about(one).code}
    named = {name: value for name, value in values.items() if names_code(value)}
    lines = getattr(config, "teachers", None)
    return named | ({"teachers": lines} if any(key == "objective" for key, _ in objects_in(lines)) else {})


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "certify": certify,
    "compare": compare,
    "completion": completion,
    "configs": configs,
    "demo": demo,
    "distill": distill,
    "doctor": doctor,
    "embed": embed,
    "eval": evaluate,
    "export": export,
    "index": index,
    "inspect": inspect,
    "pretrain": pretrain,
    "report": report,
    "search": search,
    "targets": targets,
    "zoo": zoo,
}


def _usage() -> str:
    lines = [f"  {name:<12}{(run.__doc__ or '').splitlines()[0]}" for name, run in COMMANDS.items()]
    return "\n".join(
        [
            "usage: ssl-kd COMMAND [options]        (ssl-kd COMMAND --help lists every option)",
            "",
            "Distil self-supervised vision teachers into small students without labels, and measure what survives.",
            "",
            *lines,
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    return guarded(_chosen, sys.argv[1:] if argv is None else list(argv), "ssl-kd")


def _chosen(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from ssl_kd import __version__

        print(f"ssl-kd {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        print(
            f"ssl-kd: no command {name!r}.{nearest(name, list(COMMANDS))} Known: {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    return guarded(COMMANDS[name], rest, f"ssl-kd {name}")


if __name__ == "__main__":
    raise SystemExit(main())
