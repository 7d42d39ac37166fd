import math
from pathlib import Path

import pytest
import torch

from compress.architectures.build import Classifier
from compress.checkpoint import Checkpoint
from compress.data.dataset import Data
from compress.int8.restore import load_model
from compress.kd.context import Context
from compress.measure.config import MeasureConfig
from compress.measure.cost import count_macs
from compress.prune.config import PruneConfig
from compress.prune.search import Search, UnmetBudgetError, _cost, scoring_order
from tests.conftest import saved, student_spec


@pytest.fixture(scope="module")
def checkpoint(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    spec = student_spec(digits, width=0.5, depths=[1])
    return saved(tmp_path_factory.mktemp("search") / "student", spec, digits)


@pytest.fixture
def context(digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    monkeypatch.setattr("compress.cache.STEADY", math.inf)
    monkeypatch.setattr("compress.prune.probe.ROUNDS", 5)
    return Context(
        data=digits, seed=0, measure=MeasureConfig(), folder=tmp_path, store=tmp_path, teachers=()
    )


def search(checkpoint: Checkpoint, context: Context, config: PruneConfig) -> Search:
    return Search(checkpoint, loaded(checkpoint), config, context, context.folder)


def loaded(checkpoint: Checkpoint) -> Classifier:
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    return model


def test_a_macs_budget_is_met_closely(checkpoint: Checkpoint, context: Context) -> None:
    config = PruneConfig(
        latency_ratio=1, macs_ratio=0.5, iterations=1, remove_blocks=False, target_precision="float"
    )
    model = loaded(checkpoint)
    before = count_macs(model, checkpoint.spec)
    pruning = search(checkpoint, context, config)
    assert pruning.unpruned.macs == before
    chosen, tries = pruning.prune(model, 1)
    assert chosen.measured.macs == count_macs(model, checkpoint.spec)
    assert 0.3 * before < chosen.measured.macs <= 0.5 * 1.05 * before
    assert chosen.target_ms == pruning.unpruned.ms
    assert 1 <= tries <= 8
    assert pruning.fixed == {"fc": "its outputs are the classes"}
    assert pruning.removed == ()


@pytest.mark.parametrize(("macs_ratio", "min_channels_ratio"), [(0.01, 0.1), (0.9, 1.0)])
def test_a_budget_out_of_reach_leaves_the_model_unchanged(
    checkpoint: Checkpoint, context: Context, macs_ratio: float, min_channels_ratio: float
) -> None:
    config = PruneConfig(
        latency_ratio=1,
        macs_ratio=macs_ratio,
        min_channels_ratio=min_channels_ratio,
        iterations=1,
        remove_blocks=False,
    )
    model = loaded(checkpoint)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruning = search(checkpoint, context, config)
    with pytest.raises(
        UnmetBudgetError, match=r"the best candidate has MACs .* \(target"
    ) as caught:
        pruning.prune(model, 1)
    assert f"(target {macs_ratio * pruning.unpruned.macs:.4g})" in str(caught.value)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(value.equal(after[name]) for name, value in before.items())


def test_limits_approach_the_target_geometrically(checkpoint: Checkpoint, context: Context) -> None:
    pruning = search(checkpoint, context, PruneConfig(latency_ratio=0.25, size_ratio=0.5))
    unpruned = pruning.unpruned
    assert pruning._limits(1.0) == pytest.approx(
        {"latency": 0.25 * unpruned.ms, "size": 0.5 * unpruned.size_bytes}
    )
    assert pruning._limits(0.5) == pytest.approx(
        {"latency": 0.5 * unpruned.ms, "size": math.sqrt(0.5) * unpruned.size_bytes}
    )
    in_ms = search(checkpoint, context, PruneConfig(latency_ratio=0.8, latency_ms=unpruned.ms / 10))
    assert in_ms._limits(1.0) == pytest.approx({"latency": unpruned.ms / 10})
    loose = search(checkpoint, context, PruneConfig(latency_ratio=0.8, latency_ms=10 * unpruned.ms))
    assert loose._limits(1.0) == pytest.approx({"latency": 0.8 * unpruned.ms})


def test_costs_are_macs_and_bytes(checkpoint: Checkpoint, context: Context) -> None:
    pruning = search(checkpoint, context, PruneConfig())
    model = loaded(checkpoint)
    latency = pruning._latency_model(model, pruning.unpruned, [])
    channels = latency.unpruned["blocks.0.conv2"]
    assert channels == (32, 32)
    weights = 9 * 32 * 32
    side = 8  # 16 px, pooled once
    assert _cost("MACs", latency, "int8")("blocks.0.conv2", *channels) == weights * side**2
    assert _cost("size", latency, "int8")("blocks.0.conv2", *channels) == weights
    assert _cost("size", latency, "float")("blocks.0.conv2", *channels) == 4 * weights
    budget = pruning._budget("latency", 1.0, latency, pruning.unpruned)
    total = budget.constant + sum(
        budget.cost(name, *channels) for name, channels in latency.unpruned.items()
    )
    assert total == pytest.approx(pruning.unpruned.ms)


@pytest.mark.parametrize(
    ("n_images", "scored"), [(5, 5), (32, 32), (33, 32), (1023, 992), (9999, 1024)]
)
def test_importances_are_estimated_on_whole_batches(n_images: int, scored: int) -> None:
    order = scoring_order(n_images, seed=0)
    assert len(order.unique()) == len(order) == scored
    assert order.max() < n_images


def test_importances_are_estimated_on_shuffled_images(
    checkpoint: Checkpoint, context: Context
) -> None:
    """Folders list one class after the other."""
    pruning, train = search(checkpoint, context, PruneConfig()), context.data.train
    labels = torch.cat([labels for _, labels in pruning._batches(loaded(checkpoint))])
    assert torch.equal(labels, train.labels[scoring_order(len(train), seed=context.seed)])
