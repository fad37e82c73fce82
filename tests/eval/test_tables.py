"""Embeddings as .npy and Parquet: the rows of one extraction, resumed, appended, shared, and refused in one line."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from small_index import laboratory

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.data.open import open_images
from ssl_kd.errors import NonFinite, UserError
from ssl_kd.eval.banks import load_bank
from ssl_kd.eval.embed import main
from ssl_kd.eval.extraction import streaming, tables
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.eval.extraction.tables import KINDS, names_in
from ssl_kd.models.space_head import SpaceHead


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return laboratory(tmp_path_factory.mktemp("lab"), 10, 3)


def run(lab, out, *words, source="photos"):
    fixed = ["--weights", str(lab / "s.safetensors"), "--images", str(lab / source), "--out", str(out)]
    return main([*fixed, "--batch_size", "2", "--quiet", *words])


def table(path):
    rows = KINDS[path.suffix].read(path)
    return list(names_in(rows)), np.concatenate([part for _, part in rows.parts()])


@pytest.mark.parametrize("ending", list(KINDS))
def test_a_table_holds_the_rows_of_one_extraction(lab, tmp_path, ending):
    out = tmp_path / f"x{ending}"
    assert run(lab, out) == 0
    names, rows = table(out)
    expected = extract(load_teacher(lab / "s.safetensors"), open_images(lab / "photos"), quiet=True)
    assert names == list(expected.ids)
    np.testing.assert_allclose(rows, expected.features, rtol=1e-4, atol=1e-5)
    assert not list(tmp_path.glob("*.work"))


def test_other_programs_read_them(lab, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(lab, tmp_path / "x.npy") == run(lab, tmp_path / "x.parquet") == 0
    plain = np.load(tmp_path / "x.npy")
    found = parquet.read_table(tmp_path / "x.parquet")
    assert np.array_equal(np.stack(found["embedding"].to_numpy()), plain)
    assert found["id"].to_pylist() == (tmp_path / "x.ids.txt").read_text().splitlines()
    about = json.loads(found.schema.metadata[b"ssl_kd"])
    assert about["space"]["digest"] == load_teacher(lab / "s.safetensors").digest
    assert found.schema.field("embedding").type.list_size == plain.shape[1]


def test_a_bank_of_a_npy_file_has_its_names_and_none_of_others(lab, tmp_path):
    assert run(lab, tmp_path / "x.npy") == 0
    bank = load_bank(tmp_path / "x.npy")
    expected = extract(load_teacher(lab / "s.safetensors"), open_images(lab / "photos"), quiet=True)
    assert (list(bank.ids), bank.key) == (list(expected.ids), expected.key)
    with open(tmp_path / "x.ids.txt", "a") as file:
        file.write("one more\n")
    with pytest.raises(UserError, match=r"does not fit x\.npy"):
        load_bank(tmp_path / "x.npy")


@pytest.mark.parametrize("ending", list(KINDS))
def test_what_was_stopped_goes_on_to_the_same_bits(lab, tmp_path, ending, monkeypatch):
    whole, out = tmp_path / f"w{ending}", tmp_path / f"x{ending}"
    assert run(lab, whole) == 0
    monkeypatch.setattr(streaming, "COMMIT_SECONDS", 0)
    asked, real = [], streaming.embed

    def stops(*args, **settings):
        for number, one in enumerate(real(*args, **settings)):
            asked.append(one[0].start)
            if number == 3 and len(asked) < 6:
                raise NonFinite("stopped here")
            yield one

    monkeypatch.setattr(streaming, "embed", stops)
    assert run(lab, out) == 2
    assert not out.exists()
    assert run(lab, out) == 0
    assert asked == [0, 2, 4, 6, 6, 8]
    assert table(out)[0] == table(whole)[0]
    assert np.array_equal(table(out)[1], table(whole)[1])


@pytest.mark.parametrize("ending", list(KINDS))
def test_new_pictures_go_behind_the_old_and_nothing_twice(lab, tmp_path, ending, capsys):
    out = tmp_path / f"x{ending}"
    assert run(lab, out) == 0
    assert run(lab, out) == 2
    assert "pass --overwrite or --append" in capsys.readouterr().err
    first = table(out)
    assert run(lab, out, "--append", source="photos") == 0
    assert table(out)[0] == first[0]
    assert run(lab, out, "--append", source="more") == 0
    names, rows = table(out)
    assert names == [*first[0], "10.png", "11.png", "12.png"]
    assert np.array_equal(rows[:10], first[1])
    assert (
        main(
            ["--weights", str(lab / "other.safetensors"), "--images", str(lab / "more"), "--out", str(out), "--append"]
        )
        == 2
    )
    assert "was not written by this encoder" in capsys.readouterr().err
    assert np.array_equal(table(out)[1], rows)


def test_a_students_answers_in_its_teachers_space_are_not_appended_to_the_teachers_rows(lab, tmp_path):
    teacher, student = load_teacher(lab / "s.safetensors"), load_teacher(lab / "other.safetensors")
    layer = torch.nn.Linear(student.dim, teacher.dim)
    student.heads["teacher"] = SpaceHead([layer], teacher.space, student.feature)
    led, images, out = student.read_as("teacher"), open_images(lab / "photos"), tmp_path / "x.npy"
    settings = {"precision": "32-true", "engine": "eager", "batch_size": 2, "threads": 1}
    assert led.space.record() == teacher.space.record()
    streaming.write_table(out, teacher, images, quiet=True, **settings)
    with pytest.raises(UserError, match="was not written by this encoder"):
        streaming.write_table(out, led, images, append=True, quiet=True, **settings)


@pytest.mark.parametrize("moved", [0, 1, 2])
@pytest.mark.parametrize("append", [False, True])
def test_a_kill_between_two_files_of_a_table_loses_nothing(lab, tmp_path, monkeypatch, moved, append):
    """It left longer ids beside older rows, which the next call took for somebody else's."""
    out = tmp_path / "x.npy"
    assert run(lab, out) == 0
    if append:
        expected = [*table(out)[0], "10.png", "11.png", "12.png"]
    else:
        expected = table(out)[0]
        for file in KINDS[".npy"].files(out):
            file.unlink()
    real, left = tables.put_in_place, [moved]

    def killed(part, path):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        real(part, path)

    monkeypatch.setattr(tables, "put_in_place", killed)
    words = ("--append",) if append else ()
    source = "more" if append else "photos"
    with pytest.raises(KeyboardInterrupt):
        streaming_call(lab, out, append, source)
    monkeypatch.setattr(tables, "put_in_place", real)
    assert run(lab, out, *words, source=source) == (0 if append else 2)  # whole, so it is there already
    names, rows = table(out)
    assert names == expected
    assert len(rows) == len(names)
    assert not (tmp_path / "x.npy.work" / "ready").exists()


@pytest.mark.parametrize("ending", list(KINDS))
def test_a_kill_after_an_addition_doubles_nothing(lab, tmp_path, monkeypatch, ending):
    """The rows that the killed call had kept were added once more by the next."""
    out = tmp_path / f"x{ending}"
    assert run(lab, out) == 0

    def killed(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(streaming, "_clear", killed)
        with pytest.raises(KeyboardInterrupt):
            streaming_call(lab, out, True, "more")
    assert run(lab, out, "--append", source="more") == 0
    names, rows = table(out)
    assert names[10:] == ["10.png", "11.png", "12.png"]
    assert len(rows) == 13
    assert not list(tmp_path.glob("*.work"))


def streaming_call(lab, out, append, source):
    settings = {"precision": "32-true", "engine": "folded", "batch_size": 2, "threads": 2}
    encoder, images = load_teacher(lab / "s.safetensors"), open_images(lab / source)
    streaming.write_table(out, encoder, images, append=append, quiet=True, **settings)


@pytest.mark.parametrize("broken", ["a\nb.png", "a\rb.png"])
def test_a_name_with_a_line_break_is_refused_before_any_work(lab, tmp_path, monkeypatch, capsys, broken):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / broken).write_bytes((lab / "photos" / "3.png").read_bytes())
    monkeypatch.setattr(streaming, "embed", None)
    fixed = ["--weights", str(lab / "s.safetensors"), "--images", str(photos), "--out", str(tmp_path / "x.npy")]
    assert main([*fixed, "--quiet"]) == 2
    said = capsys.readouterr().err
    assert "holds a line break, which .npy has no place for; write .parquet" in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == [photos]


def test_standard_input_names_pictures(lab, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{lab}/photos/3.png\n{lab}/more/11.png\n"))
    out = tmp_path / "x.npy"
    assert main(["--weights", str(lab / "s.safetensors"), "--images", "-", "--out", str(out), "--quiet"]) == 0
    assert table(out)[0] == [f"{lab}/photos/3.png", f"{lab}/more/11.png"]


def test_a_file_of_somebody_else_stays(lab, tmp_path, capsys):
    out = tmp_path / "x.npy"
    np.save(out, np.zeros((2, 2)))
    assert run(lab, out, "--overwrite") == 2
    assert "not ours to replace" in capsys.readouterr().err
    assert np.load(out).shape == (2, 2)
    assert run(lab, tmp_path / "x.npz", "--append") == 2
    assert "by one process" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_write_the_rows_of_one(lab, tmp_path):
    assert run(lab, tmp_path / "one.npy") == 0
    words = ["embed", "--weights", str(lab / "s.safetensors"), "--images", str(lab / "photos"), "--batch_size", "2"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "ssl_kd",
        *words,
        "--quiet",
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two.npy")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(tmp_path / "two.npy")
    for one, two in zip(table(tmp_path / "one.npy"), table(tmp_path / "two.npy"), strict=True):
        assert np.array_equal(one, two)
