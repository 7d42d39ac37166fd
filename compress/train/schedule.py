"""Training schedules over epochs and steps, as pure functions."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compress.train.config import TrainConfig

SIZE_MULTIPLE = 4
"""Image sizes are rounded up to a multiple of this many pixels."""
MIN_SIZE = 12
"""Minimum image side in pixels. In smaller images the last feature maps are 1x1, where torch's
strided bf16 convolutions on CPUs are not deterministic and sometimes return NaN (ResNet-18 at 8 px,
torch 2.15)."""
MIN_STEPS_PER_EPOCH = 8
"""Small sets get smaller batches; otherwise `min_steps` large ones would take hours."""
MIN_LAST_BATCH = 1 / 4
"""Fraction of the batch size below which the last batch of an epoch is dropped."""
RESIZING_SHARE = 2 / 3
"""Fraction of the epochs in which images grow; the others train at full size."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Size of each epoch, over all processes."""

    images: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return len(self.steps)

    @property
    def total_steps(self) -> int:
        """Steps of all epochs."""
        return sum(self.steps)


def plan_epochs(n_images: int, config: TrainConfig, processes: int) -> Plan:
    """Returns the images and steps of each epoch; processes split both images and batches."""

    def steps(count: int) -> int:
        return steps_per_epoch(count // processes, config.batch_size // processes)

    epochs = epochs_to_run(config, steps(n_images))
    images = tuple(
        images_in_epoch(epoch, epochs, config.data_fraction, n_images) for epoch in range(epochs)
    )
    return Plan(images=images, steps=tuple(steps(count) for count in images))


def steps_per_epoch(n_images: int, batch_size: int) -> int:
    """Returns the number of batches, dropping a last one below `MIN_LAST_BATCH` of the batch size.

    A tiny batch would distort BatchNorm's running statistics, and BatchNorm cannot normalize a
    single 1x1 feature map at all. The next epoch drops other images.
    """
    full, rest = divmod(n_images, batch_size)
    return max(1, full + (rest >= MIN_LAST_BATCH * batch_size and rest > 1))


def effective_batch_size(config: TrainConfig, n_images: int) -> int:
    """Returns the batch size, reduced so that an epoch has at least `MIN_STEPS_PER_EPOCH`."""
    return min(config.batch_size, max(2, n_images // MIN_STEPS_PER_EPOCH))


def epochs_to_run(config: TrainConfig, steps: int) -> int:
    """Returns how many epochs of `steps` steps satisfy `epochs` and `min_steps`; 0 stays 0."""
    return max(config.epochs, math.ceil(config.min_steps / steps)) if config.epochs else 0


def images_in_epoch(epoch: int, epochs: int, data_fraction: float, n_images: int) -> int:
    """Returns how many images an epoch uses: all of them in the first and the last epoch.

    At least two, because BatchNorm cannot normalize a single one.
    """
    if epoch in (0, epochs - 1):
        return n_images
    return min(n_images, max(2, round(data_fraction * n_images)))


def total_images(epochs: int, data_fraction: float, n_images: int) -> int:
    """Returns how many images all epochs use together."""
    return sum(images_in_epoch(epoch, epochs, data_fraction, n_images) for epoch in range(epochs))


def epochs_for(images: float, data_fraction: float, n_images: int) -> int:
    """Returns the number of epochs, at least one, whose `total_images` is closest to `images`."""
    upper = math.ceil(images / (data_fraction * n_images)) + 1
    return min(
        range(1, upper + 1),
        key=lambda epochs: abs(total_images(epochs, data_fraction, n_images) - images),
    )


def select_images(losses: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Selects the images of an epoch, in random order, favoring those with a high loss.

    Half are the images with the highest most recent loss (online batch selection, Loshchilov &
    Hutter, arXiv 1511.06343); the others are drawn from the rest, because images that are learned
    teach little but must not be forgotten (InfoBatch, arXiv 2303.04947).

    Args:
        losses: float `[n_images]`, each image's most recent loss.
        count: how many to select.
        generator: source of randomness.

    Returns:
        int64 `[count]`, without repetition.
    """
    order = torch.randperm(len(losses), generator=generator)
    if count == len(losses):
        return order
    hard = losses.argsort(descending=True, stable=True)[: count // 2]
    selected = torch.zeros(len(losses), dtype=torch.bool)
    selected[hard] = True
    drawn = order[~selected[order]][: count - len(hard)]
    selected[drawn] = True
    return order[selected[order]]


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero (SGDR, arXiv 1608.03983, equation 5)."""
    warmup = config.warmup * steps  # rarely an integer: its last step must not exceed the peak
    if step < warmup:
        return config.lr * min(1.0, (step + 1) / warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def image_size(epoch: int, epochs: int, start_size: float, full: int) -> int:
    """Returns the image size of an epoch, which grows from `start_size * full` to `full` pixels.

    Progressive resizing, as in EfficientNetV2 (arXiv 2104.00298, section 4).
    """
    if epochs < 2:
        return full
    progress = min(1.0, epoch / (epochs - 1) / RESIZING_SHARE)
    size = full * (start_size + (1 - start_size) * progress)
    return min(full, max(MIN_SIZE, math.ceil(size / SIZE_MULTIPLE) * SIZE_MULTIPLE))


def mixup(
    images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blends each image with its neighbor in the batch (mixup, arXiv 1710.09412, equation 1).

    Args:
        images: float `[N, C, H, W]`.
        targets: float `[N, classes]`.
        alpha: the mixing ratio, one per batch, is drawn from Beta(alpha, alpha).
        generator: source of randomness.

    Returns:
        Blended images and targets, shaped as before.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    ratio = float(np.random.default_rng(seed).beta(alpha, alpha))
    return (
        ratio * images + (1 - ratio) * images.roll(1, 0),
        ratio * targets + (1 - ratio) * targets.roll(1, 0),
    )
