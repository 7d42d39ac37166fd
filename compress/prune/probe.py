"""Exports a pruned candidate to ONNX, quickly quantized, and measures it."""

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
from compress.prune.config import Precision

QUICK = Plan(observer="minmax", weights="max")
"""Fast to compute; quantization ranges do not affect latency."""
CALIBRATION_IMAGES = 16
ROUNDS = 30
OVERHEAD = 0.8
"""Fraction of the shortest operator's profiled time that is profiler overhead, chosen so that
networks of a quarter and of three quarters of the width are predicted equally well."""
EMPTY_MODEL = """<ir_version: 9, opset_import: ["": 18]>
empty (uint8[batch, 8] x) => (uint8[batch, 8] y) { y = Identity(x) }"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of a network's ONNX file."""

    ms: float
    size_bytes: int
    macs: int
    run_ms: float
    """Time per run spent outside its operators."""
    main_ms: Mapping[str, float]
    """Profiled time of each layer's own operator, less the overhead."""
    rest_ms: Mapping[str, float]
    """Profiled time of the operators that follow each layer, less the overhead."""
    overhead_ms: float
    """The profiler's own time per operator."""


class Probe:
    """Measures pruned versions of one network, with latencies relative to the unpruned one.

    ONNX files of the given precision are written to the scratch folder.
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
        structure = self._structure(model, checkpoint.description.removed)
        self.unpruned = self._cached(model, structure)
        self._unpruned_structure, self._reference_ms = structure, self.unpruned.ms

    def measure(self, model: Classifier, removed: tuple[str, ...]) -> Measured:
        """Exports, quantizes, and times a network of the same spec, unless the result is cached.

        `removed` are the residual blocks that it lacks.
        """
        structure = self._structure(model, removed)
        if structure == self._unpruned_structure:
            return self.unpruned
        # A cached latency is valid only with the reference that it was scaled to.
        return self._cached(model, {**structure, "reference_ms": self._reference_ms})

    def _structure(self, model: Classifier, removed: tuple[str, ...]) -> dict[str, object]:
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
            "rounds": measure.rounds,
        }

    def _cached(self, model: Classifier, structure: Mapping[str, object]) -> Measured:
        return cached_measurement(
            Measured, "pruned candidates", structure, lambda: self._time(model)
        )

    def _time(self, model: Classifier) -> Measurement[Measured]:
        file = unpruned = self._scratch / "unpruned.onnx"
        if not unpruned.is_file():
            self._export(self._unpruned, unpruned)
        if self._reference_ms is not None:  # not the unpruned network itself
            file = self._scratch / "pruned.onnx"
            self._export(model, file)
        threads = self._context.measure.threads
        empty_file = self._scratch / "empty.onnx"
        onnx.save(onnx.parser.parse_model(EMPTY_MODEL), empty_file)
        first, latency, empty = measure_latency(
            [unpruned, file, empty_file],
            threads=threads,
            batch=self._context.measure.batch,
            rounds=min(ROUNDS, self._context.measure.rounds),
        )
        # Relative to the unpruned file timed alongside, so that slow phases of the machine cancel.
        reference = self._reference_ms or first.latency_ms_p50
        by_layer = operators_by_layer(file, threads=threads)
        shortest = min(operator.ms for operators in by_layer.values() for operator in operators)
        overhead = OVERHEAD * shortest
        main = dict.fromkeys(by_layer, 0.0)
        rest = dict.fromkeys(by_layer, 0.0)
        for name, operators in by_layer.items():
            for operator in operators:
                part = main if operator.kind in LAYER_OPERATORS else rest
                part[name] += operator.ms - overhead
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
    """Writes an ONNX file for timing; int8 ranges come from a few images, uint8 `[N, C, H, W]`."""
    exported: torch.nn.Module = model
    with waiting("exporting a candidate"):
        if precision == "int8":
            calibration = Calibration(lower(model), lambda: [images])
            exported = convert(calibration.quantize(QUICK))
        export_onnx(exported, spec, path, digest="", stage="prune")
