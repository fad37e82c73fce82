"""The loop: it learns, leaves the teacher alone, survives interruption to the same bits, and stops on bad numbers."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_runs import SMALL, logged, signal_in_step

import ssl_kd
from ssl_kd.checkpoints.loading import inspect
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.distillation.config import DistillConfig, check
from ssl_kd.errors import NonFinite, UserError
from ssl_kd.runtime.command_line import parse

TINY = {"student": "resnet18", "student_args": {"channels": [8, 8, 16, 16]}, "size": 32, "crop_ratio": 1.0}
QUICK = SMALL | TINY


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return ssl_kd.build("resnet18", channels=[8, 8, 16, 24]).eval()


def images(n=24, seed=0):
    low = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return ArrayImages(low.repeat(8, 1).repeat(8, 2))


def weights(encoder):
    return {k: v.clone() for k, v in encoder.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_brings_the_student_to_the_teacher_and_explains_itself(teacher, tmp_path):
    before = weights(teacher)
    done = ssl_kd.distill(
        teacher, images=images(), out=tmp_path / "run", objective="simreg_queue", **QUICK | {"epochs": 12, "lr": 3e-3}
    )
    assert same(before, weights(teacher))
    lines = logged(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 37))
    assert np.mean([line["loss"] for line in lines[-3:]]) < 0.5 * lines[0]["loss"]
    assert {"alignment", "correlation_queue", "lr", "images_per_s", "wait_share"} <= lines[0].keys()
    names = {p.name for p in (tmp_path / "run").iterdir()} - {".lock", ".ssl_kd.json"}
    assert names == {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
        "last.ckpt",
        "student.safetensors",
        "README.md",
    }
    assert f'`ssl_kd.load_encoder("{done.path}")`' in (tmp_path / "run/README.md").read_text()
    again = ssl_kd.load_encoder(tmp_path / "run/student.safetensors")
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x).embedding, done.student(x).embedding)
    assert again.preprocessing == done.student.preprocessing
    assert (again.preprocessing.size, again.preprocessing.resize) == (32, 32)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["teacher_digest"] == teacher.digest
    assert config["lr"] == 3e-3


def test_four_rotations_are_an_option_of_dlkd(teacher, tmp_path):
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", objective="dlkd_light", views="rot4", **QUICK)
    assert done.last["correlation_views"] > 0


def test_two_runs_of_one_seed_give_the_same_bits_and_another_seed_does_not(teacher, tmp_path):
    a, b, c = (
        ssl_kd.distill(teacher, images=images(), out=tmp_path / name, seed=seed, **QUICK)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert same(weights(a.student), weights(b.student))
    assert not same(weights(a.student), weights(c.student))


def test_an_interrupted_run_goes_on_to_the_same_bits(teacher, tmp_path):
    whole = ssl_kd.distill(teacher, images=images(), out=tmp_path / "whole", **QUICK)
    stopped = pytest.raises(KeyboardInterrupt, match="SIGTERM after step 4 of 6; give the same command")
    with signal_in_step(3), stopped:  # in the middle of the second epoch
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "cut", **QUICK)
    assert not (tmp_path / "cut/student.safetensors").exists()
    rest = ssl_kd.distill(teacher, images=images(), out=tmp_path / "cut", **QUICK)
    assert same(weights(whole.student), weights(rest.student))
    steps = [line["step"] for line in logged(tmp_path / "cut")]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_run_that_was_begun_by_overwriting_goes_on_without(teacher, tmp_path):
    stopped = pytest.raises(
        KeyboardInterrupt, match="after step 1 of 6; give the same command without --overwrite to resume"
    )
    with signal_in_step(0, signal.SIGINT), stopped:
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", overwrite=True, **QUICK)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["overwrite"] is False
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    assert [line["step"] for line in logged(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_steps_end_a_run_in_the_middle_of_an_epoch_as_its_schedule_does(teacher, tmp_path):
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"steps": 4})
    lines = logged(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["lr"] < lines[1]["lr"]
    assert inspect(done.path).card["epochs"] == round(4 / 3, 3)  # three steps pass over the images


def some_unreadable(folder):
    """Eight pictures and two that are none, with names that no terminal and no markdown likes."""
    (folder / "fine").mkdir(parents=True)
    for i in range(8):
        images(8).read(i).save(folder / f"fine/{i}.png")
    for name in (b"bad\xff.jpg", b"two\nlines.jpg"):
        (Path(os.fsdecode(os.fsencode(folder) + b"/" + name))).write_bytes(b"")
    return folder


def test_a_run_that_goes_on_skips_counts_and_names_the_same_unreadable_images(teacher, tmp_path):
    settings = QUICK | {"out": tmp_path / "run", "images": some_unreadable(tmp_path / "images"), "max_unreadable": 0.2}
    done = ssl_kd.distill(teacher, **settings)
    first = done.path.read_bytes(), (tmp_path / "run/README.md").read_bytes()
    assert inspect(done.path).card["images"] == 8
    named = first[1].decode().partition("Unreadable images:")[2].strip().splitlines()
    assert [line.partition(": ")[0] for line in sorted(named)] == [r"- bad\udcff.jpg", r"- two\nlines.jpg"]
    for name in ("student.safetensors", "README.md"):
        (tmp_path / "run" / name).unlink()
    ssl_kd.distill(teacher, **settings)
    assert (done.path.read_bytes(), (tmp_path / "run/README.md").read_bytes()) == first


def test_a_finished_run_is_not_trained_again(teacher, tmp_path):
    first = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    stamp = (tmp_path / "run/metrics.jsonl").read_text()
    second = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    assert same(weights(first.student), weights(second.student))
    assert (tmp_path / "run/metrics.jsonl").read_text() == stamp


def test_other_settings_in_a_used_folder_are_refused_and_nothing_is_lost(teacher, tmp_path):
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    before = (tmp_path / "run/student.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"lr was 0\.001, now 0\.1"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"lr": 0.1})
    assert (tmp_path / "run/student.safetensors").read_bytes() == before
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", overwrite=True, **QUICK | {"lr": 1e-4})


def test_a_strangers_folder_is_not_written_into(teacher, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not a run's folder"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path, **QUICK)
    assert {p.name for p in tmp_path.iterdir()} <= {"thesis.txt", ".lock"}


def test_a_folder_in_use_is_refused(teacher, tmp_path):
    from ssl_kd.runtime.run_dir import RunDir

    held = RunDir(tmp_path / "run", {"a": 1})
    try:
        with pytest.raises(UserError, match="in use by another process"):
            RunDir(tmp_path / "run", {"a": 1})
    finally:
        held.close()
    RunDir(tmp_path / "run", {"a": 1}).close()


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_state(teacher, tmp_path, monkeypatch):
    from ssl_kd.distillation.loop import Loop
    from ssl_kd.objectives import WeightedSum

    forward, calls = WeightedSum.forward, []

    def poisoned(self, *args):
        total, terms = forward(self, *args)
        calls.extend([1] * self.training)  # the trial before the run is not a step
        return (total * float("nan") if len(calls) == 4 else total), terms

    monkeypatch.setattr(WeightedSum, "forward", poisoned)
    monkeypatch.setattr(Loop, "_log", lambda self, record, rate: self._save())
    with pytest.raises(NonFinite, match=r"became nan at step 3 .*images \d+.*last good state is in .*last\.ckpt"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    saved = torch.load(tmp_path / "run/last.ckpt", weights_only=True)
    assert saved["step"] == 3
    assert all(torch.isfinite(v).all() for v in saved["pair"].values() if v.is_floating_point())
    assert not (tmp_path / "run/student.safetensors").exists()
    with pytest.raises(UserError, match="is the saved state of a run"):
        ssl_kd.load_encoder(tmp_path / "run/last.ckpt")


@pytest.mark.slow
def test_bf16_learns_as_fp32_does(teacher, tmp_path):
    losses = {}
    for devices in ("32-true", "bf16-mixed"):
        done = ssl_kd.distill(
            teacher,
            images=images(),
            out=tmp_path / devices,
            **QUICK | {"objective": "centred", "epochs": 8, "precision": devices},
        )
        losses[devices] = done.last["loss"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.25)


def test_sgd_is_an_option(teacher, tmp_path):
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"optimizer": "sgd", "lr": 0.05})
    assert np.isfinite(done.last["loss"])


def test_an_encoder_from_python_is_trained_in_place(teacher, tmp_path):
    student = ssl_kd.build("resnet18", channels=[8, 8, 16, 16])
    start = weights(student)
    done = ssl_kd.distill(
        teacher, student, images(), out=tmp_path / "run", **{k: v for k, v in QUICK.items() if "student" not in k}
    )
    assert done.student is student
    assert not same(start, weights(student))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"student": "resnet81"}, "resnet18"),
        ({"objective": "simregg"}, "Did you mean simreg"),
        ({"objective": "dlkd", "views": "weak"}, "needs at least 2"),
        ({"views": "waek"}, "Did you mean weak"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"batch_size": 1}, "batch_size: expected at least 2"),
        ({"lr": 0.0}, "lr: expected above 0"),
        ({"optimizer": "adam"}, "auto, muon, adamw or sgd"),
        ({"precision": "fp8"}, "expected auto"),
        ({"epoch": 3}, "Did you mean epochs"),
        ({"targets": "shelf"}, "targets: without replay"),
        ({"teacher_drop": 0.5}, "teacher_drop: expected several teachers"),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_no_folder(teacher, tmp_path, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_image_is_laid_to_the_batch_size(teacher, tmp_path):
    with pytest.raises(UserError, match=r"^batch_size: 3 images in batches of 2 leave a batch with 1"):
        ssl_kd.distill(teacher, images=images(3), out=tmp_path / "run", **QUICK | {"batch_size": 2})
    assert not (tmp_path / "run").exists()


def test_one_image_is_refused_before_anything_is_written(teacher, tmp_path):
    with pytest.raises(UserError, match="at least 2 images"):
        ssl_kd.distill(teacher, images=images(1), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


def test_one_file_that_is_no_picture_is_said_to_be_none(teacher, tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"not a picture in a known format .*Mend or remove them$"):
        ssl_kd.distill(teacher, images=tmp_path / "text.jpg", out=tmp_path / "run", **QUICK)


def test_every_setting_has_a_description_and_round_trips_through_yaml(tmp_path):
    from dataclasses import asdict, fields

    from ssl_kd.validation import about

    for field in fields(DistillConfig):
        assert about(field).help, f"{field.name} is not described"
    config = DistillConfig(
        teacher="t", images="i", out="o", student_args={"channels": [8, 16]}, objective=[{"term": "alignment"}]
    )
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert parse(DistillConfig, ["--config", str(tmp_path / "c.yaml")], "x") == config
    assert (
        parse(DistillConfig, ["--config", str(tmp_path / "c.yaml"), "--batch-size", "7", "--quiet"], "x").batch_size
        == 7
    )
    check(config)


def test_a_run_goes_on_in_the_precision_it_began_with(teacher, tmp_path, monkeypatch):
    from ssl_kd.runtime import devices

    settings = QUICK | {"precision": "auto"}
    monkeypatch.setattr(devices, "bf16_pays", lambda device: True)
    with signal_in_step(0), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **settings)
    monkeypatch.setattr(devices, "bf16_pays", lambda device: False)
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **settings)
    assert "bf16-mixed on cpu" in (tmp_path / "run/README.md").read_text()


def test_the_config_of_a_run_reproduces_it(teacher, tmp_path):
    first = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    config = parse(
        DistillConfig, ["--config", str(tmp_path / "run/config.yaml"), "--out", str(tmp_path / "again")], "x"
    )
    again = ssl_kd.distill(teacher, images=images(), config=config)
    assert same(weights(first.student), weights(again.student))


def test_another_teacher_or_other_images_than_the_config_records_are_refused(teacher, tmp_path):
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    config = parse(
        DistillConfig, ["--config", str(tmp_path / "run/config.yaml"), "--out", str(tmp_path / "again")], "x"
    )
    with pytest.raises(UserError, match="images: the config asks for digest"):
        ssl_kd.distill(teacher, images=images(seed=1), config=config)
    other = ssl_kd.build("resnet18", channels=[8, 8, 16, 24]).eval()
    with pytest.raises(UserError, match="teacher: the config asks for digest"):
        ssl_kd.distill(other, images=images(), config=config)
    assert not (tmp_path / "again").exists()


def test_a_run_says_how_it_was_called(monkeypatch):
    from ssl_kd.runtime import run_dir

    for argv, want in (
        (["/x/ssl-kd", "distill"], "ssl-kd distill"),
        (["/x/ssl_kd/__main__.py", "distill"], "python -m ssl_kd distill"),
    ):
        monkeypatch.setattr("sys.argv", argv)
        assert run_dir.environment()["command"] == want
