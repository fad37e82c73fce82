"""Our presets against lightly-train itself, where there is an interpreter that has it."""

import os

import pytest

PYTHON = os.environ.get("SSL_KD_LIGHTLY_TRAIN")


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON, reason="SSL_KD_LIGHTLY_TRAIN names no python with lightly-train in it")
@pytest.mark.parametrize("queue", [16, 4])
@pytest.mark.parametrize("preset", ["lightly_v1", "lightly_v3"])
def test_our_preset_has_the_losses_and_gradients_of_lightly_train(preset, queue):
    from benchmarks.lightly_train import compare_losses

    told = compare_losses(PYTHON, preset, queue=queue)
    assert told["ours"] == pytest.approx(told["theirs"], rel=2e-6)
    assert told["gradient_difference"] < 1e-5


def test_networks_that_cannot_be_rebuilt_beside_us_are_refused():
    from benchmarks.lightly_train import recipe
    from ssl_kd.errors import UserError
    from ssl_kd.models.encoder import build

    assert recipe(build("test_vit", img_size=32, feature="avg"))["args"] == {"img_size": 32}
    assert recipe(build("vit_tiny_patch16_224", img_size=32, conv_stem=True))["args"]["conv_stem"]
    with pytest.raises(UserError, match="only timm networks"):
        recipe(build("torchvision/resnet18"))
