"""A folder of photos without labels: how much of a teacher's view of it a student keeps, with chance levels and intervals."""

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

import ssl_kd
from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluation import evaluate
from ssl_kd.eval.evaluators.label_free import LEAST, Alike, Stability
from ssl_kd.eval.evaluators.retrieval import Agreement
from ssl_kd.eval.runner.config import EvalConfig, TaskConfig, damaged_photos
from ssl_kd.exporters.pictures import pictures
from ssl_kd.metrics import centred_kernel_alignment


def bank(features, start=0):
    return FeatureBank(features.astype(np.float32), None, [f"{start + i}.png" for i in range(len(features))])


def rows(n, width, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width))


def test_cka_is_one_for_a_turned_copy_and_about_nothing_for_strangers():
    plain, other = rows(300, 8), rows(300, 12, seed=1)
    turn = np.linalg.qr(rows(8, 8, seed=2))[0]
    twin = Alike()(None, bank(plain @ turn * 3), None, bank(plain)).rows[0]
    far = Alike()(None, bank(other), None, bank(plain)).rows[0]
    assert twin.value == pytest.approx(1)
    assert twin.low > 0.99
    assert far.low < 0 < far.high < 0.2
    expected = centred_kernel_alignment(torch.from_numpy(other.astype(np.float32)), torch.from_numpy(plain))
    assert far.value == pytest.approx(expected, abs=1e-5)


def test_the_interval_of_cka_holds_that_of_many_images():
    """24 draws of 120 images of one population: the interval of each should nearly always hold the figure of all."""
    whole = rows(5000, 6)
    student = whole @ rows(6, 6, seed=3) + 0.5 * rows(5000, 6, seed=4)
    truth = centred_kernel_alignment(torch.from_numpy(student[:2000]), torch.from_numpy(whole[:2000]))
    held = 0
    for draw in range(24):
        part = slice(120 * draw, 120 * draw + 120)
        score = Alike()(None, bank(student[part]), None, bank(whole[part])).rows[0]
        held += score.low <= truth <= score.high
    assert held >= 20


def test_a_photo_that_damage_does_not_touch_keeps_all_neighbours_and_a_swapped_one_chance():
    index, queries = bank(rows(500, 6)), rows(200, 6, seed=1)
    same = Stability()(index, bank(queries), bank(queries)).rows[0]
    lost = Stability()(index, bank(queries), bank(rows(200, 6, seed=9)))
    assert same.value == 1
    assert lost.rows[0].low < lost.details["chance"]["10"] == 10 / 500 < lost.rows[0].high + 0.01


def test_photos_are_matched_by_name_where_one_form_could_not_be_read():
    index, queries = bank(rows(50, 6)), rows(20, 6, seed=1)
    scores = Stability()(index, bank(queries), bank(queries[5:], start=5))
    assert (scores.rows[0].value, scores.rows[0].n) == (1, 15)
    with pytest.raises(UserError, match="are others"):
        Stability()(index, bank(queries), bank(queries, start=100))


def test_agreement_tells_its_chance_level_and_unrelated_networks_reach_it():
    train, test = (bank(rows(400, 8, seed)) for seed in (0, 1))
    others = (bank(rows(400, 8, seed)) for seed in (2, 3))
    scores = Agreement()(train, test, *others)
    assert scores.details["chance"]["10"] == 10 / 400
    assert scores.value("overlap", 10) == pytest.approx(10 / 400, abs=0.01)
    assert "2.5 % of 10 neighbours" in scores.notes[0]


def test_too_few_images_for_a_cka_are_one_line():
    few = bank(rows(LEAST - 1, 4))
    with pytest.raises(UserError, match=r"at least 8 test images, got 7"):
        Alike()(None, few, None, few)


def test_photos_bring_their_damaged_forms_once():
    photos = TaskConfig(photos="photos")
    further, alike, strange = damaged_photos([photos, TaskConfig(photos="photos", corrupt="noise")])
    assert [task.title for task in further] == ["photos + blur 3", "photos + jpeg 3", "photos + scramble 3"]
    assert ("photos", "photos + noise 3") in alike
    assert strange == [("photos", "photos + scramble 3")]
    assert damaged_photos([TaskConfig(path="digits.zip")]) == ([], [], [])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i, picture in enumerate(pictures(80, 32, seed=4)):
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    return folder


def test_an_evaluation_of_photos_answers_whether_a_student_is_good(photos, tmp_path):
    torch.manual_seed(0)
    file = tmp_path / "student.safetensors"
    ssl_kd.save_student(ssl_kd.build("resnet18", small_stem=True, channels=[8, 8, 8, 16]).eval(), file)
    config = EvalConfig(
        out=str(tmp_path / "out"),
        tasks=[{"name": "mine", "photos": str(photos)}],
        encoders=[{"name": "teacher", "weights": str(file)}, {"name": "random", "like": "teacher", "seed": 5}],
        evaluators=["knn"],
    )
    results = evaluate(config, quiet=True)
    found = {(row["task"], row["encoder"], row["evaluator"]): row for row in results.rows if row["headline"]}
    assert found["mine", "teacher", "agreement"]["value"] == 1
    assert found["mine", "random", "agreement"]["value"] < 0.9
    assert found["mine", "teacher", "cka"]["value"] == pytest.approx(1)
    for damage in ("noise", "blur", "jpeg"):
        assert 0 <= found[f"mine vs mine + {damage} 3", "teacher", "stability"]["value"] <= 1
    assert 0 <= found["mine vs mine + scramble 3", "random", "ood"]["value"] <= 1
    assert any("knn/dino: it needs labels" in why for why in results.left_out)
    shares = {kind: row["share_kept"] for (_, name, kind), row in found.items() if name == "random"}
    assert {kind for kind, share in shares.items() if share is not None} == {"agreement"}
    (answer,) = results.answers()
    assert answer.startswith("mine: random shares ")
    text = (tmp_path / "out" / "report.html").read_text()
    assert "unrelated networks would share" in text
    assert text.index(str(escape(answer))) < text.index("<table")
    assert "unrelated networks would share" in (tmp_path / "out" / "results.md").read_text()
    again = evaluate(config, quiet=True)  # every cell is kept
    assert again.rows == results.rows


def test_an_encoder_alone_is_said_to_be_compared_with_itself(photos, tmp_path):
    torch.manual_seed(0)
    file = ssl_kd.save_student(
        ssl_kd.build("resnet18", small_stem=True, channels=[8, 8, 8, 16]), tmp_path / "s.safetensors"
    )
    config = EvalConfig(
        out=str(tmp_path / "out"),
        tasks=[{"name": "mine", "photos": str(photos)}],
        encoders=[{"name": "student", "weights": str(file)}],
        evaluators=["agreement"],
    )
    assert "student is compared with itself" in evaluate(config, quiet=True).facts["notes on encoders"]


MISTAKES = {
    "photos and a path": ({"photos": "p", "path": "q"}, "give path, or train and test"),
    "a metric of labels": ({"photos": "p", "metric": "top1"}, "metric says nothing without labels"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_task_that_cannot_be_is_one_line(case):
    given, words = MISTAKES[case]
    with pytest.raises(UserError, match=words):
        TaskConfig(**given)


def test_few_photos_are_refused(tmp_path):
    from ssl_kd.eval.datasets.tasks import photos_task

    for i in range(5):
        Image.new("RGB", (8, 8), (i, i, i)).save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="at least 60 photos to judge by, got 5"):
        photos_task(tmp_path)
