import dataclasses

import pytest
import torch

from compress.checkpoint import QuantizedLayout
from compress.data.dataset import Data
from compress.int8.config import OBSERVERS
from compress.int8.graph import layers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.ptq import Score
from compress.quantize.config import QuantizeConfig
from compress.quantize.ptq_search import (
    Candidate,
    Trials,
    _fall_back_to_float,
    _rank_layers,
    better,
    search,
)
from compress.quantize.result import Attempt
from compress.train.evaluate import evaluate
from tests.int8.helpers import PLAN, trained_student


def test_auto_stops_when_it_is_good_enough(digits: Data) -> None:
    _, found = trained_student()
    config = QuantizeConfig(max_drop=100.0)
    trials = Trials(found, lambda net: evaluate(net, digits.validation))
    search(trials, PLAN, config, {})
    tried = [attempt.name for attempt in trials.attempts]
    assert tried == ["minmax ranges", "with bias correction"]


def test_auto_corrects_and_falls_back_while_the_drop_is_too_large(digits: Data) -> None:
    """The score penalizes int8 in one layer: corrections cannot help, float can."""
    _, found = trained_student()
    names = list(layers_of(found.lowered(equalized=False)))
    culprit = names[3]
    costs = {name: LayerCost(float_ms=1.0, int8_ms=0.5) for name in names}

    def score(network: torch.fx.GraphModule) -> tuple[float, float]:
        layer = layers_of(network)[culprit]
        harmed = layer.is_int8 and layer.mode == "fake_quantize"
        loss, top1 = evaluate(network, digits.validation)
        return loss + 5.0 * harmed, top1 - 50.0 * harmed

    trials = Trials(found, score)
    best = search(trials, PLAN, QuantizeConfig(max_drop=5.0), costs)
    tried = [attempt.name for attempt in trials.attempts]
    assert tried[:4] == [
        "minmax ranges",
        "with bias correction",
        "with equalization",
        "with AdaRound",
    ]
    assert tried[4] == f"with {culprit} in float"
    assert best.plan.layout.float_layers == (culprit,)
    assert best.attempt.drop <= 5.0


def test_observer_auto_keeps_the_best(digits: Data) -> None:
    _, found = trained_student()
    config = QuantizeConfig(observer="auto", method="ptq")
    trials = Trials(found, lambda net: evaluate(net, digits.validation))
    best = search(trials, PLAN, config, {})
    assert [attempt.name for attempt in trials.attempts] == [f"{o} ranges" for o in OBSERVERS]
    assert best.attempt == min(trials.attempts, key=lambda tried: (tried.drop, tried.loss))
    assert best.attempt.name == f"{best.plan.observer} ranges"


def penalizing(penalties: dict[str, float]) -> Score:
    """A score that only counts which layers are int8; each point of loss costs ten of top-1."""

    def score(model: torch.fx.GraphModule) -> tuple[float, float]:
        layers = layers_of(model).items()
        loss = sum(
            penalties.get(name, 0.0)
            for name, layer in layers
            if layer.is_int8 and layer.mode == "fake_quantize"
        )
        return loss, 100 - 10 * loss

    return score


def test_layers_are_ranked_by_the_loss_they_regain_per_millisecond() -> None:
    _, found = trained_student()
    names = list(layers_of(found.lowered(equalized=False)))
    dear, cheap, free, harmless = names[:4]
    trials = Trials(found, penalizing({dear: 0.5, cheap: 0.4, free: 0.01, names[4]: 0.4}))
    costs = {
        dear: LayerCost(float_ms=1.1, int8_ms=0.1),
        cheap: LayerCost(float_ms=0.3, int8_ms=0.1),
        free: LayerCost(float_ms=0.1, int8_ms=0.2),  # faster in float: nothing is lost
        harmless: LayerCost(float_ms=0.2, int8_ms=0.1),
        names[4]: LayerCost(float_ms=0.3, int8_ms=0.1),
    }
    layout = QuantizedLayout(float_layers=(names[4],))
    ranked, n_layers = _rank_layers(trials, dataclasses.replace(PLAN, layout=layout), costs)
    assert ranked == [free, cheap, dear]
    assert n_layers == len(names) - 1


def test_twice_as_many_layers_fall_back_each_time_up_to_a_quarter() -> None:
    _, found = trained_student()
    names = list(layers_of(found.lowered(equalized=False)))
    trials = Trials(found, penalizing(dict.fromkeys(names, 1.0)))
    first = trials.quantize("first", PLAN)
    best = _fall_back_to_float(trials, first, 0.3, {})
    counts = [attempt.name.count(",") + 1 for attempt in trials.attempts[1:]]
    assert counts == [count for count in (1, 2, 4, 8) if count <= len(names) // 4]
    assert len(best.plan.layout.float_layers) == counts[-1]
    assert best.attempt.drop == pytest.approx(10 * (len(names) - counts[-1]))


@pytest.mark.parametrize(
    ("one", "other", "best"),
    [
        ((91.0, 0.5), (90.0, 0.1), "one"),
        ((90.0, 0.5), (90.0, 0.1), "other"),
        ((90.0, 0.5), (90.0, 0.5), "one"),
    ],
)
def test_top1_decides_then_the_loss_then_the_order(
    one: tuple[float, float], other: tuple[float, float], best: str
) -> None:
    _, found = trained_student()
    model = found.lowered(equalized=False)

    def candidate(name: str, top1: float, loss: float) -> Candidate:
        attempt = Attempt(name=name, top1=top1, drop=95.0 - top1, loss=loss)
        return Candidate(model=model, plan=PLAN, attempt=attempt)

    assert better(candidate("one", *one), candidate("other", *other)).attempt.name == best


def test_corrections_that_the_settings_name_are_tried_in_turn() -> None:
    _, found = trained_student()
    plan = dataclasses.replace(PLAN, equalization=True, bias_correction=True)
    trials = Trials(found, penalizing({}))
    best = search(trials, plan, QuantizeConfig(method="ptq"), {})
    assert [attempt.name for attempt in trials.attempts] == [
        *("minmax ranges", "with bias correction", "with equalization"),
    ]
    assert best.plan == PLAN  # on a tie, the plan with fewer corrections
