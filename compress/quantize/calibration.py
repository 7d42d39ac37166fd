"""Calibration images of a checkpoint, and the plan to quantize it with."""

from compress.architectures.build import Classifier
from compress.checkpoint import Checkpoint
from compress.int8.config import OBSERVERS
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan, calibration_batches
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.log import waiting
from compress.quantize.config import QuantizeConfig


def calibrate(checkpoint: Checkpoint, config: QuantizeConfig, context: Context) -> Calibration:
    """Returns the lowered network of a float checkpoint with its calibration images."""
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    with waiting("tracing the network"):
        lowered = lower(model)
    images = context.data.train
    return Calibration(
        lowered, lambda: calibration_batches(images, config.calib, seed=context.seed)
    )


def plan_of(config: QuantizeConfig) -> Plan:
    """Returns the plan that the settings describe, with all layers in int8."""
    return Plan(
        observer=OBSERVERS[0] if config.observer == "auto" else config.observer,
        weights=config.weights,
        equalization=config.equalization,
        bias_correction=config.bias_correction,
        adaround=config.adaround,
    )
