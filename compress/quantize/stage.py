"""The quantize stage: converts float to int8, with or without training."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import fx

from compress.checkpoint import MODEL_FILE, Checkpoint, Product, Start
from compress.distributed import everywhere
from compress.int8.conversion import convert
from compress.int8.graph import layers_of, quantizers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.ptq import fit_to_cpu
from compress.int8.saturation import Saturation, find_saturation, reduce_range
from compress.kd.context import Context
from compress.kd.training import train_with_kd
from compress.log import count_of, say, waiting, warn
from compress.measure.accuracy import predict_split
from compress.measure.statistics import PairedDifference, compare_paired
from compress.onnx_file import WITHOUT_VNNI, export_onnx
from compress.quantize.calibration import calibrate, plan_of
from compress.quantize.config import QuantizeConfig
from compress.quantize.layer_timing import time_layers
from compress.quantize.ptq_search import Candidate, Trials, better, search
from compress.quantize.result import QuantizeResult
from compress.quantize.sensitivity import with_float_layers
from compress.train.evaluate import evaluate

SATURATION_IMAGES = 256


def run(start: Start, config: QuantizeConfig, context: Context) -> Product:
    """Quantizes a float network."""
    assert isinstance(start, Checkpoint)
    calibration = calibrate(start, config, context)
    plan = fit_to_cpu(plan_of(config), calibration)
    costs: Mapping[str, LayerCost] = {}
    if config.method == "auto":
        mixed = time_layers(calibration, plan, start, context.measure)
        costs = mixed.costs
        if mixed.is_faster:
            plan = with_float_layers(plan, mixed.float_layers)
    trials = Trials(calibration, lambda model: evaluate(model, context.data.validation))
    best = search(trials, plan, config, costs)
    if config.reduce_range:
        best = _reduce_range(trials, best, context)
    trained = _train(trials, best, config, context)
    best = trained or best
    model = convert(best.model)
    change = _compare(model, start, context) if config.method == "auto" else None
    findings = change.doubts(config.max_drop) if change else ()
    for finding in findings:
        warn(f"  {finding}")
    without_vnni = _check_saturation(model, config, context)
    return Product(
        model=model,
        spec=start.spec,
        shapes=start.description.shapes,
        removed=start.description.removed,
        quantized=best.plan.layout,
        result=QuantizeResult(
            method="qat" if trained else "ptq",
            calibration_images=min(config.calib, len(context.data.train)),
            attempts=tuple(trials.attempts),
            change=change,
            float_layers=best.plan.layout.float_layers,
            reduced_layers=tuple(sorted(best.plan.reduced_layers)),
            without_vnni=without_vnni,
        ),
        findings=findings,
        metadata={WITHOUT_VNNI: dataclasses.asdict(without_vnni)},
    )


def _compare(model: fx.GraphModule, start: Checkpoint, context: Context) -> PairedDifference:
    """Compares an int8 network with the float one on the validation images, in ONNX Runtime."""
    validation = context.data.validation
    labels = validation.labels.numpy()
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL_FILE
        export_onnx(model, start.spec, path, digest="", stage="quantize")
        right = predict_split(path, validation) == labels
    return compare_paired(right, predict_split(start.folder / MODEL_FILE, validation) == labels)


def _reduce_range(trials: Trials, best: Candidate, context: Context) -> Candidate:
    """Returns the network with 7-bit weights in the layers that would saturate, if any."""
    validation = context.data.validation
    with waiting("emulating CPUs without VNNI"):
        plan = reduce_range(trials.calibration, best.plan, validation, SATURATION_IMAGES)
    if plan == best.plan:
        return best
    layers = count_of(len(plan.reduced_layers), "layer")
    return trials.quantize(f"with 7-bit weights in {layers}", plan)


def _train(
    trials: Trials, best: Candidate, config: QuantizeConfig, context: Context
) -> Candidate | None:
    """Returns the network after QAT, None if `auto` does not need it or it did not help."""
    automatic = config.method == "auto"
    if config.method == "ptq" or (automatic and best.attempt.drop <= config.max_drop):
        return None
    model = copy.deepcopy(best.model)
    everywhere(train_quantized, model, config, context)
    trained = trials.record("with quantization-aware training", model, best.plan)
    return None if automatic and better(trained, best) is best else trained


def train_quantized(model: fx.GraphModule, config: QuantizeConfig, context: Context) -> None:
    """Trains a fake-quantized network in place, with distillation from the teacher.

    BatchNorms are folded, hence frozen, from the start: after post-training quantization there is
    little left to learn, and what is trained is what ships.
    """
    enable_learned_scales(model)
    train_with_kd(model, config.kd, config.train, context, "quantize", title="qat")


def enable_learned_scales(model: fx.GraphModule) -> None:
    """Makes all scales trainable (LSQ, Esser et al., arXiv 1902.08153)."""
    for quantizer in quantizers_of(model).values():
        quantizer.scale.requires_grad_()
    for layer in layers_of(model).values():
        if layer.is_int8:
            layer.weight_scale.requires_grad_()


def _check_saturation(
    model: fx.GraphModule, config: QuantizeConfig, context: Context
) -> Saturation:
    """Returns and reports the accuracy that CPUs without VNNI would lose."""
    with waiting("emulating CPUs without VNNI"):
        saturation = find_saturation(model, context.data.validation, SATURATION_IMAGES)
    if saturation.top1_saturated < saturation.top1:
        hint = "" if config.reduce_range else "; --reduce-range prevents it"
        say(
            f"  {count_of(len(saturation.layers), 'layer')} would saturate on CPUs without VNNI: "
            f"top-1 {saturation.top1_saturated:.2f} % instead of {saturation.top1:.2f} % on "
            f"{count_of(saturation.n_images, 'image')}{hint}"
        )
    return saturation
