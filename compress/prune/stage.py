"""Stage prune: remove channels, re-estimate BatchNorm, fine-tune with the teacher's help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from compress.distill.config import GuidanceConfig, check_views
from compress.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

    from compress.checkpoint import Checkpoint
    from compress.context import Context, Product
    from compress.data.splits import Split

BATCHNORM_IMAGES = 4096
"""Training images that re-estimate BatchNorm's statistics; more change nothing."""
BATCHNORM_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Remove the least important channels and recover the accuracy."""

    ratio: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of the channels of every layer to remove, before rounding; "
            "MACs fall by about 1 - (1 - ratio)^2.",
        ),
    ] = 0.35
    multiple: Annotated[
        int,
        Field(
            ge=1,
            description="Widths are rounded to multiples of this; ONNX Runtime's kernels want "
            "8 at the least, 16 at best.",
        ),
    ] = 16
    guidance: GuidanceConfig = field(default=GuidanceConfig())
    train: TrainConfig = field(default=TrainConfig(epochs=4, batch_size=128, lr=0.03))

    def __post_init__(self) -> None:
        check_views(self.guidance, self.train)


def run(checkpoint: Checkpoint, config: PruneConfig, context: Context) -> Product:
    """Prunes and fine-tunes.

    Args:
        checkpoint: a float network, the teacher's or the student's.
        config: how much to remove, and the recovery.
        context: data, seed, folder and the teacher.
    """
    import torch

    from compress.architectures.build import build
    from compress.architectures.resize import differing_shapes
    from compress.context import Product
    from compress.distill.guidance import train_guided
    from compress.progress import say, waiting
    from compress.prune.surgery import prune_channels
    from compress.restore import load_model
    from compress.train.evaluate import evaluate

    model = load_model(checkpoint)
    network = model.get_submodule("network")
    preprocess = checkpoint.spec.preprocess
    example = torch.zeros(1, preprocess.channels, preprocess.size, preprocess.size)
    widths = prune_channels(network, example, ratio=config.ratio, multiple=config.multiple)
    if not widths:
        say("  [yellow]no layer is wide enough to prune[/]; the network stays as it is")
    _, raw = evaluate(model, context.data.validation)
    with waiting("re-estimating BatchNorm"):
        reestimate_batchnorm(model, context.data.train)
    _, reestimated = evaluate(model, context.data.validation)
    say(f"  pruned: validation {raw:.2f} % raw, {reestimated:.2f} % with new BatchNorm statistics")
    history = train_guided(model, config.guidance, config.train, context, "prune")
    return Product(
        model=model,
        spec=checkpoint.spec,
        shapes=differing_shapes(network, build(checkpoint.spec).network),
        details={
            "widths": [dataclasses.asdict(width) for width in widths],
            "validation_top1_raw": raw,
            "validation_top1_batchnorm": reestimated,
            "validation_top1_recovered": history[-1].validation_top1 if history else reestimated,
        },
    )


def reestimate_batchnorm(model: nn.Module, split: Split) -> None:
    """Replaces BatchNorm's running statistics by those of plain training images, in place."""
    import torch
    from torch.optim.swa_utils import update_bn

    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    batches = split.batches(BATCHNORM_BATCH, order=chosen[:BATCHNORM_IMAGES])
    with torch.no_grad():
        update_bn((batch.images for batch in batches), model)
    model.eval()
