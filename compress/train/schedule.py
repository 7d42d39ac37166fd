"""How a training run changes from step to step: pure functions of the place in the run."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from compress.train.config import TrainConfig

SIZE_MULTIPLE = 4
"""Growing image sides are rounded up to this many pixels."""
SMALLEST_SIDE = 12
"""Pixels. Below, the last maps are 1x1, where torch's strided bf16 convolutions on a CPU give other
numbers each time, now and then no numbers (ResNet-18 at 8 px, torch 2.15)."""
FEWEST_STEPS = 8
"""Of an epoch; small sets get smaller batches, else `min_steps` large ones would take hours."""
LEAST_BATCH = 1 / 4
"""Of the batch size; the last batch of an epoch is left out if it is smaller."""
GROWTH = 2 / 3
"""Share of the epochs in which images grow; the rest is trained at full size."""


def steps_of_epoch(n_images: int, batch_size: int) -> int:
    """Returns the batches of an epoch; a last one under `LEAST_BATCH` of the size is left out.

    A few images would spoil BatchNorm's running statistics, and one whose feature map is 1x1
    cannot be normalized at all. Other images are left out in the next epoch.
    """
    whole, rest = divmod(n_images, batch_size)
    return max(1, whole + (rest >= LEAST_BATCH * batch_size and rest > 1))


def batch_size_for(config: TrainConfig, n_images: int) -> int:
    """Returns the images a step: fewer than asked if an epoch would have under `FEWEST_STEPS`."""
    return min(config.batch_size, max(2, n_images // FEWEST_STEPS))


def images_of_epoch(epoch: int, epochs: int, share: float, n_images: int) -> int:
    """Returns how many images an epoch shows: all in the first and the last one.

    Never one alone, which BatchNorm could not normalize.
    """
    return n_images if epoch in (0, epochs - 1) else min(n_images, max(2, round(share * n_images)))


def epoch_lengths(
    n_images: int, config: TrainConfig, processes: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the images and the steps of each epoch; the processes share images and batches."""

    def steps(count: int) -> int:
        return steps_of_epoch(count // processes, config.batch_size // processes)

    epochs = epochs_to_run(config, steps(n_images))
    shown = tuple(
        images_of_epoch(epoch, epochs, config.data_fraction, n_images) for epoch in range(epochs)
    )
    return shown, tuple(steps(count) for count in shown)


def images_of_training(epochs: int, share: float, n_images: int) -> int:
    """Returns how many images all epochs show together."""
    return sum(images_of_epoch(epoch, epochs, share, n_images) for epoch in range(epochs))


def epochs_for(images: float, share: float, n_images: int) -> int:
    """Returns the epochs, one or more, that come nearest to showing so many images."""
    most = math.ceil(images / (share * n_images)) + 1
    return min(
        range(1, most + 1),
        key=lambda epochs: abs(images_of_training(epochs, share, n_images) - images),
    )


def order_of_epoch(losses: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draws an epoch's images and their order, with more of those that are not learned yet.

    Most images of a set are soon right with certainty and teach nothing more: half the places go
    to the images with the highest loss, the others by lot to the rest (after InfoBatch, arXiv
    2303.04947, and the selection by loss of arXiv 1910.00762).

    Args:
        losses: float `[n_images]`, of each image when it was last seen.
        count: of images that are drawn.
        generator: the draw.

    Returns:
        int64 `[count]`, each image at most once.
    """
    order = torch.randperm(len(losses), generator=generator)
    if count == len(losses):
        return order
    hard = losses.argsort(descending=True, stable=True)[: count // 2]
    taken = torch.zeros(len(losses), dtype=torch.bool)
    taken[hard] = True
    by_lot = order[~taken[order]][: count - len(hard)]
    taken[by_lot] = True
    return order[taken[order]]


def epochs_to_run(config: TrainConfig, steps: int) -> int:
    """Returns the number of epochs of `steps` steps each; zero stays zero."""
    return max(config.epochs, math.ceil(config.min_steps / steps)) if config.epochs else 0


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero (SGDR, arXiv 1608.03983, equation 5)."""
    warmup = config.warmup * steps  # seldom whole: the last step of it is the peak, not more
    if step < warmup:
        return config.lr * min(1.0, (step + 1) / warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def image_size(epoch: int, epochs: int, start_size: float, full: int) -> int:
    """Returns the side of an epoch's images, which grows from `start_size * full` to `full`."""
    if epochs < 2:
        return full
    share = min(1.0, epoch / (epochs - 1) / GROWTH)
    side = full * (start_size + (1 - start_size) * share)
    return min(full, max(SMALLEST_SIDE, math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE))


def mixup(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blends each image with its neighbor in the batch (mixup, arXiv 1710.09412, equation 1).

    Args:
        images: float `[N, C, H, W]`.
        targets: float `[N, classes]`.
        alpha: of the Beta(alpha, alpha) that the blend is drawn from.
        generator: the draw.

    Returns:
        Blended pixels and targets of the same shapes.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return (
        share * images + (1 - share) * images.roll(1, 0),
        share * targets + (1 - share) * targets.roll(1, 0),
    )
