"""Sensitivity analysis: the accuracy that int8 costs and the time that it saves, per layer."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from compress.checkpoint import ALL_INT8, QuantizedLayout
from compress.int8.graph import layers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.ptq import Calibration, Plan, Score, score_float
from compress.log import track


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """One layer's row; accuracies are on validation images, simulated in PyTorch."""

    layer: str
    loss_alone: float
    """Change in loss when only this layer is int8."""
    top1_alone: float
    """Change in top-1 when only this layer is int8, points."""
    loss_regained: float
    """Drop in the int8 network's loss when this layer stays in float."""
    top1_regained: float
    """Gain in the int8 network's top-1 when this layer stays in float, points."""
    ms_gained: float
    """Float minus int8 time of the layer and what follows it, milliseconds per run, batch 1."""


def analyze(
    calibration: Calibration, plan: Plan, score: Score, costs: Mapping[str, LayerCost]
) -> list[Sensitivity]:
    """Measures every layer, in execution order; the plan's own layout is ignored."""
    names = tuple(layers_of(calibration.lowered(equalized=plan.equalization)))
    float_loss, float_top1 = score_float(calibration, score)
    int8_loss, int8_top1 = score(calibration.quantize(dataclasses.replace(plan, layout=ALL_INT8)))
    rows = []
    for name in track(names, "layer by layer", total=len(names)):
        others = tuple(other for other in names if other != name)
        loss, top1 = score(calibration.quantize(with_float_layers(plan, others)))
        loss_without, top1_without = score(calibration.quantize(with_float_layers(plan, (name,))))
        cost = costs.get(name)
        rows.append(
            Sensitivity(
                layer=name,
                loss_alone=loss - float_loss,
                top1_alone=top1 - float_top1,
                loss_regained=int8_loss - loss_without,
                top1_regained=top1_without - int8_top1,
                ms_gained=cost.float_ms - cost.int8_ms if cost else 0.0,
            )
        )
    return rows


def with_float_layers(plan: Plan, layers: tuple[str, ...]) -> Plan:
    """Returns the plan with exactly these layers in float."""
    return dataclasses.replace(plan, layout=QuantizedLayout(float_layers=layers))
