"""What the speed benchmark makes of its turns; its timings are not for a test."""

from pathlib import Path

from benchmarks.distill_speed import GOALS, Marks, Turn, pairs, plant
from ssl_kd.data.open import open_images


def test_ratios_say_how_many_times_faster_ours_is_turn_by_turn():
    found = {"stored": [Turn(1, 2), Turn(1, 4), Turn(9, 1)], "student alone": [Turn(2, 2), Turn(3, 2), Turn(9, 9)]}
    assert list(pairs(found)) == [("stored / student alone", 2.0, 1.0)]


def test_where_the_probe_chose_fp32_the_default_of_lightly_train_is_what_was_measured():
    found = {"stored": [Turn(1, 1)], "lightly-train": [Turn(3, 6)]}
    assert [name for name, *_ in pairs(found)] == ["stored / lightly-train", "stored / its default"]
    assert all(name.count(" / ") == 1 for name in GOALS)


def test_steps_are_what_lies_between_forwards():
    import torch

    encoder = torch.nn.Linear(2, 2)
    marks = Marks(encoder, torch.device("cpu"))
    for _ in range(4):
        encoder(torch.zeros(1, 2))
    assert len(marks.notes) == 4
    assert marks.turn(1).wall > 0


def test_planted_photographs_have_the_asked_size(tmp_path):
    pictures = open_images(str(plant(Path(tmp_path / "x"), 2, (40, 30))))
    assert [pictures.read(i).size for i in range(2)] == [(40, 30)] * 2
