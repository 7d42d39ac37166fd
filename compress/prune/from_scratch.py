"""Ablation: the pruned network from scratch, for the time of distilling and pruning.

"Rethinking the value of network pruning" (Liu et al., arXiv 1810.05270) asks the same question.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import remove_blocks, resize
from compress.architectures.spec import ModelSpec
from compress.kd.ablation import ablate
from compress.kd.context import Context
from compress.measure.results import read_history
from compress.prune.config import PruneConfig
from compress.prune.result import FromScratch


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A pruned network, without its weights."""

    spec: ModelSpec
    removed: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]

    def build(self) -> Classifier:
        """Returns the network with random weights."""
        new = build(self.spec)
        remove_blocks(new.network, self.removed)
        resize(new.network, self.shapes)
        return new


def train_from_scratch(
    model: nn.Module, shape: Shape, config: PruneConfig, context: Context, *, seconds: float
) -> FromScratch:
    """Trains new networks of a pruned one's shape, without and with teachers, each for a time."""
    alone, taught = (
        ablate(model, shape.build, shape.spec, config.train, context, seconds=seconds, kd=kd)
        for kd in (None, config.kd)
    )
    return FromScratch(alone=alone, taught=taught)


def distilling_seconds(folder: Path) -> float:
    """Returns how long the epochs of the checkpoint that is pruned took, without teacher logits."""
    return sum(float(row["seconds"]) for row in read_history(folder) or ())
