"""The prune stage: prunes to a measured latency and recovers accuracy by distillation."""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from compress.architectures.build import Classifier, build
from compress.architectures.resize import differing_shapes, remove_blocks
from compress.checkpoint import Checkpoint, Product, Start
from compress.distributed import everywhere
from compress.int8.restore import load_model
from compress.kd.context import Context, subfolder
from compress.kd.training import KDResult, train_with_kd
from compress.log import say, waiting, warn
from compress.prune.batchnorm import reestimate_batchnorm
from compress.prune.config import PruneConfig
from compress.prune.from_scratch import Shape, distilling_seconds, train_from_scratch
from compress.prune.result import IterationResult, PruneResult, Width
from compress.prune.search import Search, UnmetBudgetError
from compress.prune.sparse import train_sparse
from compress.train.evaluate import evaluate


@dataclass(frozen=True, kw_only=True)
class _Pruned:
    iterations: tuple[IterationResult, ...]
    findings: tuple[str, ...]
    seconds: float
    """Of search, teacher logits, and training."""


def run(start: Start, config: PruneConfig, context: Context) -> Product:
    """Prunes a network and fine-tunes it.

    Raises:
        UnmetBudgetError: no pruned network is fast (or small) enough. The default budget is
            relaxed instead, which the report mentions.
    """
    assert isinstance(start, Checkpoint)
    model = load_model(start)
    assert isinstance(model, Classifier)
    before = _widths(model)
    if config.sparse_epochs:
        everywhere(train_sparse, model, config, subfolder(context, "sparse"))
    with TemporaryDirectory() as scratch:
        search = Search(start, model, config, context, Path(scratch))
        pruned = _prune(model, search, config, context)
    after = _widths(model)
    original = build(start.spec).network
    remove_blocks(original, search.removed)
    shapes = differing_shapes(model.network, original)
    from_scratch = None
    if config.ablation:
        shape = Shape(spec=start.spec, removed=search.removed, shapes=shapes)
        seconds = pruned.seconds + distilling_seconds(start.folder)
        from_scratch = train_from_scratch(model, shape, config, context, seconds=seconds)
    return Product(
        model=model,
        spec=start.spec,
        shapes=shapes,
        removed=search.removed,
        result=PruneResult(
            precision=config.target_precision,
            importance=config.importance,
            unpruned_ms=search.unpruned.ms,
            iterations=pruned.iterations,
            widths=tuple(
                Width(layer=name, before=width, after=after.get(name, 0))
                for name, width in before.items()
            ),
            removed_blocks=tuple(search.removed),
            not_pruned=dict(search.fixed),
            from_scratch=from_scratch,
        ),
        findings=pruned.findings,
    )


def _prune(model: Classifier, search: Search, config: PruneConfig, context: Context) -> _Pruned:
    """Prunes and fine-tunes in place."""
    iterations: list[IterationResult] = []
    findings: list[str] = []
    trainings: list[KDResult] = []
    search_seconds = 0.0
    for number in range(1, config.iterations + 1):
        started = time.perf_counter()
        try:
            chosen, tries = search.prune(model, number)
        except UnmetBudgetError as failure:
            if _limits(config) != _limits(PruneConfig()):
                raise
            finding = f"{len(iterations)} of {config.iterations} default iterations done; {failure}"
            warn(f"  {finding}")
            findings.append(finding)
            if iterations:  # the last successful iteration had a short recovery only
                *_, top1, trained = _recover(model, config, context, config.iterations)
                iterations[-1] = dataclasses.replace(iterations[-1], top1_trained=top1)
                trainings.append(trained)
            break
        search_seconds += time.perf_counter() - started
        raw, reestimated, top1, trained = _recover(model, config, context, number)
        trainings.append(trained)
        iteration = IterationResult(
            target_ms=chosen.target_ms,
            predicted_ms=chosen.predicted_ms,
            measured_ms=chosen.measured.ms,
            size_bytes=chosen.measured.size_bytes,
            macs=chosen.measured.macs,
            tries=tries,
            top1_raw=raw,
            top1_batchnorm=reestimated,
            top1_trained=top1,
        )
        say(
            f"  iteration {number}: {iteration.measured_ms:.3f} ms measured, "
            f"{iteration.predicted_ms:.3f} predicted, {search.unpruned.ms:.3f} unpruned; validation"
            f" top-1 {raw:.2f} % pruned, {reestimated:.2f} % with new BatchNorm statistics, "
            f"{top1:.2f} % fine-tuned"
        )
        iterations.append(iteration)
    return _Pruned(
        iterations=tuple(iterations),
        findings=tuple(findings),
        seconds=search_seconds
        + max((one.teacher_seconds for one in trainings), default=0.0)  # stored once
        + sum(one.student_seconds for one in trainings),
    )


def _recover(
    model: Classifier, config: PruneConfig, context: Context, number: int
) -> tuple[float, float, float, KDResult]:
    """Re-estimates BatchNorm and fine-tunes, briefly unless it is the last iteration.

    Returns:
        Validation top-1 in percent, in PyTorch: before, after BatchNorm, and after fine-tuning;
        and the training.
    """
    validation = context.data.validation
    _, raw = evaluate(model, validation)
    with waiting("re-estimating BatchNorm"):
        reestimate_batchnorm(model, context.data.train)
    _, reestimated = evaluate(model, validation)
    schedule, title = config.train, "prune"
    if number < config.iterations:
        schedule = dataclasses.replace(schedule, epochs=config.iteration_epochs, min_steps=0)
        title = f"prune, iteration {number}"
        context = subfolder(context, f"iteration-{number}")
    trained = everywhere(train_with_kd, model, config.kd, schedule, context, "prune", title=title)
    return raw, reestimated, trained.validation_top1 or reestimated, trained


def _limits(config: PruneConfig) -> tuple[float, ...]:
    return config.latency_ratio, config.latency_ms, config.macs_ratio, config.size_ratio


def _widths(model: nn.Module) -> dict[str, int]:
    """Returns the output channels of each convolution and linear layer."""
    return {
        name.removeprefix("network."): len(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
