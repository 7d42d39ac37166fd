"""Results of the prune stage."""

from collections.abc import Mapping
from dataclasses import dataclass

from compress.kd.result import Ablation
from compress.measure.results import Count, Percent, Positive


@dataclass(frozen=True, kw_only=True)
class IterationResult:
    """One iteration: target, measured outcome, and validation top-1 in PyTorch."""

    target_ms: float
    predicted_ms: Positive
    measured_ms: Positive
    size_bytes: Count
    macs: Count
    tries: Count
    top1_raw: Percent
    top1_batchnorm: Percent
    """Top-1 with re-estimated BatchNorm statistics."""
    top1_trained: Percent


@dataclass(frozen=True, kw_only=True)
class Width:
    """Output channels of one layer."""

    layer: str
    before: Count
    after: Count
    """Channels after pruning; 0 if the layer was removed."""


@dataclass(frozen=True, kw_only=True)
class FromScratch:
    """The pruned network, trained from scratch for the time of distilling and pruning."""

    alone: Ablation
    """On labels alone."""
    taught: Ablation
    """With the teachers."""


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """Outcome of pruning: latency, accuracy, and widths."""

    precision: str
    importance: str
    unpruned_ms: Positive
    iterations: tuple[IterationResult, ...]
    widths: tuple[Width, ...]
    removed_blocks: tuple[str, ...]
    not_pruned: Mapping[str, str]
    """Layers that kept their channels, and why."""
    from_scratch: FromScratch | None = None
    """None without --ablation."""
