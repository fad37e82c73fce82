"""The parts of objectives: oracles, laws and bad input. Presets and the walk over the catalogue have their own files."""

import math

import numpy as np
import pytest
import torch
from small_features import features, rand, views

from ssl_kd.errors import UserError
from ssl_kd.objectives import build_objective
from ssl_kd.objectives.alignment import Alignment
from ssl_kd.objectives.correlation import Correlation
from ssl_kd.objectives.divergences import SoftmaxKL, row_pearson, soft_rank, table_l2
from ssl_kd.objectives.inputs import layer_tokens, to_grid
from ssl_kd.objectives.memory_bank import MemoryBank
from ssl_kd.objectives.projectors import projector
from ssl_kd.objectives.relations import BatchTable, KernelTable, ViewsTable
from ssl_kd.objectives.target_norms import Centre, Standardise, Whiten
from ssl_kd.types import Features

# ------------------------------------------------------------------ oracles


def test_simreg_alignment_is_the_squared_distance_of_unit_vectors():
    s, t = rand(6, 5), rand(6, 5, seed=1)
    term = Alignment(5, 5, projector="identity")
    by_hand = np.mean(
        [
            np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2)
            for a, b in zip(s.numpy(), t.numpy(), strict=True)
        ]
    )
    assert term(features(s), features(t), views(6)).item() == pytest.approx(by_hand, abs=1e-6)


def dlkd_correlation_by_hand(s, t, b, v, tau):
    """KL(softmax(T/tau) || softmax(S/tau)) over rows of augmented against plain views, one scalar loop at a time."""
    total, rows = 0.0, 0
    for a in range(b, v * b):
        row_s = [float(np.dot(s[a], s[c]) / np.linalg.norm(s[a]) / np.linalg.norm(s[c])) / tau for c in range(b)]
        row_t = [float(np.dot(t[a], t[c]) / np.linalg.norm(t[a]) / np.linalg.norm(t[c])) / tau for c in range(b)]
        p = np.exp(row_t) / np.sum(np.exp(row_t))
        q = np.exp(row_s) / np.sum(np.exp(row_s))
        total += float(np.sum(p * np.log(p / q)))
        rows += 1
    return total / rows


@pytest.mark.parametrize("v", [2, 4])
def test_dlkd_correlation_agrees_with_a_loop_over_pairs(v):
    b = 5
    s, t = rand(v * b, 7), rand(v * b, 3, seed=1)
    term = Correlation(7, 3, relation="views", divergence=SoftmaxKL(0.5), projector="identity")
    got = term(features(s), features(t), views(b, v)).item()
    assert got == pytest.approx(dlkd_correlation_by_hand(s.numpy(), t.numpy(), b, v, 0.5), rel=1e-5)


def test_dlkd_weighs_alignment_20_and_correlation_50():
    """Against ifding/DLKD, four views of 24 images, its heads in ours: value to 2e-7, gradient to 4e-7."""
    objective = build_objective("dlkd", 6, 4).eval()
    s, t = rand(8, 6), rand(8, 4, seed=1)
    total, terms = objective(features(s), features(t), views(4, 2))
    assert total.item() == pytest.approx(
        20 * terms["alignment"].item() + 50 * terms["correlation_views"].item(), rel=1e-5
    )


def test_dlkd_alignment_head_is_sixteen_times_the_teacher():
    shapes = [tuple(p.shape) for p in projector("dlkd", 6, 4).parameters() if p.ndim == 2]
    assert shapes == [(64, 6), (4, 64)]


def test_simreg_head_has_its_four_published_layers():
    """Against UCDvision/simreg, its head in ours: value and gradient of the loss equal to the bit."""
    shapes = [tuple(p.shape) for p in projector("simreg", 6, 4).parameters() if p.ndim == 2]
    assert shapes == [(12, 6), (6, 12), (12, 6), (4, 12)]


def queue_loss_by_hand(s, t, columns, tau):
    total = 0.0
    for a, b, cols in zip(s, t, columns, strict=True):
        row_s = np.array([np.dot(a, c) for c in cols]) / tau
        row_t = np.array([np.dot(b, c) for c in cols]) / tau
        p, q = np.exp(row_t - np.logaddexp.reduce(row_t)), np.exp(row_s - np.logaddexp.reduce(row_s))
        total += float(np.sum(p * np.log(p / q)))
    return total / len(s)


def test_queue_correlation_agrees_with_a_loop_and_keeps_what_the_teacher_said():
    term = Correlation(4, 4, relation=MemoryBank(16), divergence=SoftmaxKL(0.1), projector="identity")
    unit = lambda z: torch.nn.functional.normalize(z, dim=1).numpy()  # noqa: E731
    s1, t1, s2, t2 = (rand(3, 4, seed=i) for i in range(4))
    first = term(features(s1), features(t1), views(3)).item()
    assert first == pytest.approx(queue_loss_by_hand(unit(s1), unit(t1), [unit(t1)] * 3, 0.1), rel=1e-4)
    second = term(features(s2), features(t2), views(3, start=3)).item()
    columns = np.concatenate([unit(t2), unit(t1)])
    assert second == pytest.approx(queue_loss_by_hand(unit(s2), unit(t2), [columns] * 3, 0.1), rel=1e-4)


def test_an_image_never_meets_an_older_view_of_itself_in_the_queue():
    relation = MemoryBank(dim=4, size=16)
    relation(rand(3, 4), rand(3, 4), views(3))
    _, teacher = relation(rand(3, 4, seed=2), rand(3, 4, seed=3), views(3))
    assert torch.isneginf(teacher[:, 3:]).equal(torch.eye(3, dtype=torch.bool))
    assert torch.isfinite(teacher[:, :3]).all()


def test_queue_overwrites_the_oldest_and_counts_only_what_is_filled():
    relation = MemoryBank(dim=2, size=4)
    for start in (0, 3, 6):
        relation(rand(3, 2, seed=start), rand(3, 2, seed=start + 1), views(3, start=start))
    assert sorted(relation.index.tolist()) == [5, 6, 7, 8]
    assert int(relation.filled) == 4
    half = MemoryBank(dim=2, size=100)
    half(rand(3, 2), rand(3, 2), views(3))
    student, _ = half(rand(3, 2), rand(3, 2), views(3, start=3))
    assert student.shape == (3, 6)


def test_queue_in_eval_mode_remembers_nothing():
    relation = MemoryBank(dim=2, size=4).eval()
    relation(rand(3, 2), rand(3, 2), views(3))
    assert int(relation.filled) == 0


def test_row_pearson_agrees_with_numpy():
    s, t = rand(5, 9), rand(5, 9, seed=1)
    by_hand = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(s.numpy(), t.numpy(), strict=True)])
    assert float(row_pearson(s, t)) == pytest.approx(by_hand, abs=1e-6)


def test_left_out_columns_change_nothing():
    s, t = rand(4, 6), rand(4, 6, seed=1)
    wide_s, wide_t = torch.cat([s, torch.full((4, 2), -math.inf)], 1), torch.cat([t, torch.full((4, 2), -math.inf)], 1)
    for compare in (SoftmaxKL(0.3), row_pearson, table_l2):
        assert float(compare(wide_s, wide_t)) == pytest.approx(float(compare(s, t)), rel=1e-5)


def test_standardised_teacher_has_zero_mean_and_unit_variance_after_its_first_batch():
    z = Standardise(5)(3 + 7 * rand(64, 5))
    assert z.mean(0).abs().max() < 1e-5
    assert (z.var(0, unbiased=False) - 1).abs().max() < 1e-4


def test_a_dimension_that_rested_in_the_first_batch_is_not_blown_up():
    space, batches = Standardise(2), [rand(64, 2, seed=i) for i in range(5)]
    batches[0][:, 1] = 0
    for t in batches:
        z = space(t)
    everything = torch.cat(batches)
    assert torch.allclose(space.mean, everything.mean(0), atol=1e-6)
    assert z[:, 1].std() < 2


def test_centred_teacher_has_zero_mean_and_keeps_its_spread():
    t = 3 + 7 * rand(64, 5)
    z = Centre(5)(t)
    assert z.mean(0).abs().max() < 1e-5
    assert torch.allclose(z.std(0), t.std(0), rtol=1e-5)


def test_whitening_learns_the_statistics_of_all_batches_and_undoes_their_covariance():
    mixing = rand(4, 4, seed=9)
    space = Whiten(4, shrinkage=1e-6)
    batches = [2 + rand(256, 4, seed=i) @ mixing for i in range(8)]
    for batch in batches:
        space(batch)
    everything = torch.cat(batches)
    assert torch.allclose(space.mean, everything.mean(0), atol=1e-5)
    assert torch.allclose(space.covariance, torch.cov(everything.T, correction=0), atol=1e-4)
    z = space.eval()(everything)
    assert torch.allclose(torch.cov(z.T, correction=0), torch.eye(4), atol=1e-3)
    assert torch.allclose(space.matrix, space.matrix.T, atol=1e-5)


def test_whitening_stops_learning_after_its_batches():
    space = Whiten(3, batches=2)
    for i in range(2):
        space(rand(8, 3, seed=i))
    kept = {k: v.clone() for k, v in space.state_dict().items()}
    space(rand(8, 3, seed=5))
    assert all(torch.equal(v, space.state_dict()[k]) for k, v in kept.items())


@pytest.mark.parametrize(("batch", "columns"), [("beside", 11), ("inside", 8), ("own", 9), ("none", 8)])
def test_the_batch_stands_where_it_was_asked_to(batch, columns):
    relation = MemoryBank(dim=4, size=8, batch=batch)
    for step in range(3):
        relation(rand(3, 4, seed=step), rand(3, 4, seed=step), views(3, start=3 * step))
    assert int(relation.filled) == 8
    _, teacher = relation(rand(3, 4, seed=7), rand(3, 4, seed=8), views(3, start=90))
    assert int((~torch.isneginf(teacher)).sum(1).unique()) == columns
    own = torch.isclose(teacher, torch.ones(()), atol=1e-5).any(1)
    assert own.all() == (batch != "none")


def test_a_full_queue_with_the_batch_inside_is_what_the_queue_holds_afterwards():
    relation = MemoryBank(dim=4, size=8, batch="inside")
    for step in range(4):
        s, t = rand(3, 4, seed=step), rand(3, 4, seed=20 + step)
        student, _ = relation(s, t, views(3, start=3 * step))
    cosines = torch.nn.functional.normalize(s, dim=1) @ relation.bank.T
    assert torch.allclose(
        student[~torch.isneginf(student)].view(3, 8).sort(1).values, cosines.sort(1).values, atol=1e-6
    )


def test_a_queue_that_shows_every_slot_holds_the_newest_first_of_each_batch_and_zeros():
    relation = MemoryBank(dim=4, size=8, batch="inside", every_slot=True)
    seen = torch.zeros(8, 4)  # newest first; a batch keeps its order, and the last ones fall out at the end
    for step in range(4):
        s, t = (torch.nn.functional.normalize(rand(3, 4, seed=20 * k + step), dim=1) for k in range(2))
        seen = torch.cat([t, seen])[:8]
        for table, z in zip(relation(s, t, views(3, start=step % 2)), (s, t), strict=True):
            assert torch.allclose(table.sort(1).values, (z @ seen.T).sort(1).values, atol=1e-6)
    with pytest.raises(UserError, match="batch inside"):
        MemoryBank(dim=4, every_slot=True)


def test_gaussian_kernels_are_what_the_series_goes_to():
    s = torch.nn.functional.normalize(rand(5, 7), dim=1)
    table, _ = KernelTable(gamma=0.4, order=12)(s, s, views(5))
    assert torch.allclose(table, torch.exp(-0.4 * torch.cdist(s, s) ** 2), atol=1e-5)


def test_soft_ranks_become_ranks_at_small_temperatures():
    table = rand(4, 9)
    assert torch.allclose(soft_rank(table, 1e-5), table.argsort(1).argsort(1) + 0.5, atol=1e-3)


def test_student_tokens_on_a_finer_grid_are_averaged_and_on_a_coarser_one_spread():
    z = rand(2, 16, 3)
    cells = z.view(2, 2, 2, 2, 2, 3).mean((2, 4)).view(2, 4, 3)
    assert torch.allclose(to_grid(z, 4), cells, atol=1e-6)
    assert torch.allclose(to_grid(torch.ones(2, 4, 3), 16), torch.ones(2, 16, 3))
    centre = rand(2, 9, 3)
    assert torch.allclose(to_grid(centre, 1, sampled=True), centre[:, 4:5])
    with pytest.raises(UserError, match="square grids"):
        to_grid(rand(2, 6, 3), 16)


def test_class_and_register_tokens_are_cut_off_a_tapped_layer():
    tap = rand(2, 5 + 16, 3)
    given = Features(rand(2, 3), None, {"blocks.3": tap})
    assert torch.equal(layer_tokens(given, "blocks.3", "student"), tap[:, 5:])


def test_terms_that_name_one_head_share_its_weights():
    objective = build_objective("ega", 6, 10)
    across, pearson = objective.terms.values()
    assert across.projector is pearson.projector
    assert len(list(objective.parameters())) == 2


# --------------------------------------------------------------------- laws


@pytest.mark.parametrize("relation", ["views", "batch", "queue"])
@pytest.mark.parametrize("comparison", ["softmax_kl", "pearson", "l2"])
def test_correlation_is_zero_at_a_match_and_blind_to_the_teachers_scale(relation, comparison):
    term = Correlation(5, 5, relation=relation, divergence=comparison, projector="identity").eval()
    s, t = rand(8, 5), rand(8, 5, seed=1)
    assert term(features(t), features(3 * t), views(4, 2)).item() == pytest.approx(0, abs=1e-6)
    apart = term(features(s), features(t), views(4, 2)).item()
    assert apart > 1e-4
    assert term(features(s), features(9 * t), views(4, 2)).item() == pytest.approx(apart, rel=1e-5)


def test_own_tables_are_blind_to_a_rotation_of_the_student():
    s, t = rand(8, 5), rand(8, 5, seed=1)
    q, _ = torch.linalg.qr(rand(5, 5, seed=2))
    for relation in (ViewsTable(), BatchTable()):
        a, _ = relation(s, t, views(4, 2))
        b, _ = relation(s @ q, t, views(4, 2))
        assert torch.allclose(a, b, atol=1e-5)


def test_similarities_stay_float32_under_autocast():
    term = Correlation(8, 8, relation="queue")
    with torch.autocast("cpu", torch.bfloat16):
        value = term(features(rand(4, 8).bfloat16()), features(rand(4, 8).bfloat16()), views(4))
    assert value.dtype == torch.float32
    assert term.relation.bank.dtype == torch.float32


def test_a_step_down_the_gradient_brings_the_student_closer():
    torch.manual_seed(0)
    objective = build_objective("simreg_queue", 6, 10)
    student, t = torch.nn.Parameter(rand(16, 6)), rand(16, 10, seed=1)
    optimizer = torch.optim.Adam([student, *objective.parameters()], 0.02)
    losses = []
    for _ in range(60):
        total, _ = objective(features(student), features(t), views(16))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    assert losses[-1] < 0.5 * losses[0]


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("simregg", "Did you mean simreg"),
        ([], "list of terms"),
        (["alignment"], "list of terms"),
        ([{"weight": 1}], "needs `term`"),
        ([{"term": "alignment", "projctor": "mlp"}], "Did you mean projector"),
        ([{"term": "alignment", "projector": "mpl"}], "Did you mean mlp"),
        ([{"term": "alignment", "distance": "cosin"}], "Did you mean cosine"),
        ([{"term": "alignment", "space": "rawr"}], "Did you mean raw"),
        ([{"term": "alignment", "weight": 0}], "above 0"),
        ([{"term": "alignment", "weight": float("nan")}], "above 0"),
        ([{"term": "correlation", "relation": "queues"}], "Did you mean queue"),
        ([{"term": "correlation", "relation": "queue", "size": 0}], "at least 1"),
        ([{"term": "correlation", "tau_student": 0}], "above 0"),
        ([{"term": "correlation", "relation": "queue", "projector": "square"}], "keeps the student's width"),
        ([{"term": "correlation", "relation": "batch", "size": 8}], "batch with softmax_kl has no 'size'"),
        ([{"term": "correlation", "relation": "queue", "batch": "inside_"}], "Did you mean inside"),
        ([{"term": "correlation", "relation": "queue", "batch": "none", "size": 1}], "at least 2"),
        ([{"term": "correlation", "relation": "two_queues", "momentum": 1, "projector": "identity"}], "below 1"),
        ([{"term": "correlation", "relation": "two_queues", "momentum": 0.9}], "takes projector identity"),
        ([{"term": "correlation", "relation": "flow", "student_layers": ["stage.3"]}], "a list of 2"),
        ([{"term": "correlation", "relation": "angles", "rows": 2}], "at least 3"),
        ([{"term": "correlation", "relation": "all_tokens", "per_image": 0}], "at least 1"),
        ([{"term": "correlation", "comparison": "nearst"}], "Did you mean nearest"),
        ([{"term": "alignment", "of": "token"}], "Did you mean tokens"),
        ([{"term": "alignment", "projector": "identity"}], "keeps the student's width"),
        ([{"term": "residual", "distance": "ms"}], "Did you mean mse"),
        ([{"term": "uncertainty", "eps": 0}], "above 0"),
        ([{"term": "hard_pairs", "tau": 0}], "above 0"),
        (
            [{"term": "alignment", "head": "a"}, {"term": "alignment", "projector": "mlp", "head": "a"}],
            "same projector",
        ),
        ("fsp", "layers tapped there are none"),
    ],
)
def test_a_wrong_objective_is_one_clear_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        build_objective(spec, 6, 10)
    assert "\n" not in str(caught.value)


def test_two_terms_of_a_kind_keep_their_own_names():
    objective = build_objective([{"term": "alignment"}, {"term": "alignment", "projector": "linear"}], 6, 10)
    assert list(objective.terms) == ["alignment", "alignment_2"]
