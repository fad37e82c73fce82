"""The self-check runs the protocol that a published figure belongs to, and says whether ours agrees."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.checkpoints.zoo_entries import ZOO
from ssl_kd.checkpoints.zoo_protocols import commands, published
from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.eval.evaluators.knn import PROTOCOLS as KNN_PROTOCOLS
from ssl_kd.eval.evaluators.linear_probe import PROTOCOLS as LINEAR_PROTOCOLS
from ssl_kd.eval.selfcheck import selfcheck
from ssl_kd.models.encoder import build


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    """A small network in place of the published one, and a folder laid out as ImageNet is."""
    folder = tmp_path_factory.mktemp("imagenet")
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 20)):
        for label in range(3):
            (folder / part / f"n{label}").mkdir(parents=True)
            for i in range(count):
                tone = rng.normal(100 + 20 * label, 25, (1, 1, 3)) + rng.normal(0, 20, (16, 16, 3))
                picture = Image.fromarray(np.clip(tone, 0, 255).astype(np.uint8))
                picture.save(folder / part / f"n{label}" / f"{i}.png")
    torch.manual_seed(0)
    weights = save_student(build("resnet18", channels=[8, 8, 8, 16]), folder / "standin.safetensors")
    return folder, str(weights)


def test_a_recorded_figure_is_found_again_and_another_one_is_told_apart(standin, tmp_path, monkeypatch, capsys):
    folder, weights = standin
    real = ZOO["dino_vits16"]
    first = selfcheck("dino_vits16", str(folder), None, weights, str(tmp_path / "a"), True)
    recorded = round(100 * first.value, 1)
    assert 40 < recorded < 100
    monkeypatch.setitem(ZOO, "dino_vits16", replace(real, knn=recorded))
    words = ["eval", "--selfcheck", "dino_vits16", "--imagenet", str(folder), "--weights", weights, "--quiet"]
    assert main([*words, "--out", str(tmp_path / "a")]) == 0
    assert f"knn/dino: {recorded}" in capsys.readouterr().out
    monkeypatch.setitem(ZOO, "dino_vits16", replace(real, knn=5.0))
    assert main([*words, "--out", str(tmp_path / "a")]) == 1
    said = capsys.readouterr().out
    assert "does not agree with 5.0 published at https://github.com/facebookresearch/dino" in said
    assert "60 test images" in said


def test_the_interval_decides(standin, tmp_path, monkeypatch):
    folder, weights = standin
    found = selfcheck("dino_vits16", str(folder), None, weights, str(tmp_path / "a"), True)
    for figure, agrees in (
        (found.low, True),
        (found.high, True),
        (found.low - 0.01, False),
        (found.high + 0.01, False),
    ):
        assert replace(found, published=replace(found.published, figure=100 * figure)).agrees is agrees


@pytest.mark.parametrize("entry", ZOO.values(), ids=list(ZOO))
def test_every_command_that_the_zoo_shows_can_be_run(entry):
    for one in published(entry):
        kind, _, protocol = one.evaluator.partition("/")
        assert protocol in {"knn": KNN_PROTOCOLS, "linear": LINEAR_PROTOCOLS}[kind]
        assert f"--selfcheck {entry.name} " in commands(entry)


def test_figures_without_a_protocol_are_said_to_have_none(tmp_path):
    with pytest.raises(UserError, match="no evaluator here repeats a published figure"):
        selfcheck("swav_r50_800ep", str(tmp_path))
    with pytest.raises(UserError, match="expected one of knn"):
        selfcheck("lightly_dino_r50_100ep", str(tmp_path), "linear")
    with pytest.raises(UserError, match="Did you mean dino_vits16"):
        selfcheck("dino_vits61", str(tmp_path))
