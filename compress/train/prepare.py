"""What is made ready before the first step: the optimizer, the network's statistics, the data."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

from compress.data.load import Data
from compress.data.splits import TensorSplit
from compress.log import say
from compress.train.config import TrainConfig
from compress.train.muon import Muon
from compress.train.precision import Precision
from compress.train.schedule import image_size

FORGETTING = 30
"""Running statistics keep `exp(-FORGETTING)` of their start."""


def make_optimizer(
    model: nn.Module, config: TrainConfig, precision: Precision
) -> torch.optim.Optimizer:
    """Returns the optimizer that the settings name; biases and norms have no weight decay."""
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


def averaged(model: nn.Module, decay: float) -> AveragedModel | None:
    """Returns what averages the weights step by step, or None without a decay.

    After `t` steps the decay is `min(decay, (1 + t) / (10 + t))`, as in TensorFlow's
    `ExponentialMovingAverage`: an average over 1000 steps would be little but the random start
    after a training of a few hundred.
    """
    if not decay:
        return None
    average = AveragedModel(model, use_buffers=True)

    def update(averages: PARAM_LIST, weights: PARAM_LIST, on_device: Tensor | int) -> None:
        steps = int(average.n_averaged)  # kept on the CPU; reading the device's would wait for it
        now = min(decay, (1 + steps) / (10 + steps))
        get_ema_multi_avg_fn(now)(averages, weights, on_device)

    average.multi_avg_fn = update
    return average


def forget_initial_statistics(model: nn.Module, steps: int) -> None:
    """Raises BatchNorms' momentum so that running statistics forget their start, in place.

    MobileNetV3 has 0.01 and MNASNet 0.0003, for a million steps: after a thousand, a running
    variance would still be its initial 1, and the network as good as random outside training.

    Args:
        model: its BatchNorms' momentum becomes at least `FORGETTING / steps`.
        steps: of the whole training.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = min(1.0, max(module.momentum, FORGETTING / max(steps, 1)))


@torch.no_grad()
def possible_size(
    config: TrainConfig, model: nn.Module, data: Data, device: torch.device
) -> TrainConfig:
    """Returns the schedule without growing images if the network takes one size only.

    Transformers and dense layers are bound to one; a black image of the first size finds out.
    """
    if config.start_size == 1:
        return config
    size = image_size(0, 2, config.start_size, data.preprocess.size)
    was_training = model.training
    try:
        model.eval()(torch.zeros(1, data.preprocess.channels, size, size, device=device))
    except (RuntimeError, AssertionError):
        say("  the network takes images of one size only, so they do not grow")
        return dataclasses.replace(config, start_size=1.0)
    finally:
        model.train(was_training)
    return config


def data_on(data: Data, device: torch.device) -> Data:
    """Returns the data set with splits that are held in memory held in the device's."""
    if device.type == "cpu":
        return data
    return dataclasses.replace(
        data,
        train=data.train.on(device) if isinstance(data.train, TensorSplit) else data.train,
        validation=(
            data.validation.on(device)
            if isinstance(data.validation, TensorSplit)
            else data.validation
        ),
    )
