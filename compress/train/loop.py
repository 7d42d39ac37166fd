"""The training loop: deterministic, resumable after each epoch, the same for every stage."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from compress.data.load import Data
from compress.data.splits import Split, View
from compress.paths import atomic_write
from compress.progress import bar, say
from compress.train.config import TrainConfig
from compress.train.precision import Precision, autocast, choose_precision

STATE, HISTORY = "training.pt", "history.jsonl"
FINITE_CHECK_EVERY = 20
"""Steps between looks at the loss; each look waits for the device."""
SIZE_MULTIPLE = 4
"""Progressive image sides are rounded to this many pixels."""
EVALUATION_BATCH = 250


class NonFiniteLossError(ValueError):
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


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """A row of `history.jsonl`; accuracies are PyTorch's, a development aid."""

    epoch: int
    image_size: int
    lr: float
    """At the end of the epoch."""
    loss: float
    """Mean over the epoch's steps."""
    validation_loss: float
    validation_top1: float
    """Percent."""
    images_per_second: float
    precision: Precision


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
    precision = config.precision
    if precision == "auto":
        precision = choose_precision(model, _first_pixels(data.train), device)
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = _averaged(model, config.ema)
    wrapped, optimizer = accelerator.prepare(model, _sgd(model, config))
    steps = math.ceil(len(data.train) / (config.batch_size * accelerator.num_processes))
    history = _restore(folder, model, optimizer, average)

    for epoch in range(len(history), config.epochs):
        # Everything random in an epoch follows from seed and epoch, so that nothing but the
        # weights and the momentum has to be kept to continue an interrupted run exactly.
        set_seed(_mixed(seed, epoch))
        view = View(seed=seed, number=epoch % views if views else epoch)
        size = image_size(epoch, config, data.preprocess.size)
        generator = View(seed=seed, number=epoch).generator(1)
        order = torch.randperm(len(data.train), generator=generator)
        order = order[accelerator.process_index :: accelerator.num_processes]
        batches = data.train.batches(config.batch_size, order=order, view=view)
        model.train()
        total, started = torch.zeros((), device=device), time.perf_counter()
        progress = _progress(batches, steps, f"{title} epoch {epoch + 1}/{config.epochs}")
        for step, raw in enumerate(progress):
            lr = learning_rate(epoch * steps + step, steps * config.epochs, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            pixels = raw.images.to(device, non_blocking=True).float()
            targets = F.one_hot(raw.labels, len(data.class_names)).float().to(device)
            if config.mixup:
                pixels, targets = mixup(pixels, targets, config.mixup, generator)
            if size != data.preprocess.size:
                pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
            batch = TrainBatch(
                pixels=pixels.contiguous(memory_format=torch.channels_last),
                targets=targets,
                index=raw.index,
                view=view,
            )
            with autocast(precision, device):
                logits = wrapped(batch.pixels)
            value = loss(logits.float(), batch)
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(value)
            if config.clip_norm:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            total += value.detach()
            if step % FINITE_CHECK_EVERY == 0 or step == steps - 1:
                _check_finite(total, title, epoch, lr)
        seconds = time.perf_counter() - started
        scored = model if average is None else average.module
        validation_loss, validation_top1 = evaluate(scored, data.validation, device, precision)
        row = Epoch(
            epoch=epoch + 1,
            image_size=size,
            lr=lr,
            loss=total.item() / steps,
            validation_loss=validation_loss,
            validation_top1=validation_top1,
            images_per_second=round(len(data.train) / seconds, 1),
            precision=precision,
        )
        history.append(row)
        if accelerator.is_main_process:
            _save(folder, model, optimizer, average, history)
            say(
                f"  {title} epoch {row.epoch}/{config.epochs}: loss {row.loss:.3f}, validation "
                f"{row.validation_top1:.2f} %, {row.images_per_second:.0f} images/s ({precision})"
            )
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    model.to("cpu").eval()
    return history


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Linear warm-up, then half a cosine down to zero (SGDR, arXiv 1608.03983, equation 5)."""
    warmup = config.warmup * steps
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def image_size(epoch: int, config: TrainConfig, full: int) -> int:
    """Side of the training images: grows from `first_size` to full in the last third of epochs."""
    if config.epochs < 2:
        return full
    share = min(1.0, epoch / (config.epochs - 1) * 1.5)
    side = full * (config.first_size + (1 - config.first_size) * share)
    return min(full, math.ceil(side / SIZE_MULTIPLE) * SIZE_MULTIPLE)


def mixup(
    pixels: Tensor, targets: Tensor, alpha: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Blends each image with its neighbour in the batch (mixup, arXiv 1710.09412, equation 1).

    Args:
        pixels: float `[N, C, H, W]`.
        targets: float `[N, classes]`.
        alpha: of the Beta(alpha, alpha) that the blend is drawn from.
        generator: the draw.

    Returns:
        Blended pixels and targets of the same shapes.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return (
        share * pixels + (1 - share) * pixels.roll(1, 0),
        share * targets + (1 - share) * targets.roll(1, 0),
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, device: torch.device, precision: Precision = "fp32"
) -> tuple[float, float]:
    """Returns mean cross-entropy and top-1 in percent, in PyTorch."""
    model.eval()
    loss, correct = 0.0, 0
    for batch in split.batches(EVALUATION_BATCH):
        pixels = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            logits = model(pixels).float().cpu()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        correct += int((logits.argmax(1) == batch.labels).sum())
    return loss / len(split), 100 * correct / len(split)


def _mixed(seed: int, epoch: int) -> int:
    return View(seed=seed, number=epoch).generator(2).initial_seed() % 2**31


def _first_pixels(split: Split) -> Tensor:
    return next(iter(split.batches(64, order=torch.arange(min(64, len(split)))))).images


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)


def _averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _progress(batches: Iterable[Any], steps: int, title: str) -> Iterator[Any]:
    with bar() as progress:
        task = progress.add_task(title, total=steps, note="")
        for batch in batches:
            yield batch
            progress.advance(task)


def _check_finite(total: Tensor, title: str, epoch: int, lr: float) -> None:
    if not torch.isfinite(total):
        raise NonFiniteLossError(
            f"{title}: the loss is no longer a finite number (epoch {epoch + 1}, learning rate "
            f"{lr:.3g}); try a tenth of the learning rate, a longer warm-up or precision = 'fp32'"
        )


def _save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    history: list[Epoch],
) -> None:
    rows = [asdict(row) for row in history]
    with atomic_write(folder / STATE) as partial:
        torch.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "average": average.state_dict() if average is not None else None,
                "history": rows,
            },
            partial,
        )
    with atomic_write(folder / HISTORY) as partial:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _restore(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> list[Epoch]:
    path = folder / STATE
    if not path.is_file():
        return []
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.load_state_dict(state["average"])
    history = [Epoch(**row) for row in state["history"]]
    say(f"  continuing after epoch {len(history)}")
    return history
