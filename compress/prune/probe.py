"""A network of some widths as a file in ONNX Runtime: exported, quantized quickly, timed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx.parser
import torch
from torch import Tensor

from compress.architectures.build import Classifier, build
from compress.architectures.resize import differing_shapes, remove_blocks
from compress.architectures.spec import ModelSpec
from compress.cache import Measurement, cached_measurement
from compress.checkpoint import Checkpoint
from compress.int8.conversion import convert
from compress.int8.layer_profile import LAYER_OPERATORS, operators_by_layer
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.kd.context import Context
from compress.log import waiting
from compress.measure.cost import count_macs
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from compress.prune.table import Precision

QUICK = Plan(observer="minmax", weights="max")
"""Ranges do not change the speed."""
CALIBRATION_IMAGES = 16
ROUNDS = 40
OVERHEAD = 0.8
"""Share of the shortest operator's profiled time that is the profiler's own: with it, networks of a
quarter of the width are predicted as well as those of three quarters."""
NOTHING = """<ir_version: 9, opset_import: ["": 18]>
nothing (uint8[batch, 8] x) => (uint8[batch, 8] y) { y = Identity(x) }"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A network's file in ONNX Runtime."""

    ms: float
    size_bytes: int
    macs: int
    run_ms: float
    """What a run takes besides its operators."""
    main_ms: Mapping[str, float]
    """Of each layer's own operator, by the profiler less its overhead."""
    rest_ms: Mapping[str, float]
    """Of the operators that follow it, likewise."""
    overhead_ms: float
    """The profiler's own time for each operator."""


class Probe:
    """Measures cut versions of one network; all latencies compare with the uncut one.

    Args:
        checkpoint: the uncut network.
        model: likewise, loaded; a copy is kept.
        context: data and how to measure.
        precision: of the files.
        scratch: a folder for them.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: Classifier,
        context: Context,
        precision: Precision,
        scratch: Path,
    ) -> None:
        self._spec, self._context = checkpoint.spec, context
        self._unpruned, self._scratch = copy.deepcopy(model), scratch
        self._precision: Precision = precision
        self._reference_ms: float | None = None
        facts = self._facts(model, checkpoint.description.removed)
        self.unpruned = self._remembered(model, facts)
        self._unpruned_facts, self._reference_ms = facts, self.unpruned.ms

    def measure(self, model: Classifier, removed: tuple[str, ...]) -> Measured:
        """Exports, quantizes with quick ranges and times a network, unless it was done before.

        Args:
            model: of the same spec, pruned or not.
            removed: its residual blocks that are left out.
        """
        facts = self._facts(model, removed)
        if facts == self._unpruned_facts:
            return self.unpruned
        # With the milliseconds that it is compared with: those of another hour are others.
        return self._remembered(model, {**facts, "reference_ms": self._reference_ms})

    def _facts(self, model: Classifier, removed: tuple[str, ...]) -> dict[str, object]:
        spec, measure = self._spec, self._context.measure
        original = build(spec).network
        remove_blocks(original, removed)
        return {
            "spec": dataclasses.asdict(spec),
            "shapes": differing_shapes(model.network, original),
            "removed": removed,
            "precision": self._precision,
            "threads": measure.threads,
            "batch": measure.batch,
        }

    def _remembered(self, model: Classifier, facts: Mapping[str, object]) -> Measured:
        return cached_measurement(
            Measured, "networks of some widths", facts, lambda: self._time(model)
        )

    def _time(self, model: Classifier) -> Measurement[Measured]:
        unpruned, file = self._scratch / "unpruned.onnx", self._scratch / "pruned.onnx"
        if not unpruned.is_file():
            self._export(self._unpruned, unpruned)
        self._export(model, file)
        threads = self._context.measure.threads
        nothing = self._scratch / "nothing.onnx"
        onnx.save(onnx.parser.parse_model(NOTHING), nothing)
        first, latency, empty = measure_latency(
            [unpruned, file, nothing],
            threads=threads,
            batch=self._context.measure.batch,
            rounds=ROUNDS,
        )
        # Against the unpruned file in the same minutes, so that a slow hour does not count.
        reference = self._reference_ms or first.latency_ms_p50
        found = operators_by_layer(file, threads=threads)
        least = min(operator.ms for operators in found.values() for operator in operators)
        overhead = OVERHEAD * least
        main = dict.fromkeys(found, 0.0)
        rest = dict.fromkeys(found, 0.0)
        for name, operators in found.items():
            for one in operators:
                part = main if one.kind in LAYER_OPERATORS else rest
                part[name] += one.ms - overhead
        measured = Measured(
            ms=reference / latency.speedup,
            size_bytes=file.stat().st_size,
            macs=count_macs(model, self._spec),
            run_ms=empty.latency_ms_p50 * reference / first.latency_ms_p50,
            main_ms=main,
            rest_ms=rest,
            overhead_ms=overhead,
        )
        return Measurement(value=measured, spread=latency.speedup_spread)

    def _export(self, model: Classifier, path: Path) -> None:
        images = self.images(CALIBRATION_IMAGES)
        export_to_time(model, self._spec, images, path, precision=self._precision)

    def images(self, count: int) -> Tensor:
        """Returns the first training images, uint8 `[count, C, H, W]`."""
        return next(iter(self._context.data.train.batches(count))).images


def export_to_time(
    model: Classifier, spec: ModelSpec, images: Tensor, path: Path, *, precision: Precision
) -> None:
    """Writes a network's ONNX file for timing: if int8, with ranges from a few images.

    Args:
        model: float; left as it is.
        spec: of the network.
        images: that set the ranges, uint8 `[N, C, H, W]`.
        path: of the file.
        precision: of the file.
    """
    exported: torch.nn.Module = model
    with waiting("building the file to time"):
        if precision == "int8":
            calibration = Calibration(lower(model), lambda: [images])
            exported = convert(calibration.quantize(QUICK))
        export_onnx(exported, spec, path, digest="", stage="prune")
