"""Searches for good-enough post-training quantization, cheapest methods first."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from compress.int8.config import OBSERVERS
from compress.int8.graph import layers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.ptq import Calibration, Plan, Score, score_float, without_corrections
from compress.log import say
from compress.quantize.config import QuantizeConfig
from compress.quantize.result import Attempt
from compress.quantize.sensitivity import with_float_layers

CORRECTIONS: Mapping[str, str] = {
    "bias_correction": "bias correction",
    "equalization": "equalization",
    "adaround": "AdaRound",
}
"""Fields of settings and plan, and their names, cheapest first; each is added to the best plan."""
ALWAYS_TRIED = "bias_correction"
"""It takes a second or two."""
MIN_MS = 1e-3
"""Added to the time that a layer loses in float, to avoid dividing by zero."""
MAX_FLOAT_FRACTION = 1 / 4
"""Fraction of the layers that may fall back to float."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A quantized network, the plan that made it, and its metrics."""

    model: fx.GraphModule
    plan: Plan
    attempt: Attempt


class Trials:
    """Scores quantizations of one network on validation images and records all of them."""

    def __init__(self, calibration: Calibration, score: Score) -> None:
        self.calibration, self.score = calibration, score
        self.float_top1 = score_float(calibration, score)[1]
        self.attempts: list[Attempt] = []

    def quantize(self, name: str, plan: Plan) -> Candidate:
        """Quantizes according to the plan, scores the network, and records the result."""
        return self.record(name, self.calibration.quantize(plan), plan)

    def record(self, name: str, model: fx.GraphModule, plan: Plan) -> Candidate:
        """Scores a quantized network and records the result."""
        loss, top1 = self.score(model)
        drop = self.float_top1 - top1
        attempt = Attempt(name=name, top1=top1, drop=drop, loss=loss)
        say(f"  {name}: validation {top1:.2f} % ({0 - drop:+.2f} points, loss {loss:.4f})")
        self.attempts.append(attempt)
        return Candidate(model=model, plan=plan, attempt=attempt)


def better(one: Candidate, other: Candidate) -> Candidate:
    """Returns the one with the higher top-1, else the lower loss, else the first."""
    return min(one, other, key=lambda candidate: (candidate.attempt.drop, candidate.attempt.loss))


def search(
    trials: Trials, plan: Plan, config: QuantizeConfig, costs: Mapping[str, LayerCost]
) -> Candidate:
    """Quantizes without training: per the settings or, for `auto`, until it is good enough.

    The layers' costs weigh what a fallback to float loses. Returns the best attempt.
    """
    best = _choose_observer(trials, plan, config)
    best = _add_corrections(trials, best, plan, config)
    if config.method == "auto" and best.attempt.drop > config.max_drop:
        best = _fall_back_to_float(trials, best, config.max_drop, costs)
    return best


def _choose_observer(trials: Trials, plan: Plan, config: QuantizeConfig) -> Candidate:
    uncorrected: dict[str, Any] = dict.fromkeys(CORRECTIONS, False)
    first = dataclasses.replace(plan, **uncorrected)
    best = trials.quantize(f"{first.observer} ranges", first)
    if config.observer == "auto":
        for observer in OBSERVERS:
            if observer != first.observer:
                other = dataclasses.replace(first, observer=observer)
                best = better(best, trials.quantize(f"{observer} ranges", other))
    return best


def _add_corrections(
    trials: Trials, best: Candidate, plan: Plan, config: QuantizeConfig
) -> Candidate:
    """Adds corrections one by one, so that the report shows the effect of each."""
    for field, name in CORRECTIONS.items():
        wanted = field == ALWAYS_TRIED or best.attempt.drop > config.max_drop
        if getattr(plan, field) or (config.method == "auto" and wanted):
            added: dict[str, Any] = {field: True}
            corrected = dataclasses.replace(best.plan, **added)
            best = better(best, trials.quantize(f"with {name}", corrected))
    return best


def _fall_back_to_float(
    trials: Trials, best: Candidate, max_drop: float, costs: Mapping[str, LayerCost]
) -> Candidate:
    """Leaves layers in float, starting with those that regain the most loss per millisecond."""
    plan = best.plan
    already = plan.layout.float_layers
    ranked, n_layers = _rank_layers(trials, plan, costs)
    limit = min(int(n_layers * MAX_FLOAT_FRACTION), len(ranked))
    count = 1
    while count <= limit and best.attempt.drop > max_drop:
        chosen = tuple(ranked[:count])
        name = f"with {', '.join(chosen)} in float"
        best = better(best, trials.quantize(name, with_float_layers(plan, (*already, *chosen))))
        count *= 2
    return best


def _rank_layers(
    trials: Trials, plan: Plan, costs: Mapping[str, LayerCost]
) -> tuple[list[str], int]:
    """Returns the int8 layers that gain from float, best first, and the number of all of them."""
    calibration, fast = trials.calibration, without_corrections(plan)
    already = plan.layout.float_layers
    lowered = calibration.lowered(equalized=plan.equalization)
    names = [name for name in layers_of(lowered) if name not in already]
    int8_loss = trials.score(calibration.quantize(fast))[0]
    gains = {}
    for name in names:
        model = calibration.quantize(with_float_layers(fast, (*already, name)))
        cost = costs.get(name)
        lost_ms = max(cost.float_ms - cost.int8_ms, 0.0) if cost else 0.0
        gains[name] = (int8_loss - trials.score(model)[0]) / (lost_ms + MIN_MS)
    ranked = sorted((name for name in names if gains[name] > 0), key=lambda name: -gains[name])
    return ranked, len(names)
