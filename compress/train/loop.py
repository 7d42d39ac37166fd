"""The training loop: deterministic, resumable after each epoch, the same for every stage."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from compress.data.load import Data
from compress.data.splits import View
from compress.errors import CompressError
from compress.progress import say, track, waiting
from compress.train.config import TrainConfig
from compress.train.diagnosis import diagnose
from compress.train.evaluate import evaluate, first_pixels
from compress.train.precision import Precision, autocast, choose_precision
from compress.train.prepare import (
    averaged,
    data_on,
    forget_initial_statistics,
    make_optimizer,
    possible_size,
)
from compress.train.schedule import (
    batch_size_for,
    epoch_lengths,
    image_size,
    learning_rate,
    mixup,
    order_of_epoch,
)
from compress.train.state import Epoch, restore, save

FINITE_CHECK_EVERY = 20
"""Steps between looks at the loss; each look waits for the device."""
LINES = 20
"""At most so many epochs are told on the terminal; history.jsonl has all."""


class NonFiniteLossError(CompressError):
    """Training diverged; the message says when and what to try."""


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """One step's images, on the device."""

    pixels: Tensor
    """float32 `[N, C, H, W]`, 0..255, augmented, mixed and sized as the network sees them."""
    targets: Tensor
    """float32 `[N, classes]`: one-hot labels, mixed as the images are."""
    index: Tensor
    """int64 `[N]`, on the CPU: places in the training split."""
    view: View


Loss = Callable[[Tensor, TrainBatch], Tensor]
"""From float32 logits `[N, classes]` and the batch to a scalar."""


def label_loss(smoothing: float) -> Loss:
    """Returns cross-entropy with the (smoothed) labels."""
    return lambda logits, batch: F.cross_entropy(logits, batch.targets, label_smoothing=smoothing)


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    loss: Loss,
    seed: int,
    folder: Path,
    title: str,
    views: int = 0,
) -> list[Epoch]:
    """Trains a model in place.

    Args:
        model: takes pixels `[N, C, H, W]`, returns logits `[N, classes]`.
        data: trained on its train split; its validation split is scored after each epoch.
        config: the schedule.
        loss: what to minimise.
        seed: fixes order, augmentation, mixup and dropout.
        folder: where `training.pt` lets an interrupted run continue, and `history.jsonl` grows.
        title: names the run in the progress bar.
        views: the augmented views are used in turn, this many; 0 takes a new one each epoch.

    Returns:
        A row for each epoch, those of an interrupted run included.

    Raises:
        NonFiniteLossError: the loss became infinite or not a number.
    """
    accelerator = Accelerator()
    device = accelerator.device
    torch.set_flush_denormal(True)  # denormal weights slow a CPU down tenfold
    config = dataclasses.replace(config, batch_size=batch_size_for(config, len(data.train)))
    precision = config.precision
    if precision == "auto":
        with waiting("timing fp32 and bf16"):
            probe = first_pixels(data.train, config.batch_size)
            precision = choose_precision(model, probe, device, training=True)
    model.to(device).to(memory_format=torch.channels_last)
    config = possible_size(config, model, data, device)
    average = averaged(model, config.ema)
    shown, steps = epoch_lengths(len(data.train), config, accelerator.num_processes)
    epochs = len(steps)
    forget_initial_statistics(model, sum(steps))
    optimizer = make_optimizer(model, config, precision)
    losses = torch.zeros(len(data.train))
    history, best = restore(folder, model, optimizer, average, losses)
    wrapped, prepared = accelerator.prepare(model, optimizer)
    if config.compile:
        wrapped = torch.compile(wrapped)
    data = data_on(data, device)
    run = _Run(
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        optimizer=prepared,
        average=average,
        data=data,
        config=config,
        precision=precision,
        loss=loss,
        seed=seed,
        title=title,
        views=views,
        shown=shown,
        steps=steps,
        losses=losses,
    )
    for epoch in range(len(history), epochs):
        if _out_of_patience(history, config.patience):
            break
        started = time.perf_counter()
        mean_loss, train_top1, lr = _train_epoch(run, epoch)
        seconds = time.perf_counter() - started
        scored = model if average is None else average.module
        validation_loss, validation_top1 = evaluate(
            scored, data.validation, device=device, precision=precision
        )
        row = Epoch(
            epoch=epoch + 1,
            image_size=run.image_size(epoch),
            lr=lr,
            loss=mean_loss,
            train_top1=train_top1,
            validation_loss=validation_loss,
            validation_top1=validation_top1,
            images_per_second=round(shown[epoch] / seconds, 1),
            seconds=seconds,
            precision=precision,
        )
        history.append(row)
        if config.patience and validation_loss <= min(one.validation_loss for one in history):
            best = {name: tensor.cpu().clone() for name, tensor in scored.state_dict().items()}
        if accelerator.is_main_process:
            save(folder, model, optimizer, average, losses, history=history, best=best)
            if row.epoch % math.ceil(epochs / LINES) == 0 or row.epoch == epochs:
                say(
                    f"  {title} epoch {row.epoch}/{epochs}: loss {row.loss:.3f}, validation "
                    f"{row.validation_top1:.2f} %, {row.images_per_second:.0f} images/s "
                    f"({precision})"
                )
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if best is not None:
        model.load_state_dict(best)
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    model.to("cpu").eval()
    if accelerator.is_main_process:
        if len(history) < epochs:
            say(f"  {title}: no lower validation loss in {config.patience} epochs, stopped early")
        for finding in diagnose(history, len(data.class_names)):
            say(f"  [yellow]{finding}[/]")
    return history


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What stays the same from the first to the last epoch."""

    accelerator: Accelerator
    model: nn.Module
    wrapped: nn.Module
    """The model as Accelerate runs it: itself, or DistributedDataParallel around it."""
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    data: Data
    config: TrainConfig
    precision: Precision
    loss: Loss
    seed: int
    title: str
    views: int
    shown: tuple[int, ...]
    """Images of each epoch, of all processes together."""
    steps: tuple[int, ...]
    """Of each epoch."""
    losses: Tensor
    """float32 `[n_train]`, on the CPU: cross-entropy of each image when it was last seen."""

    def image_size(self, epoch: int) -> int:
        full = self.data.preprocess.size
        return image_size(epoch, len(self.steps), self.config.first_size, full)


def _train_epoch(run: _Run, epoch: int) -> tuple[float, float, float]:
    """Trains one epoch; returns its mean loss, top-1 in percent and last learning rate.

    Everything random follows from seed and epoch, so that nothing but weights, momentum and losses
    has to be kept to continue an interrupted run exactly.
    """
    accelerator, config = run.accelerator, run.config
    device = accelerator.device
    this_epoch = View(seed=run.seed, number=epoch)
    set_seed(this_epoch.generator(2).initial_seed() % 2**31)  # dropout, stochastic depth
    generator = this_epoch.generator(1)
    view = View(seed=run.seed, number=epoch % run.views) if run.views else this_epoch
    order = order_of_epoch(run.losses, run.shown[epoch], generator)
    workers = accelerator.num_processes
    if workers > 1:  # every process must make the same number of steps
        order = order[: len(order) - len(order) % workers][accelerator.process_index :: workers]
    steps, before = run.steps[epoch], sum(run.steps[:epoch])
    order = order[: steps * config.batch_size]  # without a last batch of a few
    batches = run.data.train.batches(config.batch_size, order=order, view=view)
    total, right, seen, lr = torch.zeros((), device=device), torch.zeros((), device=device), 0, 0.0
    told: list[Tensor] = []
    run.model.train()
    title = f"{run.title} epoch {epoch + 1}/{len(run.steps)}"
    for step, raw in enumerate(track(batches, title, total=steps)):
        lr = learning_rate(before + step, sum(run.steps), config)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        pixels = raw.images.to(device, non_blocking=True).float()
        targets = F.one_hot(raw.labels.to(device), len(run.data.class_names)).float()
        if config.mixup:
            pixels, targets = mixup(pixels, targets, config.mixup, generator)
        size = run.image_size(epoch)
        if size != pixels.shape[-1]:
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        batch = TrainBatch(pixels=pixels, targets=targets, index=raw.index, view=view)
        with autocast(run.precision, device):
            logits = run.wrapped(batch.pixels)
        value = run.loss(logits.float(), batch)
        run.optimizer.zero_grad(set_to_none=True)
        accelerator.backward(value)
        if config.clip_norm:
            accelerator.clip_grad_norm_(run.model.parameters(), config.clip_norm)
        run.optimizer.step()
        if run.average is not None:
            run.average.update_parameters(run.model)
        total += value.detach()
        right += (logits.argmax(1) == batch.targets.argmax(1)).sum()
        seen += len(logits)
        if config.image_share < 1:
            own = F.cross_entropy(logits.detach().float(), batch.targets, reduction="none")
            told.append(torch.stack([raw.index.to(device).double(), own.double()]))
        if step % FINITE_CHECK_EVERY == 0 or step == steps - 1:
            _check_finite(total, run.title, epoch, lr)
    if told:  # of all processes, so that they draw the same images next time
        index, own = accelerator.gather(torch.cat(told, 1).T.contiguous()).T.cpu()
        run.losses[index.long()] = own.float()
    return total.item() / steps, 100 * right.item() / seen, lr


def _out_of_patience(history: list[Epoch], patience: int) -> bool:
    if not patience or not history:
        return False
    best = min(history, key=lambda row: row.validation_loss)
    return history[-1].epoch - best.epoch >= patience


def _check_finite(total: Tensor, title: str, epoch: int, lr: float) -> None:
    if not torch.isfinite(total):
        raise NonFiniteLossError(
            f"{title}: the loss is no longer a finite number (epoch {epoch + 1}, learning rate "
            f"{lr:.3g}); try a tenth of the learning rate, a longer warm-up or precision = 'fp32'"
        )
