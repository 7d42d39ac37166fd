"""Stage quantize: from float to int8, after training or with some more of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compress.quantize.config import QuantizeConfig

if TYPE_CHECKING:
    from torch import Tensor, fx

    from compress.checkpoint import Checkpoint
    from compress.context import Context, Product

CALIBRATION_BATCH = 32


def run(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Product:
    """Quantises a float network.

    Args:
        checkpoint: a float network of any earlier stage.
        config: method, calibration and, for QAT, the schedule.
        context: data, seed, folder and the teacher (QAT learns from it).
    """
    import torch

    from compress.architectures.build import Classifier
    from compress.context import Product
    from compress.progress import waiting
    from compress.quantize.placement import freeze, prepare
    from compress.quantize.policy import choose
    from compress.quantize.ptq import Calibration
    from compress.restore import load_model
    from compress.train.loop import evaluate

    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    with waiting("tracing the network"):
        prepared = prepare(model)
    calibration = Calibration(prepared, lambda: calibration_batches(config, context))

    def score(network: fx.GraphModule) -> tuple[float, float]:
        return evaluate(network, context.data.validation, torch.device("cpu"))

    choice = choose(calibration, config, score)
    quantized = choice.placed
    trained = config.method == "qat" or (config.method == "auto" and choice.drop > config.max_drop)
    if trained:
        from compress.quantize.qat import train_quantized

        train_quantized(quantized, config, context)
    return Product(
        model=freeze(quantized),
        spec=checkpoint.spec,
        shapes=checkpoint.description.shapes,
        quantized=choice.plan.layout,
        details={
            "method": "qat" if trained else "ptq",
            "calibration_images": config.calib,
            "attempts": [dataclasses.asdict(attempt) for attempt in choice.attempts],
        },
    )


def calibration_batches(config: QuantizeConfig, context: Context) -> Iterator[Tensor]:
    """Yields the calibration images, uint8 `[N, C, H, W]`, from the training split."""
    from compress.data.load import calibration_order
    from compress.progress import track

    split = context.data.train
    order = calibration_order(split, config.calib, seed=context.seed)
    batches = split.batches(CALIBRATION_BATCH, order=order)
    n_batches = -(-len(order) // CALIBRATION_BATCH)
    for batch in track(batches, "calibrating", total=n_batches):
        yield batch.images
