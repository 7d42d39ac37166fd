"""Re-estimates BatchNorm's running statistics: after pruning, the old ones are wrong."""

import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from compress.architectures.hooks import watch_inputs
from compress.data.splits import Split, batch_count

IMAGES = 4096
"""Number of training images; more make no difference."""
BATCH = 256


class _Pooled:
    """Mean and variance per channel over all batches, weighted by their sizes.

    Batches are merged as in Chan et al. ("Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979, equation 2.1), in float64.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Adds a batch, float `[N, C, ...]`."""
        dims = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = (part.double() for part in torch.var_mean(x, dims, correction=0))
        count = x.numel() // x.shape[1]
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + count * variance
        self.squares = self.squares + delta.square() * (self.count * count / total)
        self.mean = self.mean + delta * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Float64 `[C]`, unbiased, as BatchNorm stores it."""
        return self.squares / max(self.count - 1, 1)


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, split: Split) -> None:
    """Replaces BatchNorm's running statistics with those of unaugmented training images, in place.

    They are the mean and variance over all images. During estimation each batch is normalized by
    its own statistics, as in training, so batches are of nearly equal size. Dropout and other
    modules stay in eval mode.

    Args:
        model: takes images; left in eval mode. With fewer than two images it is left unchanged,
            since one value has no variance.
        split: training images, of which up to `IMAGES` are used.
    """
    norms = {name: item for name, item in model.named_modules() if isinstance(item, BatchNorm)}
    model.eval()
    count = min(IMAGES, len(split))
    if count < 2 or not norms:
        return
    pooled = {name: _Pooled() for name in norms}
    for norm in norms.values():
        norm.train()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    batch_size = math.ceil(count / batch_count(count, BATCH))
    with watch_inputs(norms, lambda name, x: pooled[name].update(x)):
        for batch in split.batches(batch_size, order=order):
            model(batch.images)
    for name, norm in norms.items():
        statistics = pooled[name]
        if statistics.count and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(statistics.mean)
            norm.running_var.copy_(statistics.variance)
    model.eval()
