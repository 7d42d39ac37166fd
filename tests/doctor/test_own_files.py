"""Our own files: silent, float and int8, for all families."""

from pathlib import Path

import pytest
import torch

from compress.architectures.spec import ModelSpec
from compress.data.config import DataConfig
from compress.data.load import load_data
from compress.doctor.examine import examine
from compress.onnx_file import export_onnx
from compress.run.recipe import Network, card_names, load_card
from tests.conftest import settled
from tests.int8.helpers import quantized_file

SIDE = 32


def networks() -> dict[str, Network]:
    """Each network of the cards once, under a name for it."""
    cards = {name: load_card(name) for name in card_names()}
    found: dict[str, Network] = {}
    for name, card in cards.items():
        for role, network in (("teacher", card.teacher), ("student", card.student)):
            if network not in found.values():
                found[f"{name}, {role}"] = network
    return found


def test_all_files_of_a_run_are_silent(finished_run: Path) -> None:
    files = sorted(finished_run.glob("*/*.onnx"))
    assert len(files) == 6
    assert [finding for file in files for finding in examine(file).findings] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", networks())
def test_exports_of_all_families_are_silent(name: str, tmp_path: Path) -> None:
    network = networks()[name]
    data = load_data("digits", DataConfig(size=SIDE), seed=0)
    spec = ModelSpec(
        architecture=network.architecture,
        arguments=network.arguments,
        activation=network.activation,
        stem="small",
        class_names=data.class_names,
        preprocess=data.preprocess,
    )
    model = settled(spec, data.train)
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():  # ViT's head begins with zeros
            torch.nn.init.normal_(parameter)
    export_onnx(model, spec, tmp_path / "float.onnx", digest="", stage="teacher")
    _, int8 = quantized_file(model, spec, data, tmp_path)
    # ShuffleNetV2 splits 116 channels into 58 and 58: slow, but part of the architecture.
    expected = {"misaligned-channels"} if network.architecture == "shufflenet_v2_x1_0" else set()
    for file in (tmp_path / "float.onnx", int8):
        found = {finding.check for finding in examine(file).findings}
        assert found - {"saturation"} == expected  # only the stage measures that
