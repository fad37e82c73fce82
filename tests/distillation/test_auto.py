"""What `auto` stands for: the length, the optimiser and the rate of a run that names none."""

import pytest
import yaml
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.auto import DELICATE, FEWEST, LOOKS, MOST, RATES, rated, settled
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.runtime.signals import Interrupted

ASKED = {key: value for key, value in SMALL.items() if key not in ("lr", "warmup")}


@pytest.mark.parametrize("images", [10, 13_166, 50_000, 1_281_167])
def test_a_run_has_a_million_looks_unless_its_images_are_very_few_or_very_many(images):
    epochs = settled(DistillConfig(), images).epochs
    assert FEWEST <= epochs <= MOST
    assert epochs in (FEWEST, MOST) or LOOKS <= epochs * images < LOOKS + images


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_each_optimiser_has_a_rate_of_its_own(optimizer):
    network = {"": ssl_kd.build("resnet18", channels=[8, 8, 8, 8])}
    assert rated(settled(DistillConfig(optimizer=optimizer), 1000), network).lr == RATES[optimizer]
    assert rated(settled(DistillConfig(optimizer=optimizer, lr=0.5), 1000), network).lr == 0.5


@pytest.mark.parametrize(
    ("arch", "settings", "share"),
    [
        ("resnet18", {"channels": [8, 8, 8, 8]}, 1),
        ("resnet50", {"channels": [8, 8, 8, 8]}, 1),
        ("mobilenetv3_small_050", {}, DELICATE),
        ("tf_efficientnet_lite0", {}, DELICATE),
        ("convnext_atto", {}, DELICATE),
        ("vit_tiny_patch16_224", {"depth": 1}, DELICATE),
        ("torchvision/swin_t", {}, DELICATE),
    ],
)
def test_grouped_convolutions_and_layer_norms_take_half_of_muons_rate(arch, settings, share):
    network = {"": ssl_kd.build(arch, **settings)}
    assert rated(settled(DistillConfig(), 1000), network).lr == share * RATES["muon"]
    assert rated(settled(DistillConfig(optimizer="adamw"), 1000), network).lr == RATES["adamw"]


@pytest.mark.slow
def test_students_of_two_kinds_have_each_the_rate_it_has_alone_and_resume(tmp_path):
    students = {"plain": {"arch": "resnet18", "args": SMALL["student_args"]}, "mobile": "mobilenetv3_small_050"}
    shared = {k: v for k, v in ASKED.items() if not k.startswith("student")}
    whole = ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "whole", students=students, **shared)
    kept = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert kept["lr"] == RATES["muon"]
    assert {name: line.get("lr") for name, line in kept["students"].items()} == {"plain": None, "mobile": 2e-2}
    alone = ssl_kd.distill(
        small_teacher(), "mobilenetv3_small_050", images=small_images(), out=tmp_path / "alone", **shared
    )
    assert same(whole["mobile"].student, alone.student)
    with signal_in_step(2), pytest.raises(Interrupted):
        ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "cut", students=students, **shared)
    again = ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "cut", students=students, **shared)
    assert all(same(whole[name].student, again[name].student) for name in students)


def test_who_names_a_rate_alone_gets_the_optimiser_that_rates_are_named_for():
    assert settled(DistillConfig(), 1000).optimizer == "muon"
    assert settled(DistillConfig(lr=1e-3), 1000).optimizer == "adamw"


def test_a_rate_of_one_student_counts_for_the_optimiser_that_all_share():
    """Else a student's own rate, meant for AdamW, would be Muon's, and the student not what it is alone."""
    several = {"students": {"a": {"arch": "resnet18", "lr": 2e-3}, "b": {"arch": "resnet34"}}}
    found = settled(DistillConfig(**several), 1000)
    plain = ssl_kd.build("resnet18", channels=[8, 8, 8, 8])
    assert (found.optimizer, rated(found, {"a": plain, "b": plain}).lr) == ("adamw", RATES["adamw"])
    assert settled(DistillConfig(students={"a": "resnet18", "b": "resnet34"}), 1000).optimizer == "muon"
    kept = {"optimizer": found.optimizer, "lr": RATES["adamw"]}  # as config.yaml keeps it
    again = settled(DistillConfig(**several, **kept), 1000)
    assert again.optimizer == "adamw"


def test_a_short_run_warms_up_shortly():
    assert settled(DistillConfig(epochs=2), 1000).warmup == 0.1
    assert settled(DistillConfig(steps=100, batch_size=10), 1000).warmup == 0.05
    assert settled(DistillConfig(epochs=400), 1000).warmup == 2.0
    assert settled(DistillConfig(warmup=7), 1000).warmup == 7


def test_what_was_asked_for_is_left_alone():
    config = DistillConfig(epochs=3, lr=0.1, optimizer="sgd", warmup=0.0)
    assert settled(config, 10) == config


def test_a_run_keeps_the_numbers_and_resumes_by_the_command_or_by_them(tmp_path):
    whole = ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / "whole", **ASKED)
    kept = yaml.safe_load((tmp_path / "whole/config.yaml").read_text())
    assert (kept["optimizer"], kept["lr"]) == ("muon", RATES["muon"])
    assert kept["warmup"] == 0.1
    for out, settings in (("a", ASKED), ("b", {key: kept[key] for key in (*ASKED, "optimizer", "lr", "warmup")})):
        with signal_in_step(2), pytest.raises(Interrupted):
            ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / out, **ASKED)
        again = ssl_kd.distill(small_teacher(), images=small_images(), out=tmp_path / out, **settings)
        assert same(whole.student, again.student)


def test_a_wrong_word_is_one_line():
    with pytest.raises(UserError, match=r"^epochs: expected a whole number or auto, got 'ten'"):
        ssl_kd.distill(small_teacher(), images=small_images(), out="run", **ASKED | {"epochs": "ten"})
    with pytest.raises(UserError, match=r"^lr: expected a number or auto, got True"):
        ssl_kd.distill(small_teacher(), images=small_images(), out="run", **ASKED | {"lr": True})
