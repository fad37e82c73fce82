"""Prototypes in a run: made once from the teacher's outputs, kept, and the same after a kill."""

import numpy as np
import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation import anchors
from ssl_kd.errors import UserError
from ssl_kd.objectives import spherical_kmeans
from ssl_kd.runtime.signals import Interrupted
from ssl_kd.runtime.state import load_state

FOUR = [{"term": "correlation", "relation": "prototypes", "comparison": "kd", "prototypes": 4}]


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def distilled(teacher, out, **settings):
    return ssl_kd.distill(
        teacher, images=small_images(), out=out, **(SMALL | {"objective": FOUR, "epochs": 1} | settings)
    )


def kept(out):
    (path,) = (out / "prototypes").iterdir()
    return path


def test_prototypes_are_means_of_what_the_teacher_says_of_the_first_views(teacher, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        anchors, "spherical_kmeans", lambda rows, *more: seen.append(rows) or spherical_kmeans(rows, *more)
    )
    done = distilled(teacher, tmp_path / "run", views="centre")
    assert done.last["gradient_norm"] > 0
    shown = np.stack([np.asarray(small_images().read(i)) for i in range(20)])
    pixels = torch.from_numpy(shown).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = teacher(pixels / 255).embedding
    assert torch.allclose(seen[0], expected, atol=1e-4)
    assert torch.allclose(load_state(kept(tmp_path / "run"))["anchors"], spherical_kmeans(expected, 4, 0), atol=1e-3)


def test_a_run_goes_on_with_its_prototypes_and_a_killed_start_does_not_make_them_again(teacher, tmp_path, monkeypatch):
    whole = distilled(teacher, tmp_path / "whole", epochs=2)
    with signal_in_step(1), pytest.raises(Interrupted):
        distilled(teacher, tmp_path / "run", epochs=2)
    monkeypatch.setattr(anchors, "spherical_kmeans", lambda *_: pytest.fail("made again"))
    assert same(distilled(teacher, tmp_path / "run", epochs=2).student, whole.student)
    (tmp_path / "early" / "prototypes").mkdir(parents=True)
    kept(tmp_path / "run").rename(tmp_path / "early" / "prototypes" / kept(tmp_path / "run").name)
    (tmp_path / "run" / ".ssl_kd.json").rename(tmp_path / "early" / ".ssl_kd.json")
    assert same(distilled(teacher, tmp_path / "early", epochs=2).student, whole.student)


def test_a_damaged_file_is_made_again(teacher, tmp_path):
    first = distilled(teacher, tmp_path / "run")
    path = kept(tmp_path / "run")
    good = path.read_bytes()
    path.write_bytes(good[:300] + bytes([good[300] ^ 1]) + good[301:])
    (tmp_path / "run" / "last.ckpt").unlink()
    assert same(distilled(teacher, tmp_path / "run").student, first.student)
    assert load_state(path)["anchors"].shape == (4, 16)


def test_each_teacher_has_prototypes_in_its_own_space(teacher, tmp_path):
    torch.manual_seed(5)
    other = ssl_kd.build("resnet18", channels=[8, 8, 8, 24]).eval()
    distilled(None, tmp_path / "run", teachers={"one": teacher, "two": other})
    shapes = {tuple(load_state(path)["anchors"].shape) for path in (tmp_path / "run" / "prototypes").iterdir()}
    assert shapes == {(4, 16), (4, 24)}


def test_stored_targets_are_filled_by_the_look_at_the_images(teacher, tmp_path):
    done = distilled(teacher, tmp_path / "run", replay=1)
    assert done.last["gradient_norm"] > 0


def test_more_prototypes_than_images_are_refused_before_anything_is_written(teacher, tmp_path):
    with pytest.raises(UserError, match="20 images cannot have 1,024 prototypes; spell the term with fewer") as caught:
        distilled(teacher, tmp_path / "run", objective="kd")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def on(prototypes, **more):
    return [FOUR[0] | {"prototypes": prototypes} | more]


def test_the_teacher_looks_once_however_many_students_ask_and_each_has_what_it_has_alone(
    teacher, tmp_path, monkeypatch
):
    """More images than any of them looks at, so that each takes another part of what the teacher said."""
    monkeypatch.setattr(anchors, "ROWS_EACH", 2)
    passes, look = [], anchors.look
    monkeypatch.setattr(anchors, "look", lambda *given: passes.append(given[3]) or look(*given))
    counts = {"few": 2, "more": 4, "third": 4}
    students = {
        name: {"arch": "resnet18", "args": SMALL["student_args"], "objective": on(count), "lr": 1e-3 * len(name)}
        for name, count in counts.items()
    }
    settings = {key: value for key, value in SMALL.items() if not key.startswith("student")} | {"epochs": 1}
    images = small_images(24)
    group = ssl_kd.distill(teacher, images=images, out=tmp_path / "group", students=students, **settings)
    assert passes == [8]
    assert len(list((tmp_path / "group/prototypes").iterdir())) == 2
    for name, line in students.items():
        own = SMALL | {"epochs": 1, "objective": line["objective"], "lr": line["lr"]}
        alone = ssl_kd.distill(teacher, images=images, out=tmp_path / name, **own)
        assert same(alone.student, group[name].student)


@pytest.mark.slow
def test_prototypes_are_made_anew_where_that_is_asked_for(teacher, tmp_path, monkeypatch):
    """From the views of the epoch that begins, every second time; a killed run goes on to the same bits."""
    made = []
    monkeypatch.setattr(
        anchors, "spherical_kmeans", lambda rows, *more: made.append((rows, more)) or spherical_kmeans(rows, *more)
    )
    settings = {"objective": on(4, refresh=2), "epochs": 5}
    whole = distilled(teacher, tmp_path / "whole", **settings)
    assert [more for _, more in made] == [(4, 0), (4, 2), (4, 4)]
    assert not any(torch.equal(made[0][0], rows) for rows, _ in made[1:])
    files = sorted((tmp_path / "whole/prototypes").iterdir(), key=lambda path: len(path.name))
    assert [path.stem.partition("-")[2] for path in files] == ["", "4"]
    for step in (5, 6):  # the last step of an epoch behind which new ones are due, and the first one with them
        out = tmp_path / f"cut{step}"
        with signal_in_step(step), pytest.raises(Interrupted):
            distilled(teacher, out, **settings)
        assert same(distilled(teacher, out, **settings).student, whole.student)
    assert not same(distilled(teacher, tmp_path / "never", objective=on(4), epochs=5).student, whole.student)
