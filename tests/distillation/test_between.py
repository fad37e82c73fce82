"""Terms between students: a walk through the table, and what each of them asks for."""

from pathlib import Path

import pytest
import torch
from small_runs import SMALL, logged, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.between import build_between
from ssl_kd.distillation.between_terms import BETWEEN, neighbour_logits
from ssl_kd.errors import UserError
from ssl_kd.types import Features, ViewBatch

WIDTHS, TEACHER = {"a": 6, "b": 10, "c": 4}, 12
# Heads that let every student be at the teacher: a match can be written down.
STILL = [
    {"term": "alignment", "projector": "identity"},
    {"term": "correlation", "relation": "batch", "projector": "identity"},
]
CASES = {
    "mutual": {},
    "mutual with the teacher": {"term": "mutual", "teacher": True},
    "mutual of two": {"term": "mutual", "students": ["a", "c"]},
    "ensemble": {},
    "online_neighbours": {},
    "online_neighbours with the teacher": {"term": "online_neighbours", "teacher": True, "neighbours": 3},
    "assistant": {"assistant": "b"},
    "residual_assistant": {"student": "a", "assistant": "b"},
}
AT_A_MATCH = {
    "mutual": {"objective": STILL},
    "mutual with the teacher": {"objective": STILL},
    "mutual of two": {"objective": STILL},
    "ensemble": {"projector": "identity"},
    "assistant": {"objective": STILL},
}


def spec(name, **more):
    return {"term": name, **CASES[name], **more}


def built(name, widths=None, teacher=TEACHER, **more):
    torch.manual_seed(0)
    return build_between([spec(name, **more)], widths or WIDTHS, teacher)


def features(rows=12, widths=None, teacher=TEACHER, seed=0):
    random = torch.Generator().manual_seed(seed)
    students = {
        name: Features(torch.randn(rows, width, generator=random, requires_grad=True))
        for name, width in (widths or WIDTHS).items()
    }
    return students, Features(torch.randn(rows, teacher, generator=random, requires_grad=True))


def test_every_kind_of_term_has_a_case():
    assert {spec(name)["term"] for name in CASES} == set(BETWEEN)


@pytest.mark.parametrize("name", CASES)
def test_a_term_is_finite_and_moves_the_students_that_it_leads_alone(name):
    """Widths differ from each other and from the teacher's; nothing reaches the teacher."""
    terms, (students, teacher) = built(name), features()
    found = terms(students, teacher, ViewBatch.of_rows(12))
    led = set(terms.kinds[0].leads)
    assert set(found) == led
    assert all(total.isfinite() and total.dtype == torch.float32 for total, _ in found.values())
    sum(total for total, _ in found.values()).backward()
    assert teacher.embedding.grad is None
    assert {n for n, s in students.items() if s.embedding.grad is not None and s.embedding.grad.abs().sum() > 0} == led
    assert all(p.grad is not None for p in terms.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("ensemble", "residual"))])
def test_the_value_of_a_student_moves_no_other_student(name):
    """Whom it follows is a constant. (The ensemble is everybody's, and learns from the teacher through all of them.)"""
    terms, (students, teacher) = built(name), features()
    for led, (total, _) in terms(students, teacher, ViewBatch.of_rows(12)).items():
        gradients = torch.autograd.grad(
            total, [s.embedding for s in students.values()], retain_graph=True, allow_unused=True
        )
        assert {n for n, g in zip(students, gradients, strict=True) if g is not None and g.abs().sum() > 0} == {led}


@pytest.mark.parametrize("name", AT_A_MATCH)
def test_where_all_are_at_the_teacher_the_value_is_lowest(name):
    widths = dict.fromkeys(WIDTHS, TEACHER)
    terms = built(name, widths, **AT_A_MATCH[name])
    students, teacher = features(widths=widths)
    batch = ViewBatch.of_rows(12)
    at = {n: Features(teacher.embedding.detach().clone()) for n in widths}
    match = terms(at, teacher, batch)
    assert all(float(total.detach()) == pytest.approx(0, abs=1e-5) for total, _ in match.values())
    assert all(float(total.detach()) > 0.1 for total, _ in terms(students, teacher, batch).values())


def test_equal_students_are_each_others_neighbours_already():
    """The group's space is then each one's own, repeated; a scale of the embedding plays no part."""
    terms, (students, teacher) = built("online_neighbours"), features()
    one = students["a"].embedding.detach()
    equal = {"a": Features(one), "b": Features(3 * one), "c": Features(one.flip(1))}
    found = terms(equal, teacher, ViewBatch.of_rows(12))
    assert all(float(total.detach()) == pytest.approx(0, abs=1e-5) for total, _ in found.values())


def test_the_kernel_of_a_sample_is_as_wide_as_its_kth_neighbour_is_far():
    z = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    logits = neighbour_logits(z, 2)
    assert torch.isneginf(logits.diagonal()).all()
    assert logits[0].tolist()[1:] == pytest.approx([-1 / 9, -1.0, -49 / 9])
    assert logits[3].tolist()[:3] == pytest.approx([-49 / 36, -1.0, -16 / 36])


def test_of_the_residual_the_assistant_has_what_the_student_misses():
    """Both heads at zero: the student misses the whole standardised teacher, and so does the assistant."""
    terms, (students, teacher) = built("residual_assistant"), features()
    for head in terms.kinds[0].heads:
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    found = terms(students, teacher, ViewBatch.of_rows(12))
    assert float(found["a"][0].detach()) == float(found["b"][0].detach()) > 0


def test_the_gate_learns_without_labels_which_student_to_trust():
    """One student knows the teacher, the other is noise: the ensemble leans on the first."""
    widths = {"knows": 8, "noise": 8}
    terms = built("ensemble", widths, 8, projector="identity")
    optimizer = torch.optim.Adam(terms.parameters(), 0.05)
    for step in range(60):
        students, teacher = features(32, widths, 8, seed=step)
        students = {
            "knows": Features(teacher.embedding.detach()),
            "noise": Features(students["noise"].embedding.detach()),
        }
        optimizer.zero_grad()
        sum(total for total, _ in terms(students, teacher, ViewBatch.of_rows(32)).values()).backward()
        optimizer.step()
    shares = terms.kinds[0].shares([s.embedding for s in students.values()])
    assert shares.sum(1).tolist() == pytest.approx([1.0] * 32)
    assert float(shares[:, 0].mean().detach()) > 0.8


@pytest.mark.parametrize("name", CASES)
def test_a_term_goes_on_from_its_state_with_the_same_bits(name):
    """Statistics and heads are all that it remembers."""
    terms, batch = built(name), ViewBatch.of_rows(12)
    for seed in (1, 2):
        terms(*features(seed=seed), batch)
    torch.manual_seed(9)
    again = build_between([spec(name)], WIDTHS, TEACHER)
    again.load_state_dict(terms.state_dict())
    (first, second) = (each(*features(seed=3), batch) for each in (terms, again))
    assert {n: total.item() for n, (total, _) in first.items()} == {n: total.item() for n, (total, _) in second.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_term_answers_in_float32_under_autocast_and_ignores_the_order_of_the_batch(name):
    terms, (students, teacher), batch = built(name).eval(), features(), ViewBatch.of_rows(12)
    plain = terms(students, teacher, batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = {n: Features(f.embedding.bfloat16()) for n, f in students.items()}
        found = terms(half, Features(teacher.embedding.bfloat16()), batch)
    assert all(total.dtype == torch.float32 and total.isfinite() for total, _ in found.values())
    turned = terms(
        {n: Features(f.embedding.flip(0)) for n, f in students.items()}, Features(teacher.embedding.flip(0)), batch
    )
    for name in plain:
        assert turned[name][0].item() == pytest.approx(plain[name][0].item(), rel=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_a_batch_of_one_is_one_line(name):
    terms, (students, teacher) = built(name), features(1)
    with pytest.raises(UserError, match="a batch needs at least 2 images, got 1"):
        terms(students, teacher, ViewBatch.of_rows(1))


@pytest.mark.parametrize("row", BETWEEN.built_in.values(), ids=BETWEEN.built_in)
def test_each_row_says_where_it_comes_from_and_what_differs(row):
    assert row.evidence in ("abstract", "code")
    assert min(map(len, (row.source, row.idea, row.differs))) > 10
    page = (Path(__file__).parents[2] / "docs/students.md").read_text()
    assert f"| {row.source} | {row.evidence} | {row.idea} | {row.differs} |" in page


@pytest.mark.parametrize(
    ("between", "words"),
    [
        ("mutuel", "expected one of mutual, ensemble, .* Did you mean mutual"),
        ([], "got an empty list"),
        ([{"term": "mutual", "teachr": True}], "term mutual has no 'teachr'; .* Did you mean teacher"),
        ([{"term": "mutual", "teacher": "yes"}], "teacher of mutual: expected true or false, got 'yes'"),
        ([{"term": "mutual", "students": ["a", "d"]}], "student: expected one of a, b, c; got 'd'"),
        ([{"term": "mutual", "students": ["a"]}], "mutual needs at least 2 students, got a"),
        ([{"term": "mutual", "objective": "simregg"}], "mutual: objective: .* Did you mean simreg"),
        ([{"term": "mutual", "objective": "default"}], "reads patches, layers or a moving average"),
        ([{"term": "mutual", "weight": "auto"}], "weight must be a number above 0; got 'auto'"),
        ([{"term": "mutual", "weight": 0}], "weight must be a number above 0"),
        ([{"term": "assistant"}], "assistant: expected one of a, b, c; got ''"),
        ([{"term": "assistant", "assistant": "a", "students": ["a"]}], "nobody is left to follow the assistant a"),
        ([{"term": "residual_assistant", "student": "a", "assistant": "a"}], "must be another student"),
        ([{"term": "online_neighbours", "neighbours": 0}], "above 0, got 0"),
        ([{"term": "ensemble", "tau": "warm"}], "tau of ensemble: expected a number, got 'warm'"),
    ],
)
def test_what_cannot_be_right_is_one_line(between, words):
    with pytest.raises(UserError, match=words) as caught:
        build_between(between, WIDTHS, TEACHER)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ in a run

STUDENTS = {
    "a": {"arch": "resnet18", "args": {"channels": [8, 8, 8, 8]}},
    "b": {"arch": "resnet18", "args": {"channels": [8, 8, 8, 16]}, "seed": 1},
}
RUN = {key: value for key, value in SMALL.items() if not key.startswith("student")} | {
    "objective": "default_light",
    "health_every": 0,
}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


ASSISTANTS = [spec("assistant"), spec("residual_assistant")]


@pytest.mark.slow
@pytest.mark.parametrize("between", ["ensemble", "mutual", "online_neighbours", ASSISTANTS], ids=str)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(between, teacher, tmp_path):
    settings = RUN | {"students": STUDENTS, "between": between, "images": small_images(16)}
    whole = ssl_kd.distill(teacher, out=tmp_path / "whole", **settings)
    with signal_in_step(1), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    rest = ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    assert all(same(whole[name].student, rest[name].student) for name in STUDENTS)
    losses = [[line["a/loss"] for line in logged(tmp_path / out)] for out in ("whole", "cut")]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    alone = ssl_kd.distill(teacher, out=tmp_path / "apart", **settings | {"between": ""})
    assert not all(same(whole[name].student, alone[name].student) for name in STUDENTS)


def test_a_student_of_weight_0_follows_its_assistant_alone(teacher, tmp_path):
    students = {"middle": STUDENTS["b"], "small": STUDENTS["a"] | {"weight": 0}}
    between = [{"term": "assistant", "assistant": "middle", "students": ["small"]}]
    done = ssl_kd.distill(
        teacher, images=small_images(), out=tmp_path / "run", students=students, between=between, **RUN
    )
    small = done["small"].last
    assert small["loss"] == pytest.approx(small["between.assistant"])
    assert {name for name in small if name not in ("loss", "lr", "gradient_norm")} == {"between.assistant"}
    assert not done["small"].student.heads  # into the teacher's space: its own objective was never trained
    assert done["middle"].student.heads
    with pytest.raises(
        UserError, match="students: small has weight 0 and no term between students leads it in epoch 0"
    ):
        ssl_kd.distill(
            teacher,
            images=small_images(),
            out=tmp_path / "late",
            students=students,
            between=[between[0] | {"start": 1}],
            **RUN,
        )
    assert not (tmp_path / "late").exists()


class Nearer(torch.nn.Module):
    """Anybody's: the first two students, moved together by a scale that is trained."""

    def __init__(self, widths, teacher_width):
        super().__init__()
        self.names, self.scale = tuple(widths)[:2], torch.nn.Parameter(torch.ones(()))

    def forward(self, students, teacher, batch):
        a, b = (students[name].embedding.norm(dim=1) for name in self.names)
        return {self.names[0]: (self.scale * a - b.detach()).square().mean()}


def test_a_bare_function_between_students_is_one_line_with_the_shape_that_is_wanted(teacher, tmp_path):
    settings = RUN | {"students": STUDENTS, "images": small_images(16)}

    def plain(students, teacher):
        return students["a"].embedding.mean()

    with pytest.raises(
        UserError, match=r"between: .*plain.* cannot be built for .*called with \{student: width\}.*forward"
    ):
        ssl_kd.distill(teacher, out=tmp_path / "run", between=plain, **settings)


def test_an_object_of_your_own_may_be_between_students(teacher, tmp_path):
    settings = RUN | {"students": STUDENTS, "images": small_images()}
    done = ssl_kd.distill(teacher, out=tmp_path / "run", between=Nearer, **settings)
    assert done["a"].last["between.Nearer"] > 0
    assert "between.Nearer" not in done["b"].last
