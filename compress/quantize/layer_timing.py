"""Mixed precision: which layers stay in float so that the network is fastest on this machine."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

from compress.cache import Measurement, cached_measurement
from compress.checkpoint import MODEL_FILE, Checkpoint
from compress.int8.conversion import convert
from compress.int8.layer_profile import Edge, LayerCost, layer_costs, layer_edges
from compress.int8.ptq import Calibration, Plan, without_corrections
from compress.log import count_of, say, waiting
from compress.measure.config import MeasureConfig
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from compress.quantize.sensitivity import with_float_layers


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """What was measured for one network's shape on this machine."""

    costs: Mapping[str, LayerCost]
    """Layer costs by name."""
    float_layers: tuple[str, ...] = ()
    """Proposed to stay in float; empty if that is all layers or none."""
    speedup_ci95: tuple[float, float] = (1.0, 1.0)
    """Speedup of the file with those layers in float over the all-int8 file, 95 % interval."""

    @property
    def is_faster(self) -> bool:
        """Whether the mixed file is faster beyond noise."""
        return self.speedup_ci95[0] > 1


def time_layers(
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, measure: MeasureConfig
) -> MixedPrecision:
    """Returns what each layer costs on this machine, and which ones are faster in float.

    A minimum cut proposes them; the whole file decides: a mixed one must be faster than the int8
    one beyond noise. Weights do not matter, so a steady result is cached for the network's shape.
    """
    structure = {
        "spec": dataclasses.asdict(checkpoint.spec),
        "shapes": dict(checkpoint.description.shapes),
        "removed": checkpoint.description.removed,
        **dataclasses.asdict(measure),
    }
    mixed = cached_measurement(
        MixedPrecision,
        "layers in float and int8",
        structure,
        lambda: _measure(calibration, plan, checkpoint, measure),
    )
    if mixed.float_layers:
        low, high = mixed.speedup_ci95
        verdict = "they stay in float" if mixed.is_faster else "not faster, so all are int8"
        say(
            f"  {len(mixed.float_layers)} of {count_of(len(mixed.costs), 'layer')} in float: "
            f"{low:.2f} to {high:.2f}x the speed of int8; {verdict}"
        )
    return mixed


def _measure(
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, measure: MeasureConfig
) -> Measurement[MixedPrecision]:
    float_file = checkpoint.folder / MODEL_FILE
    with TemporaryDirectory() as scratch:
        int8_file, mixed_file = Path(scratch) / "int8.onnx", Path(scratch) / "mixed.onnx"
        _export(calibration, plan, checkpoint, int8_file)
        with waiting("timing each layer"):
            costs, spread = layer_costs(float_file, int8_file, threads=measure.threads)
            edges = layer_edges(int8_file, threads=measure.threads)
        layers = choose_float_layers(costs, edges)
        if not layers or len(layers) == len(costs):
            return Measurement(value=MixedPrecision(costs=costs), spread=spread)
        _export(calibration, with_float_layers(plan, layers), checkpoint, mixed_file)
        files = [int8_file, mixed_file]
        _, latency = measure_latency(files, **dataclasses.asdict(measure))
    value = MixedPrecision(costs=costs, float_layers=layers, speedup_ci95=latency.speedup_ci95)
    return Measurement(value=value, spread=max(spread, latency.speedup_spread))


def _export(calibration: Calibration, plan: Plan, checkpoint: Checkpoint, path: Path) -> None:
    """Writes a file to time, without the corrections, which do not change its speed."""
    model = convert(calibration.quantize(without_corrections(plan)))
    export_onnx(model, checkpoint.spec, path, digest=checkpoint.digest, stage="quantize")


def choose_float_layers(costs: Mapping[str, LayerCost], edges: Sequence[Edge]) -> tuple[str, ...]:
    """Returns the layers to leave in float for the lowest total time.

    Each layer costs its time in the chosen precision, and a value between layers of different
    precisions must be converted. The cheapest assignment is a minimum cut between a source (int8)
    and a sink (float).
    """
    names = list(costs)
    index = {name: number for number, name in enumerate(names)}
    source, sink = len(names), len(names) + 1
    capacity: dict[tuple[int, int], int] = defaultdict(int)
    for name, cost in costs.items():
        # Cutting a layer off the source puts it in float, cutting it off the sink in int8.
        capacity[source, index[name]] += _nanoseconds(cost.float_ms)
        capacity[index[name], sink] += _nanoseconds(cost.int8_ms)
    for edge in edges:
        if edge.writer in index and edge.reader in index:
            capacity[index[edge.writer], index[edge.reader]] += _nanoseconds(edge.conversion_ms)
            capacity[index[edge.reader], index[edge.writer]] += _nanoseconds(edge.conversion_ms)
    rows, columns = zip(*capacity, strict=True)
    graph = csr_matrix(
        (np.array(list(capacity.values()), dtype=np.int32), (rows, columns)),
        shape=(sink + 1, sink + 1),
    )
    residual = graph - maximum_flow(graph, source, sink).flow
    residual.data = np.maximum(residual.data, 0)
    residual.eliminate_zeros()
    reached = set(breadth_first_order(residual, source, return_predecessors=False).tolist())
    return tuple(name for name in names if index[name] not in reached)


def _nanoseconds(ms: float) -> int:
    return round(1e6 * ms)
