"""Label-free health: each measure against its definition and its laws, the held-out images, and what a watch remembers."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_runs import SMALL, logged, small_teacher

import ssl_kd
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.subset import Subset, hold_out
from ssl_kd.distillation.monitor import Monitor, collapsed, figures, head_cosine, plain_views
from ssl_kd.errors import Collapsed, ImagesError
from ssl_kd.metrics import (
    centred_kernel_alignment,
    effective_rank,
    neighbour_overlap,
    shared_neighbours,
    spread,
    uniformity,
)
from ssl_kd.models.encoder import at_rest
from ssl_kd.objectives import build_objective


def rows(n=40, d=6, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def turned(z, seed=3):
    q, _ = torch.linalg.qr(rows(z.shape[1], z.shape[1], seed).double())
    return (z.double() @ q).float()


def images(n=64, seed=0):
    low = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3), dtype=np.uint8)
    return ArrayImages(low.repeat(8, 1).repeat(8, 2))


# ---------------------------------------------------------------- measures: oracles


def test_neighbour_overlap_counts_common_neighbours():
    s, t, k = rows(), rows(d=4, seed=1), 10

    def lists(z):
        near = []
        for i in range(len(z)):
            cosines = {j: float(F.cosine_similarity(z[i], z[j], dim=0)) for j in range(len(z)) if j != i}
            near.append(set(sorted(cosines, key=cosines.get, reverse=True)[:k]))
        return near

    want = np.mean([len(a & b) / k for a, b in zip(lists(s), lists(t), strict=True)])
    assert neighbour_overlap(s, t, k) == pytest.approx(want)


def test_unrelated_networks_agree_on_as_many_neighbours_as_chance_has_it():
    n, k = 400, 10
    assert neighbour_overlap(rows(n, 32), rows(n, 32, 1), k) == pytest.approx(k / (n - 1), rel=0.3)


def test_cka_is_the_unbiased_estimate_term_by_term():
    """Song et al.: sums over distinct i, j (, q, r), written as loops."""
    s, t = rows(7, 3), rows(7, 2, 1)

    def hsic(a, b):
        n, (k, el) = len(a), (a @ a.T, b @ b.T)
        pairs = sum(k[i, j] * el[i, j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
        threes = sum(
            k[i, j] * el[i, q] for i in range(n) for j in range(n) for q in range(n) if len({i, j, q}) == 3
        ) / (n * (n - 1) * (n - 2))
        fours = sum(
            k[i, j] * el[q, r]
            for i in range(n)
            for j in range(n)
            for q in range(n)
            for r in range(n)
            if len({i, j, q, r}) == 4
        ) / (n * (n - 1) * (n - 2) * (n - 3))
        return float(pairs + fours - 2 * threes)

    want = hsic(s, t) / math.sqrt(hsic(s, s) * hsic(t, t))
    assert centred_kernel_alignment(s, t) == pytest.approx(want, abs=1e-5)


def test_cka_of_unrelated_wide_features_is_about_zero():
    assert abs(centred_kernel_alignment(rows(60, 500), rows(60, 500, 1))) < 0.1


@pytest.mark.parametrize("d", [1, 2, 5])
def test_effective_rank_counts_equal_directions(d):
    """Plus and minus each axis: d equal singular values, centred already."""
    eye = torch.eye(8)[:d]
    assert effective_rank(torch.cat([eye, -eye]) + 7) == pytest.approx(d)


def test_effective_rank_of_unequal_directions_is_the_entropy_of_their_shares():
    z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert effective_rank(z) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_uniformity_and_spread_are_what_their_papers_say():
    z = rows()
    unit = F.normalize(z, dim=1)
    pairs = [float((unit[i] - unit[j]).square().sum()) for i in range(len(z)) for j in range(i)]
    assert uniformity(z) == pytest.approx(math.log(np.mean(np.exp(-2 * np.array(pairs)))), abs=1e-5)
    assert spread(z) == pytest.approx(float((unit - unit.mean(0)).square().sum(1).mean()), abs=1e-6)


def test_one_point_is_the_worst_of_all():
    z = torch.full((20, 5), 0.3)
    assert effective_rank(z) == 0
    assert uniformity(z) == pytest.approx(0, abs=1e-9)
    assert spread(z) == pytest.approx(0, abs=1e-9)
    assert centred_kernel_alignment(z, rows(20)) == 0


def test_opposite_points_are_as_far_apart_as_can_be():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert uniformity(z) == pytest.approx(-8)
    assert spread(z) == pytest.approx(1)


# ---------------------------------------------------------------- measures: laws


def test_turning_and_scaling_either_network_changes_no_figure():
    s, t = rows(), rows(d=9, seed=1)
    want = figures(s, t)
    for other in (figures(turned(s), t), figures(s, turned(t)), figures(5 * s, 0.01 * t)):
        assert other == pytest.approx(want, abs=1e-5)


def test_the_order_of_the_images_changes_no_figure():
    s, t, order = rows(), rows(d=9, seed=1), torch.randperm(40, generator=torch.Generator().manual_seed(2))
    assert figures(s[order], t[order]) == pytest.approx(figures(s, t), abs=1e-5)


def test_the_teacher_agrees_with_itself():
    t = rows()
    assert neighbour_overlap(t, t) == 1
    assert centred_kernel_alignment(t, turned(2 * t)) == pytest.approx(1, abs=1e-5)


def test_the_nearer_to_the_teacher_the_better_the_figures():
    t = rows(200, 16)
    noisy = [figures(t + level * rows(200, 16, 1), t) for level in (0, 0.3, 1, 3)]
    for name in ("neighbour_overlap", "cka"):
        values = [found[name] for found in noisy]
        assert values == sorted(values, reverse=True)


def test_collapse_is_told_from_health():
    t = rows(100, 20)
    line = rows(100, 1, 1) @ rows(1, 20, 2)
    assert collapsed(t + 0.1 * rows(100, 20, 1), t) == ""
    assert "in one place" in collapsed(torch.ones(100, 20) + 1e-5 * t, t)
    assert "effective rank" in collapsed(line, rows(100, 60))
    assert "effective rank" in collapsed(line + 1e-3 * t, t)


@pytest.mark.parametrize("width", [1, 2, 4])
def test_a_narrow_student_is_not_taken_for_a_collapsed_one(width):
    assert collapsed(rows(300, width), rows(300, 200, 1)) == ""


# ---------------------------------------------------------------- held-out images


def test_held_out_images_and_the_rest_are_the_whole():
    whole = images(200)
    rest, held = hold_out(whole, 33)
    assert (len(rest), len(held)) == (167, 33)
    assert sorted([*rest.ids, *held.ids], key=int) == list(whole.ids)
    for part in (rest, held):
        for i in (0, 1, len(part) // 2, len(part) - 1):
            assert np.array_equal(np.asarray(part.read(i)), whole.array[int(part.ids[i])])
        with pytest.raises(IndexError):
            part.ids[len(part)]
    assert len({whole.digest, rest.digest, held.digest}) == 3
    assert rest.ids[2:5] == [rest.ids[2], rest.ids[3], rest.ids[4]]


@pytest.mark.parametrize(("count", "want"), [(1599, 0), (1600, 32), (10_000, 200), (25_600, 512), (1_000_000, 512)])
def test_how_many_are_held_out(count, want):
    _, held = hold_out(ArrayImages(np.broadcast_to(np.uint8(0), (count, 1, 1, 3))))
    assert len(held or ()) == want


@pytest.mark.parametrize("count", [5, 31, 101])
def test_too_few_or_too_many_held_out_images_are_refused(count):
    with pytest.raises(ImagesError, match="health_images: expected 32 images to half of the 200"):
        hold_out(images(200), count)


def test_an_unreadable_picture_of_a_part_is_named_by_the_whole(tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture") if i == 6 else images(1).read(0).save(
            tmp_path / f"{i}.png"
        )
    whole = ssl_kd.open_images(tmp_path)
    held = Subset(whole, np.array([2, 6]))
    assert len(plain_views(held, ssl_kd.Preprocessing().at(32, 1.0))) == 1
    assert list(whole.unreadable) == list(held.unreadable) == ["6.png"]


# ---------------------------------------------------------------- a watch


@pytest.fixture
def module():
    torch.manual_seed(0)
    make = {"arch": "resnet18", "channels": [8, 8, 8, 8]}
    return ssl_kd.build(**make).train(), ssl_kd.build(**make).eval()


def monitor(**settings):
    contract = ssl_kd.Preprocessing().at(32, 1.0)
    return Monitor(images(), contract, **({"every": 2, "total": 7} | settings))


def says(encoder):
    return lambda x: encoder(x).embedding


def test_a_look_moves_nothing(module):
    student, teacher = module
    objective = build_objective("default", student.dim, teacher.dim).train()
    before = {k: v.clone() for k, v in [*student.state_dict().items(), *objective.state_dict().items()]}
    random = torch.get_rng_state()
    found = monitor().measure(2, student, says(teacher), objective)
    assert all(torch.equal(v, before[k]) for k, v in [*student.state_dict().items(), *objective.state_dict().items()])
    assert all(m.training for m in [*student.modules(), *objective.modules()])
    assert torch.equal(random, torch.get_rng_state())
    assert {"health/alignment", "health/neighbour_overlap", "health/cka", "health/uniformity"} <= found.figures.keys()


def test_the_teacher_is_asked_once_and_agrees_with_its_copy(module):
    _, teacher = module
    asked = []

    def outputs(x):
        asked.append(len(x))
        return teacher(x).embedding

    looking = monitor()
    for step in (2, 4):
        found = looking.measure(step, teacher, outputs).figures
        assert found["health/neighbour_overlap"] == 1
        assert found["health/cka"] == pytest.approx(1)
    assert sum(asked) == 64
    assert "health/alignment" not in found


def test_parts_keep_their_own_mode(module):
    student, _ = module
    student.backbone.bn1.eval()
    with at_rest(student):
        assert not any(m.training for m in student.modules())
    assert not student.backbone.bn1.training
    assert student.backbone.conv1.training


def test_the_heads_cosine_is_the_alignment_term_on_the_other_scale():
    s, t = rows(30, 6), rows(30, 9, 1)
    objective = build_objective("simreg", 6, 9).eval()
    (term,) = objective.terms.values()
    with torch.no_grad():
        loss = float(term(ssl_kd.Features(s), ssl_kd.Features(t), None))
    assert head_cosine(objective, s, t) == pytest.approx(1 - loss / 2, abs=1e-5)
    assert head_cosine(build_objective("queue", 6, 9), s, t) is None


def test_looks_come_every_so_often_and_at_the_end():
    assert [step for step in range(1, 8) if monitor().due(step)] == [2, 4, 6, 7]


def test_the_best_look_is_remembered_and_patience_runs_out(module, monkeypatch):
    student, teacher = module
    looking, overlaps = monitor(patience=2), iter([0.2, 0.5, 0.4, 0.5])
    monkeypatch.setattr(
        "ssl_kd.distillation.monitor.figures", lambda ours, theirs: {"neighbour_overlap": next(overlaps)}
    )
    seen = []
    for step in (2, 4, 6, 8):
        look = looking.measure(step, student, says(teacher))
        seen.append((look.better, looking.enough))
        again = monitor(patience=2)
        again.restore(looking.state())  # as after a kill
        looking = again
    assert seen == [(True, False), (True, False), (False, False), (False, True)]
    assert (looking.course.best, looking.course.best_step) == (0.5, 4)
    looking.patience = 0
    assert not looking.enough


def test_a_student_that_stays_collapsed_stops_the_run_and_one_that_recovers_does_not(module):
    student, teacher = module
    dead = [torch.nn.init.zeros_(p) for name, p in student.named_parameters() if "bn" in name and "weight" in name]
    assert dead
    for name, p in student.named_parameters():
        if "bn" in name and "bias" in name:
            torch.nn.init.ones_(p)
    torch.nn.init.zeros_(student.backbone.conv1.weight)
    looking = monitor()
    for step in (2, 4):
        look = looking.measure(step, student, says(teacher))
        assert "in one place" in look.alarm
        assert look.figures["health/collapsed"] == 1
        assert not look.better
    recovered = monitor()
    recovered.restore(looking.state())
    assert recovered.measure(6, teacher, says(teacher)).alarm == ""
    assert recovered.course.ill == 0
    with pytest.raises(Collapsed, match="3 measurements in a row, the last at step 6; lower lr"):
        looking.measure(6, student, says(teacher))


# ---------------------------------------------------------------- in a run

QUICK = SMALL | {"crop_ratio": 1.0, "epochs": 3, "batch_size": 16, "health_images": 32}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def looks(folder):
    return [line for line in logged(folder) if "health/neighbour_overlap" in line]


def test_a_run_looks_every_epoch_and_keeps_its_best_student(teacher, tmp_path):
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK)
    found = looks(tmp_path / "run")
    assert [line["epoch"] for line in found] == [1, 2, 3]
    best = max(found, key=lambda line: line["health/neighbour_overlap"])
    assert done.best == tmp_path / "run/student_best.safetensors"
    student = ssl_kd.load_teacher(done.best)
    _, held = hold_out(images(), 32)
    pixels = plain_views(held, student.preprocessing).float() / 255
    with torch.no_grad():
        want = figures(student(pixels).embedding, teacher(pixels).embedding)
    assert best["health/neighbour_overlap"] == pytest.approx(want["neighbour_overlap"])
    assert best["health/cka"] == pytest.approx(want["cka"], abs=1e-4)
    card = (tmp_path / "run/README.md").read_text()
    assert "\n- `student_best.safetensors`: " in card
    each = shared_neighbours(student(pixels).embedding, teacher(pixels).embedding)
    half = 100 * 1.96 * float(each.std()) / len(each) ** 0.5
    shared = f"{100 * best['health/neighbour_overlap']:.1f} ±{half:.1f} %"
    assert f"the most {shared}, at step {best['step']} (`student_best.safetensors`)" in card
    assert f"unrelated networks share {1000 / (len(each) - 1):.1f} %" in card
    with torch.no_grad():
        each = shared_neighbours(done.student(pixels).embedding, teacher(pixels).embedding)
    half = 1.96 * float(each.std()) / len(each) ** 0.5
    assert done.overlap.value == pytest.approx(float(each.mean()))
    assert done.overlap.half == pytest.approx(half, rel=1e-3)
    assert (
        f"with the teacher {100 * done.overlap.value:.1f} ±{100 * half:.1f} % at the end (`student.safetensors`)"
        in card
    )


def test_looking_more_often_changes_no_bit_of_the_student(teacher, tmp_path):
    often, seldom = (
        ssl_kd.distill(teacher, images=images(), out=tmp_path / f"{every}", health_every=every, **QUICK).student
        for every in (0.5, 2.0)
    )
    assert len(looks(tmp_path / "0.5")) == 6
    assert [line["epoch"] for line in looks(tmp_path / "2.0")] == [2, 3]
    assert all(
        torch.equal(a, b) for a, b in zip(often.state_dict().values(), seldom.state_dict().values(), strict=True)
    )


def test_without_looks_every_image_is_trained_on(teacher, tmp_path):
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"health_every": 0})
    assert "64 from" in (tmp_path / "run/README.md").read_text()
    assert (done.best, looks(tmp_path / "run")) == (None, [])
    assert "student_best" not in (tmp_path / "run/README.md").read_text()


def test_a_run_ends_early_by_patience_and_goes_on_with_more_of_it(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssl_kd.distillation.monitor.figures", lambda ours, theirs: {"neighbour_overlap": 0.5})
    settings = QUICK | {"epochs": 6}
    for patience, last in ((2, 3), (2, 3), (3, 4), (0, 6)):
        first = not (tmp_path / "run").exists()
        done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", patience=patience, **settings)
        assert looks(tmp_path / "run")[-1]["epoch"] == last
        if first:  # what patience spared does not count as done
            assert done.images_per_second * done.seconds == pytest.approx(last * 32)
    assert "distill: at step 6 of 12: patience is out, step 2 was the best" in capsys.readouterr().err


def test_several_teachers_are_one_for_health(teacher, tmp_path):
    torch.manual_seed(2)
    other = ssl_kd.build("resnet18", channels=[8, 8, 8, 24]).eval()
    both = {"a": {"file": teacher}, "b": {"file": other}}
    ssl_kd.distill(images=images(), teachers=both, out=tmp_path / "run", **QUICK | {"epochs": 1})
    (found,) = looks(tmp_path / "run")
    assert 0 <= found["health/neighbour_overlap"] <= 1
    assert "health/alignment" not in found


def test_a_collapsing_run_warns_and_then_stops(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ssl_kd.distillation.monitor.collapsed", lambda ours, theirs: "one place")
    with pytest.raises(Collapsed, match=r"one place.* in 3 measurements in a row, the last at step 6"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"epochs": 5})
    assert capsys.readouterr().err.count("the student seems collapsed: one place") == 2
    assert [line["health/collapsed"] for line in looks(tmp_path / "run")] == [1, 1]
    assert not (tmp_path / "run/student.safetensors").exists()
