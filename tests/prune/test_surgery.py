from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.architectures.build import Classifier, build, example_input
from compress.architectures.resize import differing_shapes, remove_blocks, resize
from compress.architectures.spec import ModelSpec
from compress.data.dataset import Data
from compress.data.preprocess import Preprocess
from compress.int8.conversion import convert
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan
from compress.onnx_file import export_onnx
from compress.prune.groups import find_groups
from compress.prune.importance import score_channels
from compress.prune.surgery import best_channels, keep_channels, residual_blocks
from tests.conftest import settled, student_spec, torchvision_spec
from tests.int8.helpers import MOBILENET_REPEATS

GREY_32 = Preprocess(size=32, resize=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
FAST: list[tuple[str, Sequence[str]]] = [
    ("scaled_resnet", ()),
    ("mobilenet_v3_small", MOBILENET_REPEATS),
    ("shufflenet_v2_x0_5", ()),
]
SLOW = [
    *("resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn", "densenet121", "mobilenet_v2"),
    *("efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "mnasnet0_5"),
    *("squeezenet1_1", "googlenet", "mobilenet_v3_small"),
]


def halve(model: Classifier, share: float = 0.5) -> int:
    """Keeps a share of every group's channels, in multiples of 8; returns how many groups."""
    network = model.network.eval()
    found = find_groups(network, example_input(model))
    scores = score_channels(network, found.groups, "l2", lambda: ())
    kept = {}
    for group in found.groups:
        step = 1 if group.heads else max(8, group.partitions)
        width = max(step, int(group.channels * share) // step * step)
        if width < group.channels:
            kept[group.name] = best_channels(scores[group.name], width, group.partitions)
    keep_channels(network, found.groups, kept)
    return len(kept)


@pytest.mark.parametrize(
    ("name", "removed"),
    [*FAST, *(pytest.param(name, (), marks=pytest.mark.slow) for name in SLOW)],
)
def test_a_pruned_network_runs_ships_and_is_rebuilt_exactly(
    name: str, removed: Sequence[str], tmp_path: Path
) -> None:
    spec = ModelSpec(
        architecture=name, stem="small", class_names=("a", "b", "c"), preprocess=GREY_32
    )
    torch.manual_seed(0)
    model, original, rebuilt = build(spec), build(spec), build(spec)
    for one in (model, original, rebuilt):
        remove_blocks(one.network, removed)
    before = sum(parameter.numel() for parameter in model.parameters())
    assert halve(model)
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.85 * before
    for batch in (1, 3):
        images = torch.randint(0, 256, (batch, 3, 32, 32), dtype=torch.uint8)
        pruned = model.eval()(images)
        assert pruned.shape == (batch, 3)
    resize(rebuilt.network, differing_shapes(model.network, original.network))
    rebuilt.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(rebuilt.eval()(images), pruned)
    plan = Plan(observer="minmax", weights="max")
    quantized = convert(Calibration(lower(model), lambda: [images]).quantize(plan))
    export_onnx(quantized, spec, tmp_path / "int8.onnx", digest="", stage="quantize")


def test_dead_channels_go_first(digits: Data) -> None:
    """Every second channel inside the block is dead in all tensors it takes part in."""
    model = settled(student_spec(digits, width=0.5, depths=[1]), digits.train)
    block = model.get_submodule("network.blocks.0")
    with torch.no_grad():
        block.get_parameter("conv1.weight")[1::2] = 0
        block.get_parameter("bn1.weight")[1::2] = 0
        block.get_parameter("conv2.weight")[:, 1::2] = 0
    alive = block.get_parameter("bn1.weight")[0::2].clone()
    halve(model)
    assert torch.equal(block.get_parameter("bn1.weight"), alive)
    assert (block.get_parameter("conv1.weight").flatten(1).norm(dim=1) > 0).all()


def test_cutting_dead_channels_changes_nothing(digits: Data) -> None:
    """The logits of the cut network equal those of the whole one with zeros in their place."""
    model = settled(torchvision_spec("resnet18", digits), digits.train)
    network = model.network.eval()
    groups = find_groups(network, example_input(model)).groups
    tensors = dict(network.named_parameters())
    kept = {}
    with torch.no_grad():
        for group in groups:
            stays = torch.arange(group.channels)[::2]
            kept[group.name] = stays
            gone = torch.ones(group.channels, dtype=torch.bool)
            gone[stays] = False
            for one in (*group.writers, *group.readers):
                if one.tensor in tensors:
                    tensors[one.tensor].index_fill_(one.dim, one.index[gone].flatten(), 0)
    images = next(iter(digits.test.batches(20))).images
    with torch.no_grad():
        expected = model(images)
        keep_channels(network, groups, kept)
        assert torch.allclose(model(images), expected, atol=1e-4)


def test_grouped_channels_keep_the_same_positions() -> None:
    scores = torch.tensor([1.0, 9, 2, 8, 3, 1, 1, 9])
    assert best_channels(scores, 4, partitions=2).tolist() == [1, 3, 5, 7]
    assert best_channels(scores, 3, partitions=1).tolist() == [1, 3, 7]


def test_residual_blocks_are_found_and_can_go(digits: Data) -> None:
    model = settled(torchvision_spec("resnet18", digits), digits.train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = residual_blocks(model.network, example_input(model))
    assert found == ("layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    remove_blocks(model.network, found[1:])
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert isinstance(model.network.get_submodule("layer2.1"), nn.Identity)
