from dataclasses import replace

import pytest
import torch

from compress.train.config import TrainConfig
from compress.train.schedule import (
    effective_batch_size,
    epochs_for,
    epochs_to_run,
    image_size,
    images_in_epoch,
    learning_rate,
    mixup,
    plan_epochs,
    select_images,
    steps_per_epoch,
    total_images,
)


def test_the_learning_rate_rises_then_follows_a_cosine() -> None:
    config = TrainConfig(lr=0.4, warmup=0.1)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.04)
    assert rates[9] == rates[10] == pytest.approx(0.4)
    assert rates[55] == pytest.approx(0.2)  # half way down the cosine
    assert rates[99] < 0.001


def test_warming_up_never_passes_the_peak() -> None:
    """A warm-up of 0.6 steps once started at 1.7 times the peak."""
    for hundredths in range(100):
        config = TrainConfig(lr=0.4, warmup=hundredths / 100)
        for steps in range(1, 301):
            rates = [learning_rate(step, steps, config) for step in range(steps)]
            top = rates.index(max(rates))
            assert 0 < rates[top] <= config.lr, (hundredths, steps)
            assert rates[: top + 1] == sorted(rates[: top + 1])
            assert rates[top:] == sorted(rates[top:], reverse=True)
            assert rates[top] > 0.9 * config.lr or steps * (1 - config.warmup) < 10


def test_image_sizes_grow_to_full_size() -> None:
    assert [image_size(epoch, 4, 0.5, 28) for epoch in range(4)] == [16, 24, 28, 28]
    assert [image_size(epoch, 4, 1.0, 28) for epoch in range(4)] == [28] * 4
    assert [image_size(epoch, 4, 0.5, 16) for epoch in range(4)] == [12, 12, 16, 16]


def test_small_sets_get_more_epochs() -> None:
    assert epochs_to_run(TrainConfig(epochs=4, min_steps=200), steps=10) == 20
    assert epochs_to_run(TrainConfig(epochs=4, min_steps=200), steps=400) == 4
    assert epochs_to_run(TrainConfig(epochs=0, min_steps=200), steps=400) == 0


def test_mixup_blends_images_and_labels_alike() -> None:
    images = torch.rand(4, 1, 2, 2)
    targets = torch.eye(4)
    mixed, labels = mixup(images, targets, 1.0, torch.Generator().manual_seed(0))
    share = labels[0, 0]
    assert 0 < share < 1
    assert torch.allclose(labels.sum(1), torch.ones(4))
    assert torch.allclose(mixed[0], share * images[0] + (1 - share) * images[3])


@pytest.mark.parametrize(
    ("images", "batch", "steps"),
    [(100, 25, 4), (101, 25, 4), (106, 25, 4), (107, 25, 5), (7, 25, 1), (1322, 165, 8)],
)
def test_a_small_last_batch_is_dropped(images: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(images, batch) == steps


def test_the_first_and_last_epoch_use_all_images() -> None:
    assert [images_in_epoch(epoch, 4, 0.3, 50) for epoch in range(4)] == [50, 15, 15, 50]


def test_no_epoch_has_a_single_image() -> None:
    """BatchNorm cannot normalize a single 1x1 map."""
    for n_images in range(2, 20):
        for share in (0.01, 0.3, 0.5, 1.0):
            assert all(2 <= images_in_epoch(e, 4, share, n_images) <= n_images for e in range(4))


def test_hard_images_are_always_selected_and_others_at_random() -> None:
    losses = torch.arange(100.0)
    hard = set(range(70, 100))  # half of 60 places
    seen = torch.zeros(100)
    for seed in range(200):
        order = select_images(losses, 60, torch.Generator().manual_seed(seed))
        assert len(order) == 60
        assert hard < set(order.tolist())
        assert order[:30].float().mean() < 80  # mixed, not the hard ones first
        seen[order] += 1
    share_of_easy = seen[:70] / 200
    assert share_of_easy.mean() == pytest.approx(30 / 70)
    assert 0.25 < share_of_easy.min() < share_of_easy.max() < 0.6


def test_selecting_all_images_is_a_permutation() -> None:
    order = select_images(torch.arange(10.0), 10, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(10))


def test_small_sets_get_smaller_batches() -> None:
    config = TrainConfig(batch_size=512)
    assert [effective_batch_size(config, n) for n in (55200, 4096, 1322, 10)] == [512, 512, 165, 2]


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_epochs_for_inverts_total_images(share: float) -> None:
    for epochs in range(1, 30):
        images = total_images(epochs, share, 1000)
        assert epochs_for(images, share, 1000) == epochs
    assert total_images(12, 0.5, 1000) == 7000
    assert epochs_for(7260, 0.5, 1000) == 13  # 12 show 7000, 13 show 7500
    assert epochs_for(7240, 0.5, 1000) == 12


def test_the_plan_counts_images_and_steps_of_all_processes() -> None:
    config = TrainConfig(epochs=3, min_steps=0, batch_size=100, data_fraction=0.5)
    plan = plan_epochs(1000, config, processes=1)
    assert plan.images == (1000, 500, 1000)
    assert plan.steps == plan_epochs(1000, config, processes=2).steps == (10, 5, 10)
    assert (plan.epochs, plan.total_steps) == (3, 25)
    assert plan_epochs(1000, replace(config, min_steps=41), processes=1).epochs == 5
