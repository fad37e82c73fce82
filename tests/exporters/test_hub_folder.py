"""A student as a folder: timm, torch.hub and load_encoder read it to the same network, and the docs' fine-tuning runs on it."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import ssl_kd
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import frozen
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space_head import SpaceHead

EYES = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic").at(32)
STUDENTS = {
    "resnet": ("resnet18", {"channels": [8, 8, 8, 16]}),
    "mobilenet": ("mobilenetv3_small_050", {}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 1}),
}
PAGE = Path(__file__).parents[2] / "docs" / "fine-tune.md"


def student(name):
    torch.manual_seed(3)
    arch, args = STUDENTS[name]
    encoder = ssl_kd.build(arch, preprocessing=EYES, **args).train()
    encoder(torch.rand(8, 3, 32, 32))  # running statistics of its own
    return frozen(encoder)


def saved(name, folder, **notes):
    return ssl_kd.save_student(student(name), folder / "student.safetensors", **notes)


@pytest.mark.parametrize("name", STUDENTS)
def test_every_reader_has_the_same_network(name, tmp_path):
    encoder, images = student(name), torch.rand(4, 3, 32, 32)
    ssl_kd.export(saved(name, tmp_path), "hub", tmp_path / "hub")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    by_torch = torch.hub.load(str(tmp_path / "hub"), "student", source="local").eval()
    by_us = ssl_kd.load_encoder(tmp_path / "hub")
    own, pixels = encoder(images).embedding, encoder.normalise(images)
    for said in (by_timm(pixels), by_torch(pixels), by_us(images).embedding):
        assert torch.allclose(said.flatten(1), own, atol=1e-5)
    config = timm.data.resolve_model_data_config(by_timm)
    assert (tuple(config["input_size"]), tuple(config["mean"]), config["interpolation"]) == (
        (3, 32, 32),
        EYES.mean,
        "bicubic",
    )
    assert by_us.preprocessing.mean == EYES.mean
    assert by_us.preprocessing.crop == 32


def with_a_head(name):
    """A student that kept what leads into its teacher's space, as a distilled one does."""
    encoder, teacher = student(name), ssl_kd.build("resnet18", channels=[8, 8, 8, 24], preprocessing=EYES)
    encoder.heads["teacher"] = SpaceHead([torch.nn.Linear(encoder.dim, teacher.dim)], teacher.space, encoder.feature)
    return encoder


@pytest.mark.parametrize("name", STUDENTS)
def test_a_head_into_the_teachers_space_stays_out_of_the_folder_and_its_card_says_so(name, tmp_path):
    file = ssl_kd.save_student(with_a_head(name), tmp_path / "student.safetensors")
    ssl_kd.export(file, "hub", tmp_path / "hub")
    images = torch.rand(2, 3, 32, 32)
    read = ssl_kd.load_encoder(tmp_path / "hub")
    assert torch.allclose(read(images).embedding, ssl_kd.load_encoder(file)(images).embedding, atol=1e-5)
    assert not list(read.heads)
    assert "For queries to an index of its teacher" in (tmp_path / "hub/README.md").read_text()


@pytest.mark.parametrize("to", ["timm", "torchvision", "hub"])
def test_a_network_alone_is_not_exported_as_what_its_head_says(to, tmp_path):
    file = ssl_kd.save_student(with_a_head("resnet"), tmp_path / "student.safetensors")
    with pytest.raises(UserError, match="export to onnx"):
        ssl_kd.export(file, to, tmp_path / "out", feature="teacher")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["student.safetensors"]


def test_the_card_says_how_it_was_made_and_whose_licence_binds_it(tmp_path):
    file = saved("vit", tmp_path, teacher="DINO", teacher_licence="CC BY-NC 4.0", epochs=3)
    ssl_kd.export(file, "hub", tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    for words in ("| teacher | DINO |", "bind the student: CC BY-NC 4.0", "| epochs | 3 |", "no label was seen"):
        assert words in card
    pixels = json.loads((tmp_path / "hub" / "preprocessor_config.json").read_text())
    assert pixels["image_mean"] == list(EYES.mean)


def test_the_card_holds_the_figures_of_these_very_weights(tmp_path):
    """Measured by a real evaluation, and watched by a run."""
    from ssl_kd.data.sources.array import ArrayImages
    from ssl_kd.eval import evaluate_encoders
    from ssl_kd.eval.datasets.tasks import Split, Task

    pixels = torch.randint(
        0, 256, (24, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    ).numpy()
    split = Split(ArrayImages(pixels), np.arange(24) % 2)
    file = saved("resnet", tmp_path)
    torch.manual_seed(9)
    other = ssl_kd.build("test_resnet", preprocessing=EYES)
    results = evaluate_encoders(
        {"teacher": frozen(other), "mine": ssl_kd.load_encoder(file)},
        [Task("noise", split, split)],
        ["knn"],
        reference="teacher",
        quiet=True,
    )
    results.save(tmp_path / "evaluated")
    (tmp_path / "README.md").write_text("| held-out images | 64; most neighbours in common: 31.0 ±2.0 % |\n")
    ssl_kd.export(file, "hub", tmp_path / "hub", figures=tmp_path / "evaluated")
    card = (tmp_path / "hub" / "README.md").read_text()
    rows = [row for row in results.rows if row["encoder"] == "mine" and row["headline"]]
    assert rows
    for row in rows:
        assert (
            f"| {row['task']} | {row['evaluator']}/{row['protocol']} | {row['metric']} | {100 * row['value']:.4g}"
            in card
        )
    assert "31.0 ±2.0 %" in card
    torch.manual_seed(4)
    stranger = ssl_kd.save_student(
        frozen(ssl_kd.build("test_resnet", preprocessing=EYES)), tmp_path / "other.safetensors"
    )
    (tmp_path / "empty").mkdir()
    for student, figures, says in (
        (stranger, "evaluated", "holds no figure of these weights"),
        (file, "empty", "expected the out folder of ssl-kd eval"),
    ):
        with pytest.raises(ssl_kd.UserError, match=says):
            ssl_kd.export(student, "hub", tmp_path / "hub2", figures=tmp_path / figures)
    with pytest.raises(ssl_kd.UserError, match="only the card of --to hub"):
        ssl_kd.export(file, "timm", tmp_path / "x.pth", figures=tmp_path / "evaluated")
    assert not (tmp_path / "hub2").exists()


def test_only_a_folder_of_ours_is_written_into(tmp_path):
    file = saved("vit", tmp_path)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "config.json").write_text("theirs")
    with pytest.raises(ssl_kd.UserError, match="is not empty and not an exported student's folder"):
        ssl_kd.export(file, "hub", theirs)
    assert [p.name for p in theirs.iterdir()] == ["config.json"]
    ssl_kd.export(file, "hub", tmp_path / "ours")
    ssl_kd.export(file, "hub", tmp_path / "ours")


CANNOT = {
    "a stem that timm has no argument for": ("resnet18", {"small_stem": True}, "hub", "no argument for small_stem"),
    "no network of timm's": ("torchvision/mobilenet_v3_small", {}, "hub", "one of timm's networks"),
    "beside another format": ("vit_tiny_patch16_224", {"depth": 1}, ["hub", "timm"], "a folder of its own"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_timm_cannot_build_is_said_before_anything_is_written(case, tmp_path):
    arch, args, to, words = CANNOT[case]
    with pytest.raises(ssl_kd.UserError, match=words):
        ssl_kd.export(ssl_kd.build(arch, **args), to, tmp_path / "hub")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_fine_tuning_of_the_docs_runs_and_learns(tmp_path, monkeypatch):
    """Two classes that colour tells apart: the twenty lines of the page must learn them."""
    from PIL import Image

    noise = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (tmp_path / "photos" / "train" / name).mkdir(parents=True)
        for i in range(100):
            picture = Image.fromarray(noise.normal(128, 40, (40, 40)).clip(0, 255).astype(np.uint8)).convert("RGB")
            Image.blend(picture, Image.new("RGB", (40, 40), colour), 0.7).save(
                tmp_path / "photos" / "train" / name / f"{i}.png"
            )
    ssl_kd.export(saved("resnet", tmp_path), "hub", tmp_path / "my-student")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    random.seed(0)  # timm's augmentation draws from it
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    scope = {}
    exec(code, scope)
    assert scope["accuracy"] > 0.7  # by chance 0.5
