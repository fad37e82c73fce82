"""Presets against independent transcriptions of their formulas, in numpy and plain loops, or numeric identities."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from small_features import ATTENTION, as_features, everything, rand, views, widths

from ssl_kd.encoder import Features
from ssl_kd.objectives import PRESETS, build_objective

B, DS, DT = 5, 6, 7


def unit(z, axis=1):
    return z / np.linalg.norm(z, axis=axis, keepdims=True)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    """Mean over rows of KL(p || q)."""
    return float(
        np.mean(
            [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True) if a > 0) for x, y in zip(p, q, strict=True)]
        )
    )


class Case:
    """A preset at work: batches of teacher and student, heads in eval mode so that they can be applied twice."""

    def __init__(self, name, v=1, ds=DS, dt=DT, b=B):
        torch.manual_seed(0)
        self.objective = build_objective(name, widths(ds), widths(dt))
        for module in self.objective.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        self.terms = list(self.objective.terms.values())
        self.v, self.b = v, b
        self.make = lambda step: (everything(v * b, ds, 10 * step), everything(v * b, dt, 10 * step + 100))

    def batch(self, step):
        s, t = self.make(step)
        return as_features(s), as_features(t)

    def answer(self, step, epoch=0):
        total, values = self.objective(*self.batch(step), views(self.b, self.v, start=step * self.b, epoch=epoch))
        return total.item(), [v.item() for v in values.values()]

    @torch.no_grad()
    def projected(self, step, term=0, of="embedding"):
        z = getattr(self.batch(step)[0], of)
        return self.terms[term].projector(z).numpy().astype(np.float64)

    def teacher(self, step, of="embedding"):
        return getattr(self.batch(step)[1], of).numpy().astype(np.float64)

    def student(self, step, of="embedding"):
        return getattr(self.batch(step)[0], of).numpy().astype(np.float64)


def queue_kl(s, t, queue, tau_s, tau_t, own=False):
    first_s, first_t = ([(unit(z) * unit(t)).sum(1, keepdims=True)] if own else [] for z in (s, t))
    p = softmax(np.concatenate([*first_t, unit(t) @ queue.T], 1) / tau_t)
    q = softmax(np.concatenate([*first_s, unit(s) @ queue.T], 1) / tau_s)
    return kl(p, q)


# --------------------------------------------------------- self-supervised distillation


def test_seed_puts_the_own_teacher_in_front_of_a_queue_of_older_ones():
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


def test_compress_1q_looks_at_the_queue_before_the_batch_joins_it():
    case = Case("compress_1q")
    assert case.answer(0)[0] == 0
    queue = unit(case.teacher(0))
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), case.teacher(1), queue, 0.04, 0.04), rel=1e-4)


@pytest.mark.parametrize("name", ["compress_2q", "compress_2q_own"])
def test_compress_2q_looks_with_each_network_at_its_own_queue(name):
    case = Case(name)
    case.answer(0)
    kept = case.batch(0)[0].layers["ema"].numpy() if name == "compress_2q" else case.student(0)
    p = softmax(unit(case.teacher(1)) @ unit(case.teacher(0)).T / 0.04)
    q = softmax(unit(case.student(1)) @ unit(kept).T / 0.04)
    assert case.answer(1)[0] == pytest.approx(kl(p, q), rel=1e-4)
    assert case.objective.student_momentum == (0.999 if name == "compress_2q" else 0)


def test_rrd_looks_at_both_networks_in_128_dimensions_with_the_batch_in_the_queue():
    case = Case("rrd")
    frozen = case.terms[0].view_of_teacher.weight
    assert (frozen.shape, frozen.requires_grad) == ((128, DT), False)
    seen = [case.teacher(i) @ frozen.numpy().T for i in range(2)]
    case.answer(0)
    by_hand = queue_kl(case.projected(1), seen[1], unit(np.concatenate(seen)), 0.02, 0.1)
    assert case.answer(1)[0] == pytest.approx(by_hand, rel=1e-4)


def test_lightly_v1_is_the_kl_over_a_queue_that_holds_the_batch():
    case = Case("lightly_v1")
    case.answer(0)
    queue = unit(np.concatenate([case.teacher(0), case.teacher(1)]))
    assert case.answer(1)[0] == pytest.approx(queue_kl(case.projected(1), case.teacher(1), queue, 0.07, 0.07), rel=1e-4)


def gram_kl(s, t, tau):
    """Patch by patch, image by image."""
    rows = [(softmax(unit(b) @ unit(b).T / tau), softmax(unit(a) @ unit(a).T / tau)) for a, b in zip(s, t, strict=True)]
    return float(np.mean([kl(p, q) for p, q in rows]))


def test_lightly_v3_adds_the_patches_of_each_image():
    case = Case("lightly_v3")
    total, (world, local) = case.answer(0)
    assert local == pytest.approx(gram_kl(case.projected(0, 1, "tokens"), case.teacher(0, "tokens"), 0.07), rel=1e-4)
    queue = unit(case.teacher(0))
    assert world == pytest.approx(queue_kl(case.projected(0), case.teacher(0), queue, 0.07, 0.07), rel=1e-4)
    assert total == pytest.approx(world + local, rel=1e-5)


def test_ega_is_made_of_pearson_correlations_between_samples():
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
    case = Case("smd", v=2)
    s, t = case.projected(0), case.teacher(0)
    by_hand = (smd_by_hand(s[:B], t[:B], 0.04) + smd_by_hand(s[B:], t[B:], 0.04)) / 2
    late, values = case.answer(0, epoch=2)
    assert late == pytest.approx(by_hand, rel=1e-3)
    assert len(values) == 1
    cosine = float(np.mean((unit(s) * unit(t)).sum(1)))
    assert case.answer(0, epoch=1)[0] == pytest.approx(by_hand + 1 - cosine, rel=1e-3)


def test_proteus_is_the_squared_distance_of_class_token_and_patches():
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


def standardised(t):
    return (t - t.mean(0)) / t.std(0)


def rows_of_tokens(case, term):
    tokens = case.batch(0)[0].tokens.flatten(0, 1)
    with torch.no_grad():
        s = case.terms[term].projector(tokens).numpy()
    return s, standardised(case.teacher(0, "tokens").reshape(-1, DT))


def test_theia_and_unic_mix_cosine_and_smooth_l1_on_standardised_teachers():
    theia, unic = Case("theia"), Case("unic")
    assert theia.answer(0)[0] == pytest.approx(cosine_and_l1(*rows_of_tokens(theia, 0), 0.9, 0.1), rel=1e-3)
    whole = cosine_and_l1(unic.projected(0), standardised(unic.teacher(0)), 0.5, 0.5)
    patches = cosine_and_l1(*rows_of_tokens(unic, 1), 0.5, 0.5)
    assert unic.answer(0)[0] == pytest.approx((whole + patches) / 2, rel=1e-3)


def test_attn_distill_compares_what_the_class_tokens_look_at():
    case = Case("attn_distill")
    total, (mse, attention) = case.answer(0)
    s, t = (f.layers[ATTENTION].numpy().astype(np.float64)[:, :, 0].reshape(B * 2, -1) for f in case.batch(0))
    assert attention == pytest.approx(kl(t, s), rel=1e-3)
    assert mse == pytest.approx(np.mean((case.projected(0) - case.teacher(0)) ** 2), rel=1e-4)
    assert total == pytest.approx(mse + 0.1 * attention, rel=1e-5)


def test_attn_distill_brings_other_heads_and_grids_together():
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


# ------------------------------------------------------------------- classics


def test_fitnets_is_a_hundred_times_the_squared_distance_of_the_maps():
    case = Case("fitnets")
    mse = np.mean((case.projected(0, of="tokens") - case.teacher(0, "tokens")) ** 2)
    assert case.answer(0)[0] == pytest.approx(100 * mse, rel=1e-4)


def test_at_compares_unit_maps_of_energy():
    case = Case("at")
    s, t = (unit((z**2).mean(2)) for z in (case.student(0, "tokens"), case.teacher(0, "tokens")))
    assert case.answer(0)[0] == pytest.approx(1000 * np.mean((s - t) ** 2), rel=1e-4)


def test_fsp_compares_the_flow_from_one_stage_to_the_next():
    objective = build_objective("fsp", widths(DT), widths(DT))  # equal widths: no heads, as published
    assert not list(objective.parameters())

    def flow(given):
        early, late = (given.layers[n].numpy() for n in ("layer3", "layer4"))
        early = early.reshape(B, -1, 2, 2, 2, 2).mean((3, 5))  # 4 x 4 cells to 2 x 2
        return np.einsum("bmhw,bnhw->bmn", early, late) / 4

    s, t = (as_features(everything(B, DT, seed=seed)) for seed in (0, 100))
    total, _ = objective(s, t, views(B))
    assert total.item() == pytest.approx(50 * np.mean((flow(s) - flow(t)) ** 2), rel=1e-4)


def test_sp_compares_unit_rows_of_gram_matrices():
    case = Case("sp")
    s, t = (unit(z @ z.T) for z in (case.student(0), case.teacher(0)))
    assert case.answer(0)[0] == pytest.approx(3000 * ((s - t) ** 2).sum() / B**2, rel=1e-3)


def test_rkd_compares_relative_distances_and_angles_of_triplets():
    def distances(z):
        d = np.linalg.norm(z[:, None] - z[None], axis=2)
        return d / d[d > 0].mean()

    def angles(z):
        out = np.zeros((B, B, B))
        for i in range(B):
            for j in range(B):
                for k in range(B):
                    if i not in (j, k):
                        a, b = z[j] - z[i], z[k] - z[i]
                        out[i, j, k] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        return out

    def huber(gap):
        gap = np.abs(gap)
        return np.mean(np.where(gap < 1, gap**2 / 2, gap - 0.5))

    case = Case("rkd")
    s, t = case.student(0), case.teacher(0)
    by_hand = 25 * huber(distances(s) - distances(t)) + 50 * huber(angles(s) - angles(t))
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-3)


def test_pkt_compares_rows_of_raised_cosines():
    def shares(z):
        raised = (unit(z) @ unit(z).T + 1) / 2
        return raised / raised.sum(1, keepdims=True)

    case = Case("pkt")
    q, p = shares(case.student(0)), shares(case.teacher(0))
    assert case.answer(0)[0] == pytest.approx(30000 * np.mean(p * np.log(p / q)), rel=1e-3)


def test_cc_compares_truncated_gaussian_kernels():
    def kernel(z):
        cosines = unit(z) @ unit(z).T
        return math.exp(-0.8) * (1 + 0.8 * cosines + 0.8**2 / 2 * cosines**2)

    case = Case("cc")
    by_hand = np.mean((kernel(case.student(0)) - kernel(case.teacher(0))) ** 2)
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-3)


def test_dist_correlates_rows_and_columns_of_softmaxes():
    case = Case("dist")
    case.answer(0)
    queue = unit(np.concatenate([case.teacher(1), case.teacher(0)]))
    q, p = (softmax(unit(z) @ queue.T / 0.1) for z in (case.projected(1), case.teacher(1)))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q.T, p.T, strict=True)])
    assert case.answer(1)[0] == pytest.approx(2 - rows - columns, rel=1e-3)


# -------------------------------------------------------------------- systems


def test_r2kd_correlates_values_and_ranks():
    case = Case("r2kd")
    _, (values, ranks) = case.answer(0)
    rho = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(case.projected(0), case.teacher(0), strict=True)])
    assert values == pytest.approx(1 - rho, rel=1e-4)

    def soft_ranks(z):
        cosines = unit(z) @ unit(z).T
        rows = [np.delete(row, i) for i, row in enumerate(cosines)]
        return [[sum(1 / (1 + math.exp((y - x) / 0.1)) for y in row) for x in row] for row in rows]

    pairs = zip(soft_ranks(case.projected(0, 1)), soft_ranks(case.teacher(0)), strict=True)
    assert ranks == pytest.approx(1 - np.mean([np.corrcoef(a, b)[0, 1] for a, b in pairs]), rel=1e-3)


def test_ckd_is_the_mean_over_pairs_that_it_never_forms():
    case = Case("ckd")
    s, t = case.projected(0), standardised(case.teacher(0))
    pairs = [np.mean(((s[i] - s[j]) - (t[i] - t[j])) ** 2) for i in range(B) for j in range(B) if i != j]
    assert case.answer(0)[0] == pytest.approx(np.mean(pairs), rel=1e-3)


def test_trg_relates_patches_within_and_across_images_and_to_their_mean():
    case = Case("trg")
    s, t = case.student(0, "tokens"), case.teacher(0, "tokens")
    _, (local, everywhere, context) = case.answer(0)
    assert local == pytest.approx(gram_kl(s, t, 0.1), rel=1e-4)

    def rows(z):
        z = unit(z[:, [2, 6, 10, 14]].reshape(4 * B, -1))
        return softmax(np.stack([np.delete(row, i) for i, row in enumerate(z @ z.T)]) / 0.1)

    assert everywhere == pytest.approx(kl(rows(t), rows(s)), rel=1e-4)

    def to_mean(z):
        z = unit(z, 2)
        return np.einsum("nld,nd->nl", z, unit(z.mean(1)))

    assert context == pytest.approx(np.mean((to_mean(s) - to_mean(t)) ** 2), rel=1e-4)


def test_clkd_compares_unit_rows_unit_columns_and_correlations_of_dimensions():
    case = Case("clkd")
    s, t = case.projected(0), case.teacher(0)
    by_hand = [np.mean((unit(s) - unit(t)) ** 2), np.mean((unit(s, 0) - unit(t, 0)) ** 2)]
    by_hand.append(np.mean((np.corrcoef(s.T) - np.corrcoef(t.T)) ** 2))
    assert case.answer(0)[1] == pytest.approx(by_hand, rel=1e-3)
    assert len({id(term.projector) for term in case.terms}) == 1


def test_residual_teaches_its_assistant_what_the_first_head_misses():
    case = Case("residual")
    s, _ = case.batch(0)
    t = standardised(case.teacher(0))
    with torch.no_grad():
        first, second = (head(s.embedding).numpy() for head in (case.terms[0].projector, case.terms[0].assistant))
    by_hand = np.mean((first - t) ** 2) + np.mean((second - (t - first)) ** 2)
    total, _ = case.objective(*case.batch(0), views(B))
    assert total.item() == pytest.approx(by_hand, rel=1e-4)
    total.backward()
    grown = [p.grad for p in case.terms[0].projector.parameters()]
    alone = Case("residual")
    value = torch.nn.functional.mse_loss(alone.terms[0].projector(s.embedding), torch.from_numpy(t).float())
    value.backward()  # the assistant's part sends nothing to the first head
    assert all(
        torch.allclose(a, p.grad, atol=1e-5) for a, p in zip(grown, alone.terms[0].projector.parameters(), strict=True)
    )


def test_uncertainty_forgives_where_the_teacher_wavers_between_views():
    case = Case("uncertainty", v=3)
    s, t = case.projected(0).reshape(3, B, DT), standardised(case.teacher(0)).reshape(3, B, DT)
    total = 0.0
    for i in range(B):
        mean, var = t[:, i].mean(0), t[:, i].var(0)
        total += sum(np.mean((s[v, i] - mean) ** 2 / (var + 0.1)) for v in range(3))
    assert case.answer(0)[0] == pytest.approx(total / (3 * B), rel=1e-3)


def test_hint_dynamic_begins_with_equal_weights():
    total, values = Case("hint_dynamic").answer(0)
    assert total == pytest.approx(sum(values) + 3 * math.log(2), rel=1e-5)


# ----------------------------------------------------------------------- ours


def test_knn_soft_lumps_all_but_the_nearest():
    case = Case("knn_soft")
    case.terms[0].comparison.keywords["neighbours"] = 3
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
    from ssl_kd.objectives.comparisons import row_softmax_kl, target_ratio

    teacher, student = rand(1, 6), rand(1, 6, seed=1).requires_grad_()
    y = int(teacher.argmax())
    without = target_ratio(student, teacher, 1.0, 1.0, strength=1e-9)
    pull = torch.autograd.grad(target_ratio(student, teacher, 1.0, 1.0) - without, student)[0][0, y]
    p, q = teacher.softmax(1)[0, y], student.softmax(1)[0, y]
    assert pull.item() == pytest.approx((-torch.log(p / q) * (1 - q)).item(), rel=1e-4)
    # The KL splits into a binary part and the others' part, weighted by what the teacher leaves them.
    binary = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    assert row_softmax_kl(student, teacher, 1, 1).item() == pytest.approx((binary + (1 - p) * without).item(), rel=1e-4)


def test_every_preset_is_named_in_a_test_of_its_formula():
    text = Path(__file__).read_text() + Path(__file__).with_name("test_objectives.py").read_text()
    alike = {"mlkd": "dlkd", "dlkd_light": "dlkd", "queue": "default"}  # the same parts
    assert [name for name in PRESETS if f'"{alike.get(name, name)}"' not in text] == []
