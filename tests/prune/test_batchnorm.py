"""BatchNorm's statistics are those of all images, whatever the batches."""

import dataclasses

import pytest
import torch
from torch import nn

from compress.architectures.build import Classifier, build
from compress.data.dataset import Data
from compress.data.splits import TensorSplit
from compress.prune import batchnorm
from compress.prune.batchnorm import reestimate_batchnorm
from tests.conftest import student_spec, torchvision_spec


def first(data: Data, count: int) -> TensorSplit:
    assert isinstance(data.train, TensorSplit)
    return dataclasses.replace(
        data.train, images=data.train.images[:count], labels=data.train.labels[:count]
    )


@pytest.mark.parametrize("count", [2, 255, 256, 257, 260, 600, 1000])
def test_the_first_norm_has_the_pooled_statistics_of_all_images(digits: Data, count: int) -> None:
    """A last batch of 4 counted as much as one of 256."""
    split = first(digits, count)
    bright = split.images.clone()
    bright[: count // 2] //= 4  # images differ, so the weights matter
    split = dataclasses.replace(split, images=bright)
    torch.manual_seed(0)
    model = build(student_spec(digits, depths=[1]))
    reestimate_batchnorm(model, split)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    before: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    with torch.no_grad():
        model.double()(split.images.double())
    values = before[0].transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, values.mean(1), atol=1e-6)  # type: ignore[arg-type]
    assert torch.allclose(norm.running_var, values.var(1), rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 2, 257, 513])
def test_one_image_more_than_whole_batches_with_1x1_maps(digits: Data, count: int) -> None:
    """It raised "Expected more than 1 value per channel", after all the training."""
    torch.manual_seed(0)
    model = build(torchvision_spec("resnet18", digits))  # 8 px: the last maps are 1x1
    reestimate_batchnorm(model, first(digits, count))
    assert not any(module.training for module in model.modules())
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_the_statistics_are_of_the_network_as_it_is_used(
    digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout is off, so the same images always give the same numbers."""
    monkeypatch.setattr(batchnorm, "IMAGES", 64)
    found = []
    for seed in range(2):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(10)
        )
        model = Classifier(build(student_spec(digits)).normalize, network)
        torch.manual_seed(seed)
        reestimate_batchnorm(model, digits.train)
        found.append(network[2].running_var)
    assert torch.equal(*found)  # type: ignore[arg-type]
