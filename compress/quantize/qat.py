"""Quantization-aware training: the calibrated network learns with rounding on."""

from __future__ import annotations

from torch import fx

from compress.int8.placement import layers_of, quantizers_of
from compress.kd.context import Context
from compress.kd.training import train_with_kd
from compress.quantize.config import QuantizeConfig


def learn_scales(placed: fx.GraphModule) -> None:
    """Lets all scales learn along with the weights (LSQ, Esser et al., arXiv 1902.08153)."""
    for quantizer in quantizers_of(placed).values():
        quantizer.scale.requires_grad_()
    for layer in layers_of(placed).values():
        if layer.source is not None:
            layer.weight_scale.requires_grad_()


def train_quantized(placed: fx.GraphModule, config: QuantizeConfig, context: Context) -> None:
    """Trains a calibrated network in place; it learns from the teacher.

    BatchNorms are folded, that is frozen, from the start: after post-training quantization there
    is little to learn, and what is trained is what ships.
    """
    learn_scales(placed)
    train_with_kd(placed, config.kd, config.train, context, "qat")
