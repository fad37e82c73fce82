"""One step: parts of a batch add up to the whole, bad numbers are left out or end the run, gradients are measured."""

import pytest
import torch
from small_runs import SMALL, logged, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.teachers import TeacherGroup
from ssl_kd.errors import NonFinite, UserError
from ssl_kd.objectives import WeightedSum

QUICK = SMALL
# No batch norm anywhere: parts of a batch would have statistics of their own.
PLAIN = QUICK | {
    "student": "vit_tiny_patch16_224",
    "student_args": {"img_size": 32, "patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "objective": [{"term": "alignment", "projector": "linear"}],
    "optimizer": "sgd",
    "lr": 0.1,
}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def images(n=22):
    return small_images(n)


def close(a, b):
    a, b = a.state_dict(), b.state_dict()
    return all(torch.allclose(a[k].float(), b[k].float(), atol=1e-5) for k in a)


def test_parts_of_a_batch_add_up_to_the_whole(teacher, tmp_path):
    whole = ssl_kd.distill(teacher, images=images(), out=tmp_path / "whole", **PLAIN)
    parts = ssl_kd.distill(
        teacher, images=images(), out=tmp_path / "parts", **PLAIN | {"batch_size": 4, "accumulate": 2}
    )
    a, b = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert len(a) == len(b) == 6
    for one, other in zip(a, b, strict=True):
        for key in ("loss", "alignment", "gradient_norm", "lr"):
            assert one[key] == pytest.approx(other[key], rel=1e-4)
    assert close(whole.student, parts.student)


@pytest.mark.parametrize("objective", ["dlkd_light", "rkd", "smd", "ckd", "dist"])
def test_what_relates_a_whole_batch_is_not_taken_in_parts(teacher, tmp_path, objective):
    settings = QUICK | {"accumulate": 2, "objective": objective, "views": "multi"}
    with pytest.raises(UserError, match=r"accumulate: .* relates all samples of a batch"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_parts_too_small_are_refused(teacher, tmp_path):
    with pytest.raises(UserError, match="leave a part with 1; lower accumulate"):
        ssl_kd.distill(teacher, images=images(6), out=tmp_path / "run", **QUICK | {"accumulate": 4})


def poison(monkeypatch, *when):
    """Make the loss of those training steps no number."""
    forward, calls = WeightedSum.forward, []

    def poisoned(self, *args):
        total, terms = forward(self, *args)
        calls.extend([1] * self.training)
        return (total * float("nan") if self.training and len(calls) in when else total), terms

    monkeypatch.setattr(WeightedSum, "forward", poisoned)


def test_a_bad_step_is_left_out_and_written_down(teacher, tmp_path, monkeypatch):
    poison(monkeypatch, 2)
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", skip_nonfinite=1, **QUICK)
    assert all(torch.isfinite(v).all() for v in done.student.state_dict().values())
    told = logged(tmp_path / "run")
    assert [line["step"] for line in told] == [1, 2, 3, 4, 5, 6]
    assert (told[1]["skipped"], told[1]["value"]) == ("loss", "nan")
    assert len(told[1]["images"]) in (7, 8)
    assert "1 skipped" in (tmp_path / "run/README.md").read_text()


def test_more_bad_steps_than_were_allowed_end_the_run(teacher, tmp_path, monkeypatch):
    poison(monkeypatch, 2, 4)
    with pytest.raises(NonFinite, match="became nan at step 3 after 1 skipped steps"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", skip_nonfinite=1, **QUICK)


def test_a_skipped_step_changes_no_weight_and_no_statistic(teacher, tmp_path, monkeypatch):
    """Every step is bad, so that the run ends with what it began with."""
    poison(monkeypatch, *range(1, 7))
    torch.manual_seed(0)
    fresh = ssl_kd.build("resnet18", channels=[8, 8, 8, 8]).backbone.state_dict()
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", skip_nonfinite=6, **QUICK)
    assert all(torch.equal(v, fresh[k]) for k, v in done.student.backbone.state_dict().items())


def test_what_is_no_number_never_reaches_a_memory(teacher, tmp_path, monkeypatch):
    outputs, calls = TeacherGroup.outputs, []

    def poisoned(self, *args):
        teacher_outputs = outputs(self, *args)
        calls.append(1)
        if len(calls) == 2:
            teacher_outputs[""].embedding[0, 0] = torch.nan
        return teacher_outputs

    monkeypatch.setattr(TeacherGroup, "outputs", poisoned)
    settings = QUICK | {"objective": [{"term": "correlation", "relation": "queue", "size": 64}]}
    ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", skip_nonfinite=1, **settings)
    module = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["pair"]
    assert all(torch.isfinite(v).all() for v in module.values())
    index = module["objective.terms.correlation_queue.relation.index"]
    assert int((index >= 0).sum()) == 44 - len(logged(tmp_path / "run")[1]["images"])


def test_gradients_are_measured_on_logged_steps_and_change_nothing(teacher, tmp_path):
    some = QUICK | {"objective": "centred"}
    plain = ssl_kd.distill(teacher, images=images(), out=tmp_path / "plain", **some)
    told = ssl_kd.distill(
        teacher, images=images(), out=tmp_path / "told", **some | {"measure_gradients": True, "log_every": 2}
    )
    for line in logged(tmp_path / "told"):
        assert line["alignment_gradient"] > 0
        assert line["alignment_3_gradient"] > 0
    assert "alignment_gradient" not in logged(tmp_path / "plain")[0]
    a, b = plain.student.state_dict(), told.student.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_compiling_covers_both_networks_and_is_undone(teacher, tmp_path, monkeypatch):
    compiled = []

    def record(self):
        compiled.append(self)
        self._compiled_call_impl = self._call_impl

    monkeypatch.setattr(torch.nn.Module, "compile", record)
    done = ssl_kd.distill(teacher, images=images(), out=tmp_path / "run", **QUICK | {"compile": True, "epochs": 1})
    assert compiled == [done.student.network, teacher.network]
    assert done.student.network._compiled_call_impl is None
    with pytest.raises(UserError, match="compile: this objective taps layers"):
        ssl_kd.distill(teacher, images=images(), out=tmp_path / "fsp", **QUICK | {"compile": True, "objective": "fsp"})


@pytest.mark.slow
def test_a_compiled_run_learns_as_an_eager_one_does(teacher, tmp_path):
    runs = [
        ssl_kd.distill(teacher, images=images(), out=tmp_path / str(compiled), **QUICK | {"compile": compiled})
        for compiled in (False, True)
    ]
    assert runs[0].last["loss"] == pytest.approx(runs[1].last["loss"], rel=1e-2)
