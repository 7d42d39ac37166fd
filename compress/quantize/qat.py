"""Quantisation-aware training: the calibrated network learns with rounding on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import fx

from compress.distill.guidance import guided_loss
from compress.quantize.placement import layers_of, quantizers_of
from compress.restore import load_model
from compress.train.loop import train

if TYPE_CHECKING:
    from compress.context import Context
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

    BatchNorms are folded, that is frozen, from the start: after post-training quantisation there
    is little to learn, and what is trained is what ships.
    """
    assert context.teacher is not None
    learn_scales(placed)
    loss = guided_loss(
        load_model(context.teacher),
        context.data,
        config.guidance,
        config.train,
        seed=context.seed,
        store=context.store,
        teacher_digest=context.teacher.digest,
    )
    train(
        placed,
        context.data,
        config.train,
        loss=loss,
        seed=context.seed,
        folder=context.folder,
        title="qat",
        views=config.guidance.views,
    )
