"""Every command ends with a line that names the next one, and finds a mistyped name before it opens anything."""

import json
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from programs import CARD, small_model, write

import ssl_kd
from ssl_kd.cli.configs import names
from ssl_kd.cli.main import COMMANDS, _after_export, main
from ssl_kd.cli.reference import parsers_of
from ssl_kd.exporters.card import Exported

TINY = ["--quiet", "--size", "32", "--precision", "32-true", "--batch-size", "8", "--epochs", "1"]
SMALL = "{channels: [8, 8, 16, 16]}"
# A walk through all commands, each on what those before it left; {} is their folder. Not in it: demo, whose last line is
# looked at where it runs, and completion, which a shell reads.
WALK = {
    "pretrain": ["--images", "{}/photos", "--arch_args", SMALL, "--method", "simclr", "--out", "{}/t.pth.tar", *TINY],
    "inspect": ["{}/t.pth.tar"],
    "targets": ["{run}", "--replay", "1"],
    "distill": ["{run}", "--replay", "1"],
    "eval": ["{}/eval.yaml"],
    "report": ["{}/run", "{}/eval", "--out", "{}/report.html"],
    "embed": ["--weights", "{}/run/student.safetensors", "--images", "{}/photos", "--out", "{}/f.npz", "--quiet"],
    "export": ["{}/run/student.safetensors", "--to", "timm", "--out", "{}/s.safetensors"],
    "certify": [
        "{}/s.onnx",
        "--student",
        "{}/run/student.safetensors",
        "--images",
        "{}/photos",
        "--out",
        "{}/c",
        "--quiet",
    ],
    "index build": [
        "--weights",
        "{}/run/student.safetensors",
        "--images",
        "{}/photos",
        "--out",
        "{}/i.index",
        "--quiet",
    ],
    "index add": ["--index", "{}/i.index", "--images", "{}/more", "--quiet"],
    "index info": ["{}/i.index"],
    "index verify": ["{}/i.index"],
    "index train": ["--index", "{}/i.index", "--factory", "Flat"],
    "search": ["--index", "{}/i.index", "{}/photos/00.png"],
    "index remove": ["--index", "{}/i.index", "{}/photos/00.png"],
    "zoo list": [],
    "zoo show": ["dino_vits16"],
    "configs list": [],
    "configs copy": ["distill/newest", "{}/mine.yaml"],
    "doctor": [],
    "compare": ["{}/compare.yaml"],
}
NO_WALK = {"demo", "completion", "zoo download", "configs show"}  # the last prints a file, and nothing else


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("walk")
    random = np.random.default_rng(0)
    for name, count in (
        ("photos", 64),
        ("more", 4),
        ("task/train/a", 8),
        ("task/train/b", 8),
        ("task/test/a", 8),
        ("task/test/b", 8),
    ):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (4, 4, 3)).astype(np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(folder / name / f"{i:02d}.png")
    encoders = [
        {"name": "t", "weights": f"{folder}/t.pth.tar"},
        {"name": "s", "weights": f"{folder}/run/student.safetensors"},
    ]
    evaluation = {"encoders": encoders, "tasks": [{"name": "two", "path": f"{folder}/task"}], "evaluators": ["knn"]}
    (folder / "eval.yaml").write_text(yaml.safe_dump(evaluation | {"out": f"{folder}/eval", "quiet": True}))
    comparison = {
        "teachers": {"t": f"{folder}/t.pth.tar"}, "students": {"s": {"arch": "resnet18", "args": yaml.safe_load(SMALL)}},
        "objectives": ["default_light", "simreg"], "images": f"{folder}/photos", "budgets": {"tiny": 48}, "seeds": [0],
        "tasks": [f"{folder}/task"], "evaluators": ["knn"], "lr": [1e-3], "size": 32, "batch_size": 8, "quiet": True,
        "precision": "32-true", "out": f"{folder}/compare",
    }  # fmt: skip
    (folder / "compare.yaml").write_text(yaml.safe_dump(comparison))
    return folder


def words(command, place):
    for word in WALK[command]:
        if word == "{run}":
            yield from ["--teacher", f"{place}/t.pth.tar", "--student", "resnet18", "--student_args", SMALL, *TINY]
            yield from ["--images", f"{place}/photos", "--out", f"{place}/run", "--views", "gentle"]
        else:
            yield word.replace("{}", str(place))


def test_the_walk_goes_past_every_command():
    known = {words for command in COMMANDS for words in parsers_of(command)}
    groups = {words.split()[0] for words in known if " " in words}
    assert known - groups == set(WALK) | NO_WALK


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_names_the_next(place, capsys):
    pytest.importorskip("onnxscript")
    for command in WALK:
        if command == "certify":
            student = f"{place}/run/student.safetensors"
            assert main(["export", student, "--to", "onnx", "--out", f"{place}/s.onnx"]) == 0
        capsys.readouterr()
        code = main([*command.split(), *words(command, place)])
        said = "".join(capsys.readouterr())
        assert code == 0, f"{command}: {said}"
        last = [line for line in said.splitlines() if line.startswith("Next: ")]
        assert last, f"{command} names no next command: {said}"
        named = re.findall(r"ssl-kd ([a-z]+)", last[-1])
        assert set(named) <= set(COMMANDS), last
        assert named or "open " in last[-1]
        if command in ("targets", "distill", "eval"):  # they know every word of it
            assert not re.search(r"\b[A-Z]{3,}\b", last[-1]), last[-1]


def next_of(capsys):
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Next: "))


def test_a_finished_program_is_to_be_certified_and_is_no_teacher(tmp_path, capsys):
    file = write(tmp_path, small_model(), CARD, "s.onnx")
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"Next: ssl-kd certify {file} " in said
    assert "0 tensors" not in said


def test_a_student_is_to_be_judged_and_a_teacher_to_be_distilled(tmp_path, capsys):
    network = ssl_kd.build("resnet18", channels=[4, 4, 4, 8])
    student = ssl_kd.save_student(network, tmp_path / "s.safetensors", teacher="a teacher")
    teacher = ssl_kd.save_student(network, tmp_path / "t.safetensors")
    assert main(["inspect", str(student)]) == 0
    assert "ssl-kd eval " in (said := next_of(capsys))
    assert "{name: random, like: student}" in said
    assert main(["inspect", str(teacher)]) == 0
    assert "ssl-kd distill --teacher " in next_of(capsys)


def test_the_line_after_an_export_names_the_new_file(tmp_path, capsys):
    student = ssl_kd.save_student(ssl_kd.build("resnet18", channels=[4, 4, 4, 8]), tmp_path / "s.safetensors")
    for form, name, words in (
        ("safetensors", "again.safetensors", "ssl-kd embed --weights {}"),
        ("torchscript", "s.pt", "open {}.json"),
        ("hub", "folder", "ssl-kd embed --weights {}/model.safetensors"),
    ):
        assert main(["export", str(student), "--to", form, "--out", str(tmp_path / name)]) == 0
        assert words.format(tmp_path / name) in next_of(capsys)


def test_the_line_after_a_program_certifies_it():
    made = [Exported("onnx-int8", Path("s.int8.onnx"), Path("s.int8.onnx.json"), 0.0, 0.0, 1.0)]
    assert _after_export("s.safetensors", made).startswith("ssl-kd certify s.int8.onnx --student s.safetensors ")
    assert " --teacher t.pth " in _after_export("s.safetensors", made, "t.pth")


def test_the_examples_of_a_command_name_configs_that_exist(capsys):
    for command in COMMANDS:
        with suppress(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        for name in re.findall(r"configs/(\w+/\w+)\.yaml|configs (?:copy|show) (\w+/\w+)", said):
            assert "".join(name) in names(), said
        assert "python -m eval" not in said


MISTYPED = {
    "distill": {
        "student": "--teacher nofile --student resnet81",
        "objective": "--teacher nofile --student resnet18 --objective defualt",
        "teacher_arch": "--teacher nofile --student resnet18 --teacher-arch resnet81",
        "views": "--teacher nofile --student resnet18 --views waek",
        "students": "--teacher nofile --students {a:_{arch:_resnet81},_b:_resnet18}",
        "teachers": "--student resnet18 --teachers {a:_{file:_nofile,_objective:_defualt}}",
    },
    "targets": {"student": "--teacher nofile --student resnet81 --replay 1"},
    "pretrain": {"arch": "--arch resnet81", "method": "--method mocco"},
    "eval": {
        "evaluators": "--encoders [{name:_t,_weights:_nofile}] --tasks [{name:_x,_path:_nofile}] --evaluators [knn/dinoo]",
        "arch": "--encoders [{name:_t,_weights:_nofile,_arch:_resnet81}] --tasks [{name:_x,_path:_nofile}]",
    },
    "embed": {
        "arch": "--weights nofile --arch resnet81 --out f.npz",
        "engine": "--weights nofile --engine foldde --out f.npz",
    },
    "export": {"to": "nofile --to onx --out f", "arch": "nofile --arch resnet81 --to timm --out f"},
    "inspect": {"arch": "nofile --arch resnet81"},
    "compare": {
        "students": "--teachers {a:_nofile} --students {s:_resnet81} --objectives [default] --tasks [nofile]",
        "objective": "--teachers {a:_nofile} --students {s:_resnet18} --objectives [defualt] --tasks [nofile]",
    },
}
TYPOS = ("resnet81", "defualt", "waek", "mocco", "dinoo", "foldde", "onx")


@pytest.mark.parametrize(("command", "what"), [(c, w) for c, found in MISTYPED.items() for w in found])
def test_a_mistyped_name_is_found_before_anything_is_opened(command, what, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # neither images nor files are there: whoever looks for them first says so first
    argv = [word.replace("_", " ") if word[0] in "[{" else word for word in MISTYPED[command][what].split()]
    argv += [] if command in ("export", "inspect") else ["--images", "nowhere/"] if command != "eval" else []
    argv += [] if command in ("export", "inspect", "embed") else ["--out", "r"]
    assert main([command, *argv]) == 2
    said = capsys.readouterr().err
    assert any(typo in said for typo in TYPOS), said
    assert "nofile: no such" not in said
    assert not list(tmp_path.iterdir())


def test_json_stays_json(capsys):
    assert main(["zoo", "show", "dino_vits16", "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)
    assert "Next" not in found.err
