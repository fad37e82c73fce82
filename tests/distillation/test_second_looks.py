"""Runs whose objective looks a second time: at images half hidden, or moved to a boundary of the student."""

import pytest
import torch
from few import few
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.second_looks import moved
from ssl_kd.objectives.boundary import Boundary
from ssl_kd.runtime.signals import Interrupted


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def student_and_term():
    torch.manual_seed(0)
    student = ssl_kd.build("resnet18", channels=[8, 8, 8, 8], small_stem=True)
    term = Boundary(8, 16, projector="linear", prototypes=6, steps=3)
    term.relation.lay(torch.randn(6, 16))
    return student.train(), term.train()


def test_images_move_to_where_two_prototypes_are_nearly_equally_near():
    student, term = student_and_term()
    before = {name: buffer.clone() for name, buffer in student.named_buffers()}
    pixels = 0.3 + 0.4 * torch.rand(6, 3, 32, 32)
    there = moved(student, pixels, term)
    with torch.no_grad():
        student.eval()
        was, now = (term.lead(student(z).embedding).abs() for z in (pixels, there))
        student.train()
    assert now.median() < 0.2 * was.median()
    assert 0 <= there.min() <= there.max() <= 1
    assert not there.requires_grad
    assert student.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in student.named_buffers())
    assert all(p.grad is None for p in student.parameters())


@pytest.mark.parametrize("name", ["boundary", "proteus_masked"])
def test_a_second_look_goes_on_to_the_same_bits(teacher, tmp_path, name):
    settings = SMALL | {"objective": few(name)}
    whole = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "whole", **settings)
    assert len([term for term in whole.last if term.startswith(("boundary", "masked"))]) == 1
    with signal_in_step(2), pytest.raises(Interrupted):
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", **settings)
    assert same(ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", **settings).student, whole.student)
