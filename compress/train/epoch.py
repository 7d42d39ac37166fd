"""One epoch of training: batches, their parts, losses and steps."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from compress import distributed
from compress.data.load import Data
from compress.data.splits import Batch, View
from compress.errors import CompressError
from compress.log import track
from compress.train.config import TrainConfig
from compress.train.precision import Precision, autocast
from compress.train.schedule import (
    image_size,
    learning_rate,
    mixup,
    order_of_epoch,
)

FINITE_CHECK_EVERY = 20
"""Steps between looks at the loss; each look waits for the device."""


class NonFiniteLossError(CompressError):
    """Training diverged; the message says when and what to try."""


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """Images that the network sees at once: one step's, or a part of them; on the device."""

    images: Tensor
    """float32 `[N, C, H, W]`, 0..255, augmented, mixed and sized as the network sees them."""
    targets: Tensor
    """float32 `[N, classes]`: one-hot labels, mixed as the images are."""
    index: Tensor
    """int64 `[N]`, on the CPU: places in the training split."""
    view: View
    step: int
    """Of the whole training."""
    step_of_epoch: int


Loss = Callable[[Tensor, TrainBatch], Tensor]
"""From float32 logits `[N, classes]` and the batch to a scalar."""


def label_loss(smoothing: float) -> Loss:
    """Returns cross-entropy with the (smoothed) labels."""
    return functools.partial(_cross_entropy, smoothing=smoothing)


def _cross_entropy(logits: Tensor, batch: TrainBatch, *, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same from the first to the last epoch."""

    device: torch.device
    model: nn.Module
    wrapped: nn.Module
    """The model itself, or DistributedDataParallel around it."""
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    data: Data
    config: TrainConfig
    precision: Precision
    loss: Loss
    seed: int
    title: str
    n_views: int
    shown: tuple[int, ...]
    """Images of each epoch, of all processes together."""
    steps: tuple[int, ...]
    """Of each epoch."""
    losses: Tensor
    """float32 `[n_train]`, on the CPU: cross-entropy of each image when it was last seen."""
    micro_batch: int
    """Images whose gradients are computed at once; those of a step are added up."""

    def image_size(self, epoch: int) -> int:
        """Returns the side of an epoch's images, pixels."""
        full = self.data.preprocess.size
        return image_size(epoch, len(self.steps), self.config.start_size, full)


def train_epoch(run: Training, epoch: int) -> tuple[float, float, float]:
    """Trains one epoch; returns its mean loss, top-1 in percent and last learning rate.

    Everything random follows from seed and epoch, so that nothing but weights, momentum and losses
    has to be kept to continue an interrupted run exactly.
    """
    config, device = run.config, run.device
    this_epoch = View(seed=run.seed, number=epoch)
    salt = (2, distributed.place()) if distributed.place() else (2,)
    _seed_all(this_epoch.generator(*salt).initial_seed() % 2**31)  # dropout, stochastic depth
    generator = this_epoch.generator(1)
    view = View(seed=run.seed, number=epoch % run.n_views) if run.n_views else this_epoch
    order = order_of_epoch(run.losses, run.shown[epoch], generator)
    steps, before = run.steps[epoch], sum(run.steps[:epoch])
    own_batch = config.batch_size // distributed.processes()
    order = distributed.share(order)[: steps * own_batch]  # without a last batch of a few
    batches = run.data.train.batches(own_batch, order=order, view=view)
    total, right, seen, lr = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
    told: list[tuple[Tensor, Tensor]] = []
    run.model.train()
    title = f"{run.title} epoch {epoch + 1}/{len(run.steps)}"
    for step, raw in enumerate(track(batches, title, total=steps)):
        lr = learning_rate(before + step, sum(run.steps), config)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        run.optimizer.zero_grad(set_to_none=True)
        whole = _on_device(run, raw, view, generator, step=before + step, step_of_epoch=step)
        parts = _parts(whole, run.micro_batch)
        for number, part in enumerate(parts):
            batch = _sized(part, run.image_size(epoch))
            with _without_exchange(run.wrapped) if number < len(parts) - 1 else nullcontext():
                with autocast(run.precision, device):
                    logits = run.wrapped(batch.images)
                value = run.loss(logits.float(), batch) * (len(batch.index) / len(whole.index))
                value.backward()
            total += value.detach()
            right += (logits.argmax(1) == batch.targets.argmax(1)).sum()
            seen += len(logits)
            if config.data_fraction < 1:
                own = F.cross_entropy(logits.detach().float(), batch.targets, reduction="none")
                told.append((batch.index.to(device), own))
        if config.clip_norm:
            nn.utils.clip_grad_norm_(run.model.parameters(), config.clip_norm)
        run.optimizer.step()
        if run.average is not None:
            run.average.update_parameters(run.model)
        if step % FINITE_CHECK_EVERY == 0 or step == steps - 1:
            _check_finite(distributed.total(total), run.title, epoch, lr)
    if told:  # of all processes, so that they draw the same images next time
        index, own = (torch.cat(column) for column in zip(*told, strict=True))
        run.losses[torch.cat(distributed.gathered(index)).cpu()] = torch.cat(
            distributed.gathered(own)
        ).cpu()
    of_all = distributed.processes()
    mean_loss = distributed.total(total).item() / steps / of_all
    return mean_loss, 100 * distributed.total(right).item() / (seen * of_all), lr


def _on_device(
    run: Training,
    raw: Batch,
    view: View,
    generator: torch.Generator,
    *,
    step: int,
    step_of_epoch: int,
) -> TrainBatch:
    """Returns a step's images on the device, mixed."""
    images = raw.images.to(run.device, non_blocking=True).float()
    targets = F.one_hot(raw.labels.to(run.device), len(run.data.class_names)).float()
    if run.config.mixup:
        images, targets = mixup(images, targets, run.config.mixup, generator)
    return TrainBatch(
        images=images,
        targets=targets,
        index=raw.index,
        view=view,
        step=step,
        step_of_epoch=step_of_epoch,
    )


def _parts(batch: TrainBatch, micro_batch: int) -> list[TrainBatch]:
    """Splits a step's images into parts of like sizes, none larger than a micro-batch."""
    count = -(-len(batch.index) // micro_batch)
    if count == 1:
        return [batch]
    split = zip(
        batch.images.tensor_split(count),
        batch.targets.tensor_split(count),
        batch.index.tensor_split(count),
        strict=True,
    )
    return [
        dataclasses.replace(batch, images=images, targets=targets, index=index)
        for images, targets, index in split
    ]


def _sized(batch: TrainBatch, size: int) -> TrainBatch:
    """Returns the images in a size, in the layout that convolutions like."""
    images = batch.images
    if size != images.shape[-1]:
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
    return dataclasses.replace(batch, images=images.contiguous(memory_format=torch.channels_last))


def _without_exchange(wrapped: nn.Module) -> AbstractContextManager[object]:
    """Returns a context in which gradients are added up and not yet averaged over processes."""
    return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) else nullcontext()


def _seed_all(seed: int) -> None:
    """Seeds all that a network may draw from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _check_finite(total: Tensor, title: str, epoch: int, lr: float) -> None:
    if not torch.isfinite(total):
        raise NonFiniteLossError(
            f"{title}: the loss is no longer a finite number (epoch {epoch + 1}, learning rate "
            f"{lr:.3g}); try a tenth of the learning rate, a longer warm-up or precision = 'fp32'"
        )
