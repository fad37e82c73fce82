"""A student keeps the head into its teacher's space, and may ask an index that its teacher made."""

import json

import pytest
import torch
from safetensors.torch import load_file
from small_index import photos
from small_runs import SMALL, small_images, small_teacher

import ssl_kd
from ssl_kd.checkpoints.formats.student import HEADS
from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.search.index import Index


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    ssl_kd.save_student(small_teacher(), folder / "teacher.safetensors")
    settings = SMALL | {"objective": "default_light", "out": folder / "x", "epochs": 3}
    done = ssl_kd.distill(str(folder / "teacher.safetensors"), images=small_images(), **settings)
    return folder, done


def pixels(n=4):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_file_gives_the_same_embeddings_in_both_spaces(run):
    _, done = run
    again = ssl_kd.load_encoder(done.path)
    with torch.no_grad():
        for space, width in (("", 8), ("teacher", 16)):
            out = again.embed(pixels(), space)
            assert out.shape == (4, width)
            torch.testing.assert_close(out, done.student.embed(pixels(), space))
    assert again.width("teacher") == 16
    assert again.digest == done.student.digest


def test_the_head_leads_towards_the_teacher(run):
    """Trained for a moment only: still nearer to the teacher than a teacher's answer to other pictures is."""
    folder, done = run
    teacher = ssl_kd.load_encoder(folder / "teacher.safetensors")
    low = torch.from_numpy(small_images().array).permute(0, 3, 1, 2)
    with torch.no_grad():
        led, theirs = done.student.embed(low, "teacher"), teacher.embed(low)
    centred = theirs - theirs.mean(0)
    assert (led - theirs).square().mean() < 2 * centred.square().mean()
    assert torch.allclose(led.mean(0), theirs.mean(0), atol=3 * float(centred.std()))


def test_it_can_be_read_as_a_feature_of_that_name(run):
    _, done = run
    led = ssl_kd.load_encoder(done.path, feature="teacher")
    plain = ssl_kd.load_encoder(done.path)
    with torch.no_grad():
        torch.testing.assert_close(led(pixels()).embedding, plain.embed(pixels(), "teacher"))
    assert (led.dim, led.feature) == (16, "teacher")
    assert led.digest != plain.digest
    assert led.parameter_count == plain.parameter_count


def test_a_space_that_is_not_there_is_one_line(run):
    folder, done = run
    with pytest.raises(UserError, match=r"no head to 'teachr' \(it has teacher\)"):
        done.student.embed(pixels(), "teachr")
    with pytest.raises(UserError, match=r"no head to 'teacher' \(it has none\)"):
        ssl_kd.load_encoder(folder / "teacher.safetensors").embed(pixels(), "teacher")


@pytest.mark.filterwarnings("ignore:.torch.jit.load")
def test_an_export_as_safetensors_and_as_a_program_takes_the_head_along(run, tmp_path):
    _, done = run
    again = ssl_kd.export(done.path, "safetensors", tmp_path / "s.safetensors")[0].path
    with torch.no_grad():
        expected = done.student.embed(pixels(), "teacher")
        torch.testing.assert_close(ssl_kd.load_encoder(again).embed(pixels(), "teacher"), expected)
        script = ssl_kd.export(done.path, "torchscript", tmp_path / "s.pt", feature="teacher")[0].path
        torch.testing.assert_close(torch.jit.load(script)(pixels()), expected, rtol=1e-4, atol=1e-4)


def test_a_changed_number_of_the_head_is_damage(run, tmp_path):
    _, done = run
    data = bytearray(done.path.read_bytes())
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    name = next(name for name in header if name.startswith(HEADS))
    data[end + header[name]["data_offsets"][0] + 2] ^= 1
    (tmp_path / "bad.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="the head into another space is damaged"):
        ssl_kd.load_encoder(tmp_path / "bad.safetensors")


def test_the_student_asks_its_teachers_index_and_only_that(run, tmp_path):
    folder, done = run
    photos(tmp_path / "photos", range(6))
    theirs = Index.build(tmp_path / "t.index", tmp_path / "photos", folder / "teacher.safetensors")
    asked = Index.open(theirs.store.folder, done.path)
    rows = [hit.distance for hit in asked.search(tmp_path / "photos" / "3.png", k=6)[0].hits]
    assert rows == sorted(rows)
    assert len(rows) == 6
    assert asked.encoder.feature != "teacher"  # nobody's encoder is changed by asking
    with pytest.raises(UserError, match="index's own encoder"):
        asked.add(tmp_path / "photos")
    with pytest.raises(UserError, match="a head into that space"):
        Index.open(theirs.store.folder, ssl_kd.load_encoder(done.path, feature="teacher")).add(tmp_path / "photos")
    torch.manual_seed(5)
    stranger = ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()
    other = Index.build(tmp_path / "o.index", tmp_path / "photos", stranger)
    with pytest.raises(UserError, match=r"nor has it a head into that space: teacher"):
        Index.open(other.store.folder, done.path).search(tmp_path / "photos" / "3.png")


def test_another_feature_that_is_asked_for_by_name_is_refused(run, tmp_path):
    folder, done = run
    photos(tmp_path / "photos", range(3))
    query, place = tmp_path / "photos" / "1.png", tmp_path / "t.index"
    Index.build(place, tmp_path / "photos", folder / "teacher.safetensors")
    student = ssl_kd.load_encoder(done.path)
    led = Index.open(place, done.path).search(query)
    for encoder in (done.path, student):
        assert Index.open(place, encoder, "teacher").search(query) == led
        with pytest.raises(UserError, match=r"would mean nothing; leave the feature out, or ask for 'teacher'"):
            Index.open(place, encoder, "pool").search(query)
    assert student.feature == "pool"
    with pytest.raises(UserError, match="no feature 'nope'"):
        Index.open(place, feature="nope").search(query)
    with pytest.raises(UserError, match="is a head into the space of"):
        Index.build(tmp_path / "new.index", tmp_path / "photos", done.path, feature="teacher")
    assert not (tmp_path / "new.index").exists()


def test_the_size_at_which_the_teacher_was_heard_is_kept_and_another_one_of_the_index_is_told(run, tmp_path, capsys):
    folder, _ = run
    photos(tmp_path / "photos", range(3))
    own = ssl_kd.load_encoder(folder / "teacher.safetensors").preprocessing.size
    settings = SMALL | {"objective": "drop_in", "out": tmp_path / "x", "size": 24}
    student = str(ssl_kd.distill(str(folder / "teacher.safetensors"), images=small_images(), **settings).path)
    led = ssl_kd.load_encoder(student, feature="teacher")
    assert (Preprocessing.from_key(led.heard).size, Preprocessing.from_key(led.space.pixels).size) == (24, own)
    ask = ["--weights", student, str(tmp_path / "photos" / "1.png")]
    build = ["index", "build", "--weights", str(folder / "teacher.safetensors"), "--images", str(tmp_path / "photos")]
    for name, size in (("own", []), ("heard", ["--size", "24"])):
        assert main([*build, *size, "--out", str(tmp_path / name), "--quiet"]) == 0
        assert main(["search", "--index", str(tmp_path / name), *ask]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == 1
    assert f"learned the teacher at 24 px, and the index was made at {own} px" in told[0]


@pytest.mark.slow
def test_a_program_that_ends_in_the_head_asks_the_teachers_index(run, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    folder, done = run
    photos(tmp_path / "photos", range(4))
    query, place = tmp_path / "photos" / "1.png", tmp_path / "t.index"
    Index.build(place, tmp_path / "photos", folder / "teacher.safetensors")
    program = ssl_kd.export(done.path, "onnx", tmp_path / "head.onnx", feature="teacher")[0].path
    program.with_name("head.onnx.json").unlink()  # the file alone says it
    (led,), (ran,) = (Index.open(place, one).search(query) for one in (done.path, program))
    assert [hit.name for hit in ran.hits] == [hit.name for hit in led.hits]
    assert [hit.distance for hit in ran.hits] == pytest.approx([hit.distance for hit in led.hits], abs=1e-4)
    with pytest.raises(UserError, match="which is for queries"):
        Index.open(place, program).add(tmp_path / "photos")
    plain = ssl_kd.export(done.path, "onnx", tmp_path / "plain.onnx")[0].path
    with pytest.raises(UserError, match="would mean nothing"):
        Index.open(place, plain).search(query)
    for file in (done.path, program):
        assert main(["inspect", str(file)]) == 0
        said = capsys.readouterr().out
        assert "feature teacher" in said
        assert f"by a head in the space of {Index.open(place).space}" in said


def test_training_a_student_again_drops_what_its_head_was_for(run, tmp_path):
    folder, done = run
    settings = SMALL | {"objective": "sp", "out": tmp_path / "y", "epochs": 1}
    settings = {name: value for name, value in settings.items() if not name.startswith("student")}
    student = ssl_kd.load_encoder(done.path).train().requires_grad_(True)
    again = ssl_kd.distill(str(folder / "teacher.safetensors"), student, small_images(), **settings)
    assert not len(again.student.heads)
    assert not any(name.startswith(HEADS) for name in load_file(again.path))


def test_the_preset_for_query_encoders_leaves_a_head_that_both_its_terms_trained(tmp_path):
    done = ssl_kd.distill(
        small_teacher(), images=small_images(), **SMALL | {"objective": "drop_in", "out": tmp_path / "x"}
    )
    assert ssl_kd.load_encoder(done.path).width("teacher") == 16
