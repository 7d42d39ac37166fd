"""Loss and accuracy of a network in PyTorch: a development aid; what ships is measured apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.data.splits import Split, stratified_sample
from compress.train.precision import Precision, autocast

CPU = torch.device("cpu")
EVALUATION_BATCH = 250


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device = CPU,
    precision: Precision = "fp32",
    images: int | None = None,
) -> tuple[float, float]:
    """Returns mean cross-entropy and top-1 in percent, in PyTorch.

    Args:
        model: takes pixels; on the device.
        split: labelled images.
        device: what computes.
        precision: of its arithmetic.
        images: score only so many, drawn from all classes.
    """
    model.eval()
    order = torch.arange(len(split))
    if images is not None:
        order = stratified_sample(split.labels, images, seed=0)
    loss, correct = 0.0, 0
    for batch in split.batches(EVALUATION_BATCH, order=order):
        pixels = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            logits = model(pixels).float().cpu()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        correct += int((logits.argmax(1) == batch.labels).sum())
    return loss / len(order), 100 * correct / len(order)


def first_pixels(split: Split, count: int) -> Tensor:
    """Returns so many images of a split, uint8 `[N, C, H, W]`, to try something out on."""
    count = min(count, len(split))
    return next(iter(split.batches(count, order=torch.arange(count)))).images
