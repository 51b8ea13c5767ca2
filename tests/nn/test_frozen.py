"""Frozen networks: asked, never trained, no part of what holds them but the place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tatscli.nn.frozen import Frozen


class Teacher(nn.Module):
    """Notes the autocast it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("shift", torch.ones(3))
        self.autocast: list[bool] = []

    def forward(self, values: Tensor, factor: float = 1.0) -> Tensor:
        self.autocast.append(torch.is_autocast_enabled("cpu"))
        return self.dropout(self.linear(values)) * factor + self.shift


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = Frozen(Teacher(), path="teacher.pt", digest="abc")
        self.linear = nn.Linear(4, 3)


def teacher_of(student: Student) -> Teacher:
    (teacher,) = student.frozen._network
    assert isinstance(teacher, Teacher)
    return teacher


def test_it_stays_in_evaluation_mode_whatever_its_parent_does() -> None:
    student = Student().train()
    assert not teacher_of(student).training
    values = torch.randn(8, 4)
    assert torch.equal(student.frozen(values), student.frozen(values))  # no dropout
    assert not teacher_of(student.eval().train()).dropout.training


def test_it_has_no_gradient_and_gives_none() -> None:
    student = Student()
    values = torch.randn(2, 4, requires_grad=True)
    answer = student.frozen(values)
    assert not answer.requires_grad
    assert not any(one.requires_grad for one in teacher_of(student).parameters())
    (student.linear(values) - answer).square().sum().backward()
    assert all(one.grad is None for one in teacher_of(student).parameters())
    assert student.linear.weight.grad is not None


def test_it_is_neither_trained_nor_saved() -> None:
    student = Student()
    assert {name for name, _ in student.named_parameters()} == {"linear.weight", "linear.bias"}
    assert not list(student.frozen.parameters())
    assert not list(student.frozen.buffers())
    assert set(student.state_dict()) == {"linear.weight", "linear.bias"}
    assert not student.frozen.state_dict()
    assert student.frozen.facts == {"path": "teacher.pt", "sha256": "abc"}
    # Weights that are loaded into the student do not reach it.
    before = teacher_of(student).linear.weight.clone()
    student.load_state_dict({name: value + 1 for name, value in student.state_dict().items()})
    assert torch.equal(teacher_of(student).linear.weight, before)


def test_it_moves_with_its_parent() -> None:
    student = Student()
    teacher = teacher_of(student)
    student.to("meta")
    for tensor in (*teacher.parameters(), *teacher.buffers()):
        assert tensor.device.type == "meta"
    student = Student().double()
    assert teacher_of(student).linear.weight.dtype == torch.float64
    assert not teacher_of(student).linear.weight.requires_grad


def test_autocast_does_not_reach_in() -> None:
    student = Student()
    values = torch.randn(2, 4)
    exact = student.frozen(values)
    with torch.autocast("cpu", torch.bfloat16):
        around = student.linear(values)
        answer = student.frozen(values, 1.0)
        assert torch.is_autocast_enabled("cpu")
    assert around.dtype == torch.bfloat16
    assert answer.dtype == torch.float32
    assert torch.equal(answer, exact)
    assert teacher_of(student).autocast == [False, False]
    doubled = student.frozen(values, 2.0)  # other arguments are handed on
    torch.testing.assert_close(doubled, 2 * (exact - 1) + 1)
