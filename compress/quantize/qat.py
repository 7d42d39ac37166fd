"""Quantization-aware training of a calibrated network."""

from torch import fx

from compress.int8.graph import layers_of, quantizers_of
from compress.kd.context import Context
from compress.kd.training import train_with_kd
from compress.quantize.config import QuantizeConfig


def train_quantized(model: fx.GraphModule, config: QuantizeConfig, context: Context) -> None:
    """Trains a fake-quantized network in place, with distillation from the teacher.

    BatchNorms are folded, hence frozen, from the start: after post-training quantization there is
    little left to learn, and what is trained is what ships.
    """
    enable_learned_scales(model)
    train_with_kd(model, config.kd, config.train, context, "quantize", title="qat")


def enable_learned_scales(model: fx.GraphModule) -> None:
    """Makes all scales trainable (LSQ, Esser et al., arXiv 1902.08153)."""
    for quantizer in quantizers_of(model).values():
        quantizer.scale.requires_grad_()
    for layer in layers_of(model).values():
        if layer.is_int8:
            layer.weight_scale.requires_grad_()
