"""AdaRound: learns whether to round each weight up or down (Nagel et al., arXiv 2004.10568)."""

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from compress.int8.layer import Layer, per_channel
from compress.int8.layerwise import visit_layers

STEPS = 400
BATCH = 32
LR = 1e-2
REGULARIZATION = 0.01
STRETCH = (-0.1, 1.1)
"""Ends of the stretched sigmoid, which reaches 0 and 1 (equation 23)."""
WARMUP = 0.2
"""Fraction of the steps before the regularization starts."""
SHARPNESS = (20.0, 2.0)
"""First and last exponent of the regularization (beta in equation 24)."""


def adaround(model: fx.GraphModule, images: Tensor) -> None:
    """Rounds the weights of each layer to best reproduce the float network's output, in place.

    The arguments are those of `visit_layers`.
    """
    visit_layers(model, images, _learn_rounding, title="AdaRound")


def _learn_rounding(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> None:
    scale = per_channel(layer.weight_scale, layer.weight).detach()
    below = torch.floor(layer.weight / scale)
    up = (_learn_up(layer, quantized_input, float_output) >= 0.5).float()
    layer.weight.copy_(torch.clamp(below + up, -layer.qmax, layer.qmax) * scale)


def _learn_up(layer: Layer, quantized_input: Tensor, float_output: Tensor) -> Tensor:
    """Returns the offset from each weight's lower level: close to 0 or 1 once it is decided."""
    scale, bias = per_channel(layer.weight_scale, layer.weight).detach(), layer.bias.detach()
    below = torch.floor(layer.weight / scale)
    fraction = (layer.weight / scale - below).clamp(0.001, 0.999)
    low, high = STRETCH
    raw = torch.logit((fraction - low) / (high - low)).requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=LR)
    generator = torch.Generator().manual_seed(0)
    power = float_output.pow(2).mean().clamp_min(1e-12)
    for step in range(STEPS):
        batch = torch.randint(len(quantized_input), (BATCH,), generator=generator)
        with torch.enable_grad():
            up = _stretched_sigmoid(raw).clamp(0, 1)
            levels = torch.clamp(below + up, -layer.qmax, layer.qmax)
            output = layer.operation(quantized_input[batch], levels * scale, bias)
            loss = F.mse_loss(output, float_output[batch]) / power
            progress = step / STEPS
            if progress > WARMUP:
                loss = loss + REGULARIZATION * _undecided(up, progress)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _stretched_sigmoid(raw).detach().clamp(0, 1)


def _stretched_sigmoid(raw: Tensor) -> Tensor:
    low, high = STRETCH
    return torch.sigmoid(raw) * (high - low) + low


def _undecided(up: Tensor, progress: float) -> Tensor:
    """Returns how far the roundings are from 0 or 1 (equation 24)."""
    first, last = SHARPNESS
    sharpness = first + (progress - WARMUP) / (1 - WARMUP) * (last - first)
    return (1 - (2 * up - 1).abs().pow(sharpness)).mean()
