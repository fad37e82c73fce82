"""A name or the object: objectives, views, loggers, students and teachers of Python, and `package.module:name`."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image
from small_runs import SMALL, logged, same, signal_in_step, small_images, small_teacher
from torch import nn

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.data.augment import STRONG_SMALL, WEAK
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.module import AnyCriterion
from ssl_kd.distillation.trainer import fill_targets
from ssl_kd.errors import UserError
from ssl_kd.types import Features, ViewBatch

QUICK = SMALL | {"objective": "default_light"}
ANY = {name: value for name, value in QUICK.items() if name != "objective"}

PLUGIN = '''
"""A stranger's module, beside the data."""
import torch
from torch import nn


class Distance(nn.Module):
    def __init__(self, student_width, teacher_width):
        super().__init__()
        self.head = nn.Linear(student_width, teacher_width)

    def forward(self, student, teacher, batch):
        return (self.head(student.embedding) - teacher.embedding).square().mean()


def crop(picture):
    return picture.resize((32, 32))


class Numbers:
    seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append(step)

    def finalize(self, status):
        self.seen.append(status)


def network(width=8):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Bare(nn.Module):
    """Has no constructor."""

    def forward(self, student, teacher):
        return (student.embedding.mean(1) - teacher.embedding.mean(1)).square().mean()


def bare():
    return Bare()


def plain(student, teacher):
    return (student.embedding.mean(1) - teacher.embedding.mean(1)).square().mean()


class Missing(nn.Module):
    def __init__(self, *widths):
        import a_package_that_is_not_there


text = "no module"


def wrong():
    return 3
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module `their_parts` in the current folder."""
    (tmp_path / "their_parts.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    yield "their_parts"
    sys.modules.pop("their_parts", None)


class Distance(nn.Module):
    """The smallest criterion: mean squared error behind a linear layer, which takes no batch."""

    def __init__(self, student=8, teacher=16):
        super().__init__()
        torch.manual_seed(5)
        self.head = nn.Linear(student, teacher)

    def forward(self, student, teacher):
        return (self.head(student.embedding) - teacher.embedding).square().mean()


class Other(Distance):
    """Another class of the same parameters."""


def run(out, **settings):
    return ssl_kd.distill(small_teacher(), images=small_images(), out=out, **ANY | settings)


# ------------------------------------------------------------------------------------------------ objectives


def test_a_module_is_the_objective_and_its_parameters_are_trained_and_saved(tmp_path):
    criterion, before = Distance(), Distance()
    done = run(tmp_path / "run", objective=criterion)
    assert not same(criterion, before)
    assert {"loss", "Distance"} <= set(done.last)
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["pair"]
    assert any(torch.equal(value, criterion.head.weight) for name, value in saved.items() if "head" in name)
    record = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["objective"]
    assert record == f"<{Distance.__module__}.Distance from Python>"
    assert "objective=objective" in (tmp_path / "run/README.md").read_text()
    assert ssl_kd.inspect(done.path).card["objective"] == record


def test_a_run_with_an_object_is_resumed_by_the_same_one_to_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole", objective=Distance())
    with signal_in_step(2), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", objective=Distance())
    config = DistillConfig(**yaml.safe_load((tmp_path / "cut/config.yaml").read_text()))
    with pytest.raises(UserError, match=r"objective: <.*Distance from Python> was an object.*give it again") as caught:
        ssl_kd.distill(small_teacher(), images=small_images(), config=config)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"objective was '<.*Distance from Python>', now '<.*Other from Python>'"):
        run(tmp_path / "cut", objective=Other())
    rest = ssl_kd.distill(small_teacher(), images=small_images(), config=config, objective=Distance())
    assert same(whole.student, rest.student)
    assert [line["step"] for line in logged(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]


def test_of_several_teachers_each_may_have_an_object(tmp_path):
    lines = {"a": {"file": small_teacher(), "objective": Distance()}, "b": {"file": small_teacher(), "weight": 2}}
    done = ssl_kd.distill(teachers=lines, images=small_images(), out=tmp_path / "run", **QUICK)
    assert {"a.Distance", "b.alignment"} <= set(done.last)
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())["teachers"]
    assert kept["a"]["objective"] == f"<{Distance.__module__}.Distance from Python>"
    assert kept["b"]["objective"] == "default_light"


def test_an_own_preset_can_be_given_as_it_was_built(tmp_path):
    from ssl_kd.objectives import build_objective

    torch.manual_seed(3)
    named = run(tmp_path / "named", objective="default_light")
    built = build_objective("default_light", 8, 16)
    given = run(tmp_path / "given", objective=built)
    assert set(named.last) == set(given.last)


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (Distance(5, 16), "objective: it cannot compare these networks"),
        (
            nn.Identity(),
            "objective: it cannot compare these networks: .*; its forward is given Features, whose `embedding`",
        ),
        (3, "objective: expected a preset's name or a list of terms, got 3"),
        (lambda student, teacher: None, "objective: expected .* to make a module, got NoneType"),
    ],
)
def test_an_object_that_is_no_criterion_is_one_line_before_anything_is_written(criterion, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path / "run", objective=criterion)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


class Answers(nn.Module):
    """Gives whatever it was made with."""

    def __init__(self, answer, **attributes):
        super().__init__()
        self.answer = answer
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, student, teacher, batch=None):
        return self.answer(student)


TWO = Features(torch.ones(2, 3, requires_grad=True))
BATCH = ViewBatch(np.arange(2), 0, (torch.zeros(2, 3, 8, 8),))


def test_a_criterion_may_give_terms_of_its_own_and_none_hides_a_figure_of_the_step():
    total, terms = AnyCriterion(Answers(lambda s: (s.embedding.sum(), {"a": 2.0, "loss": torch.ones(())})))(
        TWO, TWO, BATCH
    )
    assert total.item() == 6
    assert {name: float(value) for name, value in terms.items()} == {"a": 2, "Answers.loss": 1}


def test_gradients_of_a_criterion_are_measured_on_request():
    objective = AnyCriterion(Answers(lambda s: s.embedding.sum()))
    objective.measure_gradients = True
    assert objective(TWO, TWO, BATCH)[1]["Answers_gradient"].item() == pytest.approx(6**0.5)


@pytest.mark.parametrize("answer", [lambda s: s.embedding, lambda s: "x", lambda s: (s.embedding.sum(), 3)])
def test_an_answer_that_is_no_number_is_one_line(answer):
    with pytest.raises(UserError, match="expected one number as a tensor"):
        AnyCriterion(Answers(answer))(TWO, TWO, BATCH)


def test_what_a_criterion_asks_for_is_read_from_its_attributes():
    asked = {"needs_tokens": True, "student_layers": ["a"], "student_momentum": 0.9, "min_views": 2, "divisible": True}
    objective = AnyCriterion(Answers(lambda s: s, **asked))
    assert (objective.reads_tokens, objective.student_layers, objective.teacher_layers) == (True, ("a",), ())
    assert (objective.student_momentum, objective.min_views, objective.indivisible) == (0.9, 2, ())
    plain = AnyCriterion(Distance())
    assert (plain.reads_tokens, plain.student_momentum, plain.min_views) == (False, 0, 1)
    assert plain.indivisible == ("Distance",)


def test_the_example_of_the_docs_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs/objects.md").read_text()
    command(tmp_path)
    (tmp_path / "pictures").rename(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    exec(page.split("```python")[1].split("```")[0], {"__name__": "example"})
    kept = yaml.safe_load((tmp_path / "runs/own/config.yaml").read_text())
    assert (kept["objective"], kept["views"]) == ("<example.Distance from Python>", "<example.view from Python>")


# ----------------------------------------------------------------------------------------------------- views


def test_recipes_are_kept_as_rows_that_give_the_same_run(tmp_path):
    whole = run(tmp_path / "objects", objective="default_light", views=(WEAK, STRONG_SMALL))
    rows = yaml.safe_load((tmp_path / "objects/config.yaml").read_text())["views"]
    assert rows == [{}, {"jitter": 0.8, "grey": 0.2}]
    named = run(tmp_path / "named", objective="default_light", views="multi_small")
    again = run(tmp_path / "rows", objective="default_light", views=rows)
    assert same(whole.student, named.student)
    assert same(whole.student, again.student)


def as_float(picture):
    return torch.from_numpy(np.asarray(picture, np.float32) / 255).permute(2, 0, 1)


@pytest.mark.parametrize(
    "function",
    [lambda p: p, as_float, lambda p: np.asarray(p), lambda p: p.convert("L")],
    ids=["PIL", "float", "array", "L"],
)
def test_any_function_makes_views(function, tmp_path):
    done = run(tmp_path / "run", objective="default_light", views=function)
    assert np.isfinite(done.last["loss"])
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["views"].endswith(
        ("from Python>", f"{as_float.__module__}:as_float")
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"views": as_float, "replay": 1}, r"replay: views that a function makes \(as_float\) cannot be made again"),
        ({"views": lambda p: p.resize((8, 8))}, r"gives uint8 \(8, 8, 3\).*expected a picture of 32 x 32"),
        ({"views": lambda p: as_float(p) * 4 - 2}, "leave its normalisation out"),
        ({"views": lambda p: p.nothing}, "fails on a picture: AttributeError"),
        ({"views": (WEAK, 3)}, "got int among them"),
        ({"views": [{"scales": [0.2, 1]}]}, "recipe 1 has no setting 'scales'. Did you mean scale"),
        ({"views": [{"flip": "no"}]}, "views: flip of recipe 1: expected a number, got 'no'"),
        ({"views": [{"flip": 3}]}, "views: flip of recipe 1: expected from 0 to 1"),
        ({"views": [{"scale": [1.0, 0.2]}]}, "views: scale of recipe 1"),
        ({"views": []}, "got an empty list"),
        ({"views": 3}, "views: expected a scheme's name or a list of recipes, got 3"),
    ],
)
def test_views_that_cannot_be_are_one_line_before_anything_is_written(settings, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        run(tmp_path / "run", objective="default_light", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_targets_of_a_functions_views_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be made again"):
        fill_targets(small_teacher(), images=small_images(), out=tmp_path / "run", views=as_float, replay=1, **QUICK)


# --------------------------------------------------------------------------------------------------- loggers


class Recorder:
    def __init__(self):
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))

    def finalize(self, status):
        self.seen.append(status)


@pytest.mark.parametrize("beside", [None, [], ["csv"]])
def test_a_logger_gets_every_figure_and_may_be_left_out_later(beside, tmp_path):
    recorder = Recorder()
    log = recorder if beside is None else [*beside, recorder]
    run(tmp_path / "run", objective="default_light", log=log, epochs=1)
    assert recorder.seen.pop() == "success"
    assert [(step, metrics["loss"]) for step, metrics in recorder.seen] == [
        (line["step"], line["loss"]) for line in logged(tmp_path / "run")
    ]
    assert (tmp_path / "run/metrics.csv").exists() == bool(beside)
    run(tmp_path / "run", objective="default_light", log="csv", epochs=1)  # what is logged decides nothing


def test_a_logger_of_lightnings_will_do(tmp_path):
    from lightning_fabric.loggers import CSVLogger

    run(tmp_path / "run", objective="default_light", log=[CSVLogger(tmp_path, name="theirs")], epochs=1)
    assert "loss" in next((tmp_path / "theirs").rglob("metrics.csv")).read_text()


def test_what_takes_no_metrics_is_no_logger(tmp_path):
    with pytest.raises(UserError, match=r"log: expected names \(jsonl, csv.* got object"):
        run(tmp_path / "run", log=[object()])


# --------------------------------------------------------------------------------------- teachers and students


def test_a_teacher_is_any_module(tmp_path):
    torch.manual_seed(2)
    teacher = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    settings = QUICK | {"out": tmp_path / "run", "epochs": 1}
    done = ssl_kd.distill(teacher, images=small_images(), **settings)
    assert np.isfinite(done.last["loss"])
    assert not any(p.requires_grad for p in teacher.parameters())
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert kept["teacher"] == "<torch.nn.modules.container.Sequential from Python>"
    with pytest.raises(UserError, match=r"teacher: <.*> was a module from Python; give it again"):
        ssl_kd.distill(images=small_images(), config=DistillConfig(**kept))
    nn.init.zeros_(teacher[0].weight)
    with pytest.raises(UserError, match="teacher_digest was"):
        ssl_kd.distill(teacher, images=small_images(), **settings)


@pytest.mark.parametrize(("name", "size"), [("googlenet", 96), ("inception_v3", 299)])
def test_a_module_with_auxiliary_outputs_is_trained_on_the_main_one(name, size):
    from torchvision import models

    from ssl_kd.models.backbones import ModuleNet, TorchvisionNet

    torch.manual_seed(0)
    network = models.get_model(name, weights=None, init_weights=False).train()
    out, _ = ModuleNet(network, 1000)(torch.rand(2, 3, size, size), ("pool",))
    assert out["pool"].shape == (2, 1000)
    pooled, _ = TorchvisionNet(network, name)(torch.rand(2, 3, size, size), ("pool",))
    assert pooled["pool"].shape[1] > 1000


class OnlyInEval(nn.Module):
    """Gives its auxiliary output in train mode, without a name for the main one."""

    def __init__(self):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(())), nn.BatchNorm2d(3)

    def forward(self, x):
        out = self.norm(x * self.weight).mean((2, 3))
        return (out, out) if self.training else out


def test_a_student_that_gives_something_else_in_train_mode_is_one_line_before_training(tmp_path):
    student = OnlyInEval()
    with pytest.raises(UserError, match="student: OnlyInEval gives tuple for 2 images in train mode"):
        ssl_kd.distill(
            small_teacher(), student, small_images(), out=tmp_path / "run", objective="default_light", size=32
        )
    assert student.norm.num_batches_tracked == 0
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ module:name


def command(tmp_path, *more):
    folder = tmp_path / "pictures"
    folder.mkdir(exist_ok=True)
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    teacher = ssl_kd.save_student(small_teacher(), tmp_path / "teacher.safetensors")
    shared = ["--teacher", str(teacher), "--images", str(folder), "--out", str(tmp_path / "run"), "--epochs", "1"]
    shared += ["--batch-size", "4", "--size", "32", "--quiet", "--log-every", "1", "--precision", "32-true"]
    return ["distill", *shared, *more]


NAMES = ["objective", "Distance"], ["views", "crop"], ["log", "Numbers"], ["student", "network"]


def test_the_command_line_takes_code_of_the_current_folder(plugin, tmp_path):
    words = [word for setting, name in NAMES for word in (f"--{setting}", f"{plugin}:{name}")]
    argv = command(tmp_path, *words, "--student_args", "{width: 6}")
    assert main(argv) == 0
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert {setting: kept[setting] for setting, _ in NAMES} == {setting: f"{plugin}:{name}" for setting, name in NAMES}
    assert sys.modules[plugin].Numbers.seen == [1, 2, "success"]
    assert safetensors.torch.load_file(tmp_path / "run/student.safetensors")["0.weight"].shape[0] == 6
    assert main(argv) == 0  # resumed, and found finished
    again = re.search(
        "`ssl-kd distill --config config.yaml .* --out elsewhere`", (tmp_path / "run/README.md").read_text()
    )[0]
    assert all(f" --{setting} {plugin}:{name} " in again for setting, name in NAMES)


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        (
            "objective",
            "no_such_parts:Loss",
            "objective: no_such_parts:Loss: module no_such_parts cannot be imported: ModuleNotFound",
        ),
        (
            "objective",
            "their_parts:Distence",
            "objective: their_parts:Distence: module their_parts has no Distence. Did you mean Distance",
        ),
        ("objective", "their_parts:text", "objective: expected a module or what makes one, got str"),
        ("objective", "their_parts:wrong", "objective: expected their_parts:wrong to make a module, got int"),
        (
            "objective",
            "their_parts:plain",
            "objective: their_parts:plain cannot be built for widths 512 and 16: AttributeError: 'int' object has no attribute "
            "'embedding'; it is called with the widths of student and teacher.* class Mine.*def forward",
        ),
        (
            "objective",
            "their_parts:Missing",
            "Missing cannot be built for widths 512 and 16: ModuleNotFoundError: .*forward",
        ),
        ("student", "their_parts:Missing", "student: their_parts:Missing cannot be built with"),
        ("log", "their_parts:crop", "log: their_parts:crop cannot be made: TypeError: "),
        ("log", "their_parts:network", "log: expected names .*and Lightning loggers, got their_parts:network"),
        ("student", "their_parts:wrong", "student: expected their_parts:wrong to make a module, got int"),
        ("student", "their_parts:Distance", "student: their_parts:Distance cannot be built with"),
    ],
)
def test_code_that_is_missing_or_something_else_is_one_line(setting, value, words, plugin, tmp_path, capsys):
    assert main(command(tmp_path, f"--{setting}", value)) == 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert error.strip().count("\n") == 0
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["Bare", "bare"])
def test_an_objective_that_takes_no_widths_is_made_with_nothing(name, plugin, tmp_path):
    assert main(command(tmp_path, "--objective", f"{plugin}:{name}")) == 0
    assert "Bare" in logged(tmp_path / "run")[0]


@pytest.mark.parametrize(("setting", "name"), NAMES)
def test_no_file_makes_us_run_code(setting, name, plugin, tmp_path, capsys):
    """A config from elsewhere may name anything, os:system too: only the command line or a call may."""
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({setting: f"{plugin}:{name}"}))
    assert main(command(tmp_path, "--config", str(file))) == 2
    assert f"{setting}: {file} names code ({plugin}:{name}), and a file's settings run none" in capsys.readouterr().err
    config = DistillConfig(**{setting: f"{plugin}:{name}"})
    with pytest.raises(UserError, match=rf"{setting}: the config names code \({plugin}:{name}\)"):
        ssl_kd.distill(small_teacher(), images=small_images(), config=config, out=tmp_path / "run")
    assert plugin not in sys.modules
