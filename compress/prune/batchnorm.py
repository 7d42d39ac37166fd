"""BatchNorm's running statistics, estimated anew: after a cut those of before mean nothing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

from compress.data.splits import Split

IMAGES = 4096
"""Training images that are looked at; more change nothing."""
BATCH = 256


class _Pooled:
    """Mean and variance of each channel over all batches, whatever the batches' sizes.

    Batches are merged as in Chan et al. ("Updating Formulae and a Pairwise Algorithm for Computing
    Sample Variances", 1979, equation 2.1), in float64.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.squares = 0, torch.zeros(()), torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Takes a batch in, float `[N, C, ...]`."""
        dims = [dim for dim in range(x.ndim) if dim != 1]
        variance, mean = (part.double() for part in torch.var_mean(x, dims, correction=0))
        count = x.numel() // x.shape[1]
        total = self.count + count
        away = mean - self.mean
        self.squares = self.squares + count * variance
        self.squares = self.squares + away.square() * (self.count * count / total)
        self.mean = self.mean + away * (count / total)
        self.count = total

    @property
    def variance(self) -> Tensor:
        """Float64 `[C]`, unbiased, as BatchNorm keeps it."""
        return self.squares / max(self.count - 1, 1)


@torch.no_grad()
def reestimate_batchnorm(model: nn.Module, split: Split) -> None:
    """Replaces BatchNorm's running statistics by those of plain training images, in place.

    They are the mean and variance of all images together. Each batch is normalized by its own
    statistics on the way, as in training, so the batches are of about the same size: none is of a
    few images. Dropout and the like are off, as they are when the network is used.

    Args:
        model: takes images; in eval mode afterwards. With a split of one image it stays as it is:
            one value has no variance.
        split: training images, of which up to `IMAGES` are looked at.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    model.eval()
    count = min(IMAGES, len(split))
    if count < 2 or not norms:
        return
    pooled = {norm: _Pooled() for norm in norms}
    hooks = [
        norm.register_forward_pre_hook(lambda norm, args: pooled[norm].update(args[0]))
        for norm in norms
    ]
    for norm in norms:
        norm.train()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count]
    n_batches = -(-count // BATCH)
    for batch in split.batches(-(-count // n_batches), order=order):
        model(batch.images)
    for hook in hooks:
        hook.remove()
    for norm, found in pooled.items():
        if found.count and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.copy_(found.mean)
            norm.running_var.copy_(found.variance)
    model.eval()
