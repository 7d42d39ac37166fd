"""Loss and accuracy in PyTorch, for development only; results are measured in ONNX Runtime."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import distributed
from compress.data.splits import Split, stratified_sample
from compress.train.config import Precision
from compress.train.precision import autocast

CPU = torch.device("cpu")
EVALUATION_BATCH = 250
EVALUATION_PIXELS = 2**22
"""Maximum pixels per batch, so that large images need no more memory than small ones."""


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device = CPU,
    precision: Precision = "fp32",
    images: int | None = None,
    size: int | None = None,
) -> tuple[float, float]:
    """Returns mean cross-entropy and top-1 in percent.

    Inside `distributed.everywhere` each process scores a share of the images.

    Args:
        model: takes images; on the device.
        split: labeled images.
        device: where to run.
        precision: precision of the forward pass.
        images: size of a stratified sample to score; None scores all images.
        size: side to resize the images to, in pixels; None leaves them as they are.
    """
    model.eval()
    order = torch.arange(len(split))
    if images is not None:
        order = stratified_sample(split.labels, images, seed=0)
    own = order[distributed.rank() :: distributed.processes()]
    loss, correct = 0.0, 0
    for batch in split.batches(evaluation_batch(split), order=own):
        inputs = resized(batch.images.to(device), size)
        with autocast(precision, device):
            logits = model(inputs).float().cpu()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum").item()
        correct += int((logits.argmax(1) == batch.labels).sum())
    sums = distributed.total(torch.tensor([loss, correct], dtype=torch.float64))
    return sums[0].item() / len(order), 100 * sums[1].item() / len(order)


def resized(images: Tensor, size: int | None) -> Tensor:
    """Returns images `[N, C, H, W]` of another size, channels last; uint8 becomes float32."""
    if size is not None and size != images.shape[-1]:
        images = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return images.contiguous(memory_format=torch.channels_last)


def evaluation_batch(split: Split) -> int:
    """Returns the batch size for inference; smaller for large images."""
    image = first_images(split, 1)[0]
    return max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // image[0].numel()))


def first_images(split: Split, count: int) -> Tensor:
    """Returns the first `count` images of a split, or all if it has fewer, uint8 `[N, C, H, W]`."""
    count = min(count, len(split))
    return next(iter(split.batches(count, order=torch.arange(count)))).images
