"""Settings that cannot be right are refused by one line, before anything is loaded or written."""

import pytest

from ssl_kd.cli.main import main
from ssl_kd.distillation import config as distilling
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.pretraining import config as pretraining
from ssl_kd.pretraining.config import PretrainConfig

TEACH = PretrainConfig(images="i", out="o")
DISTIL = DistillConfig(teacher="t", images="i", out="o")
OF_BOTH = [
    ("images", ""),
    ("out", ""),
    ("epochs", 0),
    ("epochs", -1),
    ("batch_size", 0),
    ("batch_size", -3),
    ("lr", -1.0),
    ("lr", float("nan")),
    ("lr", float("inf")),
    ("weight_decay", -1.0),
    ("seed", -1),
    ("seed", 10**23),
    ("threads", -1),
    ("precision", "16"),
    ("accelerator", "tpu"),
]
OF_PRETRAINING = [
    ("size", 0),
    ("momentum", 2.0),
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("teacher_temperature", 0.0),
    ("prototypes", 0),
    ("queue", -1),
]


def check(config):
    (distilling if isinstance(config, DistillConfig) else pretraining).check(config)


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [(config, *case) for config in (TEACH, DISTIL) for case in OF_BOTH] + [(TEACH, *case) for case in OF_PRETRAINING],
    ids=lambda part: type(part).__name__ if isinstance(part, PretrainConfig | DistillConfig) else repr(part),
)
def test_a_setting_that_cannot_be_right_is_named(config, name, value):
    check(config)
    with pytest.raises(UserError, match=f"^{name}: expected") as e:
        check(type(config)(**vars(config) | {name: value}))
    assert "\n" not in str(e.value)


def test_the_defaults_and_the_largest_seed_are_right():
    for config in (TEACH, DISTIL):
        check(type(config)(**vars(config) | {"seed": 2**63 - 1}))


@pytest.mark.parametrize("command", ["pretrain", "distill --teacher t"])
def test_the_command_line_checks_before_it_opens_anything(command, tmp_path, capsys):
    argv = [*command.split(), "--images", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out"), "--seed", "-1"]
    assert main(argv) == 2
    teacher_outputs = capsys.readouterr().err
    assert "seed: expected" in teacher_outputs
    assert teacher_outputs.strip().count("\n") == 0
    assert not list(tmp_path.iterdir())
