"""Stage prune: cut to a measured latency, with the teacher's help to recover."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import differing_shapes, remove_blocks
from compress.checkpoint import Checkpoint
from compress.distributed import everywhere
from compress.int8.restore import load_model
from compress.kd.context import Context, Product
from compress.kd.training import train_with_kd
from compress.log import say, waiting, warn
from compress.prune.batchnorm import reestimate_batchnorm
from compress.prune.config import PruneConfig
from compress.prune.search import Search, UnmetBudgetError
from compress.prune.sparse import train_sparse
from compress.train.evaluate import evaluate


def run(checkpoint: Checkpoint, config: PruneConfig, context: Context) -> Product:
    """Prunes and fine-tunes.

    Args:
        checkpoint: a float network, the teacher's or the student's.
        config: how much to remove, and the recovery.
        context: data, seed, folder and the teacher.

    Raises:
        UnmetBudgetError: no pruned network is fast (or small) enough for what was asked. The
            default budget gives way instead, and the report says so.
    """
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    before = _widths(model)
    if config.sparse_epochs:
        inside = dataclasses.replace(context, folder=context.folder / "sparse")
        inside.folder.mkdir(exist_ok=True)
        everywhere(train_sparse, model, config, inside)
    iterations: list[dict[str, Any]] = []
    findings = []
    with TemporaryDirectory() as scratch:
        search = Search(checkpoint, model, config, context, Path(scratch))
        for number in range(1, config.iterations + 1):
            try:
                cut = search.cut(model, number)
            except UnmetBudgetError as failure:
                if _limits(config) != _limits(PruneConfig()):
                    raise
                findings.append(
                    f"{len(iterations)} of {config.iterations} default cuts made; {failure}"
                )
                warn(f"  {findings[-1]}")
                break
            recovery = _recover(model, config, context, number)
            say(
                f"  cut {number}: {cut.measured_ms:.3f} ms measured, {cut.predicted_ms:.3f} "
                f"predicted, {search.unpruned.ms:.3f} unpruned; validation "
                f"{recovery.top1_raw:.2f} % raw, {recovery.top1_batchnorm:.2f} % with new BatchNorm"
                f" statistics, {recovery.top1_trained:.2f} % trained"
            )
            iterations.append({**dataclasses.asdict(cut), **dataclasses.asdict(recovery)})
    if findings and iterations:  # the last cut that could be made had a short recovery only
        recovery = _recover(model, config, context, config.iterations)
        iterations[-1]["top1_trained"] = recovery.top1_trained
    after = _widths(model)
    original = build(checkpoint.spec).network
    remove_blocks(original, search.removed)
    return Product(
        model=model,
        spec=checkpoint.spec,
        shapes=differing_shapes(model.network, original),
        removed=search.removed,
        details={
            "precision": config.target_precision,
            "importance": config.importance,
            "unpruned_ms": search.unpruned.ms,
            "iterations": iterations,
            "widths": [
                {"layer": name, "before": width, "after": after.get(name, 0)}
                for name, width in before.items()
            ],
            "removed_blocks": list(search.removed),
            "not_pruned": dict(search.fixed),
            "findings": findings,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """Validation top-1 after a cut, percent, in PyTorch."""

    top1_raw: float
    top1_batchnorm: float
    """With BatchNorm's statistics estimated anew."""
    top1_trained: float


def _recover(model: Classifier, config: PruneConfig, context: Context, number: int) -> Recovery:
    """Re-estimates BatchNorm and trains, briefly unless it is the last cut."""
    validation = context.data.validation
    _, raw = evaluate(model, validation)
    with waiting("re-estimating BatchNorm"):
        reestimate_batchnorm(model, context.data.train)
    _, reestimated = evaluate(model, validation)
    schedule, title = config.train, "prune"
    if number < config.iterations:
        schedule = dataclasses.replace(schedule, epochs=config.iteration_epochs, min_steps=0)
        title = f"prune, cut {number}"
        context = dataclasses.replace(context, folder=context.folder / f"cut-{number}")
        context.folder.mkdir(exist_ok=True)
    trained = everywhere(train_with_kd, model, config.kd, schedule, context, title)
    return Recovery(
        top1_raw=raw,
        top1_batchnorm=reestimated,
        top1_trained=trained.validation_top1 or reestimated,
    )


def _limits(config: PruneConfig) -> tuple[float, ...]:
    return config.latency_ratio, config.latency_ms, config.macs_ratio, config.size_ratio


def _widths(model: nn.Module) -> dict[str, int]:
    """Returns the output channels of each convolution and linear layer."""
    return {
        name.removeprefix("network."): len(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
