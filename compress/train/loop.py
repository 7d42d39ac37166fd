"""The training loop: deterministic, and resumable after each epoch."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from compress import distributed
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.log import count_of
from compress.train.config import Precision, TrainConfig
from compress.train.epoch import Compute, Loss, Run, train_epoch
from compress.train.evaluate import evaluate, first_images
from compress.train.events import EpochEnd, OnEvent, print_event, spinner
from compress.train.micro_batch import PROBE_IMAGES, fitting_batch
from compress.train.precision import choose_precision
from compress.train.prepare import (
    accepts_start_size,
    data_on,
    make_ema,
    make_optimizer,
    raise_batchnorm_momentum,
)
from compress.train.schedule import Plan, effective_batch_size, plan_epochs
from compress.train.state import STATE, Epoch, TrainState, read_state, restore, save

MIN_OWN_BATCH = 2
"""Images per process and step; BatchNorm cannot normalize a single one."""


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
    on_event: OnEvent = print_event,
) -> list[Epoch]:
    """Trains a model in place and leaves it on the CPU, in evaluation mode.

    Args:
        model: maps images `[N, C, H, W]`, 0..255, to logits `[N, classes]`.
        data: trains on the training split and scores the validation split after each epoch.
        config: schedule and optimizer.
        loss: what to minimize.
        seed: determines order, augmentation, mixup, and dropout.
        folder: holds `training.pt`, from which a run resumes, and `history.jsonl`.
        title: name of the run in messages and progress bars.
        n_views: cycle through this many augmented views; 0 uses a new one in each epoch.
        on_event: receives progress; by default it is printed.

    Returns:
        One row per epoch, including those before an interruption.

    Raises:
        CompressError: the batch is too small for the number of processes, or not even two images
            fit into memory.
        NonFiniteLossError: training diverged.
    """
    if not config.epochs:
        model.eval()
        return []
    torch.set_flush_denormal(True)  # denormal numbers make a CPU ten times slower
    config, plan, compute, state = _set_up(model, data, config, folder, on_event)
    run = Run(
        data=data_on(data, compute.device),
        config=config,
        loss=loss,
        seed=seed,
        n_views=n_views,
        title=title,
        plan=plan,
        compute=compute,
        state=state,
    )
    history, epochs = state.history, plan.epochs
    for epoch in range(len(history), epochs):
        if _out_of_patience(history, config.patience):
            break
        history.append(_run_epoch(run, epoch, on_event))
        _remember_best(run)
        if distributed.is_first():
            save(folder, state, micro_batch=compute.micro_batch)
        on_event(EpochEnd(title=title, epochs=epochs, row=history[-1]))
    _finish(state)
    if len(history) < epochs:
        patience = count_of(config.patience, "epoch")
        on_event(f"{title}: stopped early after {patience} without improvement")
    return history


def _set_up(
    model: nn.Module, data: Data, config: TrainConfig, folder: Path, on_event: OnEvent
) -> tuple[TrainConfig, Plan, Compute, TrainState]:
    """Moves the model to the device, fits the settings to both, and resumes a saved run."""
    device = distributed.device()
    config = dataclasses.replace(config, batch_size=_batch_size(config, len(data.train)))
    saved = distributed.decide(lambda: _saved_state(folder, on_event))
    model.to(device).to(memory_format=torch.channels_last)
    precision, micro_batch = _precision_and_micro_batch(model, data, config, saved, on_event)
    if config.start_size < 1 and not accepts_start_size(config, model, data, device):
        on_event("the network has a fixed input size: progressive resizing is off")
        config = dataclasses.replace(config, start_size=1.0)
    average = make_ema(model, config.ema)
    plan = plan_epochs(len(data.train), config, distributed.processes())
    raise_batchnorm_momentum(model, plan.total_steps)
    state = TrainState(
        model=model,
        optimizer=make_optimizer(model, config, precision),
        average=average,
        losses=torch.zeros(len(data.train)),
    )
    if saved is not None:
        restore(saved, state)
        on_event(f"resuming after epoch {len(state.history)}")
    forward = distributed.parallel(model)
    if config.compile:
        forward = cast(nn.Module, torch.compile(forward))
    compute = Compute(device=device, precision=precision, micro_batch=micro_batch, forward=forward)
    return config, plan, compute, state


def _saved_state(folder: Path, on_event: OnEvent) -> dict[str, Any] | None:
    saved, path = read_state(folder), folder / STATE
    if saved is None and path.is_file():
        on_event(f"{path} is damaged: training restarts from the first epoch")
    return saved


def _precision_and_micro_batch(
    model: nn.Module,
    data: Data,
    config: TrainConfig,
    saved: Mapping[str, Any] | None,
    on_event: OnEvent,
) -> tuple[Precision, int]:
    """Returns how to run a step; a resumed run keeps its choice, for bit-identical results."""
    if saved is not None:
        return saved["history"][-1]["precision"], saved["micro_batch"]
    device, own_batch = distributed.device(), config.batch_size // distributed.processes()
    few = first_images(data.train, PROBE_IMAGES)
    if config.precision == "auto":
        fitting = fitting_batch(model, few, own_batch, device, "fp32")
        with spinner("timing fp32 and bf16", on_event):
            images = first_images(data.train, fitting)
            precision = distributed.decide(
                lambda: choose_precision(model, images, device, training=True)
            )
    else:
        precision = config.precision
    micro_batch = fitting_batch(model, few, own_batch, device, precision)
    if micro_batch < own_batch:
        on_event(
            f"a batch of {own_batch} images needs more than half of the free memory: gradients "
            f"are accumulated over micro-batches of {micro_batch}"
        )
    return precision, micro_batch


def _batch_size(config: TrainConfig, n_images: int) -> int:
    """Returns the batch size of all processes together, the same for each of them."""
    processes = distributed.processes()
    size = effective_batch_size(config, n_images)
    own = size // processes
    if own < MIN_OWN_BATCH and processes > 1:
        raise CompressError(
            f"a batch of {count_of(size, 'image')} is too small for {processes} processes, which "
            f"need {MIN_OWN_BATCH} each; use fewer processes, a larger batch size, or more images"
        )
    return own * processes


def _run_epoch(run: Run, epoch: int, on_event: OnEvent) -> Epoch:
    """Trains and validates an epoch."""
    started = time.perf_counter()
    result = train_epoch(run, epoch, on_event)
    seconds = time.perf_counter() - started
    validation_loss, validation_top1 = evaluate(
        run.state.scored,
        run.data.validation,
        device=run.compute.device,
        precision=run.compute.precision,
        size=run.image_size(epoch),
    )
    return Epoch(
        epoch=epoch + 1,
        image_size=run.image_size(epoch),
        lr=result.lr,
        loss=result.loss,
        train_top1=result.top1,
        validation_loss=validation_loss,
        validation_top1=validation_top1,
        images_per_second=round(run.plan.images[epoch] / seconds, 1),
        seconds=seconds,
        precision=run.compute.precision,
    )


def _remember_best(run: Run) -> None:
    """With early stopping, keeps the weights if the last epoch is the best so far."""
    state = run.state
    if run.config.patience and state.history[-1] is _best(state.history):
        weights = state.scored.state_dict()
        state.best.update({name: tensor.cpu().clone() for name, tensor in weights.items()})


def _out_of_patience(history: list[Epoch], patience: int) -> bool:
    if not patience or not history:
        return False
    return history[-1].epoch - _best(history).epoch >= patience


def _best(history: list[Epoch]) -> Epoch:
    """Returns the best of the epochs at the last one's image size, the latest of several."""
    same_size = [row for row in history if row.image_size == history[-1].image_size]
    return min(reversed(same_size), key=lambda row: row.validation_loss)


def _finish(state: TrainState) -> None:
    """Loads the final weights into the model and moves it to the CPU."""
    if state.average is not None:
        state.model.load_state_dict(state.scored.state_dict())
    if state.best:
        state.model.load_state_dict(state.best)
    distributed.wait_for_all()
    state.model.to("cpu").eval()
