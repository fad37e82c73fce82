"""`--verify`: whatever is stored under a name of the images, on the command line of each command that stores such things."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import small_teacher

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.data.sources.folder import FolderImages
from ssl_kd.eval.banks import load_bank

SMALL = ["--student", "resnet18", "--student_args", "{channels: [4, 4, 4, 4]}", "--objective", "default_light"]
SMALL += [
    "--teacher",
    "t.safetensors",
    "--images",
    "photos/train/a",
    "--size",
    "32",
    "--batch_size",
    "8",
    "--epochs",
    "1",
]
SMALL += ["--health_every", "0", "--replay", "1", "--targets", "stored", "--precision", "32-true", "--quiet"]
EVAL = ["eval", "--tasks", "[photos]", "--encoders", "[t.safetensors]", "--evaluators", "[knn]", "--report", "false"]
EMBED = ["embed", "--weights", "t.safetensors", "--images", "photos", "--out", "x.npz", "--overwrite", "--quiet"]
# command line, and what names the images: the more there are, the more often they were read as others
COMMANDS = {
    "distill": (["distill", "--out", "run", "--overwrite", *SMALL], lambda: len(list(Path("stored").glob("*.f16")))),
    "targets": (["targets", "--out", "run", "--overwrite", *SMALL], lambda: len(list(Path("stored").glob("*.f16")))),
    "eval": ([*EVAL, "--out", "e", "--quiet"], lambda: len([p for p in Path("e/cells").iterdir() if p.name[0] != "."])),
    "embed": (EMBED, lambda: load_bank("x.npz").key),
}


def paint(seed):
    for i in range(16):
        pixels = np.random.default_rng(seed + i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        folder = Path("photos") / ("train" if i < 8 else "test") / "ab"[i % 2]
        for name in (f"{i}.bmp", f"{i}x.bmp", f"{i}y.bmp"):  # a BMP's size says nothing about what it shows
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / name)


@pytest.mark.parametrize(
    "command", [one if one == "eval" else pytest.param(one, marks=pytest.mark.slow) for one in COMMANDS]
)
def test_pictures_painted_over_are_others_with_verify_on_a_disk_that_tells_nothing(command, tmp_path, monkeypatch):
    """Such as a large set where no sample falls on a change, and neither inode nor time of change is kept."""
    content = FolderImages._content
    monkeypatch.setattr(FolderImages, "_content", lambda self, full: content(self, True) if full else [b"unknown"])
    monkeypatch.chdir(tmp_path)
    ssl_kd.save_student(small_teacher(), "t.safetensors")
    words, named = COMMANDS[command]
    paint(0)
    assert main(words) == 0
    first = named()
    paint(100)
    assert main(words) == 0
    assert named() == first
    assert main([*words, "--verify"]) == 0
    second = named()
    assert second != first
    assert main([*words, "--verify"]) == 0
    assert named() == second


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_is_checked_without_it(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--verify" in text
    assert "without, large sets are known by names, sizes, dates and inodes of all files and samples of some" in text
