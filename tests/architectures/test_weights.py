import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights, weights_inputs
from compress.data.dataset import Data
from compress.errors import CompressError
from tests.conftest import student_spec, torchvision_spec


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_file(digits: Data, tmp_path: Path, suffix: str) -> None:
    spec = student_spec(digits)
    source, target = build(spec).network, build(spec).network
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    load_weights(target, spec.architecture, str(path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_a_classifier_of_other_size_is_left_out(digits: Data, tmp_path: Path) -> None:
    source = build(student_spec(digits)).network
    three = ModelSpec(
        architecture="scaled_resnet",
        arguments=student_spec(digits).arguments,
        stem="small",
        class_names=("a", "b", "c"),
        preprocess=digits.preprocess,
    )
    target = build(three).network
    path = tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    left_out = load_weights(target, "scaled_resnet", str(path))
    assert left_out == [
        "fc.bias (10, the network has 3)",
        "fc.weight (10x64, the network has 3x64)",
    ]
    assert torch.equal(target.get_parameter("conv1.weight"), source.get_parameter("conv1.weight"))
    assert torch.equal(target.get_parameter("fc.weight"), torch.zeros(3, 64))
    assert torch.equal(target.get_parameter("fc.bias"), torch.zeros(3))


def test_foreign_or_broken_weights_are_refused(digits: Data, tmp_path: Path) -> None:
    network = build(student_spec(digits)).network
    foreign, broken, code = (tmp_path / f"{name}.pth" for name in ("foreign", "broken", "code"))
    torch.save({"layer.weight": torch.zeros(3)}, foreign)
    broken.write_bytes(b"no weights")
    torch.save(nn.Linear(2, 2), code)  # a pickled module could run anything
    for name, part in (
        (str(foreign), "belongs to a different network: missing "),
        (str(broken), "cannot be read as weights"),
        (str(code), "cannot be read as weights"),
        ("nowhere.pth", "there is no weights file"),
        ("IMAGENET", "unknown weights 'IMAGENET'"),
    ):
        with pytest.raises(ValueError, match=".") as caught, warnings.catch_warnings():
            load_weights(network, "resnet18", name)
        assert part in str(caught.value)


def test_numpy_archives_are_refused_with_the_remedy(digits: Data) -> None:
    model = build(torchvision_spec("resnet18", digits))
    with pytest.raises(ValueError, match=r"^vit\.npz is a NumPy archive.*timm\.create_model.*pth"):
        load_weights(model.network, "timm:vit_tiny_patch16_224", "vit.npz")


@pytest.mark.parametrize("prefix", ["module.", "model.backbone.", "_orig_mod.module.", "network."])
def test_prefixes_of_wrappers_are_removed(digits: Data, tmp_path: Path, prefix: str) -> None:
    spec = student_spec(digits)
    source, target = build(spec).network, build(spec).network
    state = {f"{prefix}{name}": value for name, value in source.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "weights.pth")
    assert load_weights(target, spec.architecture, str(tmp_path / "weights.pth")) == []
    for name, tensor in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], tensor)


def test_another_head_is_left_out_and_listed(digits: Data, tmp_path: Path) -> None:
    """A fine-tuned network often has a new classifier, with names of its own."""
    source = build(student_spec(digits)).network
    target = build(student_spec(digits)).network
    state = source.state_dict()
    head = {f"fc.{name.replace('fc.', '1.')}": state.pop(name) for name in ("fc.weight", "fc.bias")}
    torch.save(state | head, tmp_path / "weights.pth")
    left_out = load_weights(target, "scaled_resnet", str(tmp_path / "weights.pth"))
    assert left_out == ["fc.bias (not in the file)", "fc.weight (not in the file)"]
    assert not target.get_parameter("fc.weight").any()
    assert torch.equal(target.get_parameter("conv1.weight"), source.get_parameter("conv1.weight"))


@pytest.mark.parametrize(
    ("architecture", "weights", "expected"),
    [
        ("resnet50", "IMAGENET1K_V1", (224, 256, "bilinear", 0.485)),
        ("resnet50", "IMAGENET1K_V2", (224, 232, "bilinear", 0.485)),
        ("efficientnet_b3", "IMAGENET1K_V1", (300, 320, "bicubic", 0.485)),
        ("timm:tf_efficientnet_lite0", "pretrained", (224, 256, "bicubic", 0.5)),
        ("timm:convnext_tiny.fb_in22k", "own.safetensors", (224, 256, "bicubic", 0.485)),
        ("resnet18", "own.pth", (224, 256, "bilinear", 0.485)),
        ("resnet18", "", (224, 256, "bilinear", 0.485)),
    ],
)
def test_inputs_are_those_that_the_weights_describe(
    architecture: str, weights: str, expected: tuple[int, int, str, float]
) -> None:
    spec = weights_inputs(architecture, weights).preprocess(0)
    assert (spec.size, spec.resize, spec.interpolation, spec.mean[0]) == expected


class Wrapped(nn.Module):
    """All names begin with `model.`, as after a wrapper, and the last layer has a common parent."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(1, width, 3, bias=bias), nn.Linear(width, 10))


def test_a_prefix_that_is_the_network_s_own_stays(tmp_path: Path) -> None:
    source, target = Wrapped(4), Wrapped(4)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    assert load_weights(target, "own:network", str(tmp_path / "weights.pth")) == []
    name = "model.0.weight"
    assert torch.equal(target.get_parameter(name), source.get_parameter(name))


def test_missing_features_are_refused_although_their_parent_has_the_classifier(
    tmp_path: Path,
) -> None:
    torch.save(Wrapped(4, bias=False).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(CompressError, match="missing model.0.bias"):
        load_weights(Wrapped(4), "own:network", str(tmp_path / "weights.pth"))
