import pytest
import torch

from compress.train.config import TrainConfig
from compress.train.schedule import (
    epochs_to_run,
    image_size,
    learning_rate,
    mixup,
    steps_of_epoch,
)


def test_the_learning_rate_rises_then_follows_a_cosine() -> None:
    config = TrainConfig(lr=0.4, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)  # half way down the cosine
    assert rates[99] < 0.001


def test_image_sizes_grow_to_the_full_one() -> None:
    assert [image_size(epoch, 4, 0.5, 28) for epoch in range(4)] == [16, 24, 28, 28]
    assert [image_size(epoch, 4, 1.0, 28) for epoch in range(4)] == [28] * 4
    assert [image_size(epoch, 4, 0.5, 16) for epoch in range(4)] == [12, 12, 16, 16]


def test_small_sets_get_more_epochs() -> None:
    assert epochs_to_run(TrainConfig(epochs=4, min_steps=200), steps=10) == 20
    assert epochs_to_run(TrainConfig(epochs=4, min_steps=200), steps=400) == 4
    assert epochs_to_run(TrainConfig(epochs=0, min_steps=200), steps=400) == 0


def test_mixup_blends_images_and_labels_alike() -> None:
    pixels = torch.rand(4, 1, 2, 2)
    targets = torch.eye(4)
    mixed, labels = mixup(pixels, targets, 1.0, torch.Generator().manual_seed(0))
    share = labels[0, 0]
    assert 0 < share < 1
    assert torch.allclose(labels.sum(1), torch.ones(4))
    assert torch.allclose(mixed[0], share * pixels[0] + (1 - share) * pixels[3])


@pytest.mark.parametrize(
    ("images", "batch", "steps"), [(100, 25, 4), (101, 25, 4), (102, 25, 5), (7, 25, 1)]
)
def test_a_last_batch_of_one_image_is_left_out(images: int, batch: int, steps: int) -> None:
    assert steps_of_epoch(images, batch) == steps
