"""Which way of quantising is good enough, tried from the cheapest to the dearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx

from compress.progress import say
from compress.quantize.config import QuantizeConfig
from compress.quantize.placement import layers_of
from compress.quantize.ptq import Calibration, Plan, Score, score_float
from compress.quantize.ranges import OBSERVERS
from compress.quantize.sensitivity import with_float
from compress.quantize.speed import LayerCost

REPAIRS: Mapping[str, str] = {
    "corrected biases": "correct_biases",
    "equalized channels": "equalize",
    "learnt rounding": "learn_rounding",
}
"""Their fields in settings and plan, the cheapest first; each is added to the best so far."""
TRAINING = "and training with rounding on"
TINY_MS = 1e-3
"""A layer that loses no time in float is not infinitely better than one that loses a little."""
MOST_FLOAT = 4
"""At most one layer in so many falls back to float."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One way of quantising that was tried; figures are of validation images, in PyTorch."""

    name: str
    top1: float
    """Percent."""
    drop: float
    """Points below the float network."""
    loss: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The network to go on with, and how it was found."""

    placed: fx.GraphModule
    plan: Plan
    attempts: tuple[Attempt, ...]
    """In their order; the chosen one has the least drop."""

    @property
    def drop(self) -> float:
        """Of the chosen attempt."""
        return min(attempt.drop for attempt in self.attempts)

    def after_training(self, score: Score) -> Attempt:
        """Scores the network after it was trained further."""
        loss, top1 = score(self.placed)
        before = self.attempts[0]
        drop = before.top1 + before.drop - top1
        say(f"  {TRAINING}: {top1:.2f} % ({-drop:+.2f} points, loss {loss:.4f})")
        return Attempt(name=TRAINING, top1=top1, drop=drop, loss=loss)


class _Trials:
    """Scores plans and remembers the best: top-1 first, then loss."""

    def __init__(self, calibration: Calibration, score: Score) -> None:
        self.calibration, self.score = calibration, score
        self.float_top1 = score_float(calibration, score)[1]
        self.attempts: list[Attempt] = []
        self.kept: list[tuple[fx.GraphModule, Plan, Attempt]] = []

    def attempt(self, name: str, plan: Plan) -> None:
        placed = self.calibration.quantize(plan)
        loss, top1 = self.score(placed)
        drop = self.float_top1 - top1
        attempt = Attempt(name=name, top1=top1, drop=drop, loss=loss)
        say(f"  {name}: {top1:.2f} % ({-drop:+.2f} points, loss {loss:.4f})")
        self.attempts.append(attempt)
        # One network is kept in memory, not one for each attempt.
        if not self.kept or (drop, loss) < (self.kept[0][2].drop, self.kept[0][2].loss):
            self.kept = [(placed, plan, attempt)]

    @property
    def best(self) -> tuple[fx.GraphModule, Plan, Attempt]:
        return self.kept[0]


def choose(
    calibration: Calibration,
    first: Plan,
    config: QuantizeConfig,
    score: Score,
    costs: Mapping[str, LayerCost],
) -> Choice:
    """Quantises without training, as the settings say or, for `auto`, until it is good enough.

    Args:
        calibration: of the network.
        first: the plan to begin with.
        config: what to do.
        score: of validation images.
        costs: by layer; what a fallback to float loses.
    """
    trials = _Trials(calibration, score)
    for observer in OBSERVERS if config.observer == "auto" else (first.observer,):
        trials.attempt(f"{observer} ranges", dataclasses.replace(first, observer=observer))
    automatic = config.method == "auto"
    for name, field in REPAIRS.items():
        if getattr(config, field) or (automatic and trials.best[2].drop > config.max_drop):
            # Tried by name, so that the report shows the effect of each.
            changes: dict[str, Any] = {field: True}
            trials.attempt(f"and {name}", dataclasses.replace(trials.best[1], **changes))
    if automatic:
        _fall_back(trials, config.max_drop, costs)
    placed, plan, _ = trials.best
    return Choice(placed=placed, plan=plan, attempts=tuple(trials.attempts))


def _fall_back(trials: _Trials, max_drop: float, costs: Mapping[str, LayerCost]) -> None:
    """Leaves layers in float, first those that regain most loss for each millisecond."""
    if trials.best[2].drop <= max_drop:
        return
    plan = trials.best[1]
    fixed = plan.layout.float_layers
    names = [
        name
        for name in layers_of(trials.calibration.prepared(equalized=plan.equalize))
        if name not in fixed
    ]
    gains = {}
    cheap = dataclasses.replace(plan, learn_rounding=False)
    before = trials.score(trials.calibration.quantize(cheap))[0]
    for name in names:
        placed = trials.calibration.quantize(with_float(cheap, (*fixed, name)))
        cost = costs.get(name)
        lost = max(cost.float_ms - cost.int8_ms, 0.0) if cost else 0.0
        gains[name] = (before - trials.score(placed)[0]) / (lost + TINY_MS)
    ranked = sorted((name for name in names if gains[name] > 0), key=lambda name: -gains[name])
    count = 1
    while count <= len(names) // MOST_FLOAT and trials.best[2].drop > max_drop:
        chosen = tuple(ranked[:count])
        trials.attempt(f"and {', '.join(chosen)} in float", with_float(plan, (*fixed, *chosen)))
        if count >= len(ranked):
            break
        count *= 2
