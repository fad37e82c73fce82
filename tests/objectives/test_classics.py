"""Classic methods and systems against independent transcriptions, in numpy and plain loops.

Deviations in docstrings are as in test_presets.
"""

import math

import numpy as np
import pytest
import torch
from small_features import (
    DT,
    B,
    Case,
    as_features,
    everything,
    gram_kl,
    kl,
    rand,
    softmax,
    standardised,
    unit,
    views,
    widths,
)

from ssl_kd.errors import UserError
from ssl_kd.objectives import Factors, Selectivity, Variational, build_objective
from ssl_kd.objectives.maps import by_cells, by_channels
from ssl_kd.types import Features

# ------------------------------------------------------------------- classics


def test_fitnets_is_a_hundred_times_the_squared_distance_of_a_middle_layer_and_of_the_last_maps():
    """Against HobbitLong/RepDistiller's hint loss: value and gradient equal to the bit."""
    case = Case("fitnets")
    places = enumerate(["stage.2", "tokens"])
    mse = [np.mean((case.projected(0, term, place) - case.teacher(0, place)) ** 2) for term, place in places]
    assert case.answer(0)[0] == pytest.approx(100 * sum(mse), rel=1e-4)


def test_at_compares_unit_maps_of_energy_at_every_stage():
    """Against HobbitLong/RepDistiller, one stage of other sides: value to float32, gradient to 3e-7."""
    case, total = Case("at"), 0.0
    for k in (1, 2, 3, 4):
        s, t = (unit((z**2).mean(2)) for z in (case.student(0, f"stage.{k}"), case.teacher(0, f"stage.{k}")))
        total += 1000 * np.mean((s - t) ** 2)
    assert case.answer(0)[0] == pytest.approx(total, rel=1e-4)


def test_fsp_compares_the_flow_from_one_stage_to_the_next():
    """Against HobbitLong/RepDistiller: value to float32, gradient to 2e-7."""
    objective = build_objective("fsp", widths(DT), widths(DT))  # equal widths: no heads, as published
    assert not list(objective.parameters())

    def flow(given):
        early, late = (given.layers[n].numpy() for n in ("stage.3", "stage.4"))
        early = early.reshape(B, -1, 2, 2, 2, 2).mean((3, 5))  # 4 x 4 cells to 2 x 2
        return np.einsum("bmhw,bnhw->bmn", early, late) / 4

    s, t = (as_features(everything(B, DT, seed=seed)) for seed in (0, 100))
    total, _ = objective(s, t, views(B))
    assert total.item() == pytest.approx(50 * np.mean((flow(s) - flow(t)) ** 2), rel=1e-4)


def pooled(case, place):
    """(N, C, L) of both networks at a stage, the larger map pooled to the smaller."""
    maps = [given.layers[place].double() for given in case.batch(0)]
    side = min(m.shape[2] for m in maps)
    return [torch.nn.functional.adaptive_avg_pool2d(m, side).flatten(2).numpy() for m in maps]


STAGES = [f"stage.{k}" for k in (1, 2, 3, 4)]


def test_nst_compares_the_places_that_channels_choose_pair_by_pair():
    """Against HobbitLong/RepDistiller, fewer cells than channels and more, one stage of other sides: value to 3e-7, gradient to 5e-7."""

    def kernel(a, b):
        return np.mean([(x @ y) ** 2 for x in a for y in b])

    case, total = Case("nst"), 0.0
    for place in STAGES:
        pairs = zip(*(unit(z, 2) for z in pooled(case, place)), strict=True)
        total += 50 * np.mean([kernel(s, s) + kernel(t, t) - 2 * kernel(s, t) for s, t in pairs])
    assert case.answer(0)[0] == pytest.approx(total, rel=1e-4)


def test_both_ways_to_nst_are_one():
    s, t = (torch.nn.functional.normalize(rand(3, c, 9, seed=c), dim=2) for c in (5, 14))
    assert by_cells(s, t).item() == pytest.approx(by_channels(s, t).item(), rel=1e-5)


def test_a_channel_that_is_silent_leaves_nst_a_gradient():
    term, tap = Selectivity(4, 6), torch.rand(2, 9, 4)
    tap[:, :, 1] = 0
    s = tap.requires_grad_()
    term(Features(rand(2, 4), s), Features(rand(2, 6), rand(2, 9, 6))).backward()
    assert s.grad.isfinite().all()
    assert s.grad[:, :, 0].abs().sum() > 0


def test_vid_is_a_gaussian_around_what_the_student_says_at_every_stage():
    """Against HobbitLong/RepDistiller with its regressor and variances in ours, maps of equal and of other sides: value to
    float32, gradient to 3e-7, of the variances as well."""
    case, total = Case("vid"), 0.0
    for place, term in zip(STAGES, case.terms, strict=True):
        term.log_scale.data += rand(*term.log_scale.shape, seed=3)
        s, t = pooled(case, place)
        first, _, second, _, last = term.projector
        ours = s.swapaxes(1, 2)
        for layer, bend in ((first, True), (second, True), (last, False)):
            ours = ours @ layer.weight.detach().double().numpy().T
            ours = np.maximum(ours, 0) if bend else ours
        variance = np.log1p(np.exp(term.log_scale.detach().double().numpy())) + 1e-5
        total += np.mean((ours - t.swapaxes(1, 2)) ** 2 / variance + np.log(variance)) / 2
    assert case.answer(0)[0] == pytest.approx(total, rel=1e-4)


def test_vid_begins_at_a_variance_of_five_and_rests_at_what_the_student_misses():
    term, t = Variational(6, 6, projector="identity"), rand(64, 6)
    assert term(t, t).item() == pytest.approx(math.log(5) / 2, rel=1e-5)
    assert term(t + 0.1, t) > term(t, t)
    missed = torch.tensor([0.3, 0.5, 1.0, 1.0, 2.0, 3.0])
    term(t + missed, t).backward()
    assert torch.equal(term.log_scale.grad > 0, missed.square() < 5)  # followed well: smaller, and counts more
    term.log_scale.data = torch.log(torch.expm1(missed.square() - 1e-5))
    term.log_scale.grad = None
    term(t + missed, t).backward()
    assert term.log_scale.grad.abs().max() < 1e-5


def test_ft_compares_unit_factors_and_trains_the_paraphraser_on_the_side():
    """Against Jangho-Kim/Factor-Transfer-pytorch with its three networks in ours: value to 2e-7, gradient to 5e-7, that of the
    paraphraser equal to the bit."""
    case = Case("ft")
    (s, t), (term,) = case.batch(0), case.terms
    side = int(math.sqrt(s.tokens.shape[1]))
    maps = [z.tokens.mT.unflatten(2, (side, side)) for z in (s, t)]
    with torch.no_grad():
        ours, theirs = term.translator(maps[0]), term.encoder(maps[1])
        missed = (term.decoder(theirs) - maps[1]).abs().mean().item()
    assert theirs.shape[1] == round(0.5 * DT)
    a, b = (unit(z.flatten(1).double().numpy()) for z in (ours, theirs))
    assert case.answer(0)[0] == pytest.approx(500 * np.abs(a - b).mean() + missed, rel=1e-4)


def test_the_paraphraser_of_ft_does_not_hear_the_student():
    term, t = Factors(6, 8), Features(rand(4, 8), rand(4, 9, 8))
    heard = []
    for seed in (0, 1):
        term.zero_grad()
        term(Features(rand(4, 6), rand(4, 9, 6, seed=seed)), t).backward()
        heard.append([p.grad.clone() for part in (term.encoder, term.decoder) for p in part.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*heard, strict=True))
    assert sum(g.abs().sum() for g in heard[0]) > 0


def test_ft_asks_for_square_grids():
    with pytest.raises(UserError, match="6 tokens of the teacher are no square grid"):
        Factors(6, 8)(Features(rand(4, 6), rand(4, 9, 6)), Features(rand(4, 8), rand(4, 6, 8)))


def test_sp_compares_unit_rows_of_gram_matrices():
    """Against HobbitLong/RepDistiller: value to float32, gradient to 2e-7."""
    case = Case("sp")
    s, t = (unit(z @ z.T) for z in (case.student(0), case.teacher(0)))
    assert case.answer(0)[0] == pytest.approx(3000 * ((s - t) ** 2).sum() / B**2, rel=1e-3)


def test_rkd_compares_relative_distances_and_angles_of_triplets():
    """Against HobbitLong/RepDistiller: value to 3e-7, gradient to 2e-7."""

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
    """Against HobbitLong/RepDistiller: value to 3e-7, gradient to 3e-7."""

    def shares(z):
        raised = (unit(z) @ unit(z).T + 1) / 2
        return raised / raised.sum(1, keepdims=True)

    case = Case("pkt")
    q, p = shares(case.student(0)), shares(case.teacher(0))
    assert case.answer(0)[0] == pytest.approx(30000 * np.mean(p * np.log(p / q)), rel=1e-3)


def test_cc_compares_truncated_gaussian_kernels():
    """Against JDAI-CV/FaceX-Zoo: value to 2e-7, gradient to 6e-7."""

    def kernel(z):
        cosines = unit(z) @ unit(z).T
        return math.exp(-0.8) * (1 + 0.8 * cosines + 0.8**2 / 2 * cosines**2)

    case = Case("cc")
    by_hand = np.mean((kernel(case.student(0)) - kernel(case.teacher(0))) ** 2)
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-3)


def test_dist_correlates_rows_and_columns_of_softmaxes():
    """Against hunto/DIST_KD: value to float32, gradient to 5e-7."""
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
    """Against a public re-implementation (CLKD_loss, in mdistiller's form): value to float32, gradient to 5e-7; its covariance term on
    standardised dimensions, squared."""
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
