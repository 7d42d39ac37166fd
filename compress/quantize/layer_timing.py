"""Times a network's layers in float and in int8, and a file that mixes both."""

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory

from compress.cache import Measurement, cached_measurement
from compress.checkpoint import MODEL_FILE, Checkpoint
from compress.int8.conversion import convert
from compress.int8.layer_profile import layer_costs, layer_edges
from compress.int8.mixed_precision import MixedPrecision, choose_float_layers
from compress.int8.ptq import Calibration, Plan, without_corrections
from compress.kd.context import Context
from compress.log import count_of, say, waiting
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from compress.quantize.sensitivity import with_float_layers


def time_layers(
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, context: Context
) -> MixedPrecision:
    """Returns what each layer costs on this machine, and which ones are faster in float.

    A minimum cut proposes them; the whole file decides: a mixed one must be faster than the int8
    one beyond noise. Weights do not matter, so a steady result is cached for the network's shape.
    """
    structure = {
        "spec": dataclasses.asdict(checkpoint.spec),
        "shapes": dict(checkpoint.description.shapes),
        "removed": checkpoint.description.removed,
        **dataclasses.asdict(context.measure),
    }
    mixed = cached_measurement(
        MixedPrecision,
        "layers in float and int8",
        structure,
        lambda: _measure(calibration, plan, checkpoint, context),
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
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, context: Context
) -> Measurement[MixedPrecision]:
    threads = context.measure.threads
    float_file = checkpoint.folder / MODEL_FILE
    with TemporaryDirectory() as scratch:
        int8_file, mixed_file = Path(scratch) / "int8.onnx", Path(scratch) / "mixed.onnx"
        _export(calibration, plan, checkpoint, int8_file)
        with waiting("timing each layer"):
            costs, spread = layer_costs(float_file, int8_file, threads=threads)
            edges = layer_edges(int8_file, threads=threads)
        layers = choose_float_layers(costs, edges)
        if not layers or len(layers) == len(costs):
            return Measurement(value=MixedPrecision(costs=costs), spread=spread)
        _export(calibration, with_float_layers(plan, layers), checkpoint, mixed_file)
        how = dataclasses.asdict(context.measure)
        _, latency = measure_latency([int8_file, mixed_file], **how)
    value = MixedPrecision(costs=costs, float_layers=layers, speedup_ci95=latency.speedup_ci95)
    return Measurement(value=value, spread=max(spread, latency.speedup_spread))


def _export(calibration: Calibration, plan: Plan, checkpoint: Checkpoint, path: Path) -> None:
    """Writes a file to time, without the corrections, which do not change its speed."""
    model = convert(calibration.quantize(without_corrections(plan)))
    export_onnx(model, checkpoint.spec, path, digest=checkpoint.digest, stage="quantize")
