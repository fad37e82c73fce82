"""A package of somebody else adds a part of every kind by entry points; the command line finds them."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_kd

PACKAGE = Path(__file__).parent / "example_package"
OFFERED = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
NETWORK = ["--student", "resnet18", "--student_args", "{channels: [4, 4, 4, 4]}"]
QUIET = ["--epochs", "1", "--batch_size", "8", "--size", "32", "--health_every", "0", "--quiet", "true"]
EVALUATION = """
tasks: [{name: example_light, root: .}]
encoders: [{name: teacher, weights: example.pth}]
evaluators: [example_centroid, knn/example_three, linear/example_linear, fewshot/example_shots,
             retrieval/example_top10, robustness/example_noise]
report: false
quiet: true
"""
COMMANDS = {
    "distill": [
        *("distill", "--teacher", "example.pth", "--images", "example/16", "--objective", "example"),
        *("--student", "example/tiny", "--student_args", "{width: 8}", "--log", "example_lines"),
        *(*QUIET, "--log_every", "1", "--out", "run"),
    ],
    "distill several": [
        *("distill", "--teacher", "example.pth", "--images", "example/16", "--objective", "default_light"),
        *("--students", "{a: {arch: resnet18, args: {channels: [4, 4, 4, 4]}}, b: example/tiny}"),
        *("--between", "[{term: example_lengths, times: 2}]", *QUIET, "--log_every", "1", "--out", "several"),
    ],
    "eval": ["eval", "--config", "eval.yaml", "--out", "evaluation"],
    "inspect": ["inspect", "example.pth", "--json"],
    "export": ["export", "run/student.safetensors", "--to", "example_arrays", "--out", "arrays.npz"],
}
PLAIN = ["distill", "--teacher", "teacher.safetensors", "--images", "images.npy", *NETWORK, *QUIET, "--out", "run"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    teacher = ssl_kd.build("resnet18", channels=[4, 4, 4, 8])
    ssl_kd.save_student(teacher, tmp_path / "teacher.safetensors")
    torch.save({"example_resnet18": dict(teacher.backbone.state_dict())}, tmp_path / "example.pth")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    (tmp_path / "eval.yaml").write_text(EVALUATION)
    return tmp_path


def python(folder, site, *arguments):
    """The end of a Python process that sees the packages of `site`."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "SSL_KD_CACHE": str(folder / "cache")}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def ssl_kd_command(folder, site, *arguments):
    return python(folder, site, "-m", "ssl_kd", *arguments)


@pytest.fixture
def site(tmp_path):
    """The example as an installer leaves it: the module, and its entry points beside it."""
    site = tmp_path / "site"
    info = site / "example_parts-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "example_parts.py").write_text((PACKAGE / "example_parts.py").read_text())
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-parts\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in rows.items())
        for group, rows in OFFERED.items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


LISTING = """
import json
from tables import tables
print(json.dumps({t.group: [n for n in t if t.maker(n) == "example-parts 1.0" and t[n] is not None] for t in tables()}))
"""


def test_every_table_that_is_open_finds_the_part_of_the_example(folder, site):
    done = python(folder, f"{site}{os.pathsep}{Path(__file__).parents[1]}", "-W", "error", "-c", LISTING)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {group: list(rows) for group, rows in OFFERED.items()}


def walk(folder, site):
    """Every command with the parts of the example, and what each of them leaves behind."""
    told = {}
    for name, command in COMMANDS.items():
        done = ssl_kd_command(folder, site, *command)
        assert done.returncode == 0, (name, done.stderr)
        told[name] = done.stdout
    assert "correlation_example_gram" in told["distill"]
    assert "example_norms" in told["distill"]
    assert (folder / "run/example.txt").read_text().startswith("step ")
    assert "between.example_lengths" in (folder / "several/students/b/metrics.jsonl").read_text()
    table = (folder / "evaluation/results.md").read_text()
    for shown in ("example_centroid", "example_three", "example_linear", "example_shots", "example_top10"):
        assert shown in table
    assert "example_noise" in table
    assert json.loads(told["inspect"])["format"] == "example_format"
    assert "arrays.npz" in told["export"]
    assert json.loads((folder / "arrays.npz.json").read_text())["format"] == "example_arrays"


LOADED = "import sys, ssl_kd; print(ssl_kd.load_encoder(sys.argv[1]).dim)"


@pytest.mark.slow
def test_a_run_by_the_parts_of_the_example_leaves_a_student_that_needs_the_package(folder, site):
    done = ssl_kd_command(folder, site, *COMMANDS["distill"])
    assert done.returncode == 0, done.stderr
    assert "correlation_example_gram" in done.stdout
    assert (folder / "run/example.txt").read_text().startswith("step ")
    assert python(folder, site, "-c", LOADED, "run/student.safetensors").stdout == "8\n"
    without = python(folder, folder / "nothing", "-c", LOADED, "run/student.safetensors")
    assert "UserError" in without.stderr
    assert "architectures are named" in without.stderr


@pytest.mark.slow
def test_students_of_a_run_may_be_tied_by_a_term_of_the_example(folder, site):
    done = ssl_kd_command(folder, site, *COMMANDS["distill several"])
    assert done.returncode == 0, done.stderr
    told = [(folder / f"several/students/{name}/metrics.jsonl").read_text() for name in ("a", "b")]
    assert ["between.example_lengths" in text for text in told] == [False, True]
    wrong = ssl_kd_command(
        folder, site, *COMMANDS["distill several"], "--between", "[{term: example_lengths, time: 2}]"
    )
    assert wrong.returncode == 2
    assert "term example_lengths has no 'time'; it knows times" in wrong.stderr


@pytest.mark.slow
def test_a_term_between_students_may_be_named_on_the_command_line(folder, site):
    more = ["--between", "[{term: 'example_parts:LENGTHS'}]"]
    done = ssl_kd_command(folder, site, *COMMANDS["distill several"], *more)
    assert done.returncode == 0, done.stderr
    assert "example_parts:LENGTHS" in (folder / "several/students/b/metrics.jsonl").read_text()


@pytest.mark.slow
def test_without_the_package_its_name_is_one_line(folder):
    done = ssl_kd_command(folder, folder / "nothing", *PLAIN, "--objective", "example")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "got 'example'" in done.stderr
    assert not (folder / "run").exists()


NAMED = {
    "objective": ("--objective", "example"),
    "views": ("--views", "example_views"),
    "log": ("--log", "example_lines"),
    "images": ("--images", "example/16"),
    "student": ("--student", "example/tiny"),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", NAMED)
def test_a_package_that_cannot_be_imported_is_named_in_one_line_and_hurts_nobody_else(folder, site, setting):
    (site / "example_parts.py").write_text("import nothing_of_that_name")
    done = ssl_kd_command(folder, site, *PLAIN, *NAMED[setting])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "example-parts 1.0" in done.stderr
    assert "nothing_of_that_name" in done.stderr
    assert not (folder / "run").exists()
    assert ssl_kd_command(folder, site, *PLAIN).returncode == 0


@pytest.mark.slow
def test_an_installer_makes_the_same_of_the_package(folder, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    setuptools = tuple(map(int, version("setuptools").split(".")[:2]))
    if setuptools >= (70, 1) or find_spec("wheel"):  # older ones cannot build a wheel alone: pip then fetches a builder
        install.append("--no-build-isolation")
    source = tmp_path / "example_package"  # a build leaves files beside what it builds
    source.mkdir()
    for name in ("pyproject.toml", "example_parts.py"):
        (source / name).write_text((PACKAGE / name).read_text())
    done = subprocess.run([*install, "--target", str(site), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    walk(folder, site)
