"""Several students in one run: one pass of the teacher, and each student as if it had been trained alone."""

import pytest
from small_runs import SMALL, logged, same, signal_in_step, small_images, small_teacher

import ssl_kd

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
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / out, students=students, health_every=0, **RUN)
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
