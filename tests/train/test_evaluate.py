"""Scores in PyTorch."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.augment import Augmentation
from compress.data.dataset import Data
from compress.data.splits import TensorSplit
from compress.train.evaluate import evaluate, evaluation_batch, first_images
from tests.train.test_epoch import Linear


class FirstClass(nn.Module):
    """Predicts class 0."""

    def forward(self, images: Tensor) -> Tensor:
        """Maps `[N, ...]` to `[N, 10]`."""
        return F.one_hot(torch.zeros(len(images), dtype=torch.int64), 10).float()


def test_loss_and_top1_are_those_of_all_images_at_once(digits: Data) -> None:
    model, split = Linear(), digits.test
    assert isinstance(split, TensorSplit)
    loss, top1 = evaluate(model, split)
    logits = model(split.images.float())
    assert loss == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-5)
    accuracy = (logits.argmax(1) == split.labels).float().mean().item()
    assert top1 == pytest.approx(100 * accuracy, rel=1e-5)


def test_images_are_scored_at_the_size_of_training(digits: Data) -> None:
    sides = []

    class Watching(Linear):
        def forward(self, images: Tensor) -> Tensor:
            sides.append(images.shape[-2:])
            return super().forward(F.interpolate(images, size=digits.preprocess.size))

    evaluate(Watching(), digits.validation, size=8)
    assert set(sides) == {(8, 8)}


def test_a_sample_has_all_classes(digits: Data) -> None:
    """Folders list their images class by class: the first ones all belong to the first class."""
    assert isinstance(digits.validation, TensorSplit)
    order = digits.validation.labels.argsort(stable=True)
    images, labels = digits.validation.images[order], digits.validation.labels[order]
    ordered = replace(digits.validation, images=images, labels=labels)
    _, top1 = evaluate(FirstClass(), ordered, images=20)
    assert top1 == pytest.approx(10, abs=5)


@pytest.mark.parametrize(("size", "batch"), [(16, 250), (129, 250), (256, 64), (2049, 1)])
def test_batches_of_large_images_are_small(size: int, batch: int) -> None:
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    labels = torch.zeros(1, dtype=torch.int64)
    split = TensorSplit(images=images, labels=labels, augmentation=Augmentation(), shift=0)
    assert evaluation_batch(split) == batch


def test_first_images_are_in_order_and_not_augmented(digits: Data) -> None:
    assert isinstance(digits.test, TensorSplit)
    assert torch.equal(first_images(digits.test, 3), digits.test.images[:3])
    assert len(first_images(digits.test, 10**6)) == len(digits.test)
