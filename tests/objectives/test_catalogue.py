"""A walk over the whole catalogue: laws that every objective keeps, and what the page says about it."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_features import ATTENTION, as_features, build_objective, everything, features, rand, rows, views, widths
from torch import nn

from ssl_kd.errors import UserError
from ssl_kd.objectives import PRESETS, taps
from ssl_kd.objectives.auxiliary import Residual
from ssl_kd.objectives.compression import Compressed
from ssl_kd.objectives.correlation import RELATIONS, Correlation, options_of
from ssl_kd.objectives.maps import Factors
from ssl_kd.objectives.memory_bank import MemoryBank
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.objectives.presets.docs_table import page
from ssl_kd.objectives.presets.preset import EVIDENCE
from ssl_kd.objectives.projectors import KEEPS_WIDTH
from ssl_kd.objectives.target_norms import TARGET_NORMS

PAGE = Path(__file__).parents[2] / "docs" / "objectives_catalogue.md"
LAYERED = {"flow": ("stage.3", "stage.4"), "class_attention": (ATTENTION,)}


def grammar():
    """Every relation with every comparison that fits it, every space with some distances, every projector."""
    for relation in RELATIONS:
        more = {f"{who}_layers": LAYERED[relation] for who in ("student", "teacher") if relation in LAYERED}
        for comparison in ("softmax_kl", "pearson", "l2", "huber", "row_unit_l2"):
            if (relation, comparison) == ("angles", "pearson"):
                continue  # angles at i towards i itself are rows of zeros, which correlate with nothing
            spec = {"term": "correlation", "relation": relation, "comparison": comparison, **more}
            yield f"{relation} {comparison}", [spec]
    for comparison in (
        "pkt",
        "rows_and_columns",
        "rank",
        "nearest",
        "target_ratio",
        "top_k",
        "differences",
        "frobenius",
    ):
        yield f"batch {comparison}", [{"term": "correlation", "relation": "batch", "comparison": comparison}]
    for space in TARGET_NORMS:
        for of in ("embedding", "tokens"):
            yield (
                f"{of} {space}",
                [{"term": "alignment", "projector": "bn", "space": space, "distance": "mse", "of": of}],
            )
    for weight in ("auto", "learned"):
        second = {"term": "correlation", "relation": "batch", "weight": weight}
        yield f"weight {weight}", [{"term": "alignment", "projector": "linear"}, second]


CASES = {name: name for name in PRESETS} | dict(grammar())


def built(name, ds=6, dt=10):
    """The objective, its memories already holding other images."""
    torch.manual_seed(0)
    objective = build_objective(CASES[name], widths(ds), widths(dt))
    look(objective, everything(8, ds, seed=50, side=3), everything(8, dt, seed=60), start=100)
    return objective


def look(objective, student, teacher, start=0):
    return objective(as_features(student), as_features(teacher), views(4, 2, start=start))


@pytest.mark.parametrize("name", CASES)
def test_every_objective_is_finite_and_sends_gradients_to_the_student_only(name):
    objective = built(name)
    student, teacher = everything(8, 6, side=3), everything(8, 10, seed=10)
    for leaf in [*student.values(), *teacher.values()]:
        leaf.requires_grad_()
    total, terms = look(objective, student, teacher)
    assert (total.dtype, total.ndim) == (torch.float32, 0)
    assert torch.isfinite(total)
    assert set(terms) == set(objective.terms)
    assert all(torch.isfinite(v) and not v.requires_grad for v in terms.values())
    total.backward()
    assert all(leaf.grad is None for leaf in teacher.values())
    seen = [leaf.grad for leaf in student.values() if leaf.grad is not None]
    assert all(torch.isfinite(g).all() for g in seen)
    assert sum(g.abs().sum() for g in seen) > 0
    assert student["ema"].grad is None


@pytest.mark.parametrize("name", CASES)
def test_every_objective_ignores_the_order_of_the_batch(name):
    objective = built(name)
    again = copy.deepcopy(objective)
    student, teacher = everything(8, 6, side=3), everything(8, 10, seed=10)
    order = torch.tensor([2, 0, 3, 1])
    both = torch.cat([order, order + 4])
    batch = views(4, 2)
    shuffled = type(batch)(batch.index[order.numpy()], 0, batch.pixels)
    a, _ = objective(as_features(student), as_features(teacher), batch)
    b, _ = again(as_features(rows(student, both)), as_features(rows(teacher, both)), shuffled)
    assert a.item() == pytest.approx(b.item(), rel=2e-4, abs=1e-5)


# Their formulas compare plain numbers with the teacher's plain numbers.
SEE_THE_SCALE = {"proteus", "proteus_masked", "fitnets", "attn_distill", "fsp", "embedding raw", "tokens raw"}
SEE_THE_SCALE |= {"vid", "ft", "lightly_v2"}
SEE_THE_SCALE |= {"embedding centred", "tokens centred"}
SEE_THE_SCALE |= {"heads", "heads_ibot", "retro"} | {
    f"teacher_head {c}" for c in ("softmax_kl", "pearson", "l2", "huber", "row_unit_l2")
}
SEE_THE_SCALE |= {f"{r} {c}" for r in ("products", "flow") for c in ("softmax_kl", "l2", "huber")}


@pytest.mark.parametrize("name", [name for name in CASES if name not in SEE_THE_SCALE])
def test_the_teachers_scale_plays_no_part(name):
    torch.manual_seed(0)
    objective = build_objective(CASES[name], widths(6), widths(10))
    again, student = copy.deepcopy(objective), everything(8, 6, side=3)
    for step in range(2):
        a, _ = look(objective, student, everything(8, 10, seed=10 + step), start=10 * step)
        b, _ = look(again, student, everything(8, 10, seed=10 + step, scale=7.0), start=10 * step)
        assert a.item() == pytest.approx(b.item(), rel=1e-3, abs=1e-5)


# Published so: other samples shall be uncorrelated (ega) or apart (itrd), the value at a match is log 2 and only stationary (smd),
# or that of the variances (vid).
NOT_ZERO_AT_A_MATCH = {"ega", "smd", "itrd", "vid", "across", "heads", "heads_ibot", "retro", "teacher_head"}


def without_heads(objective):
    """Heads and spaces taken away, so that a match can be made by hand; equal temperatures for both networks."""
    for term in objective.terms.values():
        term.projector = nn.Identity()
        term.space = nn.Identity()
        if isinstance(term, Compressed):
            term.compressor, term.token_compressor = nn.Identity(), None
        if isinstance(term, Factors):
            term.translator = term.encoder = term.decoder = nn.Identity()
        if isinstance(term, Residual):
            term.assistant = Nothing()
        if isinstance(term, Correlation):
            term.view_of_teacher = nn.Identity()
            if hasattr(term.divergence, "taus"):
                term.divergence = replace(term.divergence, tau_student=max(term.divergence.taus), tau_teacher=None)
            if type(term.relation) is MemoryBank:
                term.relation = MemoryBank(64, term.relation.batch, dim=10)
    return objective


class Nothing(nn.Module):
    def forward(self, z):
        return torch.zeros_like(z)


# Their layers have other widths here, or are no patches of the teacher: test_newest asks for the same in a world that fits.
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("leap", "unic_ladder", "proteus_masked")])
def test_every_objective_is_at_rest_and_lowest_at_a_match(name):
    torch.manual_seed(0)
    objective = without_heads(build_objective(CASES[name], widths(10), widths(10)))
    for term in objective.terms.values():
        if hasattr(getattr(term, "relation", None), "student_bank"):
            term.relation.student_momentum = 0.0
    other = everything(8, 10, seed=50)
    look(objective, other, other, start=100)
    objective.eval()
    teacher = everything(8, 10, seed=10)
    if name == "uncertainty":  # both views alike: nothing to waver about
        teacher = {k: torch.cat([leaf[:4], leaf[:4]]) for k, leaf in teacher.items()}
    student = {k: leaf.clone().requires_grad_() for k, leaf in teacher.items()}
    total, terms = look(objective, student, teacher)
    learned = sum(f"{k}" in getattr(objective, "log_scale", {}) for k in terms)
    gradients = torch.autograd.grad(total, list(student.values()), allow_unused=True)
    if name.split()[0] in NOT_ZERO_AT_A_MATCH:
        if name == "smd":
            assert terms["hard_pairs"].item() == pytest.approx(0.6931472, abs=1e-3)
        return
    # Published with 1e-8 beside the lengths: columns of little mass fall short of a correlation of 1.
    allowed = {"dist": 2e-2, "dist_prototypes": 6e-2}.get(name, 2e-3)
    assert total.item() == pytest.approx(0.6931472 * learned, abs=allowed)
    assert all(g is None or g.abs().max() < 0.05 for g in gradients)
    for size in (0.3, 1.0):
        moved = {k: leaf + size * rand(*leaf.shape, seed=7) for k, leaf in teacher.items()}
        assert look(objective, moved, teacher)[0] > total + 1e-5


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_one_is_refused_in_one_line(name):
    objective = built(name)
    with pytest.raises(UserError, match="at least 2 images, got 1") as caught:
        objective(as_features(everything(2, 6)), as_features(everything(2, 10)), views(1, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CASES)
def test_every_objective_answers_in_float32_under_autocast(name):
    objective = built(name)
    student, teacher = everything(8, 6, side=3), everything(8, 10, seed=10)
    with torch.autocast("cpu", torch.bfloat16):
        half = [{k: leaf.bfloat16() for k, leaf in leaves.items()} for leaves in (student, teacher)]
        total, terms = look(objective, *half)
    assert total.dtype == torch.float32
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in terms.values())
    assert all(b.dtype in (torch.float32, torch.long) for b in objective.buffers())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_resumes_to_the_same_bits(name):
    objective = built(name)
    fresh = build_objective(name, widths(6), widths(10))
    fresh.load_state_dict(copy.deepcopy(objective.state_dict()))
    for step in range(2):
        pair = everything(8, 6, seed=step, side=3), everything(8, 10, seed=10 + step)
        (a, _), (b, _) = (look(o, *pair, start=8 * step) for o in (objective, fresh))
        assert torch.equal(a, b)
    assert all(
        torch.equal(a, b) for a, b in zip(objective.state_dict().values(), fresh.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", PRESETS)
def test_a_network_that_lacks_what_a_preset_reads_is_told_so(name):
    needs = {
        "tokens",
        "all_tokens",
        "context",
        "attention_map",
        "flow",
        "class_attention",
        "True",
        "progression",
        "ladder",
        "masked_head",
        "boundary",
        "selectivity",
        "factors",
    }
    read = {
        str(o) for spec in PRESETS[name] for key, o in spec.items() if key in ("of", "relation", "of_tokens", "term")
    }
    averaged = any(spec.get("momentum") for spec in PRESETS[name])

    def answer():
        return build_objective(name, 6, 10)(features(rand(8, 6)), features(rand(8, 10, seed=1)), views(4, 2))[0]

    if averaged or needs & read:
        with pytest.raises(UserError, match="moving average" if averaged else "tokens|masked|layer|boundary") as caught:
            answer()
        assert "\n" not in str(caught.value)
    else:
        assert torch.isfinite(answer())


def test_taps_tell_what_to_ask_the_networks_for():
    assert taps("fsp") == (("stage.3", "stage.4"), ("stage.3", "stage.4"))
    assert taps("default") == ((), ())
    for name in PRESETS:
        objective = build_objective(name, widths(6), widths(10))
        assert taps(name) == (objective.student_layers, objective.teacher_layers)


@pytest.mark.parametrize("term", [{"term": "alignment"}, {"term": "correlation", "relation": "tokens"}])
def test_a_layer_that_is_not_in_a_list_is_refused_by_its_whole_name(term):
    with pytest.raises(UserError, match=r"student_layers: expected a list of layers, \[stage.3\]; got 'stage.3'"):
        taps([term | {"student_layers": "stage.3"}])


def test_the_state_of_the_first_presets_keeps_its_names():
    keys = set(build_objective("simreg_queue", 6, 10).state_dict())
    assert {f"terms.correlation_queue.relation.{b}" for b in ("bank", "index", "filled", "head")} < keys
    rest = {key for key in keys if ".relation." not in key}
    assert {key.split(".")[1] for key in rest} == {"alignment", "correlation_queue"}
    assert all(key.split(".")[2] == "projector" for key in rest)
    assert all(key.split(".")[2] == "projector" for key in build_objective("dlkd", 6, 10).state_dict())


# ------------------------------------------------------------------- the page


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_row_says_where_it_is_from_and_what_differs(name):
    row = CATALOGUE[name]
    assert row.evidence in EVIDENCE
    assert row.source
    assert row.published
    assert row.evidence == "code" or (row.here and row.differs) or row.evidence == "third-party"


def test_the_page_shows_the_catalogue_as_it_is():
    text = PAGE.read_text()
    begin, end = "<!-- catalogue: begin -->", "<!-- catalogue: end -->"
    assert text.split(begin)[1].split(end)[0].strip() == page().strip(), (
        "python -m ssl_kd.objectives.presets.docs_table docs/objectives_catalogue.md"
    )


def test_options_of_a_relation_are_those_it_knows():
    assert options_of("queue", "nearest") == ["size", "batch", "neighbours", "every_slot"]
    assert options_of("batch", "softmax_kl") == []
    assert set(KEEPS_WIDTH) == {"identity", "square"}
