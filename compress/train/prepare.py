"""Setup of a training run: optimizer, EMA, BatchNorm momentum, data on the device."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from compress.data.dataset import Data
from compress.data.splits import Split, TensorSplit
from compress.train.config import Precision, TrainConfig
from compress.train.muon import Muon
from compress.train.schedule import image_size

FORGETTING = 30
"""Ensures that BatchNorm's initial statistics end with a weight of at most `exp(-FORGETTING)`."""


def make_optimizer(
    model: nn.Module, config: TrainConfig, precision: Precision
) -> torch.optim.Optimizer:
    """Returns the configured optimizer; biases and norm layers have no weight decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        return Muon(groups, lr=config.lr, momentum=config.momentum, dtype=dtype)
    return torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, nesterov=True, fused=True
    )


def make_ema(model: nn.Module, decay: float) -> AveragedModel | None:
    """Returns an exponential moving average of the weights; None if `decay` is 0.

    The decay at step `t` is `min(decay, (1 + t) / (10 + t))`, as in TensorFlow's
    `ExponentialMovingAverage`; otherwise the random initialization would dominate the average after
    a few hundred steps.
    """
    if not decay:
        return None
    average = AveragedModel(model, use_buffers=True)

    def update(averages: PARAM_LIST, weights: PARAM_LIST, on_device: Tensor | int) -> None:
        steps = int(average.n_averaged)  # on the CPU; reading the device's copy would synchronize
        now = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(now)(averages, weights, on_device)

    average.multi_avg_fn = update
    return average


def raise_batchnorm_momentum(model: nn.Module, steps: int) -> None:
    """Raises BatchNorm's momentum, in place, so that running statistics forget their initial value.

    It becomes at least `FORGETTING / steps`. MobileNetV3 uses 0.01 and MNASNet 0.0003, meant for a
    million steps: after a thousand, the running variance would still be close to its initial 1, and
    evaluation mode useless.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = min(1.0, max(module.momentum, FORGETTING / max(steps, 1)))


@torch.no_grad()
def accepts_start_size(
    config: TrainConfig, model: nn.Module, data: Data, device: torch.device
) -> bool:
    """Returns whether the network runs on images of the initial size, by trying it.

    Transformers and networks with dense layers take images of one size only.
    """
    size = image_size(0, 2, config.start_size, data.preprocess.size)
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, data.preprocess.channels, size, size, device=device))
    except (RuntimeError, AssertionError):
        return False
    finally:
        model.train(was_training)
    return True


def data_on(data: Data, device: torch.device) -> Data:
    """Returns the data with in-memory training and validation splits moved to the device."""
    if device.type == "cpu":
        return data

    def moved(split: Split) -> Split:
        return split.on(device) if isinstance(split, TensorSplit) else split

    return dataclasses.replace(data, train=moved(data.train), validation=moved(data.validation))
