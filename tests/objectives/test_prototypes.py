"""Prototypes: k-means that leaves no cluster empty, and the losses of classes on them, against transcriptions in numpy.

Where a docstring gives a deviation, value and gradient were compared once with the named public code on the same random
logits (64 x 40, float32; DIST, CLKD and heads as in test_presets), beside these tests and not as part of them.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_features import Case, kl, lay_all, rand, softmax, unit

from ssl_kd.errors import UserError
from ssl_kd.objectives import Correlation, Decoupled, Prototypes, Softened, SoftmaxKL, build_objective, spherical_kmeans
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.teacher_heads import Head, TeacherHead
from ssl_kd.types import Features


def cosines(case):
    """Cosines to the prototypes: the student's, the teacher's."""
    anchors = case.terms[0].relation.anchors.double().numpy()
    return unit(case.projected(0)) @ anchors.T, unit(case.teacher(0)) @ anchors.T


# ------------------------------------------------------------------------------------------------ the anchors


def test_kmeans_finds_directions_whatever_the_lengths():
    centres = F.normalize(rand(4, 16), dim=1)
    rows = (centres.repeat(30, 1) + 0.05 * rand(120, 16, seed=1)) * (1 + rand(120, 1, seed=2).abs())
    found = spherical_kmeans(rows, 4, seed=3)
    assert torch.allclose(found.norm(dim=1), torch.ones(4), atol=1e-5)
    assert (centres @ found.T).max(1).values.min() > 0.99
    assert torch.equal(found, spherical_kmeans(rows, 4, seed=3))


@pytest.mark.filterwarnings("ignore")
def test_no_prototype_is_left_without_an_image():
    rows = torch.cat([rand(1, 8).repeat(40, 1), rand(9, 8, seed=1)])  # ten different rows, one of them forty times
    found = spherical_kmeans(rows, 10)
    nearest = (F.normalize(rows, dim=1) @ found.T).argmax(1)
    assert len(set(nearest.tolist())) == 10


def test_as_many_prototypes_as_images_are_the_images_and_more_are_refused():
    rows = F.normalize(rand(6, 5), dim=1)
    assert torch.allclose((spherical_kmeans(rows, 6) @ rows.T).max(0).values, torch.ones(6), atol=1e-5)
    with pytest.raises(UserError, match="6 images cannot have 7 prototypes"):
        spherical_kmeans(rows, 7)


def test_training_without_anchors_is_refused_and_a_dry_look_is_not():
    term = Correlation(6, 10, relation=Prototypes(5))
    assert term.eval()(rand(4, 6), rand(4, 10)) == 0
    with pytest.raises(UserError, match=r"none were laid; call lay\(spherical_kmeans"):
        term.train()(rand(4, 6), rand(4, 10))
    with pytest.raises(UserError, match=r"expected \(5, 10\) numbers with no row of zeros, got \(4, 10\)"):
        term.relation.lay(rand(4, 10))
    with pytest.raises(UserError, match="no row of zeros"):
        term.relation.lay(torch.zeros(5, 10))


def test_the_anchors_are_part_of_the_state():
    one, other = (build_objective("kd", 6, 10) for _ in range(2))
    lay_all(one)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(rand(4, 6), rand(4, 10))[0], other(rand(4, 6), rand(4, 10))[0])


@pytest.mark.parametrize("count", [1, 65537])
def test_a_number_of_prototypes_that_cannot_be_is_refused(count):
    with pytest.raises(UserError, match="expected 2 to 65,536"):
        Prototypes(count)
    relation = Prototypes(2)
    relation.fit(Widths(3), Widths(3))
    assert relation.anchors.shape == (2, 3)


# ------------------------------------------------------------------------------------------------ the losses


def test_kd_is_the_softened_kl_times_the_square_of_the_temperature():
    """Against megvii-research/mdistiller: value to 7e-8, gradient to 5e-7."""
    case = Case("kd")
    s, t = (softmax(z / (0.025 * 4)) for z in cosines(case))
    assert case.answer(0)[0] == pytest.approx(16 * kl(t, s), rel=1e-4)


def test_dkd_parts_the_target_from_the_others():
    """Against megvii-research/mdistiller: value to 9e-7, gradient to 8e-7."""
    case, total = Case("dkd"), 0.0
    for zs, zt in zip(*cosines(case), strict=True):
        p, q = softmax(zt / 0.1), softmax(zs / 0.1)
        y = p.argmax()
        total += kl([[p[y], 1 - p[y]]], [[q[y], 1 - q[y]]])
        total += 8 * kl([np.delete(p, y) / (1 - p[y])], [np.delete(q, y) / (1 - q[y])])
    assert case.answer(0)[0] == pytest.approx(16 * total / case.b, rel=1e-3)


def test_dkd_with_the_teachers_own_share_for_a_weight_is_kd():
    s, t = rand(1, 9), rand(1, 9, seed=1)
    share = 1 - F.softmax(t / 2, dim=1).max().item()
    assert Decoupled(1.0, 2.0, 1.0, share)(s, t).item() == pytest.approx(Softened(1.0, 2.0)(s, t).item(), rel=1e-5)


def test_aekt_is_target_ratio_on_prototypes():
    case, total = Case("aekt"), 0.0
    for zs, zt in zip(*cosines(case), strict=True):
        p, q = softmax(zt / 0.1), softmax(zs / 0.1)
        y = p.argmax()
        total += kl([np.delete(p, y) / (1 - p[y])], [np.delete(q, y) / (1 - q[y])])
        total += np.log(p[y] / q[y]) ** 2 / 2
    assert case.answer(0)[0] == pytest.approx(total / case.b, rel=1e-3)


def test_clkd_prototypes_matches_images_prototypes_and_their_covariance():
    """Against a public re-implementation (CLKD_loss, in mdistiller's form), its divisor C - 1 made N - 1: value to 8e-8,
    gradient to 5e-7.
    """
    case = Case("clkd_prototypes")
    s, t = (z / 0.1 for z in cosines(case))
    by_hand = np.mean((unit(s) - unit(t)) ** 2) + np.mean((unit(s, 0) - unit(t, 0)) ** 2)
    by_hand += np.linalg.norm(np.cov(s.T) - np.cov(t.T)) / s.shape[1] ** 2
    assert case.answer(0)[0] == pytest.approx(by_hand, rel=1e-3)


def test_dist_prototypes_correlates_rows_and_columns():
    """Against hunto/DIST_KD: value to float32, gradient to 4e-7."""
    case = Case("dist_prototypes")
    q, p = (softmax(z / 0.1) for z in cosines(case))
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(q, p, strict=True)])
    x, y = (z.T - z.T.mean(1, keepdims=True) for z in (q, p))
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    columns = np.mean((x * y).sum(1) / (lengths + 1e-8))
    assert case.answer(0)[0] == pytest.approx(2 - rows - columns, rel=1e-3)


# ------------------------------------------------------------------------------------------------ the teacher's own head


def sinkhorn_by_hand(logits):
    """Three times: every column of the batch to 1 / K, every row to 1 / N."""
    q = np.exp(logits)
    q /= q.sum()
    for _ in range(3):
        q /= q.sum(0, keepdims=True) * q.shape[1]
        q /= q.sum(1, keepdims=True) * len(q)
    return q * len(q)


def test_heads_asks_the_student_for_what_the_teachers_head_assigns():
    """Against facebookresearch/dinov3's DINOLoss, less the teacher's entropy: value to 3e-8, gradient to 5e-7."""
    case = Case("heads")
    relation = case.terms[0].relation
    with torch.no_grad():
        s, t = (z.embedding for z in case.batch(0))
        theirs = unit(relation.head.projection(t).double().numpy()) @ relation.head.prototypes.double().numpy().T
        ours = F.normalize(relation.student_head(s), dim=1) @ relation.student_prototypes.weight.T
    p, q = sinkhorn_by_hand(theirs / 0.1), softmax(ours.double().numpy() / 0.1)
    assert case.answer(0)[0] == pytest.approx(kl(p, q), rel=1e-4)
    trained = {name for name, p in case.objective.named_parameters() if p.requires_grad}
    assert trained == {
        f"terms.correlation_teacher_head.relation.student_{part}"
        for part in ("head.0.weight", "head.0.bias", "head.2.weight", "head.2.bias", "head.4.weight", "head.4.bias")
    } | {"terms.correlation_teacher_head.relation.student_prototypes.weight"}


def test_retro_sends_the_student_through_the_teachers_own_head():
    case = Case("retro")
    head = case.terms[0].relation.head
    with torch.no_grad():
        theirs = head(case.batch(0)[1].embedding).double().numpy()
        ours = head(case.terms[0].projector(case.batch(0)[0].embedding)).double().numpy()
    assert case.answer(0)[0] == pytest.approx(kl(sinkhorn_by_hand(theirs / 0.1), softmax(ours / 0.1)), rel=1e-4)
    names = {name for name, p in case.objective.named_parameters() if p.requires_grad}
    assert all(".projector." in name for name in names)


def test_heads_ibot_asks_for_what_the_head_for_patches_assigns_to_hidden_ones():
    """Half of the images have nothing hidden; all count in the mean, as published.

    Against facebookresearch/dinov3's iBOTPatchLoss, less the teacher's entropy: value to 2e-7, gradient to 7e-7.
    """
    case = Case("heads_ibot")
    term, (s, t) = case.terms[1], case.batch(0)
    mask = s.layers["mask"].clone()
    mask[::2] = 0
    s = Features(s.embedding, s.tokens, {**s.layers, "mask": mask})
    head, hidden = term.relation.head, mask.bool()
    with torch.no_grad():
        z = t.tokens[hidden]
        theirs = unit(head.projection(z).double().numpy()) @ head.prototypes.double().numpy().T
        ours = F.normalize(term.relation.student_head(s.layers["masked tokens"][hidden]), dim=1)
        q = softmax((ours @ term.relation.student_prototypes.weight.T).double().numpy() / 0.1)
    gaps = (p := sinkhorn_by_hand(theirs / 0.1)) * np.log(p / q)
    images = np.nonzero(hidden.numpy())[0]
    by_hand = sum(gaps.sum(1)[images == i].mean() for i in set(images.tolist())) / len(mask)
    assert term(s, t).item() == pytest.approx(by_hand, rel=1e-4)
    nothing = Features(s.embedding, s.tokens, {**s.layers, "mask": mask * 0})
    assert term(nothing, t) == 0


def test_a_student_may_speak_through_the_teachers_head_as_well():
    term = lay_all(Correlation(6, 10, relation=TeacherHead(own_head=False), divergence=SoftmaxKL(0.1, 1.0)))
    s, t = rand(8, 6).requires_grad_(), rand(8, 10, seed=1)
    head = term.relation.head
    p, q = F.softmax(head(t) / 0.1, dim=1), F.softmax(head(term.projector(s)) / 0.1, dim=1)
    assert term(s, t).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)
    term.projector = torch.nn.Identity()
    assert term(t, t).abs() < 1e-6


def test_a_head_that_does_not_fit_and_none_at_all_are_one_line():
    term = Correlation(6, 10, relation=TeacherHead(), projector="identity")
    assert term.eval()(rand(4, 6), rand(4, 10)) == 0
    with pytest.raises(UserError, match=r"call give\(load_head\(file\)\) first"):
        term.train()(rand(4, 6), rand(4, 10))
    with pytest.raises(UserError, match="does not read its 10 numbers"):
        term.relation.give(Head(torch.nn.Linear(7, 3), rand(5, 3), 0.1))


# ------------------------------------------------------------------------------------------------ boundaries


def test_boundary_adds_the_same_kl_where_two_prototypes_are_equally_near():
    case = Case("boundary")
    moved, plain = case.terms
    assert moved.projector is plain.projector
    total, values = case.answer(0)
    (s, t), by_hand = case.batch(0), []
    for ours, theirs in ((s.layers["boundary"], t.layers["boundary"]), (s.embedding, t.embedding)):
        with torch.no_grad():
            tables = [
                unit(z.double().numpy()) @ plain.relation.anchors.double().numpy().T
                for z in (moved.projector(ours), theirs)
            ]
        by_hand.append(kl(softmax(tables[1] / 0.1), softmax(tables[0] / 0.1)))
    assert values == pytest.approx(by_hand, rel=1e-3)
    assert total == pytest.approx(sum(by_hand), rel=1e-3)
