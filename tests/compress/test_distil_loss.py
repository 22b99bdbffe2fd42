"""The distillation loss is nothing where student and teacher agree, and pulls them together."""

from __future__ import annotations

import pytest
import torch
from edgeml.compress import distillation_loss
from edgeml.errors import InputError
from torch import nn
from torch.nn import functional as F

X = {"input": torch.randn(16, 4, generator=torch.Generator().manual_seed(0))}
Y = torch.arange(16) % 3


def test_it_is_hintons_loss():
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    a, b = student(X["input"]), teacher(X["input"])
    soft = F.kl_div(F.log_softmax(a / 2, 1), F.softmax(b / 2, 1).detach(), reduction="batchmean")
    wanted = 0.7 * 4 * soft + 0.3 * F.cross_entropy(a, Y)
    loss = distillation_loss(teacher, temperature=2, alpha=0.7)
    torch.testing.assert_close(loss(student, X, Y), wanted)
    assert not any(p.grad is not None for p in teacher.parameters())


def test_without_labels_the_teacher_alone_is_learnt_from():
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    loss, optimizer = (
        distillation_loss(teacher, alpha=1.0),
        torch.optim.Adam(student.parameters(), 0.1),
    )
    first = float(loss(student, X, None).detach())
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(student, X, None)
        value.backward()
        optimizer.step()
    assert float(value.detach()) < 0.05 * first


def test_outputs_of_other_shapes_are_refused():
    loss = distillation_loss(nn.Linear(4, 5))
    with pytest.raises(InputError, match=r"teacher and student have different outputs, \[16, 5\]"):
        loss(nn.Linear(4, 3), X, Y)


def test_a_tasks_own_loss_takes_the_labels_place():
    teacher = student = nn.Linear(4, 3)
    loss = distillation_loss(teacher, alpha=0.5, task_loss=lambda m, x, y: m(**x).sum() * 0 + 8.0)
    assert float(loss(student, X, Y).detach()) == pytest.approx(4.0, abs=1e-5)


def test_one_number_a_sample_is_learnt_from_the_teacher():
    teacher, student = nn.Linear(4, 1), nn.Linear(4, 1)
    value = distillation_loss(teacher, alpha=1.0)(student, X, None)
    torch.testing.assert_close(value, F.mse_loss(student(**X), teacher(**X)))
