"""Where a student comes from: any module from Python is trained and saved, a file's network sees the run's pixels."""

import shutil

import pytest
import safetensors.torch
import torch
import yaml
from small_runs import SMALL, logged, same, signal_in_step, small_images, small_teacher
from torch import nn

import ssl_kd
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.students import find_student, wrapped
from ssl_kd.errors import UnknownCheckpoint, UserError
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.types import Features

NO_NAME = {name: value for name, value in SMALL.items() if "student" not in name}
NO_NAME |= {"epochs": 1, "objective": "default_light"}  # a module that pools has no patches
EYES = Preprocessing().at(32)


def bare():
    """A stranger's network: nothing of it says how wide its answers are."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Says(nn.Module):
    """Answers what it is told to."""

    def __init__(self, answer):
        super().__init__()
        self.weight, self.answer = nn.Parameter(torch.ones(())), answer

    def forward(self, x):
        return self.answer(x * self.weight)


# ------------------------------------------------------------------------------------- a module from Python


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: Encoder.from_module(m, 8, EYES)])
def test_a_module_from_python_is_trained_and_its_state_dict_saved(tmp_path, wrap):
    module, before = bare(), bare()
    done = ssl_kd.distill(small_teacher(), wrap(module), small_images(), out=tmp_path / "run", **NO_NAME)
    assert done.student.backbone is module
    assert not same(module, before)
    before.load_state_dict(safetensors.torch.load_file(done.path))
    assert same(module, before)
    teacher_outputs = (tmp_path / "run/README.md").read_text()
    assert teacher_outputs.startswith("# module/Sequential, distilled from resnet18")
    assert f"module.load_state_dict(safetensors.torch.load_file('{done.path}'))" in teacher_outputs
    assert "load_teacher" not in teacher_outputs
    assert "ssl_kd.distill(student=student, images=images, config=" in teacher_outputs


def test_the_file_of_a_module_is_refused_in_one_line_that_says_how_to_load_it(tmp_path):
    """Even where its tensors are named like those of a network that we know."""
    module = ssl_kd.build("resnet18", channels=[8, 8, 8, 8]).backbone
    done = ssl_kd.distill(small_teacher(), module, small_images(), out=tmp_path / "run", **NO_NAME)
    with pytest.raises(UnknownCheckpoint, match=r"module from Python.*load_state_dict\(safetensors") as caught:
        load_teacher(done.path)
    assert "\n" not in str(caught.value)
    assert "module from Python" in inspect(done.path).problem


def test_a_module_goes_on_from_the_saved_state_to_the_same_bits_and_its_config_gives_it_back(tmp_path):
    settings = NO_NAME | {"epochs": 2}
    whole = ssl_kd.distill(small_teacher(), bare(), small_images(), out=tmp_path / "whole", **settings)
    with signal_in_step(2), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(small_teacher(), bare(), small_images(), out=tmp_path / "cut", **settings)
    rest = ssl_kd.distill(small_teacher(), bare(), small_images(), out=tmp_path / "cut", **settings)
    assert same(whole.student, rest.student)
    assert [line["step"] for line in logged(tmp_path / "cut")] == [1, 2, 3, 4, 5, 6]
    config = DistillConfig(**yaml.safe_load((tmp_path / "cut/config.yaml").read_text()))
    again = ssl_kd.distill(small_teacher(), bare(), small_images(), config=config, out=tmp_path / "again")
    assert same(whole.student, again.student)
    with pytest.raises(UserError, match=r"module/Sequential was a module from Python; give it again"):
        ssl_kd.distill(small_teacher(), images=small_images(), config=config, out=tmp_path / "none")
    other = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match=r"last\.ckpt: the saved state does not fit") as caught:
        ssl_kd.distill(small_teacher(), other, small_images(), out=tmp_path / "cut", **settings)
    assert "\n" not in str(caught.value)


def test_the_best_look_at_a_module_is_kept_too(tmp_path):
    settings = NO_NAME | {"health_images": 32, "batch_size": 32}
    done = ssl_kd.distill(small_teacher(), bare(), small_images(64), out=tmp_path / "run", **settings)
    bare().load_state_dict(safetensors.torch.load_file(done.best))


@pytest.mark.parametrize(
    ("answer", "width"),
    [
        (lambda x: x.mean((2, 3)), 3),
        (lambda x: torch.cat([x, x], 1), 6),
        (lambda x: Features(x.flatten(1)), 3072),
    ],
)
def test_the_width_of_a_module_is_found_out_without_a_trace(answer, width):
    module = Says(answer).train()
    assert wrapped(module, EYES).dim == width
    assert module.training
    norm = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3072))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    wrapped(norm, EYES)
    assert all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Says(lambda x: (x, x)), r"Says gives tuple for 2 images"),
        (Says(lambda x: x.sum()), r"Says gives \(\) for 2 images"),
        (nn.Linear(5, 5), "Linear cannot take images of 32 px"),
        (nn.Flatten(), "no parameter of module/Flatten asks for a gradient"),
    ],
)
def test_a_module_that_cannot_be_a_student_is_one_line_before_anything_is_written(module, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        ssl_kd.distill(small_teacher(), module, small_images(), out=tmp_path / "run", **NO_NAME)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------ a file of weights


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A student whose own mean, std and size are not those of the run."""
    torch.manual_seed(3)
    eyes = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).at(48)
    student = ssl_kd.build("resnet18", preprocessing=eyes, channels=[8, 8, 8, 8])
    return ssl_kd.save_student(student, tmp_path_factory.mktemp("weights") / "s.safetensors")


def asked(**settings):
    return find_student(DistillConfig(**settings), None, EYES)


def test_a_files_network_sees_the_runs_pixels_by_its_own_mean_and_std(weights):
    student, recorded = asked(student_weights=str(weights))
    before = load_teacher(weights)
    assert (student.preprocessing.size, student.preprocessing.resize) == (EYES.size, EYES.resize)
    assert student.preprocessing.mean == before.preprocessing.mean
    assert torch.equal(student.std, before.std)
    assert same(student, before)
    assert student.training
    assert all(p.requires_grad for p in student.parameters())
    assert recorded == {
        "student": "resnet18",
        "student_args": {"channels": [8, 8, 8, 8]},
        "student_digest": before.digest,
    }
    assert asked(student_weights=str(weights), **recorded)[1] == recorded


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student": "test_resnet"}, "holds resnet18, not test_resnet"),
        ({"student_args": {"channels": [8, 8, 8, 9]}}, "student_args: .* was built with"),
        ({"student_digest": "f00"}, "student_weights: the config asks for digest f00, but .* has "),
    ],
)
def test_other_settings_than_the_files_are_refused(weights, settings, words):
    with pytest.raises(UserError, match=words):
        asked(student_weights=str(weights), **settings)


def test_weights_for_a_student_from_python_are_refused(weights):
    with pytest.raises(UserError, match="brings weights of its own"):
        find_student(DistillConfig(student_weights=str(weights)), bare(), EYES)


def test_a_run_from_a_file_tells_its_story_and_other_weights_are_not_the_same_run(weights, tmp_path):
    file = shutil.copy(weights, tmp_path / "s.safetensors")
    settings = NO_NAME | {"student_weights": file, "out": tmp_path / "run"}
    done = ssl_kd.distill(small_teacher(), images=small_images(), **settings)
    assert load_teacher(done.path).preprocessing.size == 32
    assert (tmp_path / "run/README.md").read_text().startswith("# resnet18, distilled from resnet18")
    recorded = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert recorded["student_digest"] == load_teacher(file).digest
    ssl_kd.save_student(ssl_kd.build("resnet18", channels=[8, 8, 8, 8]), file)
    with pytest.raises(UserError, match="student_digest was"):
        ssl_kd.distill(small_teacher(), images=small_images(), **settings)


def test_a_student_that_nobody_named_is_a_resnet18():
    assert asked()[1] == {"student": "resnet18"}
