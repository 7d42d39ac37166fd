"""Loss and accuracy of a network in PyTorch: a development aid; what ships is measured apart."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import distributed
from compress.data.splits import Split, stratified_sample
from compress.train.precision import Precision, autocast

CPU = torch.device("cpu")
EVALUATION_BATCH = 250
EVALUATION_PIXELS = 2**22
"""At most so many in a batch, so that large images take no more memory than small ones."""


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

    Within a call that all processes make, each scores a part of the images.

    Args:
        model: takes images; on the device.
        split: labeled images.
        device: what computes.
        precision: of its arithmetic.
        images: score only so many, drawn from all classes.
    """
    model.eval()
    order = torch.arange(len(split))
    if images is not None:
        order = stratified_sample(split.labels, images, seed=0)
    own = order[distributed.place() :: distributed.processes()]
    loss, correct = 0.0, 0
    for batch in split.batches(evaluation_batch(split), order=own):
        inputs = batch.images.to(device).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            logits = model(inputs).float().cpu()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        correct += int((logits.argmax(1) == batch.labels).sum())
    sums = distributed.total(torch.tensor([loss, correct], dtype=torch.float64))
    return sums[0].item() / len(order), 100 * sums[1].item() / len(order)


def evaluation_batch(split: Split) -> int:
    """Returns the images that are scored at once: fewer of large ones."""
    images = first_images(split, 1)
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // images[0, 0].numel()))


def first_images(split: Split, count: int) -> Tensor:
    """Returns so many images of a split, uint8 `[N, C, H, W]`, to try something out on."""
    count = min(count, len(split))
    return next(iter(split.batches(count, order=torch.arange(count)))).images
