"""Presets against independent transcriptions of their formulas, in numpy and plain loops, or numeric identities.

Where a docstring gives a deviation, value and gradient were compared once with the named public code on the same random tensors
(96 x 32 and 96 x 48, float32, gradients relative to their largest number), beside these tests and not as part of them.
"""

import ast
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_features import (
    ATTENTION,
    DT,
    B,
    Case,
    gram_kl,
    kl,
    rand,
    softmax,
    standardised,
    unit,
    views,
)

from ssl_kd.objectives import PRESETS
from ssl_kd.objectives.factory import terms_of
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.types import Features


def queue_kl(s, t, queue, tau_s, tau_t, own=False):
    first_s, first_t = ([(unit(z) * unit(t)).sum(1, keepdims=True)] if own else [] for z in (s, t))
    p = softmax(np.concatenate([*first_t, unit(t) @ queue.T], 1) / tau_t)
    q = softmax(np.concatenate([*first_s, unit(s) @ queue.T], 1) / tau_s)
    return kl(p, q)


# --------------------------------------------------------- self-supervised distillation


def test_seed_puts_the_own_teacher_in_front_of_a_queue_of_older_ones():
    """Against jacobswan1/SEED with full queues (384): value, less the teacher's entropy, to float32, gradient to 1e-7."""
    case = Case("seed")
    assert case.answer(0)[0] == pytest.approx(0, abs=1e-6)  # an empty queue: the own slot alone
    case.answer(1)
    queue = unit(np.concatenate([case.teacher(0), case.teacher(1)]))
    by_hand = queue_kl(case.projected(2), case.teacher(2), queue, 0.2, 1e-4, own=True)
    assert case.answer(2)[0] == pytest.approx(by_hand, rel=1e-4)


def test_seed_at_its_teacher_temperature_is_contrast_with_the_own_slot():
    case = Case("seed")
    case.answer(0)
    s, t, queue = unit(case.projected(1)), unit(case.teacher(1)), unit(case.teacher(0))
    logits = np.concatenate([(s * t).sum(1, keepdims=True), s @ queue.T], 1) / 0.2
    assert case.answer(1)[0] == pytest.approx(-np.mean(np.log(softmax(logits)[:, 0])), rel=1e-4)


def test_s2bnn_takes_dimensions_of_unit_outputs_for_classes():
    """Against szq0214/S2-BNN's distillation alone, 128 outputs, less the teacher's entropy: value to float32, gradient to 6e-7."""
    case = Case("s2bnn")
    q, p = (softmax(unit(z) / 0.2) for z in (case.projected(0), case.teacher(0)))
    assert case.answer(0)[0] == pytest.approx(kl(p, q), rel=1e-4)


def test_compress_1q_looks_at_the_queue_before_the_batch_joins_it():
    """Against UMBCvision/CompRess with full queues (384): value to float32, gradient to 6e-7."""
    case = Case("compress_1q")
    assert case.answer(0)[0] == 0
    queue = unit(case.teacher(0))
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), case.teacher(1), queue, 0.04, 0.04), rel=1e-4)


@pytest.mark.parametrize("name", ["compress_2q", "compress_2q_own"])
def test_compress_2q_looks_with_each_network_at_its_own_queue(name):
    """Against UMBCvision/CompRess with full queues (384), both forms: value to 9e-8, gradient to 7e-7."""
    case = Case(name)
    case.answer(0)
    kept = case.batch(0)[0].layers["ema"].numpy() if name == "compress_2q" else case.student(0)
    p = softmax(unit(case.teacher(1)) @ unit(case.teacher(0)).T / 0.04)
    q = softmax(unit(case.student(1)) @ unit(kept).T / 0.04)
    assert case.answer(1)[0] == pytest.approx(kl(p, q), rel=1e-4)
    assert case.objective.student_momentum == (0.999 if name == "compress_2q" else 0)


def test_rrd_looks_at_both_networks_in_128_dimensions_with_the_batch_in_the_queue():
    """Against giakoumoglou/distillers with a full queue (384): value, less the teacher's entropy, to 5e-9, gradient to 6e-7."""
    case = Case("rrd")
    frozen = case.terms[0].view_of_teacher.weight
    assert (frozen.shape, frozen.requires_grad) == ((128, DT), False)
    seen = [case.teacher(i) @ frozen.numpy().T for i in range(2)]
    case.answer(0)
    by_hand = queue_kl(case.projected(1), seen[1], unit(np.concatenate(seen)), 0.02, 0.1)
    assert case.answer(1)[0] == pytest.approx(by_hand, rel=1e-4)


def test_lightly_v1_is_the_kl_over_a_queue_that_holds_the_batch_and_zeros_where_it_is_empty():
    """Against lightly-ai/lightly-train, third batch: value to float32, gradient to 6e-7."""
    case = Case("lightly_v1")
    case.answer(0)
    queue = np.concatenate([unit(case.teacher(0)), unit(case.teacher(1)), np.zeros((8192 - 2 * B, DT))])
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), case.teacher(1), queue, 0.07, 0.07), rel=1e-4)


def test_bank_is_the_kl_over_what_was_seen_with_the_batch_in_it_around_the_teachers_running_mean():
    case = Case("bank")
    case.answer(0)
    means = [case.teacher(0).mean(0)]
    means.append(0.99 * means[0] + 0.01 * case.teacher(1).mean(0))
    first, second = (case.teacher(k) - mean for k, mean in enumerate(means))
    queue = np.concatenate([unit(first), unit(second)])
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), second, queue, 0.07, 0.07), rel=1e-4)


def test_bank_raw_is_the_kl_over_what_was_seen_with_the_batch_in_it():
    case = Case("bank_raw")
    case.answer(0)
    queue = np.concatenate([unit(case.teacher(0)), unit(case.teacher(1))])
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), case.teacher(1), queue, 0.05, 0.05), rel=1e-4)


def test_lightly_v3_adds_the_patches_of_each_image():
    """Against lightly-ai/lightly-train, third batch, 16 patches onto 36: value to float32, gradient to 9e-7."""
    case = Case("lightly_v3")
    total, (world, local) = case.answer(0)
    assert local == pytest.approx(gram_kl(case.projected(0, 1, "tokens"), case.teacher(0, "tokens"), 0.07), rel=1e-4)
    queue = np.concatenate([unit(case.teacher(0)), np.zeros((8192 - B, DT))])
    assert world == pytest.approx(queue_kl(case.projected(0), case.teacher(0), queue, 0.07, 0.07), rel=1e-4)
    assert total == pytest.approx(world + local, rel=1e-5)


def test_lightly_v2_is_the_squared_distance_of_patches_on_the_teachers_grid():
    """Against lightly-ai/lightly-train's DistillationV2, one teacher block, 16 patches onto 16 and 36, its head in ours: value to
    float32, gradient to 2e-7. Onto fewer patches it reads at the centres of cells, where ours are means: 2e-3 and 0.6."""
    case = Case("lightly_v2")
    by_hand = np.mean((case.projected(0, 0, "tokens") - case.teacher(0, "tokens")) ** 2)
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-4)


def test_ega_is_made_of_pearson_correlations_between_samples():
    """Against giakoumoglou/distillers: value to 8e-8, gradient to 8e-7."""
    case = Case("ega")
    s, t = case.projected(0), case.teacher(0)
    c = np.corrcoef(np.concatenate([t, s]))
    nodes = np.linalg.norm(c[:B, B:] - np.eye(B))
    edges = np.linalg.norm(c[:B, :B] - c[B:, B:])
    assert case.answer(0)[0] == pytest.approx(nodes + 0.3 * edges, rel=1e-4)


def smd_by_hand(s, t, tau):
    s, t = unit(s), unit(t)
    losses = []
    for i in range(len(t)):
        across = [np.linalg.norm(t[i] - s[j]) for j in range(len(s))]
        among = [np.linalg.norm(t[i] - t[j]) for j in range(len(t))]
        far = [j for j in range(len(t)) if among[j] > across[i] and j != i]
        near = [j for j in range(len(t)) if j not in far]
        a, n = 0.0, max(near, key=lambda j: across[j])
        if far:
            f = min(far, key=lambda j: across[j])
            a = max(among[f] - across[f], 0) * across[f] / tau
        b = max(across[n] - among[n], 0) * across[n] / tau
        losses.append(math.log(math.exp(a) + math.exp(b)) - a)
    return float(np.mean(losses))


def test_smd_weighs_the_hardest_far_and_near_sample_of_each_anchor_view_by_view():
    """Against liuhao-lh/SMD: value to 6e-6, gradient to 2e-4: there a teacher's distance to itself is a rounding error above 0."""
    case = Case("smd", v=2)
    s, t = case.projected(0), case.teacher(0)
    by_hand = (smd_by_hand(s[:B], t[:B], 0.04) + smd_by_hand(s[B:], t[B:], 0.04)) / 2
    late, values = case.answer(0, epoch=2)
    assert late == pytest.approx(by_hand, rel=1e-3)
    assert len(values) == 1
    cosine = float(np.mean((unit(s) * unit(t)).sum(1)))
    assert case.answer(0, epoch=1)[0] == pytest.approx(by_hand + 1 - cosine, rel=1e-3)


def test_proteus_is_the_squared_distance_of_class_token_and_patches():
    """Against BeSpontaneous/Proteus-pytorch: value to 2e-7, gradient to 3e-7 (its mean over all tokens made of our two terms)."""
    case = Case("proteus")
    by_hand = [
        np.mean((case.projected(0, i, of) - case.teacher(0, of)) ** 2) for i, of in enumerate(("embedding", "tokens"))
    ]
    total, values = case.answer(0)
    assert values == pytest.approx(by_hand, rel=1e-4)
    assert total == pytest.approx(sum(by_hand), rel=1e-4)


def cosine_and_l1(s, t, cosine, l1):
    gap = np.abs(s - t)
    huber = np.mean(np.where(gap < 1, gap**2 / 2, gap - 0.5))
    return cosine * (1 - np.mean((unit(s) * unit(t)).sum(1))) + l1 * huber


def rows_of_tokens(case, term):
    tokens = case.batch(0)[0].tokens.flatten(0, 1)
    with torch.no_grad():
        s = case.terms[term].projector(tokens).numpy()
    return s, standardised(case.teacher(0, "tokens").reshape(-1, DT))


def test_theia_and_unic_mix_cosine_and_smooth_l1_on_standardised_teachers():
    """Against bdaiinstitute/theia and naver/unic, their targets standardised over the batch: value to 2e-7, gradient to 4e-7."""
    theia, unic = Case("theia"), Case("unic")
    maps = [
        rows.reshape(len(theia.teacher(0)), -1) for rows in rows_of_tokens(theia, 0)
    ]  # one cosine an image, as published
    assert theia.answer(0)[0] == pytest.approx(cosine_and_l1(*maps, 0.9, 0.1), rel=1e-3)
    whole = cosine_and_l1(unic.projected(0), standardised(unic.teacher(0)), 0.5, 0.5)
    patches = cosine_and_l1(*rows_of_tokens(unic, 1), 0.5, 0.5)
    assert unic.answer(0)[0] == pytest.approx((whole + patches) / 2, rel=1e-3)


@pytest.mark.parametrize("name", ["centred", "centred_light"])
def test_ours_are_cosines_to_teachers_without_their_mean(name):
    case = Case(name)
    t = case.teacher(0) - case.teacher(0).mean(0)
    by_hand = [2 - 2 * np.mean((unit(case.projected(0, i)) * unit(t)).sum(1)) for i in range(2)]
    if name == "centred":
        s, _ = rows_of_tokens(case, 2)
        patches = case.teacher(0, "tokens").reshape(-1, DT)
        by_hand.append(2 - 2 * np.mean((unit(s) * unit(patches - patches.mean(0))).sum(1)))
    total, values = case.answer(0)
    assert values == pytest.approx(by_hand, rel=1e-3)
    assert total == pytest.approx(sum(by_hand), rel=1e-3)


@pytest.mark.parametrize("name", ["default", "default_light"])
def test_our_earlier_ones_are_squared_distances_to_standardised_teachers(name):
    case = Case(name)
    by_hand = [np.mean((case.projected(0, i) - standardised(case.teacher(0))) ** 2) for i in range(2)]
    if name == "default":
        by_hand.append(np.mean(np.square(np.subtract(*rows_of_tokens(case, 2)))))
    total, values = case.answer(0)
    assert values == pytest.approx(by_hand, rel=1e-3)
    assert total == pytest.approx(sum(by_hand), rel=1e-3)


def test_simreg_queue_is_the_sum_of_both():
    assert terms_of("simreg_queue") == (*terms_of("simreg"), *terms_of("queue"))


def test_attn_distill_compares_what_the_class_tokens_look_at():
    """Against wangkai930418/attndistill, times the heads for its sum over them: value to 9e-8, gradient to 2e-7."""
    case = Case("attn_distill")
    total, (mse, attention) = case.answer(0)
    s, t = (f.layers[ATTENTION].numpy().astype(np.float64)[:, :, 0].reshape(B * 2, -1) for f in case.batch(0))
    assert attention == pytest.approx(kl(t, s), rel=1e-3)
    assert mse == pytest.approx(np.mean((case.projected(0) - case.teacher(0)) ** 2), rel=1e-4)
    assert total == pytest.approx(mse + 0.1 * attention, rel=1e-5)


def test_attn_distill_brings_other_heads_and_grids_together():
    """Against attndistill, other heads: value to 3e-7, gradient to 6e-7; another grid: 1e-4 and 4e-3,
    as bicubic values below 0 become 0 before the share is given back, there behind it.
    """
    case = Case("attn_distill")
    relation = case.terms[1].relation
    many = rand(B, 3, 1 + 16, 1 + 16, seed=3).softmax(3)
    few = rand(B, 2, 1 + 4, 1 + 4, seed=4).softmax(3)
    s, t = (Features(rand(B, 2), None, {ATTENTION: z}) for z in (few, many))
    own, resized = relation.read(s, t)
    assert resized.shape == (B, 3, 5)
    assert torch.allclose(resized.sum(2), torch.ones(B, 3), atol=1e-5)
    assert torch.equal(resized[:, :, 0], many[:, :, 0, 0])
    a, b = relation(own, resized, views(B))
    assert a.shape == b.shape == (B, 5)
    by_hand = softmax(np.log(own.numpy()).sum(1) / 10)
    assert np.allclose(a.exp().numpy(), by_hand, atol=1e-5)


# ----------------------------------------------------------------------- ours


def test_knn_soft_lumps_all_but_the_nearest():
    case = Case("knn_soft")
    case.terms[0].divergence = replace(case.terms[0].divergence, neighbours=3)
    case.answer(0)
    case.answer(1)
    queue = unit(np.concatenate([case.teacher(0), case.teacher(1)]))
    p, q = (softmax(unit(z) @ queue.T / 0.07) for z in (case.teacher(2), case.projected(2)))
    total = 0.0
    for a, b in zip(p, q, strict=True):
        near = np.argsort(-a)[:3]
        rest = np.setdiff1d(np.arange(2 * B), near)
        total += sum(a[j] * math.log(a[j] / b[j]) for j in near) + a[rest].sum() * math.log(
            a[rest].sum() / b[rest].sum()
        )
    assert case.answer(2)[0] == pytest.approx(total / B, rel=1e-3)


def test_target_ratio_parts_the_nearest_from_the_others():
    case = Case("target_ratio")
    case.answer(0)
    queue = unit(case.teacher(0))
    zt, zs = (unit(z) @ queue.T / 0.07 for z in (case.teacher(1), case.projected(1)))
    total = 0.0
    for a, b in zip(zt, zs, strict=True):
        y = int(a.argmax())
        sure = (math.log(softmax(a)[y]) - math.log(softmax(b)[y])) ** 2 / 2
        total += kl(softmax(np.delete(a, y))[None], softmax(np.delete(b, y))[None]) + sure
    assert case.answer(1)[0] == pytest.approx(total / B, rel=1e-3)


def test_the_pull_on_the_target_follows_the_ratio_of_teacher_and_student():
    from ssl_kd.objectives.divergences import row_softmax_kl, target_ratio

    teacher, student = rand(1, 6), rand(1, 6, seed=1).requires_grad_()
    y = int(teacher.argmax())
    without = target_ratio(student, teacher, 1.0, 1.0, strength=1e-9)
    pull = torch.autograd.grad(target_ratio(student, teacher, 1.0, 1.0) - without, student)[0][0, y]
    p, q = teacher.softmax(1)[0, y], student.softmax(1)[0, y]
    assert pull.item() == pytest.approx((-torch.log(p / q) * (1 - q)).item(), rel=1e-4)
    # The KL splits into a binary part and the others' part, weighted by what the teacher leaves them.
    binary = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    assert row_softmax_kl(student, teacher, 1, 1).item() == pytest.approx((binary + (1 - p) * without).item(), rel=1e-4)


def test_drop_in_is_a_cosine_to_the_teacher_and_csd_through_one_head():
    from ssl_kd.objectives import Alignment, build_objective
    from ssl_kd.types import ViewBatch

    torch.manual_seed(0)
    objective = build_objective("drop_in", 6, 10).eval()
    align, relate = objective.terms.values()
    assert isinstance(align, Alignment)
    assert align.projector is relate.projector
    s, t = rand(8, 6), rand(8, 10, seed=1)
    moved = torch.nn.functional.normalize(align.projector(s), dim=1)
    cosine = (2 - 2 * (moved * torch.nn.functional.normalize(t, dim=1)).sum(1)).mean()
    batch = ViewBatch.of_rows(8)
    assert align(s, t).item() == pytest.approx(cosine.item(), rel=1e-5)
    assert objective(s, t, batch)[0].item() == pytest.approx((cosine + 10 * relate(s, t)).item(), rel=1e-5)


FILES = [
    Path(__file__).with_name(f"test_{which}.py") for which in ("terms", "presets", "classics", "newest", "prototypes")
]
ALIKE = {"mlkd": "dlkd", "dlkd_light": "dlkd", "queue": "simreg_queue", "cospress_light": "cospress"}  # the same parts


def test_every_preset_is_named_in_a_test_of_its_formula():
    text = "".join(path.read_text() for path in FILES)
    assert [name for name in PRESETS if f'"{ALIKE.get(name, name)}"' not in text] == []


def test_every_row_that_was_read_in_public_code_was_compared_with_it_in_value_and_gradient():
    """The figure stands in the docstring of a test that names the row."""
    compared = []
    for path in FILES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = text.splitlines()[
                    min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1 : node.end_lineno
                ]
                told = " ".join((ast.get_docstring(node) or "").split())
                if re.search(r"gainst .*: .*value.*gradient|gainst .*: .*in value.*in gradient", told):
                    compared.append("\n".join(lines))
    rows = [name for name, row in CATALOGUE.built_in.items() if row.evidence in ("code", "third-party")]
    assert len(rows) > 30
    assert [name for name in rows if not any(f'"{ALIKE.get(name, name)}"' in text for text in compared)] == []
