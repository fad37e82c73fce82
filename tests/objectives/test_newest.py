"""Newer objectives against independent transcriptions in numpy, and the laws of their parts.

Where a docstring gives a deviation, value and gradient were compared once with the named public code on the same random
tensors (96 x 32, float32), beside these tests and not as part of them.
"""

import math

import numpy as np
import pytest
import torch
from small_features import Case, rand, softmax, unit, views

from ssl_kd.objectives import DISTANCES, Correlation, RenyiCorrelation, RenyiMutual
from ssl_kd.objectives.compression import Compressed
from ssl_kd.objectives.divergences import Differences, TopK
from ssl_kd.objectives.hadamard import even_rotation
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.ladder import Ladder
from ssl_kd.objectives.masked import MaskedTokens, drawn, hide
from ssl_kd.objectives.progression import Progression, linear_cka
from ssl_kd.objectives.target_norms import PhiS
from ssl_kd.types import Features

# ------------------------------------------------------------------------------------------------ across two spaces


def test_csd_looks_from_the_student_at_the_teachers_nearest_alone():
    """Against SCY-X/D3still: value to 2e-8, gradient to 3e-7 (k 20 and the whole batch)."""
    case = Case("csd", b=7)
    case.terms[0].divergence = TopK(1.0, 0.01, neighbours=3)
    t, s = unit(case.teacher(0)), unit(case.projected(0))
    total = 0.0
    for own, row in zip(s @ t.T, t @ t.T, strict=True):
        near = np.argsort(-row)[:3]
        p, q = softmax(row[near] / 0.01), softmax(own[near] / 1.0)
        total += (p * np.log(p / q)).sum()
    assert case.answer(0)[1] == pytest.approx([total / 7], rel=1e-4)
    assert case.answer(0)[0] == pytest.approx(10 * total / 7, rel=1e-4)


def test_d3still_weighs_pairs_in_the_wrong_order_apart():
    """Against SCY-X/D3still: value to 3e-8, gradient to 3e-7 (k 10, weights 100, 5, 1)."""
    case = Case("d3still", b=8)
    case.terms[0].divergence = Differences(neighbours=4)
    t, s = unit(case.teacher(0)), unit(case.projected(0))
    own, wrong, right = [], [], []
    for ours, theirs in zip(s @ t.T, t @ t.T, strict=True):
        first, *others = np.argsort(-theirs)[:4]
        own.append(theirs[first] - ours[first])
        sums = {True: 0.0, False: 0.0}
        for j in others:
            for k in others:
                d, e = ours[j] - ours[k], theirs[j] - theirs[k]
                if j != k:
                    sums[d * e < 0] += ((d - e) / (0.1 + abs(e))) ** 2
        wrong.append(np.sqrt(sums[True]))
        right.append(np.sqrt(sums[False]))
    assert sum(wrong) > 0
    by_hand = 100 * np.linalg.norm(own) / 8 + 5 * np.mean(wrong) / 3 + np.mean(right) / 3
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("divergence", [TopK(0.1), Differences()])
def test_relations_across_two_spaces_see_a_turned_student_and_relations_inside_each_do_not(divergence):
    t = rand(12, 6)
    turned = t @ torch.linalg.qr(rand(6, 6, seed=1))[0]
    inside, across = (Correlation(6, 6, r, divergence, "identity")(turned, t) for r in ("gram", "cross"))
    assert inside < 1e-5
    assert across > 0.1


@pytest.mark.parametrize("divergence", [TopK(0.1, neighbours=50), Differences(neighbours=50)])
def test_columns_that_take_no_part_are_never_among_the_nearest(divergence):
    s, t = rand(5, 9), rand(5, 9, seed=1)
    hidden = torch.zeros(5, 9, dtype=torch.bool)
    hidden[:, 4] = True
    masked = divergence(*(z.masked_fill(hidden, -torch.inf) for z in (s, t)))
    assert masked == divergence(*(z[:, ~hidden[0]] for z in (s, t)))


# ------------------------------------------------------------------------------------------------ ITRD


def test_itrd_adds_up_missing_correlations_and_the_cosines_that_the_teacher_lacks():
    """Against roymiles/ITRD (96 x 32 to 96 x 48), its embedding in ours: value to 2e-7, gradient to 4e-7, each term and the sum."""
    case = Case("itrd", b=7)
    s, t = case.projected(0), case.teacher(0)
    correlations = [np.corrcoef(a, b)[0, 1] * 6 / 7 for a, b in zip(s.T, t.T, strict=True)]
    missing = math.log2(sum((1 - c) ** 3 for c in correlations))
    ours, theirs = (unit(z) @ unit(z).T for z in (s, t))
    spread = sum((ours[i, j] / 7) ** 2 - (ours[i, j] * theirs[i, j] / 7) ** 2 for i in range(7) for j in range(7))
    assert case.answer(0)[1] == pytest.approx([missing, spread], rel=1e-4)
    assert case.answer(0)[0] == pytest.approx(2 * missing + 0.05 * spread, rel=1e-4)
    assert len({id(term.projector) for term in case.terms}) == 1


def test_the_correlations_of_itrd_are_lowest_at_a_match_whatever_scale_and_place():
    term, t = RenyiCorrelation(6, 6, projector="identity"), rand(16, 6)
    lowest = math.log2(6 * 16**-3)
    assert term(3 * t + 5, t).item() == pytest.approx(lowest, abs=1e-3)
    for size in (0.1, 1.0):
        assert term(t + size * rand(16, 6, seed=1), t) > lowest + 0.01


def test_a_dimension_that_rests_is_uncorrelated_and_no_nan():
    term, t = RenyiCorrelation(6, 6, projector="identity"), rand(16, 6)
    t[:, 2] = 1
    s = rand(16, 6, seed=1).requires_grad_()
    value = term(s, t)
    value.backward()
    assert value.isfinite()
    assert s.grad.isfinite().all()
    assert torch.allclose(s.grad[:, 2], torch.zeros(16), atol=1e-6)


def test_the_second_term_of_itrd_is_content_with_pairs_that_the_teacher_has_together():
    together = torch.cat([rand(1, 6), rand(1, 6)]).repeat(4, 1)
    assert RenyiMutual(6, 6, projector="identity")(rand(8, 6, seed=1), together).abs() < 1e-6


# ------------------------------------------------------------------------------------------------ RADIO


def test_radio_is_nine_parts_of_cosine_and_one_of_smooth_l1_with_its_corner_at_two():
    """`balanced` and `dampened` against NVIDIA-TAO/tao-pytorch: value to float32, gradient to 6e-8."""
    s, t = 3 * rand(6, 5), 3 * rand(6, 5, seed=1)
    gap = (s - t).abs().numpy()
    assert gap.max() > 2 > gap.min()
    huber = np.where(gap < 2, gap**2 / 4, gap - 1).mean()
    cosines = (unit(s.numpy()) * unit(t.numpy())).sum(1)
    assert DISTANCES["balanced"](s, t).item() == pytest.approx(0.9 * (1 - cosines.mean()) + 0.1 * huber, rel=1e-5)
    far = np.where(gap < 1, gap**2 / 2, 2 * np.sqrt(gap) - 1.5).mean()
    assert DISTANCES["dampened"](s, t).item() == pytest.approx(far, rel=1e-5)
    case = Case("radio")
    term = case.terms[0]
    space = PhiS(7)
    expected = DISTANCES["balanced"](
        term.projector(case.batch(0)[0].embedding), space(torch.from_numpy(case.teacher(0)).float())
    )
    assert case.answer(0)[1][0] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("width", [1, 2, 12, 16, 20, 24])
def test_hadamard_matrices_are_orthogonal_and_even(width):
    rotation = even_rotation(width)
    assert torch.allclose(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rotation.abs(), torch.full_like(rotation, width**-0.5))


@pytest.mark.parametrize("width", [3, 7, 10, 52])
def test_other_widths_get_an_orthogonal_matrix(width):
    rotation = even_rotation(width)
    assert torch.allclose(rotation @ rotation.T, torch.eye(width, dtype=torch.float64), atol=1e-12)


def test_phi_s_gives_every_dimension_the_same_variance_and_keeps_all_distances():
    """Against NVIDIA-TAO/tao-pytorch (width 12, 4,096 rows): distances differ by the sqrt(n / (n - 1)) of its variance."""
    t = rand(4000, 12) @ rand(12, 12, seed=1) + 5
    z = PhiS(12)(t)
    assert torch.allclose(z.mean(0), torch.zeros(12), atol=1e-3)
    assert torch.allclose(z.var(0, unbiased=False), torch.ones(12), atol=1e-3)
    ratio = torch.pdist(z[:50]) / torch.pdist(t[:50])
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)


def test_phi_s_moves_little_when_it_is_made_anew():
    space, t = PhiS(12), rand(2048, 12) * torch.arange(1, 13)
    for part in t.chunk(8):
        space(part)
    before = space.matrix.clone()
    for part in t.chunk(8):
        space(part)
    assert not torch.equal(before, space.matrix) or torch.allclose(before, space.matrix)
    assert torch.allclose(before, space.matrix, atol=0.02)


# ------------------------------------------------------------------------------------------------ CosPress


def neighbour_embedding_by_hand(ours, theirs):
    total = 0.0
    for tau in np.arange(1, 11) / 100:
        shares = []
        for z in (theirs, ours):
            table = unit(z) @ unit(z).T / tau
            np.fill_diagonal(table, -np.inf)
            rows = softmax(table)
            shares.append((rows + rows.T) / (rows + rows.T).sum())
        p, q = (share[~np.eye(len(ours), dtype=bool)] for share in shares)
        total += (p * np.log(p / q)).sum() / 10
    return total


def test_cospress_keeps_cosines_in_the_students_width_and_puts_the_student_there():
    """Against emannix/cospress-...: images, patches and the cosine to 2e-7 in value and 5e-7 in gradient."""
    case = Case("cospress")
    (s, t), head = case.batch(0), case.terms[0].compressor
    with torch.no_grad():
        squeezed, patches = head(t.embedding).double().numpy(), head(t.tokens).double().numpy()
    by_hand = neighbour_embedding_by_hand(squeezed, case.teacher(0))
    by_hand += np.mean([neighbour_embedding_by_hand(*pair) for pair in zip(patches, t.tokens.numpy(), strict=True)])
    for ours, aim in ((case.student(0), squeezed), (s.tokens.flatten(1).numpy(), patches.reshape(len(patches), -1))):
        by_hand += 1 - (unit(ours) * unit(aim)).sum(1).mean()
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-3)


def test_the_student_of_cospress_feels_the_cosine_alone():
    term = Compressed(6, 10)
    s, t = rand(8, 6).requires_grad_(), rand(8, 10, seed=1)
    term(s, t).backward()
    aim = term.compressor(t).detach()
    again = s.detach().clone().requires_grad_()
    (1 - torch.nn.functional.cosine_similarity(again, aim, dim=1).mean()).backward()
    assert torch.allclose(s.grad, again.grad, atol=1e-6)
    assert all(p.grad.abs().sum() > 0 for p in (term.compressor[0].weight, term.compressor[1].weight))


def test_tokens_of_another_width_than_the_embedding_have_a_head_of_their_own():
    term = Compressed(Widths(6, 4), Widths(10, 12), of_tokens=True)
    assert term.token_compressor[1].weight.shape == (4, 12)
    assert Compressed(6, 10, of_tokens=True).token_compressor is None


# ------------------------------------------------------------------------------------------------ LEAP


def test_leap_regresses_one_layer_of_the_teacher_and_its_class_token():
    """Against KevinZ0217/LEAP's training step, on raw layers and with its one head in ours: patches equal to the bit, with
    class tokens value to float32, gradient to 3e-7."""
    case = Case("leap")
    term = case.terms[0]
    case.answer(0)
    at = int(term.place)
    (s, t), name = case.batch(1), f"stage.{at + 1}"
    cells = t.layers[name].flatten(2).mT.double().numpy().reshape(-1, t.layers[name].shape[1])
    ours = (
        torch.nn.functional.interpolate(
            s.tokens.mT.unflatten(2, (4, 4)), size=t.layers[name].shape[2:], mode="bilinear"
        )
        if t.layers[name].shape[2] > 4
        else torch.nn.functional.adaptive_avg_pool2d(s.tokens.mT.unflatten(2, (4, 4)), t.layers[name].shape[2])
    )
    term.eval()
    with torch.no_grad():
        ours = term.heads[at](ours.flatten(2).mT).numpy().reshape(len(cells), -1)
        whole = term.summary_heads[at](s.embedding).numpy()
    space, summary = term.spaces[at], term.summary_spaces[at]
    aim = (cells - space.mean.numpy()) / np.sqrt(space.var.numpy() + 1e-6)
    means = t.layers[name].mean((2, 3)).numpy()
    aim_of_summary = (means - summary.mean.numpy()) / np.sqrt(summary.var.numpy() + 1e-6)
    by_hand = np.mean((ours - aim) ** 2) + 0.05 * np.mean((whole - aim_of_summary) ** 2)
    assert case.answer(1)[0] == pytest.approx(by_hand, rel=1e-3)


def test_linear_cka_is_one_for_turned_rows_and_small_for_strangers():
    """Against KevinZ0217/LEAP's minibatch_linear_cka: to 1e-6."""
    x = rand(200, 8)
    turned = 3 * x @ torch.linalg.qr(rand(8, 8, seed=1))[0] + 5
    assert linear_cka(x, turned).item() == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, rand(200, 8, seed=2)) < 0.2


def ladder(width=10):
    torch.manual_seed(0)
    layers = {f"stage.{k}": width for k in range(1, 5)}
    return Progression(Widths(width), Widths(width, None, layers), threshold=0.4, most_epochs=2)


def stages_of(seed=0, width=10):
    layers = {f"stage.{k}": rand(8, 16, width, seed=seed + k) for k in range(1, 5)}
    return Features(rand(8, width, seed=seed), rand(8, 16, width, seed=seed + 9), layers)


def test_the_target_begins_where_the_student_resembles_the_teacher_and_moves_deeper_when_it_is_near_enough():
    term, teacher = ladder(), stages_of()
    student = Features(rand(8, 10), teacher.layers["stage.2"])
    term(student, teacher, views(8))
    assert term.deepest == "stage.3"  # begun at the second, which a linear map of it resembles enough
    assert len(term.heads) == 1
    stranger = Features(rand(8, 10), rand(8, 16, 10, seed=77))
    term(stranger, teacher, views(8, epoch=1))
    assert term.deepest == "stage.3"
    term(stranger, teacher, views(8, epoch=2))
    assert term.deepest == "stage.4"  # the epochs are over
    term(Features(rand(8, 10), teacher.layers["stage.4"]), teacher, views(8, epoch=9))
    assert term.deepest == "stage.4"  # there is none behind it


def test_leap_is_lowest_at_a_match_of_its_target():
    term, teacher = ladder().eval(), stages_of()
    for parts in (term.heads, term.summary_heads, term.spaces, term.summary_spaces):
        for at in range(len(parts)):
            parts[at] = torch.nn.Identity()
    term.place.fill_(2)
    match = Features(teacher.layers["stage.3"].mean(1), teacher.layers["stage.3"])
    assert term(match, teacher, views(8)) == 0
    assert term(Features(match.embedding, match.tokens + 0.1 * rand(8, 16, 10)), teacher, views(8)) > 0


# ------------------------------------------------------------------------------------------------ UNIC's ladder


def test_unic_ladder_adds_up_what_every_layer_says():
    """Against naver/unic's ladder and loss for one teacher, with its heads in ours: value and gradients equal to the bit."""
    case = Case("unic_ladder")
    (s, t), (whole, patches) = case.batch(0), case.terms
    with torch.no_grad():
        summed = sum(head(s.layers[f"stage.{k}"].mean((2, 3))) for k, head in enumerate(whole.heads, start=1))
        cells = 0
        for k, head in enumerate(patches.heads, start=1):
            tap = s.layers[f"stage.{k}"]
            pool = torch.nn.functional.adaptive_avg_pool2d
            grown = torch.nn.functional.interpolate(tap, size=(4, 4), mode="bilinear")
            cells = cells + head((grown if tap.shape[2] < 4 else pool(tap, 4)).flatten(2).mT)
    expected = []
    for ours, theirs in ((summed, t.embedding), (cells.flatten(0, 1), t.tokens.flatten(0, 1))):
        aim = (theirs - theirs.mean(0)) / theirs.std(0, unbiased=False)
        expected.append(DISTANCES["unic"](ours, aim).item())
    total, values = case.answer(0)
    assert values == pytest.approx(expected, rel=1e-3)
    assert total == pytest.approx(sum(expected) / 2, rel=1e-3)
    assert [head[0].out_features for head in whole.heads] == [768, 768, 768, 3072]


def test_a_ladder_of_one_layer_is_lowest_at_a_match():
    layers = Widths(6, None, {"stage.4": 6})
    term = Ladder(layers, 6, ("stage.4",), space="raw")
    term.heads[0] = torch.nn.Identity()
    tap = rand(4, 6, 3, 3)
    student = Features(rand(4, 6), None, {"stage.4": tap})
    assert term(student, Features(tap.mean((2, 3)))).abs() < 1e-5
    assert term(student, Features(tap.mean((2, 3)) + 0.3)) > 0.01


# ------------------------------------------------------------------------------------------------ Proteus' third term


def test_proteus_masked_asks_for_what_was_hidden():
    """Against BeSpontaneous/Proteus-pytorch on the same masked patches: value and gradient equal to the bit."""
    case = Case("proteus_masked")
    total, (whole, patches, hidden) = case.answer(0)
    s, t = case.batch(0)
    where = s.layers["mask"].bool()
    with torch.no_grad():
        ours = case.terms[2].projector(s.layers["masked tokens"][where]).numpy()
    assert hidden == pytest.approx(np.mean((ours - t.tokens[where].numpy()) ** 2), rel=1e-4)
    assert total == pytest.approx(whole + patches + hidden, rel=1e-5)


def test_half_of_the_patches_of_half_of_the_images_are_hidden_by_their_numbers():
    masks = drawn(np.arange(400), 3, 0, 16)
    assert set(masks.sum(1).tolist()) == {0.0, 8.0}
    assert 0.4 < (masks.sum(1) > 0).float().mean() < 0.6
    assert torch.equal(masks[7:9], drawn(np.array([7, 8]), 3, 0, 16))
    assert not torch.equal(masks, drawn(np.arange(400), 4, 0, 16))
    pixels = hide(torch.ones(400, 3, 8, 8), masks, torch.full((1, 3, 1, 1), 0.25))
    assert torch.equal(pixels[:, 0, ::2, ::2].flatten(1) == 0.25, masks > 0)


def test_masked_tokens_is_zero_at_a_match_and_where_nothing_is_hidden():
    term = MaskedTokens(6, 6, projector="identity")
    patches, mask = rand(4, 9, 6), (torch.arange(9) % 2).float().repeat(4, 1)
    seen = Features(rand(4, 6), patches, {"masked tokens": patches + (1 - mask)[:, :, None], "mask": mask})
    teacher = Features(rand(4, 6), patches)
    assert term(seen, teacher) == 0
    assert term(Features(rand(4, 6), patches, {"masked tokens": patches + 1, "mask": mask}), teacher) == 1
    assert term(Features(rand(4, 6), patches, {"masked tokens": patches + 1, "mask": mask * 0}), teacher) == 0
