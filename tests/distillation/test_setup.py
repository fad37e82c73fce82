"""The parts of a run: every preset finds what it reads, or one line says before anything is written that it cannot."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from few import few
from PIL import Image
from small_runs import SMALL, small_teacher

import ssl_kd
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.setup import prepare
from ssl_kd.errors import UserError
from ssl_kd.objectives import PRESETS, taps

QUICK = {"epochs": 1, "batch_size": 4, "quiet": True, "precision": "32-true", "accelerator": "cpu", "log_every": 1}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
CNN = {"channels": [8, 8, 8, 16]}


def images(n=8):
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(1)
    return ssl_kd.build("resnet18", channels=[8, 8, 12, 24]).eval()


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(1)
    return ssl_kd.build("vit_tiny_patch16_224", **VIT | {"depth": 3, "num_heads": 4}).eval()


@pytest.fixture(scope="module")
def flat():
    class Flat(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    return ssl_kd.Encoder.from_module(Flat(), 3)


def run(teacher, student, args, out, **settings):
    settings = QUICK | {"size": 32, "student": student, "student_args": args} | settings
    return ssl_kd.distill(teacher, images=images(), out=out, **settings)


READ_A_HEAD = [name for name, terms in PRESETS.items() if any(t.get("relation") == "teacher_head" for t in terms)]


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in READ_A_HEAD])  # files: test_heads
def test_every_preset_runs_through_the_loop(name, vit, tmp_path):
    done = run(vit, "vit_tiny_patch16_224", VIT, tmp_path / "run", objective=few(name))
    assert all(np.isfinite(v) for v in done.last.values())
    assert done.last["gradient_norm"] > 0


@pytest.mark.parametrize("name", ["proteus", "trg"])
def test_patches_of_a_vit_reach_the_cells_of_a_cnn(name, vit, tmp_path):
    done = run(vit, "resnet18", CNN | {"small_stem": True}, tmp_path / "run", objective=name)
    assert np.isfinite(done.last["loss"])


@pytest.mark.parametrize(
    ("objective", "teacher", "student", "args", "words"),
    [
        (
            "attn_distill",
            "cnn",
            "vit_tiny_patch16_224",
            VIT,
            r"of the teacher \(resnet18\), but no layer 'blocks.-1.attn'",
        ),
        ("attn_distill", "vit", "resnet18", CNN, r"of the student \(resnet18\), but no layer 'blocks.-1.attn'"),
        ("fsp", "flat", "resnet18", CNN, r"of the teacher \(module/Flat.*4 stages end.*teacher_layers of your own"),
    ],
)
def test_what_a_network_does_not_have_is_said_before_anything_is_written(
    objective, teacher, student, args, words, request, tmp_path
):
    teacher = request.getfixturevalue(teacher)
    with pytest.raises(UserError, match=words) as caught:
        run(teacher, student, args, tmp_path / "run", objective=objective)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["fitnets", "at", "fsp"])
def test_stages_of_a_vit_reach_those_of_a_cnn(name, vit, tmp_path):
    done = run(vit, "resnet18", CNN, tmp_path / "run", objective=name)
    assert np.isfinite(done.last["loss"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"in_chans": 1}, "resnet18: in_chans is 1, and images have three channels"),
        ({"channels": [8]}, "student: resnet18 .* cannot take views"),
        ({"global_pool": ""}, "where .* was expected"),
        ({"features_only": True}, "cannot be built with"),
    ],
)
def test_a_student_that_cannot_look_is_one_line(args, words, cnn, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        run(cnn, "resnet18", CNN | args, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_tokens_of_a_network_without_patches_are_refused_at_once(flat, tmp_path):
    with pytest.raises(UserError, match="patch tokens, but the teacher gives none"):
        run(flat, "resnet18", CNN, tmp_path / "run", objective="trg")
    assert not (tmp_path / "run").exists()


def test_the_dry_pass_leaves_no_trace(cnn):
    """The teacher's state and the student's first weights are what they would be without it."""
    before = {k: v.clone() for k, v in cnn.state_dict().items()}
    config = DistillConfig(
        teacher="x", images="x", out="x", student_args=CNN, size=32, seed=3, objective="simreg_queue"
    )
    parts = prepare(config, cnn, None, images())
    torch.manual_seed(3)
    fresh = ssl_kd.build("resnet18", **CNN)
    assert all(torch.equal(v, parts.student.state_dict()[k]) for k, v in fresh.state_dict().items())
    assert all(torch.equal(v, cnn.state_dict()[k]) for k, v in before.items())
    assert parts.objective.training
    assert parts.objective.terms["correlation_queue"].relation.filled == 0


def test_the_layers_that_a_preset_taps_are_those_it_reads(cnn):
    config = DistillConfig(teacher="x", images="x", out="x", student_args=CNN, size=32, objective="fsp")
    parts = prepare(config, cnn, None, images())
    assert (parts.objective.student_layers, parts.teacher_group.teachers[""].layers) == taps("fsp")
    assert dataclasses.asdict(config)["objective"] == parts.settings["objective"]


def test_a_folder_is_one_data_set_however_it_is_spelt(tmp_path, monkeypatch):
    """`photos`, `photos/`, `./photos` and a link to it: the digest of what is there says whether it is the same."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(16):
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"photos/{i}.png")
    settings = SMALL | {"objective": "default_light", "epochs": 1}
    ssl_kd.distill(small_teacher(), images="photos/", out="run", **settings)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["images"] == "photos"
    lines = (tmp_path / "run/metrics.jsonl").read_text()
    (tmp_path / "link").symlink_to("photos")
    for images in ("photos", "./photos", "photos//", tmp_path / "photos", "link/", str(tmp_path / "link")):
        ssl_kd.distill(small_teacher(), images=images, out="run", **settings)
    assert (tmp_path / "run/metrics.jsonl").read_text() == lines  # no step was done again
    (tmp_path / "photos/0.png").unlink()
    with pytest.raises(UserError, match="images_digest was"):
        ssl_kd.distill(small_teacher(), images="photos/", out="run", **settings)
