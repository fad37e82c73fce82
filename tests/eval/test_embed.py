"""`embed` writes a bank that reads back as the network's own features, or one line and nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.data.open import open_images
from ssl_kd.eval import embed
from ssl_kd.eval.banks import load_bank
from ssl_kd.eval.embed import main
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.eval.extraction.tables import kind_of, names_in
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    home = tmp_path_factory.mktemp("lab")
    (home / "photos" / "deep").mkdir(parents=True)
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 30, 3), np.uint8)
        Image.fromarray(pixels).save(home / "photos" / "deep" / f"{i}.png")
    torch.manual_seed(0)
    save_student(build("test_resnet", preprocessing=Preprocessing(size=32, resize=32, crop=32)), home / "s.safetensors")
    return home


def test_a_folder_becomes_a_bank(lab, tmp_path, capsys):
    out = tmp_path / "new" / "bank.npz"
    assert (
        main(["--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--out", str(out), "--quiet"])
        == 0
    )
    assert capsys.readouterr().out.strip() == str(out)
    bank = load_bank(out)
    expected = extract(load_teacher(lab / "s.safetensors"), open_images(lab / "photos"), quiet=True)
    np.testing.assert_allclose(bank.features, expected.features, rtol=1e-5, atol=1e-6)
    assert (list(bank.ids), bank.key, bank.labels) == (list(expected.ids), expected.key, None)
    assert bank.ids[3] == "deep/3.png"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--weights": "nowhere.safetensors"}, "no such file"),
        ({"--images": "nowhere"}, "no such folder"),
        ({"--out": "bank.txt"}, "ends in .npz"),
        ({"--weights": ""}, "weights: expected a path"),
        ({"--crop_ratio": "3"}, "crop_ratio from 0 to 1"),
        ({"--threads": "0"}, "threads of at least 1"),
        ({"--outt": "x"}, "Did you mean out"),
        ({"--out": __file__ + "/b.npz"}, "could not be written"),
        ({"--device": "tpu"}, "device: expected cpu or cuda, got 'tpu'"),
        ({"--device": "mps"}, "device: expected cpu or cuda, got 'mps'"),
        ({"--device": "cuda:99"}, "torch does not see that GPU here"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(lab, tmp_path, capsys, change, says):
    given = {
        "--weights": str(lab / "s.safetensors"),
        "--images": str(lab / "photos"),
        "--out": str(tmp_path / "b.npz"),
        **change,
    }
    assert main([word for pair in given.items() for word in pair]) == 2
    complaint = capsys.readouterr().err
    assert says in complaint
    assert len(complaint.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(lab, tmp_path, capsys):
    out = tmp_path / "b.npz"
    out.write_text("mine")
    words = ["--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--out", str(out), "--quiet"]
    assert main(words) == 2
    assert out.read_text() == "mine"
    assert main([*words, "--overwrite", "true"]) == 2
    assert "is not ours to replace" in capsys.readouterr().err
    assert out.read_text() == "mine"
    out.unlink()
    assert main(words) == 0
    assert main([*words, "--overwrite", "true", "--size", "48"]) == 0
    assert len(load_bank(out)) == 5


@pytest.mark.parametrize("beside", ["b.json", "b.ids.txt"])
def test_what_others_left_under_a_companions_name_stays(lab, tmp_path, capsys, beside):
    (tmp_path / beside).write_text("mine")
    words = ["--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--out", str(tmp_path / "b.npy")]
    assert main(words) == 2
    assert f"{beside} is there already and is not ours to replace" in capsys.readouterr().err
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [(beside, "mine")]


def _rows(bucket, name, folder):
    """What a program finds that takes the objects of a bucket to a disk."""
    folder.mkdir(exist_ok=True)
    for key in bucket.names():
        (folder / key.rpartition("/")[2]).write_bytes(bucket.get(key))
    rows = kind_of(folder / name).read(folder / name)
    return list(names_in(rows)), np.concatenate([part for _, part in rows.parts()])


@pytest.mark.parametrize("name", [pytest.param("x.npy", marks=pytest.mark.slow), "x.parquet"])
def test_embeddings_go_to_a_store_as_to_a_disk(name, lab, bucket, tmp_path, capsys):
    words = ["--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--quiet"]
    assert main([*words, "--out", str(tmp_path / name)]) == 0
    bucket.server.plan = ["refuse to write"]
    assert main([*words, "--out", f"{bucket.url}/deep/{name}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{bucket.url}/deep/{name}"
    names, rows = _rows(bucket, name, tmp_path / "got")
    on_disk = kind_of(tmp_path / name).read(tmp_path / name)
    assert (names, rows.tobytes()) == (
        list(names_in(on_disk)),
        np.concatenate([p for _, p in on_disk.parts()]).tobytes(),
    )
    assert not list((tmp_path / "cache").rglob("x.*"))
    assert main([*words, "--out", f"{bucket.url}/deep/{name}"]) == 2
    assert "is there already; remove it, or pass --overwrite or --append" in capsys.readouterr().err
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "new.png")
    words[3] = str(tmp_path / "new.png")
    bucket.server.plan = ["truncate", None, "fail"]
    assert main([*words, "--out", f"{bucket.url}/deep/{name}", "--append"]) == 0
    bucket.server.plan = []
    more, longer = _rows(bucket, name, tmp_path / "got")
    assert (more[:5], longer[:5].tobytes()) == (names, rows.tobytes())
    assert more[5:] == [str(tmp_path / "new.png")]


def test_a_store_that_takes_nothing_keeps_what_it_had_and_the_rows_are_named(lab, bucket, tmp_path, capsys):
    words = [
        "--weights",
        str(lab / "s.safetensors"),
        "--images",
        str(lab / "photos"),
        "--quiet",
        "--out",
        f"{bucket.url}/x.npy",
    ]
    bucket.server.plan = ["refuse to write"] * 100
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "could not be written (the file is whole in " in said
    assert said.count("\n") == 1
    assert bucket.names() == []
    bucket.server.plan = []
    bucket.put("x.npy", b"another's")
    bucket.put("x.ids.txt", b"another's")
    bucket.put("x.json", b"another's")
    assert main([*words, "--overwrite"]) == 2
    assert "not ours to replace" in capsys.readouterr().err
    assert bucket.get("x.npy") == b"another's"


@pytest.mark.parametrize("failed", [0, 1, 2])
def test_an_upload_that_was_stopped_is_finished_by_the_same_call(lab, bucket, tmp_path, monkeypatch, capsys, failed):
    """Rows of a new table beside the record of an old one were taken for somebody else's."""
    words = ["--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--quiet"]
    words += ["--out", f"{bucket.url}/x.npy"]
    assert main(words) == 0
    Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(tmp_path / "new.png")
    words[3] = str(tmp_path / "new.png")
    real, left = embed.put, [failed]

    def killed(file, url):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(file, url)

    monkeypatch.setattr(embed, "put", killed)
    config = embed.EmbedConfig(words[1], words[3], f"{bucket.url}/x.npy", quiet=True, append=True)
    with pytest.raises(KeyboardInterrupt):
        embed.embed_images(config)
    monkeypatch.setattr(embed, "put", real)
    capsys.readouterr()
    assert embed.embed_images(config) == config.out
    assert "finished the upload that was stopped" in capsys.readouterr().err
    names, rows = _rows(bucket, "x.npy", tmp_path / "got")
    assert (len(names), names[5:], len(rows)) == (6, [str(tmp_path / "new.png")], 6)
    assert embed.embed_images(config) == config.out  # nothing new, nothing twice
    assert _rows(bucket, "x.npy", tmp_path / "got")[0] == names
