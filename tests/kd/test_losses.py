import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest
import torch

from compress.kd.config import SoftLoss
from compress.kd.losses import (
    attention_transfer,
    correlation,
    decoupled_distillation,
    feature_hint,
    knowledge_distillation,
    relational_distillation,
    standardized,
)

Hint = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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
    """At high temperatures: (student - teacher) / classes, both centerd (section 2.1)."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 6, generator=generator).requires_grad_()
    teacher = torch.randn(1, 6, generator=generator)
    loss = knowledge_distillation(student, teacher, temperature=1000.0)
    (gradient,) = torch.autograd.grad(loss, student)
    centerd = (student - student.mean()) - (teacher - teacher.mean())
    assert torch.allclose(gradient, centerd.detach() / 6, atol=1e-3)


def random_logits(seed: int, *, images: int = 6, classes: int = 5) -> torch.Tensor:
    return 3 * torch.randn(images, classes, generator=torch.Generator().manual_seed(seed))


def test_standardized_logits_have_no_size() -> None:
    logits = random_logits(0)
    z = standardized(logits)
    assert torch.allclose(z.mean(1), torch.zeros(6), atol=1e-6)
    assert torch.allclose(z.std(1), torch.ones(6), atol=1e-5)
    assert torch.allclose(standardized(7 * logits + 2), z, atol=1e-5)


def test_decoupled_equals_a_value_worked_out_by_hand() -> None:
    student = torch.tensor([[0.0, 0.0, 0.0]])
    teacher = torch.tensor([[math.log(6), math.log(3), 0.0]])  # 0.6, 0.3, 0.1
    target_part = 0.6 * math.log(0.6 * 3) + 0.4 * math.log(0.4 * 3 / 2)
    other_part = 0.75 * math.log(0.75 * 2) + 0.25 * math.log(0.25 * 2)
    got = decoupled_distillation(student, teacher, torch.tensor([0]), temperature=1.0, beta=8.0)
    assert got.item() == pytest.approx(target_part + 8 * other_part, rel=1e-5)


def test_decoupled_with_the_teacher_s_own_weight_is_the_whole_divergence() -> None:
    """KD = KL(b) + (1 - p_target) KL(q) (equation 6)."""
    student, teacher = random_logits(1, images=1), random_logits(2, images=1)
    target = torch.tensor([3])
    beta = float(1 - teacher.softmax(1)[0, 3])
    whole = knowledge_distillation(student, teacher, temperature=1.0)
    parts = decoupled_distillation(student, teacher, target, temperature=1.0, beta=beta)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-5)


def test_correlation_is_numpy_s() -> None:
    x, y = random_logits(3), random_logits(4)
    expected = [np.corrcoef(a, b)[0, 1] for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    assert torch.allclose(correlation(x, y), torch.tensor(expected, dtype=torch.float32), atol=1e-5)


LOSSES = {
    "kd": lambda s, t: knowledge_distillation(s, t, temperature=2.0),
    "standardized": lambda s, t: knowledge_distillation(
        standardized(s), standardized(t), temperature=2.0
    ),
    "dkd": lambda s, t: decoupled_distillation(
        s, t, torch.arange(len(s)) % s.shape[1], temperature=2.0, beta=2.0
    ),
    "dist": lambda s, t: relational_distillation(s, t, temperature=2.0),
}


def test_every_loss_is_here() -> None:
    assert set(LOSSES) == set(get_args(SoftLoss))


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_depends_on_the_mean_of_the_logits(name: str) -> None:
    """Teacher logits arrive centered."""
    student, teacher = random_logits(5), random_logits(6)
    shifted = LOSSES[name](student + 3, teacher - 2)
    torch.testing.assert_close(shifted, LOSSES[name](student, teacher), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_zero_at_equality_and_positive_else(name: str) -> None:
    student, teacher = random_logits(5), random_logits(6)
    assert LOSSES[name](teacher, teacher).abs() < 1e-5
    assert LOSSES[name](student, teacher) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_every_gradient_is_finite_in_bf16(name: str) -> None:
    student = (10 * random_logits(7)).bfloat16().requires_grad_()
    teacher = 10 * random_logits(8)
    LOSSES[name](student.float(), teacher).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert student.grad.abs().sum() > 0


def feature_maps(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_a_feature_hint_is_the_relative_distance() -> None:
    teacher = torch.tensor([[[[2.0, 0.0]]]])  # mean square 2
    student = torch.tensor([[[[1.0, 1.0]]]])  # mean squared distance 1
    assert feature_hint(student, teacher).item() == pytest.approx(0.5)
    assert feature_hint(teacher, teacher) == 0
    features = feature_maps(0)
    assert torch.allclose(
        feature_hint(7 * feature_maps(1), 7 * features), feature_hint(feature_maps(1), features)
    )


def test_attention_compares_places_not_channels_or_sizes() -> None:
    student = torch.tensor([[[[1.0, 0.0]]]])
    teacher = torch.tensor([[[[0.0, 3.0]]]])  # elsewhere: both maps have length 1
    assert attention_transfer(student, teacher).item() == pytest.approx(2.0)
    features = feature_maps(2)
    assert attention_transfer(torch.cat([features, features], 1), -5 * features) < 1e-9


@pytest.mark.parametrize("loss", [feature_hint, attention_transfer])
def test_hints_teach_the_student_only(loss: Hint) -> None:
    student = feature_maps(0).requires_grad_()
    teacher = feature_maps(1).requires_grad_()
    loss(student.bfloat16().float(), teacher).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert teacher.grad is None
