"""`module:name`, wherever a command line takes a name: it becomes a row for this process, and no file can ask for it."""

import shutil
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import small_teacher
from tables import tables

from ssl_kd.cli.main import main
from ssl_kd.data.open import open_images
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.eval.embed import EmbedConfig
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.runtime.command_line import parse
from ssl_kd.validation import about

EXAMPLE = Path(__file__).parents[1] / "plugins" / "example_package" / "example_parts.py"
# Each setting that takes module:name by a table: a value as it is typed, with PARTS for the module.
WALK = [
    (DistillConfig, "images", "PARTS:grey_levels/16"),
    (DistillConfig, "student", "PARTS:network/tiny"),
    (DistillConfig, "teacher_format", "PARTS:FORMAT"),
    (DistillConfig, "teachers", "{a: {file: a.pth, format: PARTS:FORMAT, objective: [{term: PARTS:ExampleNorms}]}}"),
    (DistillConfig, "between", "[{term: PARTS:LENGTHS}]"),
    (DistillConfig, "objective", "[{term: PARTS:ExampleNorms}]"),
    (DistillConfig, "objective", "[{term: alignment, distance: PARTS:absolute, space: PARTS:Halved}]"),
    (DistillConfig, "objective", "[{term: alignment, projector: PARTS:two_layers}]"),
    (DistillConfig, "objective", "[{term: correlation, relation: PARTS:ExampleGram, comparison: PARTS:DIVERGENCE}]"),
    (PretrainConfig, "images", "PARTS:grey_levels/16"),
    (EmbedConfig, "images", "PARTS:grey_levels/16"),
    (EmbedConfig, "format", "PARTS:FORMAT"),
    (EvalConfig, "tasks", "[{name: PARTS:light_and_dark, root: .}]"),
    (EvalConfig, "encoders", "[{weights: a.pth, format: PARTS:FORMAT}]"),
    (EvalConfig, "evaluators", "[PARTS:EVALUATOR, knn/PARTS:KNN, linear/PARTS:LINEAR, robustness/PARTS:DAMAGE]"),
    (EvalConfig, "evaluators", "[fewshot/PARTS:FEWSHOT, retrieval/PARTS:RETRIEVAL]"),
]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """The name of a module in the working folder, which nobody has imported; its rows go when the test is over."""
    name = f"parts_{tmp_path.name}"
    shutil.copy(EXAMPLE, tmp_path / f"{name}.py")
    monkeypatch.chdir(tmp_path)
    before = [(table, dict(table._added)) for table in tables()]
    yield name
    for table, rows in before:
        table._added.clear()
        table._added.update(rows)
    sys.modules.pop(name, None)
    sys.path[:] = [place for place in sys.path if place != str(tmp_path)]


def rows(parts):
    return {name for table in tables() for name in table if name.startswith(f"{parts}:")}


def test_the_walk_knows_every_setting_that_has_a_table():
    kinds = (DistillConfig, PretrainConfig, EmbedConfig, EvalConfig)
    assert {(kind, one.name) for kind in kinds for one in fields(kind) if about(one).tables} == {w[:2] for w in WALK}


@pytest.mark.parametrize(("kind", "setting", "value"), WALK)
def test_what_is_typed_becomes_a_row_under_its_own_name(kind, setting, value, parts):
    value = value.replace("PARTS", parts)
    parse(kind, [f"--{setting}", value], "ssl-kd x")
    assert len(rows(parts)) == value.count(parts)


@pytest.mark.parametrize(("kind", "setting", "value"), WALK)
def test_what_a_file_names_is_never_imported(kind, setting, value, parts, tmp_path):
    value = yaml.safe_load(value.replace("PARTS", parts))
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({setting: value}))
    if setting in ("images", "tasks"):  # they may be paths, and names of anybody's choice
        parse(kind, ["x.yaml"], "ssl-kd x")
    else:
        with pytest.raises(UserError, match=rf"{setting}: x.yaml names code \({parts}:.*give it as --{setting}"):
            parse(kind, ["x.yaml"], "ssl-kd x")
    assert parts not in sys.modules
    assert not rows(parts)


def test_a_path_of_that_spelling_comes_first(parts, tmp_path):
    import zipfile

    from PIL import Image

    Image.new("RGB", (8, 8)).save("one.png")
    with zipfile.ZipFile(f"{parts}.zip", "w") as archive:
        archive.write("one.png", "train/one.png")
    found = parse(EmbedConfig, ["--images", f"{parts}.zip:train"], "ssl-kd x").images
    assert len(open_images(found)) == 1
    assert parts not in sys.modules
    with pytest.raises(
        UserError, match=r"gone\.zip:train: no such archive, and image sources: gone\.zip:train names code"
    ):
        open_images("gone.zip:train")


def test_an_objective_of_one_teacher_is_named_too(parts, tmp_path, capsys):
    lines = f"{{a: {{file: no.pth, objective: {parts}:absolute}}}}"
    words = ["distill", "--out", "run", "--images", f"{parts}:grey_levels/16"]
    assert main([*words, "--teachers", lines]) == 2
    assert "no.pth: no such file" in capsys.readouterr().err  # which is said after the objective was found
    assert parts in sys.modules
    Path("x.yaml").write_text(f"teachers: {lines.replace(parts, 'nowhere_at_all')}")
    assert main([*words, "--config", "x.yaml"]) == 2
    assert "teachers: x.yaml names code (nowhere_at_all:absolute)" in capsys.readouterr().err


def test_a_wrong_kind_or_a_wrong_name_is_one_line(parts, capsys):
    for words, why in (
        (["export", "x.pth", "--out", "y", "--to", f"{parts}:KNN"], f"to: {parts}:KNN is no Target, but KNNProtocol"),
        (["inspect", "x.pth", "--format", f"{parts}:FORMATS"], f"{parts} has no FORMATS. Did you mean FORMAT?"),
        (["eval", "--evaluators", f"[{parts}:VIEWS]"], f"evaluators: {parts}:VIEWS is no Kind or KNNProtocol or "),
        (
            ["eval", "--evaluators", "[knn/no_such:thing]"],
            "evaluators: no_such:thing: module no_such cannot be imported",
        ),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert why in error
        assert error.count("\n") == 1


def test_the_road_with_named_code_alone(parts, tmp_path, capsys):
    """Images, a network, a term, a format, an exporter, a task and evaluators, none of which any table knew before."""
    torch.save({"example_resnet18": dict(small_teacher().backbone.state_dict())}, "example.pth")
    small = ["--epochs", "1", "--batch_size", "8", "--size", "32", "--health_every", "0", "--quiet"]
    distill = ["distill", "--teacher", "example.pth", "--teacher_format", f"{parts}:FORMAT", "--out", "run", *small]
    distill += ["--images", f"{parts}:grey_levels/16", "--student", f"{parts}:network/tiny"]
    distill += ["--objective", f"[{{term: alignment, distance: {parts}:absolute}}]"]
    assert main(distill) == 0
    assert main(distill) == 0  # resumed, and found finished
    again = next(line for line in Path("run/README.md").read_text().splitlines() if "--config config.yaml" in line)
    assert all(f"--{name} " in again for name in ("teacher_format", "images", "student", "objective"))
    assert main(["inspect", "example.pth", "--format", f"{parts}:FORMAT"]) == 0
    assert main(["export", "run/student.safetensors", "--to", f"{parts}:EXPORTER", "--out", "a.npz"]) == 0
    assert len(np.load("a.npz")) > 2
    embed = ["--weights", "example.pth", "--format", f"{parts}:FORMAT", "--images", f"{parts}:grey_levels/4"]
    assert main(["embed", *embed, "--out", "bank.npz", "--quiet"]) == 0
    evaluate = ["--encoders", f"[{{name: t, weights: example.pth, format: {parts}:FORMAT}}]", "--out", "evaluation"]
    evaluate += ["--tasks", f"[{{name: {parts}:light_and_dark, root: .}}]", "--report", "false", "--quiet"]
    evaluate += ["--evaluators", f"[{parts}:EVALUATOR, knn/{parts}:KNN]"]
    assert main(["eval", *evaluate]) == 0
    columns = Path("evaluation/results.csv").read_text()
    assert f"{parts}:EVALUATOR" in columns
    assert "example_three" in columns  # protocols have names of their own
    capsys.readouterr()
    assert main(["eval", *evaluate, "--workers", "2"]) == 2
    assert "take workers: 1" in capsys.readouterr().err
