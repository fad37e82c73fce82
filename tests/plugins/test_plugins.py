"""A package of somebody else adds parts by entry points; the command line finds them."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import ssl_kd

PACKAGE = Path(__file__).parent / "example_package"
COMMAND = ["distill", "--teacher", "teacher.safetensors", "--student", "resnet18", "--images", "images.npy"]
COMMAND += ["--student_args", "{channels: [4, 4, 4, 4]}", "--epochs", "1", "--batch_size", "8", "--size", "32"]
COMMAND += ["--objective", "example", "--health_every", "0", "--quiet", "true", "--precision", "32-true"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    ssl_kd.save_student(ssl_kd.build("resnet18", channels=[4, 4, 4, 8]), tmp_path / "teacher.safetensors")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))
    return tmp_path


def distilled(folder, site):
    """The end of `ssl-kd distill` in a process that sees the packages of `site`."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "SSL_KD_CACHE": str(folder / "cache")}
    command = [sys.executable, "-m", "ssl_kd", *COMMAND, "--out", "run"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def installed_by_hand(site):
    """The example as an installer leaves it: the module, and its entry points beside it."""
    told = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]
    (site / "example_parts.py").write_text((PACKAGE / "example_parts.py").read_text())
    info = site / "example_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-parts\nVersion: 1.0\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in rows.items())
        for group, rows in told["entry-points"].items()
    )
    (info / "entry_points.txt").write_text("\n".join(groups))
    return site


def test_the_command_line_distils_by_another_packages_objective_distance_relation_and_views(folder, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    done = distilled(folder, installed_by_hand(site))
    assert done.returncode == 0, done.stderr
    assert "alignment" in done.stdout
    assert "correlation_example_gram" in done.stdout
    assert ssl_kd.load_encoder(folder / "run/student.safetensors").dim == 4


def test_without_the_package_its_name_is_one_line(folder, tmp_path):
    done = distilled(folder, tmp_path / "nothing")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "got 'example'" in done.stderr
    assert not (folder / "run").exists()


def test_a_package_that_cannot_be_imported_is_named_in_one_line_and_hurts_nobody_else(folder, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (installed_by_hand(site) / "example_parts.py").write_text("import nothing_of_that_name")
    done = distilled(folder, site)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "example-parts 1.0" in done.stderr
    assert "nothing_of_that_name" in done.stderr


@pytest.mark.slow
def test_an_installer_makes_the_same_of_the_package(folder, tmp_path):
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(PACKAGE)]
    subprocess.run(install, check=True, capture_output=True)
    done = distilled(folder, site)
    assert done.returncode == 0, done.stderr
