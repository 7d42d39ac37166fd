import pytest
import torch
from torch import Tensor, nn

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.data.dataset import Data
from compress.data.preprocess import Preprocess
from compress.prune.groups import find_groups
from compress.prune.surgery import keep_channels
from tests.conftest import torchvision_spec

GRAY_32 = Preprocess(size=32, resize=32, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


@pytest.mark.parametrize(
    ("architecture", "kind", "reason"),
    [
        ("swin_t", "SwinTransformer", "channels reshaped into positions"),
        ("timm:botnet26t_256", "ByobNet", "channels reshaped into positions"),
        ("timm:rexnet_100", "RexNet", "channels split and joined in every block"),
    ],
)
def test_a_walk_that_would_not_end_says_so(architecture: str, kind: str, reason: str) -> None:
    spec = ModelSpec(
        architecture=architecture, stem="large", class_names=("a", "b"), preprocess=GRAY_32
    )
    found = find_groups(build(spec).network.eval(), torch.zeros(1, 3, 32, 32))
    assert not found.groups
    assert reason in found.fixed[kind]


def test_what_must_stay_is_named_with_its_reason(digits: Data) -> None:
    found = find_groups(
        build(torchvision_spec("resnet18", digits)).network.eval(), torch.zeros(1, 1, 16, 16)
    )
    assert found.fixed == {"fc": "its outputs are the classes"}


def test_grouped_convolutions_prune_all_partitions_alike() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 2, 1)
    )
    found = find_groups(network.eval(), torch.zeros(1, 3, 8, 8)).groups
    groups = {group.name: group for group in found}
    assert {name: group.partitions for name, group in groups.items()} == {"0": 4, "1": 4}
    assert {(use.layer, use.writes, use.count) for use in groups["0"].uses} >= {("0", True, 1)}


def test_a_depthwise_convolution_writes_what_it_reads() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    )
    (group,) = find_groups(network.eval(), torch.zeros(1, 3, 8, 8)).groups
    assert (group.channels, group.partitions, group.heads) == (8, 1, False)
    uses = {(use.layer, use.writes) for use in group.uses}
    assert uses == {("0", True), ("1", True), ("3", False)}
    assert {part.tensor for part in group.readers} == {"3.weight"}
    assert {"0.weight", "0.bias", "1.weight", "2.weight", "2.running_mean"} <= {
        part.tensor for part in group.writers
    }


class _Split(nn.Module):
    """A cross-stage partial block: only half of the channels pass the inner layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 16, 1), nn.Conv2d(8, 8, 1)
        self.join, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).split(8, dim=1)
        return self.head(self.join(torch.cat([left, self.inner(right)], dim=1)))  # type: ignore[no-any-return]


def test_channels_that_code_splits_stay_and_the_others_can_be_removed() -> None:
    """In CSPResNet, torch-pruning even named channels of them that do not exist."""
    network, example = _Split().eval(), torch.zeros(1, 1, 4, 4)
    found = find_groups(network, example)
    assert "the network's code splits it into parts of fixed widths" in found.fixed.values()
    assert "join" in {group.name for group in found.groups}
    kept = {group.name: torch.arange(group.channels // 2) for group in found.groups}
    keep_channels(network, found.groups, kept)
    assert network(example).shape == (1, 2, 4, 4)
    assert network.join.weight.shape[0] == 4


def test_flattened_channels_take_a_column_for_each_position() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 3))
    (group,) = find_groups(network.eval(), torch.zeros(1, 1, 2, 2)).groups
    (reader,) = group.readers
    assert (reader.tensor, reader.dim) == ("2.weight", 1)
    assert reader.index.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_attention_heads_are_groups() -> None:
    spec = ModelSpec(
        architecture="vit_b_16", stem="small", class_names=("a", "b"), preprocess=GRAY_32
    )
    groups = find_groups(build(spec).network.eval(), torch.zeros(1, 3, 32, 32)).groups
    heads = [group for group in groups if group.heads]
    assert len(heads) == 12
    assert heads[0].channels == 12
    assert heads[0].writers[0].index[1].tolist() == [
        *range(64, 128),
        *range(832, 896),
        *range(1600, 1664),
    ]


def test_a_network_that_stops_torch_pruning_says_so() -> None:
    spec = ModelSpec(
        architecture="timm:dpn68", stem="large", class_names=("a", "b"), preprocess=GRAY_32
    )
    found = find_groups(build(spec).network.eval(), torch.zeros(1, 3, 32, 32))
    assert "cannot trace the whole network (TypeError)" in found.fixed["DPN"]
