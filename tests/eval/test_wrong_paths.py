"""A path or list that is wrong is answered by what is wrong with it, and by what to write instead."""

import pytest
from PIL import Image

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.eval.datasets.tasks import folder_task


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ph").mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / "ph" / f"{i}.png")
    return tmp_path


def test_a_folder_without_classes_is_told_to_be_given_as_photos(photos):
    with pytest.raises(ssl_kd.UserError, match=r"a folder train .* are \{name: ph, photos: ph\}$"):
        folder_task("ph")


@pytest.mark.parametrize("path", ["food11.zip", "food11"])
def test_what_is_not_there_is_said_to_be_not_there(path, photos):
    with pytest.raises(ssl_kd.UserError, match=rf"^{path}: no such folder or archive") as caught:
        folder_task(path)
    assert "train" not in str(caught.value)


def test_a_missing_test_folder_is_no_reason_to_drop_the_labels(photos):
    (photos / "set" / "train").mkdir(parents=True)
    (photos / "ph").rename(photos / "set" / "train" / "a")
    with pytest.raises(ssl_kd.UserError, match="expected a folder test or val") as caught:
        folder_task("set")
    assert "photos:" not in str(caught.value)


@pytest.mark.parametrize("words", ["[{name: s, weights: s.safetensors}", "[{name: s, weights: 's}]", "{a: [1}"])
def test_broken_yaml_is_said_to_be_broken(words, photos, capsys):
    assert main(["eval", "--tasks", "[ph]", "--encoders", words, "--out", "e"]) == 2
    said = capsys.readouterr().err
    assert "encoders: broken YAML in " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(("command", "more"), [("inspect", []), ("export", ["--to", "timm", "--out", "x"])])
def test_a_run_folder_is_answered_with_the_student_in_it(command, more, photos, capsys):
    (photos / "run").mkdir()
    for name in (".lock", "README.md", "config.yaml", "last.ckpt", "student.safetensors"):
        (photos / "run" / name).write_bytes(b"")
    assert main([command, "run", *more]) == 2
    said = "".join(capsys.readouterr())
    assert "name the checkpoint file in it: run/student.safetensors" in said
