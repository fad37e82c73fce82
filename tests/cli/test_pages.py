"""Every Python example and every command of README and docs is run: here, or in the test that is named for its page."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ssl_kd
from benchmarks.notebook import cells_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/jobs").glob("*.md"))]
# Pages whose Python has a test of its own, beside what it is about.
ELSEWHERE = {
    "docs/extending.md": "tests/test_registry.py",
    "docs/fine-tune.md": "tests/exporters/test_hub_folder.py",
    "docs/images.md": "tests/data/test_open.py",
    "docs/objectives.md": "tests/objectives/test_plain_tensors.py",
    "docs/objects.md": "tests/distillation/test_objects.py",
    "docs/quickstart.md": "tests/packaging/test_wheel.py",
    "docs/search.md": "tests/search/test_page.py",
}
# What a page's reader is taken to have, in words of Python, and the blocks that are parts of other files.
GIVEN = {
    "README.md": "images = torch.rand(2, 3, 224, 224)",
    "docs/evaluation.md": (
        "encoder = ssl_kd.build('vit_tiny_patch16_224'); from ssl_kd import open_images\n"
        "from ssl_kd.eval import evaluate_encoders, LinearProtocol\n"
        "random = np.random.default_rng(0); y_train, y_test = np.arange(24) % 2, np.arange(12) % 2\n"
        "x_train, x_test = (random.integers(0, 256, (len(y), 32, 32, 3), np.uint8) for y in (y_train, y_test))\n"
        "train_features, test_features = (random.normal(size=(len(y), 4)).astype('float32') for y in (y_train, y_test))\n"
        "my_linear_protocol = LinearProtocol('mine', (1.0,), 0.25)\n"
        "my_evaluator = KNN('plain')\n"
    ),
    "docs/formats.md": "",
    "docs/students.md": (
        "teacher = ssl_kd.load_encoder('teacher.pth'); my_encoder = ssl_kd.build('resnet18')\n"
        "images = torch.rand(2, 3, 64, 64)"
    ),
    "docs/teachers.md": "",
}
COMMANDS = ("README.md", "docs/jobs/own_teacher.md", "docs/jobs/query_encoder.md", "docs/jobs/small_backbone.md")
COMMANDS += ("docs/export.md", "docs/fine-tune.md")
# Training as short as it can be: what stands last on a command line wins.
SHORT = "--epochs 1 --batch_size 8 --size 32 --quiet --precision 32-true"
TRAINS = ("distill", "targets", "pretrain")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, *kinds):
    text = (ROOT / page).read_text(encoding="utf-8")
    return [code for kind, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if kind in kinds]


def test_every_page_with_python_is_run_somewhere():
    with_python = {name_of(path) for path in PAGES if blocks(name_of(path), "python")}
    assert with_python == GIVEN.keys() | ELSEWHERE.keys()
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8"), test


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the pages name: photos, labelled sets, teachers, features."""
    folder = tmp_path_factory.mktemp("pages")
    random = np.random.default_rng(0)

    def pictures(where, count):
        where.mkdir(parents=True)
        for i in range(count):
            Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64)).save(where / f"{i:03d}.png")

    pictures(folder / "photos", 64)
    for part, count in (("train", 12), ("test", 6)):
        for label in ("a", "b"):
            pictures(folder / "set" / part / label, count)
    for name in ("labelled", "data/flowers"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.make_archive(str(folder / name), "zip", folder / "set")
    student = ssl_kd.build("resnet18", channels=[8, 8, 16, 16])
    ssl_kd.save_student(student, folder / "teacher.pth")
    shutil.copy(folder / "teacher.pth", folder / "swav_800ep_pretrain.pth.tar")
    (folder / "runs/x").mkdir(parents=True)
    shutil.copy(folder / "teacher.pth", folder / "runs/x/student.safetensors")
    ssl_kd.save_student(ssl_kd.build("vit_small_patch16_224"), folder / "dino_deitsmall16_pretrain.pth")
    bare = ssl_kd.build("tf_efficientnet_lite0").network.backbone.state_dict()
    from safetensors.torch import save_file

    save_file(bare, folder / "lite0.safetensors")
    for part, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        features = labels[:, None] + random.normal(0, 0.1, (count, 4))
        np.save(folder / f"{part}.npy", features.astype(np.float32))
        np.save(folder / f"{part}_labels.npy", labels)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", GIVEN)
def test_the_python_of_a_page_runs(page, place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    if page == "README.md":
        shutil.rmtree("runs")  # what its Python writes itself
    space = {}
    exec("import numpy as np, torch, ssl_kd\nfrom ssl_kd.eval import KNN\n" + GIVEN[page], space)
    for code in blocks(page, "python"):
        if code.startswith("# ssl_kd/"):
            compile(code, page, "exec")  # a file of the package
            continue
        short = code.replace("epochs=100", "epochs=1, size=32, batch_size=8, quiet=True")
        short = short.replace('out="runs/family"', 'out="runs/family", epochs=1, size=32, batch_size=8, quiet=True')
        exec(compile(short, page, "exec"), space)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", COMMANDS)
def test_the_commands_of_a_page_run(page, place, tmp_path):
    pytest.importorskip("onnxscript")
    shutil.copytree(place, tmp_path / "here")
    if page != "docs/export.md" and page != "docs/fine-tune.md":
        shutil.rmtree(tmp_path / "here/runs")  # the page makes it
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssl-kd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssl_kd "$@"\n')
    (tmp_path / "bin/ssl-kd").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "SSL_KD_CACHE": str(tmp_path / "cache")}
    lines = [line for code in blocks(page, "", "sh", "console") for line in code.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if line.startswith("ssl-kd ") and "dino_vits16" not in line]  # asks the network
    assert lines
    for line in lines:
        command, _, _ = line.partition("  #")
        if command.split()[1] in TRAINS:
            command += f" {SHORT}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path / "here", env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def test_the_tutorial_is_its_script():
    import json

    book = json.loads((ROOT / "docs/tutorial.ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in book["cells"]]
    assert cells == cells_of((ROOT / "docs/tutorial.py").read_text(encoding="utf-8"))
    code = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] for cell in code if "print" in "".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tutorial_runs(tmp_path, monkeypatch):
    from benchmarks.notebook import run

    monkeypatch.chdir(tmp_path)
    said = run(cells_of((ROOT / "docs/tutorial.py").read_text(encoding="utf-8")))
    assert "report.html is there: True" in "".join(said)
