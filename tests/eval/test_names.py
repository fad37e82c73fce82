"""The name `eval`: ours is `ssl_kd.eval`, and a user's `eval.py` or `eval/` beside the script breaks neither."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_kd.eval
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing

ROOT = Path(__file__).parents[2]
WRONG = "raise SystemExit('the eval of the user was imported')\n"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A tiny data set and a tiny student."""
    folder, rng = tmp_path_factory.mktemp("lab"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 4)):
        for name, hue in (("cat", (200, 60, 60)), ("dog", (60, 60, 200))):
            (folder / "hues" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(hue) + rng.integers(-50, 50, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / "hues" / split / name / f"{i}.png")
    torch.manual_seed(0)
    network = build("test_resnet", preprocessing=Preprocessing(size=32, resize=32, crop=32))
    save_student(network, folder / "student.safetensors")
    return folder


@pytest.fixture(params=["eval.py", "eval/__init__.py"])
def users(request, tmp_path):
    """A user's folder with an eval of their own."""
    place = tmp_path / request.param
    place.parent.mkdir(exist_ok=True)
    place.write_text(WRONG)
    return tmp_path


def run(command, folder, **more):
    environment = {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def words(lab, out, *more):
    tasks, encoders = f"[{{path: {lab / 'hues'}}}]", f"[{{name: a, weights: {lab / 'student.safetensors'}}}]"
    given = ["--tasks", tasks, "--encoders", encoders, "--evaluators", "[knn, knn/plain]", "--out", str(out), "--quiet"]
    return [*given, "--report", "false", *more]


def test_every_public_name_is_there_and_no_module_hides_it():
    names = ssl_kd.eval.__all__
    modules = {path.stem for path in (ROOT / "eval").iterdir()}
    assert set(names) == set(ssl_kd.eval._HOMES)
    assert not modules & set(names)
    for name in names:
        assert getattr(ssl_kd.eval, name).__module__.startswith("ssl_kd.eval.")
    assert set(names) <= set(dir(ssl_kd.eval))
    with pytest.raises(AttributeError, match="no attribute 'knn_of'"):
        ssl_kd.eval.knn_of  # noqa: B018


def test_the_face_wakes_nothing_heavy():
    code = "import sys, ssl_kd.eval; print([m for m in ('torch', 'numpy', 'faiss', 'PIL') if m in sys.modules])"
    assert run([sys.executable, "-c", code], ROOT).stdout.strip() == "[]"


def test_a_script_has_both(users):
    mine = next(users.rglob("*.py"))
    mine.write_text("def score():\n    return 'mine'\n")
    (users / "script.py").write_text(
        "import eval\nfrom ssl_kd.eval import KNN, FeatureBank\nimport ssl_kd.eval.evaluators.knn as ours\n"
        "import numpy as np\n"
        "bank = FeatureBank(np.eye(4, dtype=np.float32), [0, 0, 1, 1])\n"
        "print(eval.score(), KNN is ours.KNN, KNN('plain')(bank, bank).evaluator)\n"
    )
    done = run([sys.executable, "script.py"], users)
    assert done.stdout.strip() == "mine True knn", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("way", ["module", "console"])
def test_the_command_line_is_ours(users, lab, way):
    command = [sys.executable, "-m", "ssl_kd"]
    if way == "console":
        script = Path(sys.executable).with_name("ssl-kd")
        if not script.exists():
            pytest.skip("the console script is not installed here")
        command = [str(script)]
    done = run([*command, "eval", *words(lab, users / "out")], users)
    assert done.returncode == 0, done.stderr
    assert (users / "out" / "results.jsonl").is_file()


@pytest.mark.slow
def test_processes_that_share_the_cells_are_ours_too(users, lab):
    done = run([sys.executable, "-m", "ssl_kd", "eval", *words(lab, users / "out", "--workers", "2")], users)
    assert done.returncode == 0, done.stderr
    assert len(list((users / "out" / "cells").glob("*.npz"))) == 2


@pytest.mark.slow
def test_in_a_checkout_the_folder_runs_and_is_loaded_once(lab, tmp_path):
    code = (
        "import runpy, sys; sys.argv[1:] = sys.argv[2:]\n"
        "try: runpy.run_module('eval', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end.code, [m for m in sys.modules if m.startswith('eval.')])"
    )
    done = run([sys.executable, "-c", code, "-", *words(lab, tmp_path / "out")], ROOT)
    assert done.stdout.strip().splitlines()[-1] == "0 []", done.stderr
    refused = run([sys.executable, "-m", "eval", str(tmp_path / "none.yaml")], ROOT)
    assert (refused.returncode, len(refused.stderr.strip().splitlines())) == (2, 1)


@pytest.mark.slow
def test_what_is_installed_claims_no_eval_and_has_all_that_is_no_code(tmp_path):
    source, built = tmp_path / "source", tmp_path / "built"
    for folder in ("ssl_kd", "eval", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    project = (ROOT / "pyproject.toml").read_text()  # a setuptools before 77 knows the license in words only
    project = project.replace('license = "Apache-2.0"', 'license = {text = "Apache-2.0"}')
    (source / "pyproject.toml").write_text(project.replace('license-files = ["LICENSE"]', ""))
    # what a wheel would hold: building one needs a package more, which not every environment has
    command = [
        sys.executable,
        "-c",
        "from setuptools import setup; setup()",
        "-q",
        "build_py",
        "--build-lib",
        str(built),
    ]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in built.iterdir()] == ["ssl_kd"]
    for folder, place in (("ssl_kd", "ssl_kd"), ("eval", "ssl_kd/eval"), ("configs", "ssl_kd/configs")):
        wanted = {path.relative_to(source / folder) for path in (source / folder).rglob("*") if path.is_file()}
        assert {path for path in wanted if not (built / place / path).is_file()} == set()
    assert (built / "ssl_kd" / "eval" / "report" / "report.css").is_file()
    assert (built / "ssl_kd" / "eval" / "py.typed").is_file()
