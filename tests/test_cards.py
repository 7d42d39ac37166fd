"""Every card and an image folder through all stages: minutes each, `make test-slow`."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torchvision.models import resnet18

from compress.cli.main import main
from compress.run.recipe import card_names
from tests.data.test_folders import write_images

pytestmark = pytest.mark.slow


def run(*arguments: str) -> None:
    result = CliRunner().invoke(main, ["run", *arguments, "--pipeline", "smoke"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("card", card_names())
def test_each_card_goes_through_all_stages(card: str, tmp_path: Path) -> None:
    size = 32 if card == "convnext_tiny" else 0  # it divides the side by 32
    run(card, "--data", "digits", "--set", f"data.size={size}", "--out", str(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    _, distill, *_, export = report["stages"]
    gave_way = any("cannot meet the budget" in remark for remark in report["remarks"])
    assert gave_way or export["parameters"] < distill["parameters"]
    for parity in export["result"]["parity"].values():
        assert parity["top1_agreement"] > 99


def test_ones_own_weights_and_folder(tmp_path: Path) -> None:
    """A card of one's own with a weights file, zero epochs, and images in folders."""
    write_images(tmp_path / "photos", {"train": 40, "test": 10}, ("blue", "green", "red"))
    torch.save(resnet18(num_classes=3).state_dict(), tmp_path / "ours.pth")
    card = tmp_path / "ours.toml"
    card.write_text(
        'description = "ours"\n[teacher]\narchitecture = "resnet18"\nweights = "ours.pth"\n'
        'stem = "large"\n[student]\narchitecture = "scaled_resnet"\n'
    )
    run(
        str(card),
        *("--data", f"imagefolder:{tmp_path / 'photos'}", "--out", str(tmp_path / "run")),
        *("--set", "data.size=32", "--set", "teacher.train.epochs=0", "--set", "quantize.calib=64"),
        *("--set", "distill.kd.alpha=0"),
    )
    stages = json.loads((tmp_path / "run" / "report.json").read_text())["stages"]
    # An untrained teacher knows nothing; with alpha = 0 the student learns from the labels alone.
    assert stages[0]["top1"] < 60
    assert stages[-1]["top1"] > 80  # 30 images, and a recipe of a few steps; chance is 33
