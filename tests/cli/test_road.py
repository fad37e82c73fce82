"""The whole road by the command line, on real scans of digits: teach, inspect, distil, measure. Small, so that it is quick."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image
from small_runs import signal_in_step, small_images, small_teacher

from ssl_kd.cli import demo
from ssl_kd.cli.main import main


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Scans of four digits as train/<class>/<file> and test/<class>/<file>."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    data = load_digits(n_class=4)
    for i, (scan, label) in enumerate(zip(data.images[:240], data.target[:240], strict=True)):
        place = folder / ("test" if i % 3 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((scan * (255 / 16)).astype(np.uint8)).resize((32, 32)).save(place / f"{i:03d}.png")
    return folder


def test_the_whole_road(digits, tmp_path, capsys):
    teacher, run, report = tmp_path / "teacher.pth.tar", tmp_path / "run", tmp_path / "eval"
    shared = ["--images", str(digits / "train"), "--size", "32", "--quiet", "--precision", "32-true"]
    small = ["--arch_args", "{channels: [16, 16, 32, 32]}", "--views", "two_gentle", "--batch-size", "32"]
    assert main(["pretrain", *shared, *small, "--method", "simclr", "--epochs", "4", "--out", str(teacher)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(teacher), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert seen["format"] == "simclr_sthalles"

    config = tmp_path / "distill.yaml"
    config.write_text(
        yaml.safe_dump(
            {"student_args": {"channels": [8, 8, 16, 16]}, "objective": "default", "views": "upright", "epochs": 9}
        )
    )
    asked = ["--teacher", str(teacher), "--student", "resnet18", *shared, "--crop-ratio", "1", "--out", str(run)]
    assert main(["distill", "--config", str(config), *asked, "--epochs", "4", "--batch-size", "16"]) == 0
    student = run / "student.safetensors"
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["epochs"] == 4  # the command line wins over the file
    assert kept["views"] == "upright"
    capsys.readouterr()
    assert main(["inspect", str(student)]) == 0
    assert "resnet18" in capsys.readouterr().out

    encoders = [
        {"name": "teacher", "weights": str(teacher), "size": 32, "crop_ratio": 1.0},
        {"name": "student", "weights": str(student)},
        {"name": "random", "like": "student", "seed": 0},
    ]
    config = tmp_path / "eval.yaml"
    asked = {"out": str(report), "tasks": [{"name": "digits", "path": str(digits)}], "encoders": encoders}
    config.write_text(yaml.safe_dump(asked | {"evaluators": ["knn", "linear/quick-lbfgs"], "quiet": True}))
    assert main(["eval", "--config", str(config)]) == 0
    with open(report / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = {
        (r["encoder"], r["evaluator"].split("/")[0]): float(r["value"]) for r in rows if r["headline"] in ("True", "1")
    }
    assert {name for name, _ in figures} == {"teacher", "student", "random"}
    assert {kind for _, kind in figures} == {"knn", "linear"}
    assert figures["student", "knn"] > 0.25 + 0.1  # four classes: well above chance
    lines = [json.loads(line) for line in (report / "results.jsonl").read_text().splitlines()]
    assert len(lines) == len(rows)
    assert "student" in (report / "results.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demo_keeps_its_promises(seed, tmp_path, monkeypatch):
    assert main(["demo", "--out", str(tmp_path / "demo"), "--seed", str(seed), "--quiet"]) == 0
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert {"README.md", "student.safetensors", "neighbours.png", "eval"} <= names


def test_a_stopped_demo_does_not_promise_to_go_on(tmp_path):
    stopped = pytest.raises(
        KeyboardInterrupt, match=r"^stopped by SIGTERM after step 1 of [0-9]+; the demo distils anew each time$"
    )
    with signal_in_step(0), stopped:
        demo.distilled(small_teacher(), small_images(40), tmp_path / "run", quiet=True)
