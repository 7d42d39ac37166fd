"""Hints: recorded features, their loss, and what is left behind."""

import copy

import pytest
import torch
from torch import nn

from compress.errors import CompressError
from compress.kd.features import HintedStudent
from compress.kd.losses import attention_transfer

IMAGES = torch.rand(2, 1, 8, 8)


def network(seed: int, channels: int, stride: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    conv = nn.Conv2d(1, channels, 3, padding=1, stride=stride)
    return nn.Sequential(conv, nn.Flatten(), nn.LazyLinear(10))


@pytest.fixture
def student() -> nn.Sequential:
    return network(0, 3, stride=2)


@pytest.fixture
def teacher() -> nn.Sequential:
    return network(1, 5)


def test_attention_is_compared_at_the_smaller_size(
    student: nn.Sequential, teacher: nn.Sequential
) -> None:
    hinted = HintedStudent(student, teacher, "0:0", "attention", IMAGES)
    assert torch.equal(hinted(IMAGES), student(IMAGES))
    teacher(IMAGES)
    pooled = nn.functional.avg_pool2d(teacher[0](IMAGES), 2)
    expected = attention_transfer(student[0](IMAGES), pooled)
    assert hinted.hint_loss().item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(hinted.projections) == 0


def test_several_pairs_are_averaged(student: nn.Sequential, teacher: nn.Sequential) -> None:
    losses = []
    for pairs in ("0:0", "0:0, 0:0"):
        hinted = HintedStudent(student, teacher, pairs, "attention", IMAGES)
        hinted(IMAGES)
        teacher(IMAGES)
        losses.append(hinted.hint_loss().item())
        hinted.remove_hooks()
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_features_are_projected_to_the_teacher_s_channels(
    student: nn.Sequential, teacher: nn.Sequential
) -> None:
    hinted = HintedStudent(student, teacher, "0:0", "features", IMAGES)
    assert [tuple(layer.weight.shape) for layer in hinted.projections] == [(5, 3, 1, 1)]  # type: ignore[arg-type]
    hinted(IMAGES)
    teacher(IMAGES)
    hinted.hint_loss().backward()
    (projection,) = hinted.projections
    assert projection.weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert student[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert teacher[0].weight.grad is None


def test_copies_and_removed_hooks_record_nothing(
    student: nn.Sequential, teacher: nn.Sequential
) -> None:
    student.train()
    hinted = HintedStudent(student, teacher, "0:0", "attention", IMAGES)
    assert student.training is True
    hinted(IMAGES)
    assert copy.deepcopy(hinted).state_dict().keys() == hinted.state_dict().keys()
    hinted.remove_hooks()
    assert len(student[0]._forward_hooks) == len(teacher[0]._forward_hooks) == 0


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("9:0", "the student has no layer '9'"),
        ("0:9", "the teacher has no layer '9'"),
        ("0", "the teacher has no layer ''"),
        ("2:0", "the output of layer '2' has 2 dimensions; choose a layer with feature maps"),
    ],
)
def test_wrong_layers_are_refused(
    student: nn.Sequential, teacher: nn.Sequential, pairs: str, message: str
) -> None:
    with pytest.raises(CompressError, match=message):
        HintedStudent(student, teacher, pairs, "attention", IMAGES)
