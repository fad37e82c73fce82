"""Several teachers: each by its own objective, the hardest always kept, the others dropped alike in every run."""

import pytest
import torch
from small_features import features, rand, views

from ssl_kd.errors import UserError
from ssl_kd.objectives.multi_teacher import build_several

TEACHERS = {"dino": 10, "moco": 7, "swav": 5}


def built(**more):
    torch.manual_seed(0)
    return build_several({"dino": "simreg", "moco": "simreg_queue", "swav": "dlkd"}, 6, TEACHERS, **more)


def answer(objective, start=0, epoch=0):
    s = rand(8, 6, seed=start).requires_grad_()
    teachers = {name: features(rand(8, width, seed=width + start)) for name, width in TEACHERS.items()}
    total, terms = objective(features(s), teachers, views(4, 2, start=start, epoch=epoch))
    return total, terms, s


def test_the_total_is_the_mean_of_what_each_teacher_asks_for():
    objective = built(weights={"dino": 2.0})
    total, terms, s = answer(objective.eval())
    parts = {"dino": 0.0, "moco": 0.0, "swav": 0.0}
    for key, value in terms.items():
        teacher, term = key.split(".")
        rule = objective.objectives[teacher].weights[term].value
        parts[teacher] += objective.weights[teacher] * rule * value.item()
    assert total.item() == pytest.approx(sum(parts.values()) / 3, rel=1e-5)
    total.backward()
    assert s.grad.abs().sum() > 0
    assert objective.min_views == 2


def test_easy_teachers_are_dropped_at_the_asked_rate_and_the_hardest_never():
    objective = built(drop=0.4)
    totals = torch.tensor([1.0, 3.0, 2.0])
    kept = torch.stack([objective._kept(totals, views(4, start=4 * i, epoch=i % 7)) for i in range(2000)])
    assert kept[:, 1].min() == 1
    assert kept[:, [0, 2]].mean(0).numpy() == pytest.approx([0.6, 0.6], abs=0.04)
    assert torch.equal(kept[5], objective._kept(totals, views(4, start=20, epoch=5)))


def test_nobody_is_dropped_outside_of_training():
    objective = built(drop=0.9).eval()
    assert torch.equal(objective._kept(torch.ones(3), views(4)), torch.ones(3))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"drop": 1}, "below 1"),
        ({"weights": {"dino": 0}}, "above 0"),
        ({"weights": {"dion": 1}}, "names among dino, moco, swav"),
    ],
)
def test_wrong_settings_are_one_clear_line(more, words):
    with pytest.raises(UserError, match=words) as caught:
        built(**more)
    assert "\n" not in str(caught.value)


def test_objectives_and_teachers_must_have_the_same_names():
    with pytest.raises(UserError, match="teachers are swav"):
        build_several({"dino": "simreg"}, 6, {"swav": 5})
    with pytest.raises(UserError, match="without dots"):
        build_several({"dino.s": "simreg"}, 6, {"dino.s": 5})


NAMES = ("training", "training_", "type", "forward", "keys", "__init__", "dino")


def test_a_teacher_may_be_called_like_an_attribute_of_a_module():
    objective = build_several(dict.fromkeys(NAMES, "simreg"), 6, dict.fromkeys(NAMES, 5)).train()
    assert tuple(objective.parts) == NAMES
    student, teacher = features(rand(4, 6)), features(rand(4, 5))
    _, told = objective(student, dict.fromkeys(NAMES, teacher), views(4))
    assert list(told) == [f"{name}.alignment" for name in NAMES]
    again = build_several(dict.fromkeys(NAMES, "simreg"), 6, dict.fromkeys(NAMES, 5))
    again.load_state_dict(objective.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), objective.parameters(), strict=True))


def test_the_states_of_other_teachers_keep_their_names():
    keys = build_several({"dino": "simreg", "my_key_": "simreg"}, 6, {"dino": 5, "my_key_": 5}).state_dict()
    assert {key.split(".")[1] for key in keys} == {"dino", "my_key_"}
