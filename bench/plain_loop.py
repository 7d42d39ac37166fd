"""The training loop that one writes by hand: tensors in memory, SGD, one cycle of the rate."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from compress.data.image_cache import decode_all
from compress.data.splits import FolderSplit, Split
from compress.train.config import Precision
from compress.train.precision import autocast

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Plain:
    """Its settings."""

    epochs: int
    batch_size: int
    lr: float
    """Peak learning rate."""
    precision: Precision
    weight_decay: float = 1e-4


def folder_split(split: Split) -> FolderSplit:
    """Returns the split, which is known to be one of files."""
    assert isinstance(split, FolderSplit)
    return split


def plain_training(model: nn.Module, split: FolderSplit, config: Plain) -> Iterator[float]:
    """Trains the model in place and yields the seconds of each epoch.

    The images have the same augmentation as ours, by torchvision's transforms.
    """
    decoded = decode_all(split.root, split.names, split.preprocess)
    images: list[Tensor] = [
        v2.functional.pil_to_tensor(image.convert(split.preprocess.mode)) for image, _ in decoded
    ]
    scale = (split.min_scale, 1.0)
    change = v2.Compose(
        [v2.RandomResizedCrop(split.preprocess.size, scale=scale), v2.RandomHorizontalFlip()]
    )
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        *(model.parameters(), config.lr),
        momentum=0.9, nesterov=True, weight_decay=config.weight_decay, fused=True,
    )  # fmt: skip
    steps = -(-len(images) // config.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.lr, epochs=config.epochs, steps_per_epoch=steps
    )
    for _ in range(config.epochs):
        started = time.perf_counter()
        model.train()
        for index in torch.randperm(len(images)).split(config.batch_size):
            batch = torch.stack([change(images[item]) for item in index.tolist()])
            with autocast(config.precision, CPU):
                logits = model(batch.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(logits.float(), split.labels[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        yield time.perf_counter() - started
    model.eval()
