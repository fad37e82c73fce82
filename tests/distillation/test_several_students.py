"""Several students in one run: one pass of the teacher, and each student as if it had been trained alone."""

import re

import pytest
import torch
import yaml
from small_runs import SMALL, logged, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.errors import Collapsed, UserError

TINY = {"channels": [8, 8, 8, 8]}
DROPPING = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "drop_path_rate": 0.5}
STUDENTS = {
    "small": {"arch": "resnet18", "args": TINY, "objective": "simreg_queue"},
    "drops": {"arch": "vit_tiny_patch16_224", "args": DROPPING, "lr": 3e-3},  # draws random numbers as it trains
}
RUN = {key: value for key, value in SMALL.items() if not key.startswith("student")} | {"objective": "default_light"}
TIMINGS = ("images_per_s", "wait_share")


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def alone(name):
    """The settings that train one of the students alone."""
    line = dict(STUDENTS[name])
    return RUN | {"student": line.pop("arch"), "student_args": line.pop("args")} | line


def figures(folder):
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in logged(folder)]


def test_each_student_has_the_bits_files_and_figures_that_it_has_alone(teacher, tmp_path):
    """Whoever is trained beside it, and in whatever order."""
    held = {"health_images": 32, "health_every": 1}
    group = ssl_kd.distill(teacher, images=small_images(64), out=tmp_path / "group", students=STUDENTS, **RUN | held)
    assert list(group.students) == ["small", "drops"]
    for name in STUDENTS:
        one = ssl_kd.distill(teacher, images=small_images(64), out=tmp_path / name, **alone(name) | held)
        assert same(group[name].student, one.student)
        folder = tmp_path / "group/students" / name
        assert {p.name for p in folder.iterdir()} == {
            "student.safetensors",
            "student_best.safetensors",
            "metrics.jsonl",
            "metrics.csv",
            "README.md",
        }
        for file in ("student.safetensors", "student_best.safetensors"):
            assert (folder / file).read_bytes() == (tmp_path / name / file).read_bytes()
        assert figures(folder) == figures(tmp_path / name)
        assert group[name].last["loss"] == one.last["loss"]
    beside = [line for line in logged(tmp_path / "group") if "small/loss" in line]
    assert [line["drops/loss"] for line in beside] == [
        line["loss"] for line in logged(tmp_path / "group/students/drops") if "loss" in line
    ]


def test_the_teacher_looks_once_at_each_batch_whoever_learns(teacher, tmp_path, monkeypatch):
    looks = []
    forward = type(teacher).forward
    monkeypatch.setattr(
        type(teacher), "forward", lambda self, *a, **k: (looks.append(self is teacher), forward(self, *a, **k))[1]
    )
    counts = []
    for out, students in (("two", STUDENTS), ("one", {"small": STUDENTS["small"]})):
        looks.clear()
        once = RUN | {"health_every": 0, "epochs": 1}
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / out, students=students, **once)
        counts.append(sum(looks))
    assert counts[0] == counts[1]


def test_a_group_that_was_interrupted_ends_with_the_same_bits(teacher, tmp_path):
    settings = RUN | {"students": STUDENTS, "images": small_images(64), "health_images": 32, "replay": 1}
    whole = ssl_kd.distill(teacher, out=tmp_path / "whole", **settings)
    with signal_in_step(3), pytest.raises(KeyboardInterrupt, match="SIGTERM after step 4 of 8"):
        ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    assert not (tmp_path / "cut/students/small/student.safetensors").exists()
    rest = ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    for name in STUDENTS:
        assert same(whole[name].student, rest[name].student)
        assert figures(tmp_path / "whole/students" / name) == figures(tmp_path / "cut/students" / name)


SETTINGS = {"teacher": "there/is/none.pth", "images": "there/are/none", "out": "out"}


@pytest.mark.parametrize(
    ("students", "words"),
    [
        ({}, "students: expected at least one"),
        ({"../up": "resnet18"}, "students: each needs a name that a folder can have"),
        ({"a.b": "resnet18"}, "a name that a folder can have"),
        ({"": "resnet18"}, "a name that a folder can have"),
        ({3: "resnet18"}, "a name that a folder can have"),
        ({"a" * 65: "resnet18"}, "a name that a folder can have"),
        ({"a": "resnet18", "A": "resnet34"}, "a and A differ in capital letters alone"),
        (
            {"a": "resnet18", "b": {"arch": "resnet18"}},
            "a and b are equal in all settings .* give one of them another seed",
        ),
        ({"a": "resnet81"}, "arch of a: resnet81: timm has no such architecture"),
        ({"a": "nobody/resnet18"}, "arch of a: nobody/resnet18: expected NAME or"),
        ({"a": {"arch": "resnet18", "objective": "simregg"}}, "students: a: objective: .* Did you mean simreg"),
        ({"a": {"arch": "resnet18", "objetive": "simreg"}}, "a has no setting 'objetive'. Did you mean objective"),
        ({"a": {"objective": "simreg"}}, "a needs an architecture"),
        ({"a": {"arch": "resnet18", "lr": 0}}, "lr of a: expected a number above 0, got 0"),
        ({"a": {"arch": "resnet18", "weight": -1}}, "weight of a: expected a number of at least 0, got -1"),
        ({"a": {"arch": "resnet18", "weight": float("nan")}}, "weight of a: expected a number"),
        ({"a": {"arch": "resnet18", "seed": True}}, "seed of a: expected a whole number"),
        ({"a": {"arch": "resnet18", "args": "wide"}}, "args of a: expected a mapping"),
        (["resnet18"], "students: expected a mapping"),
    ],
)
def test_what_cannot_be_right_is_one_line_before_anything_is_loaded(students, words):
    """Neither teacher nor images exist, and nobody looks for them."""
    with pytest.raises(UserError, match=words) as caught:
        ssl_kd.distill(students=students, **SETTINGS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"student": "resnet18"}, "student: expected a single student or several as students, not both"),
        ({"student_args": {"width": 2}}, "student_args: expected a single student or several"),
        ({"between": "mutuel"}, "between: expected one of mutual, .* Did you mean mutual"),
        ({"between": [{"term": "assistant", "assistant": "b"}]}, "assistant: expected one of a; got 'b'"),
    ],
)
def test_settings_that_do_not_suit_several_students_are_one_line(more, words):
    with pytest.raises(UserError, match=words):
        ssl_kd.distill(students={"a": "resnet18"}, **SETTINGS, **more)


def test_terms_between_students_need_several():
    with pytest.raises(UserError, match="between: expected several students that the terms are between"):
        ssl_kd.distill(student="resnet18", between="mutual", **SETTINGS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("students: {}\n", "students: expected at least one"),
        ("students:\n", "students: expected a value, got null"),
        ("students: {a: resnet18, a: resnet34}\n", "two settings are called 'a'"),
        ("students:\n  a: resnet18\n  b: resnet34\n  a: resnet50\n", r"two settings are called 'a' \(line 7\)"),
        ("students: {a: {arch: 'my_parts:Net'}}\n", "students: arch of a was an object or names code"),
        ("students: {a: resnet18, b: resnet34}\nbetween: 'my_parts:Term'\n", "between: .* names code"),
    ],
)
def test_a_file_with_bad_students_is_one_line_and_exit_code_2(text, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("teacher: none.pth\nimages: none\nout: out\n" + text)
    assert main(["distill", "run.yaml"]) == 2
    told = capsys.readouterr().err
    assert re.search(words, told)
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_object_may_stand_in_for_each_name(teacher, tmp_path):
    """Networks and objectives from Python; the config keeps their names, and without them says what is missing."""
    encoder = ssl_kd.build("resnet18", **TINY)
    students = {"built": encoder, "own": {"arch": Pooled(), "objective": Distance}}
    done = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", students=students, **RUN)
    assert done["built"].student is encoder
    assert done["own"].student.is_module
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["students"]["built"]["arch"] == "resnet18"
    assert config["students"]["own"]["objective"] == f"{__name__}:Distance"
    with pytest.raises(UserError, match=r"students: .* of own was an object or names code .* from Python"):
        ssl_kd.distill(teacher, images=small_images(), config=ssl_kd.DistillConfig(**config | {"out": str(tmp_path)}))


class Pooled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 3, 2)

    def forward(self, x):
        return self.conv(x).mean((2, 3))


class Distance(torch.nn.Module):
    def __init__(self, student_width, teacher_width):
        super().__init__()
        self.head = torch.nn.Linear(student_width, teacher_width)

    def forward(self, student, teacher):
        return (self.head(student.embedding) - teacher.embedding).square().mean()


@pytest.mark.slow
def test_the_command_line_trains_several_and_names_each(tmp_path, monkeypatch, capsys):
    """From the file of a teacher and a folder of pictures; the config of the run repeats it."""
    monkeypatch.chdir(tmp_path)
    ssl_kd.save_student(small_teacher(), "teacher.safetensors")
    (tmp_path / "photos").mkdir()
    for i in range(12):
        small_images().read(i).save(f"photos/{i}.png")
    line = "{tiny: {arch: resnet18, args: {channels: [4, 4, 4, 4]}}, wide: {arch: resnet18, args: {channels: [8, 8, 8, 8]}}}"
    given = ["--teacher", "teacher.safetensors", "--images", "photos", "--size", "32", "--epochs", "1", "--quiet"]
    assert main(["distill", *given, "--students", line, "--batch_size", "4", "--out", "runs/x"]) == 0
    told = capsys.readouterr().out
    for name in ("tiny", "wide"):
        assert f"runs/x/students/{name}/student.safetensors: resnet18, width" in told
        assert "trained as" in (tmp_path / f"runs/x/students/{name}/README.md").read_text()
        assert ssl_kd.load_encoder(f"runs/x/students/{name}/student.safetensors").arch == "resnet18"
    assert "2 students" in (tmp_path / "runs/x/README.md").read_text()
    assert main(["distill", "runs/x/config.yaml", "--out", "runs/again"]) == 0
    for name in ("tiny", "wide"):
        files = [(tmp_path / out / "students" / name / "student.safetensors") for out in ("runs/x", "runs/again")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_folder_of_several_is_not_resumed_as_one_student_and_is_replaced_whole(teacher, tmp_path):
    out = tmp_path / "run"
    settings = RUN | {"images": small_images(), "epochs": 1}
    ssl_kd.distill(teacher, out=out, students=STUDENTS, **settings)
    with pytest.raises(UserError, match=r"holds a run with other settings .*students was"):
        ssl_kd.distill(teacher, out=out, student="resnet18", student_args=TINY, **settings)
    (out / "students/small/mine.txt").write_text("not yours")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "student.safetensors").write_text("not yours either")
    (out / "students/link").symlink_to(elsewhere)
    ssl_kd.distill(teacher, out=out, student="resnet18", student_args=TINY, overwrite=True, **settings)
    assert sorted(p.name for p in (out / "students").iterdir()) == ["link", "small"]
    assert [p.name for p in (out / "students/small").iterdir()] == ["mine.txt"]
    assert (elsewhere / "student.safetensors").exists()
    plain = tmp_path / "plain"
    ssl_kd.distill(teacher, out=plain, student="resnet18", student_args=TINY, **settings)
    for name in (".ssl_kd.json", "student.safetensors"):
        assert (out / name).read_bytes() == (plain / name).read_bytes()
    config = yaml.safe_load((plain / "config.yaml").read_text())
    assert not {"students", "between"} & set(config)


def test_a_student_that_collapses_is_named(teacher, tmp_path):
    class Same(Pooled):
        def forward(self, x):
            return super().forward(x) * 0

    students = {"fine": STUDENTS["small"], "flat": {"arch": Same(), "objective": "simreg"}}
    settings = RUN | {"images": small_images(64), "health_images": 32, "epochs": 3, "batch_size": 16}
    with pytest.raises(Collapsed, match="student flat has collapsed"):
        ssl_kd.distill(teacher, out=tmp_path / "run", students=students, **settings)


def test_a_bad_step_of_one_student_is_not_one_of_the_other(teacher, tmp_path, monkeypatch):
    """The one skips it, the other has the bits that it has alone."""
    forward, steps = Distance.forward, []

    def poisoned(self, student, teacher):
        steps.extend([1] * self.training)
        return forward(self, student, teacher) * (float("nan") if self.training and len(steps) == 2 else 1)

    monkeypatch.setattr(Distance, "forward", poisoned)
    students = {"small": STUDENTS["small"], "bad": {"arch": "resnet18", "args": TINY, "objective": Distance}}
    settings = RUN | {"images": small_images(), "skip_nonfinite": 1}
    done = ssl_kd.distill(teacher, out=tmp_path / "run", students=students, **settings)
    one = ssl_kd.distill(teacher, out=tmp_path / "alone", **settings | alone("small"))
    assert same(done["small"].student, one.student)
    skipped = [line for line in logged(tmp_path / "run/students/bad") if "skipped" in line]
    assert [line["step"] for line in skipped] == [2]
    assert "bad/loss" not in logged(tmp_path / "run")[2]


@pytest.mark.slow
def test_a_student_whose_patience_is_out_stops_as_it_would_alone(teacher, tmp_path):
    """The other goes on; a run that is given again leaves the first where it stopped."""
    still = STUDENTS["small"] | {"lr": 1e-9}
    more = {"images": small_images(64), "health_images": 32, "health_every": 0.5, "patience": 1, "epochs": 3}
    students = {"still": still, "drops": STUDENTS["drops"]}
    done = ssl_kd.distill(teacher, out=tmp_path / "group", students=students, **RUN | more)
    line = {"student": still["arch"], "student_args": still["args"], "objective": still["objective"], "lr": still["lr"]}
    one = ssl_kd.distill(teacher, out=tmp_path / "alone", **RUN | more | line)
    assert same(done["still"].student, one.student)
    assert figures(tmp_path / "group/students/still") == figures(tmp_path / "alone")
    assert done["still"].path.read_bytes() == one.path.read_bytes()
    steps = {name: figures(tmp_path / "group/students" / name)[-1]["step"] for name in students}
    assert steps["still"] < 12
    again = ssl_kd.distill(teacher, out=tmp_path / "group", students=students, **RUN | more)
    assert all(same(done[name].student, again[name].student) for name in students)
