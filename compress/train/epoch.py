"""One epoch of training."""

import dataclasses
import functools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from compress import distributed
from compress.data.dataset import Data
from compress.data.splits import UNLABELED, Batch, View, batch_count
from compress.errors import CompressError
from compress.train.config import Precision, TrainConfig
from compress.train.evaluate import resized
from compress.train.events import OnEvent, progress_bar
from compress.train.precision import autocast
from compress.train.schedule import Plan, image_size, learning_rate, mixup, select_images
from compress.train.state import TrainState

FINITE_CHECK_EVERY = 20
"""Steps between checks of the loss; each check waits for the device."""


class NonFiniteLossError(CompressError):
    """Training diverged."""


@dataclass(frozen=True, kw_only=True)
class TrainBatch:
    """A batch or micro-batch on the device."""

    images: Tensor
    """float32 `[N, C, H, W]`, 0..255: augmented, blended by mixup, and resized."""
    targets: Tensor
    """float32 `[N, classes]`: one-hot labels, blended like the images; 0 for unlabeled images."""
    index: Tensor
    """int64 `[N]`, on the CPU: positions in the training split."""
    view: View
    step: int
    """Step number over all epochs, starting at 0."""
    step_of_epoch: int

    @property
    def labeled(self) -> Tensor:
        """Which images have a label, bool `[N]`."""
        return self.targets.any(1)


Loss = Callable[[Tensor, TrainBatch], Tensor]
"""Maps float32 logits `[N, classes]` and the batch to a scalar."""


def label_loss(smoothing: float) -> Loss:
    """Returns cross-entropy with label smoothing."""
    return functools.partial(_cross_entropy, smoothing=smoothing)


def _cross_entropy(logits: Tensor, batch: TrainBatch, *, smoothing: float) -> Tensor:
    """Returns the sum over the labeled images, divided by the number of all."""
    losses = F.cross_entropy(logits, batch.targets, label_smoothing=smoothing, reduction="none")
    return torch.where(batch.labeled, losses, 0).mean()


@dataclass(frozen=True, kw_only=True)
class Compute:
    """How training steps are computed on this machine."""

    device: torch.device
    precision: Precision
    micro_batch: int
    """Maximum number of images per forward and backward pass."""
    forward: nn.Module
    """The model, compiled or wrapped for several processes."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run."""

    data: Data
    config: TrainConfig
    loss: Loss
    seed: int
    n_views: int
    """See `loop.train`."""
    title: str
    plan: Plan
    compute: Compute
    state: TrainState

    def image_size(self, epoch: int) -> int:
        """Returns the image size of an epoch in pixels."""
        full = self.data.preprocess.size
        return image_size(epoch, self.plan.epochs, self.config.start_size, full)

    def view(self, epoch: int) -> View:
        """Returns the augmented view that an epoch trains on."""
        return View(seed=self.seed, number=epoch % self.n_views if self.n_views else epoch)


@dataclass(frozen=True, kw_only=True)
class EpochResult:
    """Training metrics of an epoch."""

    loss: float
    top1: float
    """Top-1 on the training images, in percent."""
    lr: float
    """Learning rate in the last step."""


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """Metrics of one micro-batch, on the device."""

    index: Tensor
    loss: Tensor
    correct: Tensor
    n_labeled: Tensor
    image_losses: Tensor | None
    """float32 `[N]`; None if images are not selected by loss."""


def train_epoch(run: Run, epoch: int, on_event: OnEvent) -> EpochResult:
    """Trains one epoch.

    Randomness depends only on seed and epoch, so that weights, optimizer state, and losses suffice
    to resume an interrupted run exactly.
    """
    device, steps = run.compute.device, run.plan.steps[epoch]
    this_epoch = View(seed=run.seed, number=epoch)
    _seed_layers(this_epoch)
    generator = this_epoch.generator(1)
    batches = _batches(run, epoch, generator)
    loss, correct, n_labeled = (torch.zeros((), device=device) for _ in range(3))
    lr = 0.0
    outcomes: list[_Outcome] = []
    run.state.model.train()
    title = f"{run.title} epoch {epoch + 1}/{run.plan.epochs}"
    for number, raw in enumerate(progress_bar(batches, title, total=steps, on_event=on_event)):
        step = sum(run.plan.steps[:epoch]) + number
        lr = learning_rate(step, run.plan.total_steps, run.config)
        batch = _to_device(run, raw, run.view(epoch), generator, step=step, step_of_epoch=number)
        for outcome in _train_step(run, batch, lr, run.image_size(epoch)):
            loss += outcome.loss
            correct += outcome.correct
            n_labeled += outcome.n_labeled
            outcomes.append(outcome)
        if number % FINITE_CHECK_EVERY == 0 or number == steps - 1:
            _check_finite(distributed.total(loss), run, epoch, lr)
    if run.config.data_fraction < 1:
        _keep_losses(run.state.losses, outcomes, device)
    processes = distributed.processes()
    return EpochResult(
        loss=distributed.total(loss).item() / steps / processes,
        top1=100 * (distributed.total(correct) / distributed.total(n_labeled).clamp(min=1)).item(),
        lr=lr,
    )


def _seed_layers(view: View) -> None:
    """Seeds the generators used by layers such as dropout and stochastic depth."""
    place = distributed.rank()
    salt = (2, place) if place else (2,)
    seed = view.generator(*salt).initial_seed() % 2**31
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _batches(run: Run, epoch: int, generator: torch.Generator) -> Iterator[Batch]:
    """Yields this process's batches of an epoch, without a small last one."""
    order = select_images(run.state.losses, run.plan.images[epoch], generator)
    own_batch = run.config.batch_size // distributed.processes()
    own = distributed.share(order)[: run.plan.steps[epoch] * own_batch]
    return run.data.train.batches(own_batch, order=own, view=run.view(epoch))


def _to_device(
    run: Run,
    raw: Batch,
    view: View,
    generator: torch.Generator,
    *,
    step: int,
    step_of_epoch: int,
) -> TrainBatch:
    """Moves a batch to the device and applies mixup."""
    device = run.compute.device
    images = raw.images.to(device, non_blocking=True).float()
    labels = raw.labels.to(device)
    one_hot = F.one_hot(labels.clamp(min=0), len(run.data.class_names)).float()
    targets = one_hot * (labels != UNLABELED)[:, None]
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


def _train_step(run: Run, batch: TrainBatch, lr: float, size: int) -> list[_Outcome]:
    """Accumulates the gradients of all micro-batches and updates the weights."""
    state = run.state
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    state.optimizer.zero_grad(set_to_none=True)
    *first, last = _micro_batches(batch, run.compute.micro_batch)
    outcomes = []
    for part in first:
        with _no_sync(run.compute.forward):
            outcomes.append(_backward(run, _resized(part, size), len(batch.index)))
    outcomes.append(_backward(run, _resized(last, size), len(batch.index)))
    if run.config.clip_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), run.config.clip_norm)
    state.optimizer.step()
    if state.average is not None:
        state.average.update_parameters(state.model)
    return outcomes


def _backward(run: Run, part: TrainBatch, batch_size: int) -> _Outcome:
    """Adds a micro-batch's contribution to the batch's gradient."""
    with autocast(run.compute.precision, run.compute.device):
        logits = run.compute.forward(part.images)
    loss = run.loss(logits.float(), part) * (len(part.index) / batch_size)
    loss.backward()
    image_losses = None
    if run.config.data_fraction < 1:
        image_losses = _image_losses(logits.detach().float(), part)
    return _Outcome(
        index=part.index,
        loss=loss.detach(),
        correct=((logits.argmax(1) == part.targets.argmax(1)) & part.labeled).sum(),
        n_labeled=part.labeled.sum(),
        image_losses=image_losses,
    )


def _image_losses(logits: Tensor, batch: TrainBatch) -> Tensor:
    """Returns cross-entropy, float32 `[N]`; of unlabeled images with the predicted class."""
    predicted = -logits.log_softmax(1).amax(1)
    losses = F.cross_entropy(logits, batch.targets, reduction="none")
    return torch.where(batch.labeled, losses, predicted)


def _micro_batches(batch: TrainBatch, micro_batch: int) -> list[TrainBatch]:
    """Splits a batch into parts of similar size with at most `micro_batch` images."""
    count = batch_count(len(batch.index), micro_batch)
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


def _resized(batch: TrainBatch, size: int) -> TrainBatch:
    """Returns the batch with images of the given size, channels last."""
    return dataclasses.replace(batch, images=resized(batch.images, size))


def _no_sync(model: nn.Module) -> AbstractContextManager[object]:
    """Returns a context in which gradients accumulate locally."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def _keep_losses(losses: Tensor, outcomes: list[_Outcome], device: torch.device) -> None:
    """Stores each image's loss, from all processes, so that they all select the same images."""
    index = torch.cat([outcome.index.to(device) for outcome in outcomes])
    values = torch.cat([one.image_losses for one in outcomes if one.image_losses is not None])
    losses[torch.cat(distributed.gathered(index)).cpu()] = torch.cat(
        distributed.gathered(values)
    ).cpu()


def _check_finite(total: Tensor, run: Run, epoch: int, lr: float) -> None:
    if not torch.isfinite(total):
        raise NonFiniteLossError(
            f"{run.title}: the loss is not finite in epoch {epoch + 1} (learning rate {lr:.3g}); "
            "divide train.lr by ten, increase train.warmup or set train.precision to fp32"
        )
