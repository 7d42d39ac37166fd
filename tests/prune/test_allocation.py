import dataclasses
import itertools
import math

import pytest
import torch

from compress.prune.allocation import (
    EMPTY,
    Allocator,
    Budget,
    Problem,
    _cumulative,
    candidate_widths,
)
from compress.prune.groups import Group, Use

# a -> b -> c: the first layer reads 3 channels, the last one writes 10.
GROUPS = tuple(
    Group(
        name=name,
        channels=64,
        partitions=1,
        writers=(),
        readers=(),
        uses=(Use(layer=writer, writes=True, count=1), Use(layer=reader, writes=False, count=1)),
    )
    for name, writer, reader in (("one", "a", "b"), ("two", "b", "c"))
)
UNPRUNED = {"a": (3, 64), "b": (64, 64), "c": (64, 10)}
WIDTHS = (16, 32, 48, 64)


def problem(seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    return Problem(
        groups=GROUPS,
        scores={group.name: torch.rand(64) * (1 + place) for place, group in enumerate(GROUPS)},
        unpruned=UNPRUNED,
        candidates={group.name: WIDTHS for group in GROUPS},
    )


def macs(layer: str, ins: int, outs: int) -> float:
    del layer
    return ins * outs


def lost(given: Problem, widths: dict[str, int]) -> float:
    """`-I log(share of I that stays)`, worked out group by group."""
    total = 0.0
    for name, width in widths.items():
        ordered = given.scores[name].double().sort(descending=True).values
        whole = float(ordered.sum())
        total -= whole * math.log(float(ordered[:width].sum()) / whole)
    return total


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("seed", range(3))
def test_the_choice_is_nearly_the_best_of_all(share: float, seed: int) -> None:
    given = problem(seed)
    limit = share * sum(macs("", *pair) for pair in UNPRUNED.values())
    budget = Budget(name="MACs", cost=macs, constant=0.0, limit=limit)
    allocator = Allocator(given, [budget])
    choice, is_met = allocator.choose()
    assert is_met
    one, two = choice.widths["one"], choice.widths["two"]
    assert allocator.total(choice, budget) == 3 * one + one * two + 10 * two <= limit
    best = min(
        lost(given, {"one": first, "two": second})
        for first, second in itertools.product(WIDTHS, WIDTHS)
        if 3 * first + first * second + 10 * second <= limit
    )
    assert lost(given, dict(choice.widths)) <= 1.25 * best


def test_what_is_lost_is_the_scores_at_first_and_grows_as_less_stays() -> None:
    scores = torch.tensor([1.0, 2.0, 3.0, 994.0])
    of_width = _cumulative(scores, partitions=1)
    assert of_width[4] == 0
    assert of_width[3].item() == pytest.approx(1.0, rel=1e-3)
    assert of_width[2].item() == pytest.approx(3.0, rel=2e-3)
    assert of_width[0].item() == pytest.approx(-1000 * math.log(EMPTY))
    even = _cumulative(torch.ones(4), partitions=1)
    steps = (even[:-1] - even[1:]).tolist()
    assert steps == sorted(steps, reverse=True)
    assert even[2].item() == pytest.approx(4 * math.log(2))


def test_nothing_is_cut_without_need() -> None:
    budget = Budget(name="MACs", cost=macs, constant=0.0, limit=1e9)
    assert set(Allocator(problem(), [budget]).choose()[0].widths.values()) == {64}


def test_all_budgets_are_met() -> None:
    tight = Budget(
        name="size", cost=lambda layer, *pair: 2 * macs(layer, *pair), constant=50, limit=4000
    )
    loose = Budget(name="MACs", cost=macs, constant=0.0, limit=3500)
    allocator = Allocator(problem(), [loose, tight])
    choice, is_met = allocator.choose()
    assert is_met
    assert allocator.total(choice, tight) <= 4000
    assert allocator.total(choice, loose) <= 3500


def test_a_step_that_saves_nothing_is_passed_over() -> None:
    """Costs in stairs: only every second width is cheaper."""
    stairs = Budget(
        name="ms", cost=lambda _, ins, outs: -(-ins // 32) * -(-outs // 32), constant=0.0, limit=4
    )
    choice, _ = Allocator(problem(), [stairs]).choose()
    assert set(choice.widths.values()) <= {32, 64}


def test_savings_beyond_the_limit_count_for_nothing() -> None:
    """Layer a saves ten times as much, for twice the importance; one unit is enough."""
    groups = tuple(
        dataclasses.replace(group, uses=(Use(layer=layer, writes=True, count=1),))
        for group, layer in zip(GROUPS, "ab", strict=True)
    )
    scores = torch.full((64,), 100.0)
    scores[:16] = 0.1
    given = Problem(
        groups=groups,
        scores={"one": 2 * scores, "two": scores},
        unpruned={"a": (3, 64), "b": (3, 64)},
        candidates={"one": (48, 64), "two": (48, 64)},
    )
    price = {"a": 10, "b": 1}
    budget = Budget(
        name="ms", cost=lambda layer, _, outs: price[layer] * outs / 16, constant=0.0, limit=43
    )
    assert Allocator(given, [budget]).choose()[0].widths == {"one": 64, "two": 48}


def test_the_least_is_told_when_the_budget_is_too_small() -> None:
    budget = Budget(name="MACs", cost=macs, constant=0.0, limit=10)
    choice, is_met = Allocator(problem(), [budget]).choose()
    assert not is_met
    assert set(choice.widths.values()) == {16}


def test_widths_are_aligned_to_what_pays() -> None:
    found = candidate_widths(GROUPS, lambda _: True, min_channels_ratio=0.1)
    assert found["one"] == (8, 16, 24, 32, 40, 48, 56, 64)
    found = candidate_widths(
        GROUPS, lambda use: use.layer != "b" or use.writes, min_channels_ratio=0.3
    )
    assert found == {"one": (32, 48, 64), "two": (24, 32, 40, 48, 56, 64)}
