"""Calibration images of a checkpoint, and the plan to quantize it with."""

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from compress.architectures.build import Classifier
from compress.checkpoint import Checkpoint
from compress.data.splits import batch_count, calibration_order
from compress.host import describe_host
from compress.int8.config import OBSERVERS
from compress.int8.graph import layers_of
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.log import track, waiting
from compress.quantize.config import QuantizeConfig

CALIBRATION_BATCH = 16


def calibrate(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Calibration:
    """Returns the lowered network of a float checkpoint with its calibration images."""
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    with waiting("tracing the network"):
        lowered = lower(model)
    return Calibration(lowered, lambda: _calibration_batches(config, context))


def plan_of(config: QuantizeConfig) -> Plan:
    """Returns the plan that the settings describe, with all layers in int8."""
    return Plan(
        observer=OBSERVERS[0] if config.observer == "auto" else config.observer,
        weights=config.weights,
        equalization=config.equalization,
        bias_correction=config.bias_correction,
        adaround=config.adaround,
    )


def fit_to_cpu(plan: Plan, calibration: Calibration) -> Plan:
    """Returns the plan, with 7-bit weights in all layers if this CPU's sums could saturate."""
    if describe_host().multiplies_bytes_exactly:
        return plan
    names = layers_of(calibration.lowered(equalized=False))
    return dataclasses.replace(plan, reduced_layers=frozenset(names))


def _calibration_batches(config: QuantizeConfig, context: Context) -> Iterator[Tensor]:
    """Yields batches of training images, uint8 `[N, C, H, W]`."""
    split = context.data.train
    order = calibration_order(split, config.calib, seed=context.seed)
    batches = split.batches(CALIBRATION_BATCH, order=order)
    total = batch_count(len(order), CALIBRATION_BATCH)
    for batch in track(batches, "calibrating", total=total):
        yield batch.images
