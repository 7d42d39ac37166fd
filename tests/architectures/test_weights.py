import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.architectures.weights import load_weights
from compress.data.load import Data
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
    assert target.get_parameter("fc.weight").shape == (3, 64)


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
