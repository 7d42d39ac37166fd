"""Which way of quantizing is good enough, tried from the cheapest to the dearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from compress.int8.placement import layers_of
from compress.int8.ptq import Calibration, Plan, Score, score_float, without_repairs
from compress.int8.ranges import OBSERVERS
from compress.int8.speed import LayerCost
from compress.log import say
from compress.quantize.config import QuantizeConfig
from compress.quantize.sensitivity import with_float

REPAIRS: Mapping[str, str] = {
    "corrected biases": "correct_biases",
    "equalized channels": "equalize",
    "learned rounding": "learn_rounding",
}
"""Their fields in settings and plan, the cheapest first; each is added to the best so far."""
ALWAYS_TRIED = "correct_biases"
"""It takes a second or two."""
TINY_MS = 1e-3
"""A layer that loses no time in float is not infinitely better than one that loses a little."""
MOST_FLOAT = 4
"""At most one layer in so many falls back to float."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of quantizing that was tried; figures are of validation images, in PyTorch."""

    name: str
    top1: float
    """Percent."""
    drop: float
    """Points below the float network."""
    loss: float


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A quantized network, how it came to be, and its figures."""

    placed: fx.GraphModule
    plan: Plan
    attempt: Attempt


class Trials:
    """Scores ways of quantizing one network and notes all of them.

    Args:
        calibration: of the network.
        score: of validation images.
    """

    def __init__(self, calibration: Calibration, score: Score) -> None:
        self.calibration, self.score = calibration, score
        self.float_top1 = score_float(calibration, score)[1]
        self.attempts: list[Attempt] = []

    def quantize(self, name: str, plan: Plan) -> Candidate:
        """Quantizes as planned and scores it."""
        return self.note(name, self.calibration.quantize(plan), plan)

    def note(self, name: str, placed: fx.GraphModule, plan: Plan) -> Candidate:
        """Scores a quantized network."""
        loss, top1 = self.score(placed)
        drop = self.float_top1 - top1
        attempt = Attempt(name=name, top1=top1, drop=drop, loss=loss)
        say(f"  {name}: validation {top1:.2f} % ({0 - drop:+.2f} points, loss {loss:.4f})")
        self.attempts.append(attempt)
        return Candidate(placed=placed, plan=plan, attempt=attempt)


def better(one: Candidate, other: Candidate) -> Candidate:
    """Returns the one with the higher top-1, or else the smaller loss, or else the first."""
    return min(one, other, key=lambda candidate: (candidate.attempt.drop, candidate.attempt.loss))


def choose(
    trials: Trials, plan: Plan, config: QuantizeConfig, costs: Mapping[str, LayerCost]
) -> Candidate:
    """Quantizes without training, as the settings say or, for `auto`, until it is good enough.

    Args:
        trials: to make and note the attempts.
        plan: what the settings name.
        config: what to do.
        costs: by layer; what a fallback to float loses.

    Returns:
        The best attempt.
    """
    unrepaired: dict[str, Any] = dict.fromkeys(REPAIRS.values(), False)
    first = dataclasses.replace(plan, **unrepaired)
    best = trials.quantize(f"{first.observer} ranges", first)
    if config.observer == "auto":
        for observer in OBSERVERS:
            if observer != first.observer:
                other = dataclasses.replace(first, observer=observer)
                best = better(best, trials.quantize(f"{observer} ranges", other))
    automatic = config.method == "auto"
    for name, field in REPAIRS.items():
        wanted = field == ALWAYS_TRIED or best.attempt.drop > config.max_drop
        if getattr(plan, field) or (automatic and wanted):
            # Tried by name, so that the report shows the effect of each.
            changes: dict[str, Any] = {field: True}
            repaired = dataclasses.replace(best.plan, **changes)
            best = better(best, trials.quantize(f"and {name}", repaired))
    if automatic and best.attempt.drop > config.max_drop:
        best = _fall_back(trials, best, config.max_drop, costs)
    return best


def _fall_back(
    trials: Trials, best: Candidate, max_drop: float, costs: Mapping[str, LayerCost]
) -> Candidate:
    """Leaves layers in float, first those that regain most loss for each millisecond."""
    calibration, plan = trials.calibration, best.plan
    fixed = plan.layout.float_layers
    prepared = calibration.prepared(equalized=plan.equalize)
    names = [name for name in layers_of(prepared) if name not in fixed]
    gains = {}
    cheap = without_repairs(plan)
    before = trials.score(calibration.quantize(cheap))[0]
    for name in names:
        placed = calibration.quantize(with_float(cheap, (*fixed, name)))
        cost = costs.get(name)
        lost = max(cost.float_ms - cost.int8_ms, 0.0) if cost else 0.0
        gains[name] = (before - trials.score(placed)[0]) / (lost + TINY_MS)
    ranked = sorted((name for name in names if gains[name] > 0), key=lambda name: -gains[name])
    most = min(len(names) // MOST_FLOAT, len(ranked))
    count = 1
    while count <= most and best.attempt.drop > max_drop:
        chosen = tuple(ranked[:count])
        name = f"and {', '.join(chosen)} in float"
        best = better(best, trials.quantize(name, with_float(plan, (*fixed, *chosen))))
        count *= 2
    return best
