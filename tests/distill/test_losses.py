import math

import pytest
import torch

from compress.distill.losses import knowledge_distillation


def test_the_loss_equals_a_value_worked_out_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0]])
    teacher = torch.tensor([[2 * math.log(3), 0.0]])  # at T = 2: probabilities 3/4 and 1/4
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    got = knowledge_distillation(student, teacher, temperature=2.0)
    assert got.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_zero_for_equal_outputs_and_positive_else(temperature: float) -> None:
    logits = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    shifted = logits + 3.0  # the same probabilities
    other = logits.flip(1)
    assert knowledge_distillation(logits, shifted, temperature=temperature).abs() < 1e-5
    assert knowledge_distillation(logits, other, temperature=temperature) > 0.1


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = torch.randn(4, 5, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    knowledge_distillation(student, teacher, temperature=3.0).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_gradient_keeps_its_size_when_the_temperature_changes() -> None:
    """At high temperatures: (student - teacher) / classes, both centred (section 2.1)."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 6, generator=generator).requires_grad_()
    teacher = torch.randn(1, 6, generator=generator)
    loss = knowledge_distillation(student, teacher, temperature=1000.0)
    (gradient,) = torch.autograd.grad(loss, student)
    centred = (student - student.mean()) - (teacher - teacher.mean())
    assert torch.allclose(gradient, centred.detach() / 6, atol=1e-3)
