"""Which way of quantising is good enough, tried from the cheapest to the dearest."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import fx

from compress.progress import say
from compress.quantize.config import QuantizeConfig
from compress.quantize.placement import set_mode
from compress.quantize.ptq import Calibration, Plan
from compress.quantize.ranges import OBSERVERS

REPAIRS: Mapping[str, Callable[[Plan], Plan]] = {
    "corrected biases": lambda plan: dataclasses.replace(plan, correct_biases=True),
    "equalized channels": lambda plan: dataclasses.replace(plan, equalize=True),
    "learnt rounding": lambda plan: dataclasses.replace(plan, learn_rounding=True),
}
"""What `auto` tries, the cheapest first; each is added to the best so far."""

Score = Callable[[fx.GraphModule], tuple[float, float]]
"""From a network to loss and top-1 (percent) on validation images."""


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
    """In their order; the chosen one is the best."""

    @property
    def drop(self) -> float:
        """Of the chosen attempt."""
        return min(attempt.drop for attempt in self.attempts)


def choose(calibration: Calibration, config: QuantizeConfig, score: Score) -> Choice:
    """Quantises without training, as the settings say or, for `auto`, until it is good enough.

    Args:
        calibration: of the network.
        config: what to do.
        score: of validation images.
    """
    float_top1 = score_float(calibration, score)[1]
    best: tuple[tuple[float, float], fx.GraphModule, Plan] | None = None
    attempts: list[Attempt] = []

    def attempt(name: str, plan: Plan) -> None:
        nonlocal best
        placed = calibration.quantize(plan)
        loss, top1 = score(placed)
        attempts.append(Attempt(name=name, top1=top1, drop=float_top1 - top1, loss=loss))
        say(f"  {name}: {top1:.2f} % ({top1 - float_top1:+.2f} points, loss {loss:.4f})")
        if best is None or (-top1, loss) < best[0]:
            best = (-top1, loss), placed, plan

    first = Plan(
        observer="minmax" if config.observer == "auto" else config.observer,
        weights=config.weights,
        equalize=config.equalize,
        correct_biases=config.correct_biases,
        learn_rounding=config.learn_rounding,
    )
    for observer in OBSERVERS if config.observer == "auto" else (first.observer,):
        attempt(f"{observer} ranges", dataclasses.replace(first, observer=observer))
    assert best is not None
    if config.method == "auto":
        for name, repair in REPAIRS.items():
            if float_top1 + best[0][0] <= config.max_drop:
                break
            repaired = repair(best[2])
            if repaired != best[2]:
                attempt(f"and {name}", repaired)
    _, placed, plan = best
    return Choice(placed=placed, plan=plan, attempts=tuple(attempts))


def score_float(calibration: Calibration, score: Score) -> tuple[float, float]:
    """Returns the float network's loss and top-1."""
    prepared = calibration.prepared(equalized=False)
    set_mode(prepared, "float")
    return score(prepared)
