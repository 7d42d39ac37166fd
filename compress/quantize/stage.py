"""Stage quantize: from float to int8, after training or with some more of it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from compress.architectures.build import Classifier
from compress.cache import Measurement, cached_measurement
from compress.checkpoint import MODEL_FILE, Checkpoint
from compress.data.load import calibration_order
from compress.distributed import everywhere
from compress.host import describe_host
from compress.int8.placement import freeze, layers_of, prepare
from compress.int8.ptq import Calibration, Plan, without_repairs
from compress.int8.ranges import OBSERVERS
from compress.int8.restore import load_model
from compress.int8.saturation import Saturation, find_saturation, without_saturation
from compress.int8.speed import LayerCost, Speed, cheapest_float_layers, layer_borders, layer_costs
from compress.kd.context import Context, Product
from compress.log import say, track, waiting
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from compress.quantize.config import QuantizeConfig
from compress.quantize.policy import Trials, better, choose
from compress.quantize.qat import train_quantized
from compress.quantize.sensitivity import with_float
from compress.train.evaluate import evaluate

CALIBRATION_BATCH = 16
SATURATION_IMAGES = 256


def run(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Product:
    """Quantizes a float network.

    Args:
        checkpoint: a float network of any earlier stage.
        config: method, calibration and, for QAT, the schedule.
        context: data, seed, folder and the teacher (QAT learns from it).
    """
    calibration = calibrate(checkpoint, config, context)
    plan = fitting_this_chip(plan_of(config), calibration)
    validation = context.data.validation
    costs: Mapping[str, LayerCost] = {}
    if config.method == "auto":
        speed = measure_speed(calibration, plan, checkpoint, context)
        costs = speed.costs
        if speed.mixing_pays:
            plan = with_float(plan, speed.float_layers)
    trials = Trials(calibration, lambda network: evaluate(network, validation))
    best = choose(trials, plan, config, costs)
    if config.portable:
        with waiting("emulating chips without VNNI"):
            plan = without_saturation(calibration, best.plan, validation, SATURATION_IMAGES)
        if plan != best.plan:
            best = trials.quantize(f"7-bit weights in {len(plan.reduced_layers)} layers", plan)
    method = "ptq"
    if config.method == "qat" or (config.method == "auto" and best.attempt.drop > config.max_drop):
        placed = copy.deepcopy(best.placed)
        everywhere(train_quantized, placed, config, context)
        trained = trials.note("and training with rounding on", placed, best.plan)
        if config.method == "qat" or better(trained, best) is trained:
            best, method = trained, "qat"
    frozen = freeze(best.placed)
    details: dict[str, Any] = {
        "method": method,
        "calibration_images": min(config.calib, len(context.data.train)),
        "attempts": [dataclasses.asdict(attempt) for attempt in trials.attempts],
        "float_layers": list(best.plan.layout.float_layers),
        "reduced_layers": sorted(best.plan.reduced_layers),
        "without_vnni": dataclasses.asdict(_saturation(frozen, config, context)),
    }
    return Product(
        model=frozen,
        spec=checkpoint.spec,
        shapes=checkpoint.description.shapes,
        removed=checkpoint.description.removed,
        quantized=best.plan.layout,
        details=details,
    )


def plan_of(config: QuantizeConfig) -> Plan:
    """Returns the plan that the settings name: their ranges and repairs, all int8."""
    return Plan(
        observer=OBSERVERS[0] if config.observer == "auto" else config.observer,
        weights=config.weights,
        equalize=config.equalize,
        correct_biases=config.correct_biases,
        learn_rounding=config.learn_rounding,
    )


def fitting_this_chip(plan: Plan, calibration: Calibration) -> Plan:
    """Returns the plan with 7-bit weights in all layers if this chip's sums could saturate."""
    if describe_host().multiplies_bytes_exactly:
        return plan
    names = layers_of(calibration.prepared(equalized=False))
    return dataclasses.replace(plan, reduced_layers=frozenset(names))


def calibrate(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Calibration:
    """Returns the traced network with its calibration images."""
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    with waiting("tracing the network"):
        prepared = prepare(model)
    return Calibration(prepared, lambda: _calibration_batches(config, context))


def measure_speed(
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, context: Context
) -> Speed:
    """Returns what each layer costs on this machine, and which are faster in float.

    A minimum cut proposes; the whole file decides: a mixed one must be faster than the int8 one
    beyond noise. Weights do not matter, so a steady answer is remembered for the network's shape.
    """
    threads, batch = context.measure.threads, context.measure.batch

    def measure() -> Measurement[Speed]:
        with _probe(calibration, plan, checkpoint, context.folder / "probe.onnx") as int8_file:
            with waiting("timing each layer"):
                costs, spread = layer_costs(
                    checkpoint.folder / MODEL_FILE, int8_file, threads=threads
                )
                borders = layer_borders(int8_file, threads=threads)
            layers = cheapest_float_layers(costs, borders)
            if not layers or len(layers) == len(costs):
                return Measurement(value=Speed(costs=costs), spread=spread)
            mixed_plan = with_float(plan, layers)
            with _probe(calibration, mixed_plan, checkpoint, context.folder / "mixed.onnx") as file:
                _, mixed = measure_latency([int8_file, file], threads=threads, batch=batch)
        speed = Speed(costs=costs, float_layers=layers, speedup_ci95=mixed.speedup_ci95)
        return Measurement(value=speed, spread=max(spread, mixed.speedup_spread))

    structure = {
        "spec": dataclasses.asdict(checkpoint.spec),
        "shapes": dict(checkpoint.description.shapes),
        "removed": checkpoint.description.removed,
        "threads": threads,
        "batch": batch,
    }
    speed = cached_measurement(Speed, "layers in float and int8", structure, measure)
    if speed.float_layers:
        low, high = speed.speedup_ci95
        say(
            f"  {len(speed.float_layers)} of {len(speed.costs)} layers in float: {low:.2f} to "
            f"{high:.2f}x the speed of int8; "
            + ("they stay in float" if speed.mixing_pays else "not faster, all are int8")
        )
    return speed


@contextmanager
def _probe(
    calibration: Calibration, plan: Plan, checkpoint: Checkpoint, path: Path
) -> Iterator[Path]:
    """Writes a file to be timed, without the repairs that do not change its speed."""
    model = freeze(calibration.quantize(without_repairs(plan)))
    export_onnx(model, checkpoint.spec, path, digest=checkpoint.digest, stage="quantize")
    try:
        yield path
    finally:
        path.unlink()


def _saturation(frozen: fx.GraphModule, config: QuantizeConfig, context: Context) -> Saturation:
    """Tells what chips without VNNI would lose."""
    with waiting("emulating chips without VNNI"):
        found = find_saturation(frozen, context.data.validation, SATURATION_IMAGES)
    if found.layers:
        say(
            f"  on chips without VNNI {len(found.layers)} layers would saturate: "
            f"top-1 {found.top1_saturated:.2f} % instead of {found.top1:.2f} % "
            f"on {found.n_images} images" + "; --portable avoids it" * (not config.portable)
        )
    return found


def _calibration_batches(config: QuantizeConfig, context: Context) -> Iterator[Tensor]:
    """Yields the calibration images, uint8 `[N, C, H, W]`, from the training split."""
    split = context.data.train
    order = calibration_order(split, config.calib, seed=context.seed)
    batches = split.batches(CALIBRATION_BATCH, order=order)
    n_batches = -(-len(order) // CALIBRATION_BATCH)
    for batch in track(batches, "calibrating", total=n_batches):
        yield batch.images
