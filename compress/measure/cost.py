"""Parameters and multiply-accumulates of a network."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.architectures.spec import ModelSpec


def count_parameters(model: nn.Module) -> int:
    """Returns the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, spec: ModelSpec) -> int:
    """Returns the multiply-accumulates of convolutions and matrix products per image."""
    side = spec.preprocess.size
    images = torch.zeros(1, spec.preprocess.channels, side, side, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(images)
    return int(counter.get_total_flops()) // 2  # two operations per multiply-accumulate
