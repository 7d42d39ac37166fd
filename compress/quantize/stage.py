"""Stage quantize: from float to int8, after training or with some more of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from compress.distill.config import GuidanceConfig, check_views
from compress.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from compress.checkpoint import Checkpoint
    from compress.context import Context, Product

CALIBRATION_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """int8 weights and activations, ranges from calibration images."""

    method: Annotated[
        Literal["ptq", "qat"],
        Field(description="ptq: ranges only, no training; qat: then train with rounding on."),
    ] = "ptq"
    calib: Annotated[
        int, Field(ge=1, description="Training images that set the ranges of activations.")
    ] = 512
    guidance: GuidanceConfig = field(default=GuidanceConfig())
    train: TrainConfig = field(
        # Rounding to 256 levels leaves nothing of bf16's 8 bits to spare.
        default=TrainConfig(epochs=2, batch_size=128, lr=0.003, precision="fp32")
    )

    def __post_init__(self) -> None:
        check_views(self.guidance, self.train)


def run(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Product:
    """Quantises a float network.

    Args:
        checkpoint: a float network of any earlier stage.
        config: method, calibration and, for QAT, the schedule.
        context: data, seed, folder and the teacher (QAT learns from it).
    """
    from compress.architectures.build import Classifier
    from compress.context import Product
    from compress.data.load import calibration_order
    from compress.progress import track
    from compress.quantize.placement import freeze
    from compress.quantize.ptq import calibrate
    from compress.restore import load_model

    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    split = context.data.train
    order = calibration_order(split, config.calib, seed=context.seed)
    batches = split.batches(CALIBRATION_BATCH, order=order)
    n_batches = -(-len(order) // CALIBRATION_BATCH)
    images = (batch.images for batch in track(batches, "calibrating", total=n_batches))
    quantized = calibrate(model, images)
    if config.method == "qat":
        _train(quantized, config, context)
    return Product(
        model=freeze(quantized),
        spec=checkpoint.spec,
        shapes=checkpoint.description.shapes,
        quantized=True,
        details={"method": config.method, "calibration_images": config.calib},
    )


def _train(quantized: nn.Module, config: QuantizeConfig, context: Context) -> None:
    from compress.distill.guidance import guided_loss
    from compress.restore import load_model
    from compress.train.loop import train

    assert context.teacher is not None
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
        quantized,
        context.data,
        config.train,
        loss=loss,
        seed=context.seed,
        folder=context.folder,
        title="qat",
        views=config.guidance.views,
    )
