"""The training loop: deterministic, resumable after each epoch, the same for every stage."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compress import distributed
from compress.data.load import Data
from compress.errors import CompressError
from compress.log import say, waiting, warn
from compress.train.config import TrainConfig
from compress.train.diagnosis import diagnose
from compress.train.epoch import Loss, Training, train_epoch
from compress.train.evaluate import evaluate, first_images
from compress.train.micro_batch import PROBE_IMAGES, fitting_batch
from compress.train.precision import Precision, choose_precision
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
)
from compress.train.state import Epoch, read_state, restore, save

SMALLEST_OWN_BATCH = 2
"""Images of a batch that each process needs: BatchNorm cannot normalize one."""
LINES = 20
"""At most so many epochs are told on the terminal; history.jsonl has all."""


def train(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    *,
    loss: Loss,
    seed: int,
    folder: Path,
    title: str,
    n_views: int = 0,
) -> list[Epoch]:
    """Trains a model in place.

    Args:
        model: takes images `[N, C, H, W]`, returns logits `[N, classes]`.
        data: trained on its train split; its validation split is scored after each epoch.
        config: the schedule.
        loss: what to minimize.
        seed: fixes order, augmentation, mixup and dropout.
        folder: where `training.pt` lets an interrupted run continue, and `history.jsonl` grows.
        title: names the run in the progress bar.
        n_views: the augmented views are used in turn, this many; 0 takes a new one each epoch.

    Returns:
        A row for each epoch, those of an interrupted run included.

    Raises:
        NonFiniteLossError: the loss became infinite or not a number.
    """
    if not config.epochs:
        model.eval()
        return []
    device = distributed.device()
    torch.set_flush_denormal(True)  # denormal weights slow a CPU down tenfold
    config = dataclasses.replace(config, batch_size=_batch_size(config, len(data.train)))
    state = distributed.decide(lambda: read_state(folder))
    model.to(device).to(memory_format=torch.channels_last)
    precision, micro_batch = _fitting_step(model, data, config, device, state)
    config = possible_size(config, model, data, device)
    average = averaged(model, config.ema)
    shown, steps = epoch_lengths(len(data.train), config, distributed.processes())
    epochs = len(steps)
    forget_initial_statistics(model, sum(steps))
    optimizer = make_optimizer(model, config, precision)
    losses = torch.zeros(len(data.train))
    history, best = restore(state, model, optimizer, average, losses)
    wrapped = distributed.parallel(model)
    if config.compile:
        wrapped = cast(nn.Module, torch.compile(wrapped))
    data = data_on(data, device)
    run = Training(
        device=device,
        model=model,
        wrapped=wrapped,
        optimizer=optimizer,
        average=average,
        data=data,
        config=config,
        precision=precision,
        loss=loss,
        seed=seed,
        title=title,
        n_views=n_views,
        shown=shown,
        steps=steps,
        losses=losses,
        micro_batch=micro_batch,
    )
    for epoch in range(len(history), epochs):
        if _out_of_patience(history, config.patience):
            break
        started = time.perf_counter()
        mean_loss, train_top1, lr = train_epoch(run, epoch)
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
        if distributed.is_first():
            save(
                folder,
                model,
                optimizer,
                average,
                losses,
                history=history,
                best=best,
                micro_batch=micro_batch,
            )
        _tell(row, epochs, title)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    if best is not None:
        model.load_state_dict(best)
    distributed.wait_for_all()
    model.to("cpu").eval()
    if len(history) < epochs:
        say(f"  {title}: no lower validation loss in {config.patience} epochs, stopped early")
    for finding in diagnose(history, len(data.class_names)):
        warn(f"  {finding}")
    return history


def _fitting_step(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    device: torch.device,
    state: Mapping[str, Any] | None,
) -> tuple[Precision, int]:
    """Returns the arithmetic of a step and the images that it takes at once.

    An interrupted training goes on with those it had: with others the last bits would be others.
    """
    if state is not None:
        return state["history"][-1]["precision"], state["micro_batch"]
    own_batch = config.batch_size // distributed.processes()
    few = first_images(data.train, PROBE_IMAGES)
    if config.precision == "auto":
        fits = fitting_batch(model, few, own_batch, device, "fp32")
        with waiting("timing fp32 and bf16"):
            images = first_images(data.train, fits)
            precision = distributed.decide(
                lambda: choose_precision(model, images, device, training=True)
            )
    else:
        precision = config.precision
    micro_batch = fitting_batch(model, few, own_batch, device, precision)
    if micro_batch < own_batch:
        say(
            f"  {own_batch} images at once need more than half of the memory that is free: "
            f"gradients of {micro_batch} at a time are added up"
        )
    return precision, micro_batch


def _batch_size(config: TrainConfig, n_images: int) -> int:
    """Returns the images a step, of all processes together; each has as many of them."""
    processes = distributed.processes()
    size = batch_size_for(config, n_images)
    each = size // processes
    if each < SMALLEST_OWN_BATCH and processes > 1:
        raise CompressError(
            f"a batch of {size} images is too small for {processes} processes, each needs "
            f"{SMALLEST_OWN_BATCH} of them; start fewer, or take larger batches or more images"
        )
    return each * processes


def _tell(row: Epoch, epochs: int, title: str) -> None:
    """Prints an epoch's line, unless there are very many."""
    if row.epoch % math.ceil(epochs / LINES) == 0 or row.epoch == epochs:
        say(
            f"  {title} epoch {row.epoch}/{epochs}: loss {row.loss:.3f}, validation "
            f"{row.validation_top1:.2f} %, {row.images_per_second:.0f} images/s ({row.precision})"
        )


def _out_of_patience(history: list[Epoch], patience: int) -> bool:
    if not patience or not history:
        return False
    best = min(history, key=lambda row: row.validation_loss)
    return history[-1].epoch - best.epoch >= patience
