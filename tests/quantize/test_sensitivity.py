import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from compress.checkpoint import QuantizedLayout, load_checkpoint
from compress.cli.main import main
from compress.int8.graph import layers_of
from compress.int8.layer_profile import LayerCost
from compress.int8.restore import load_model
from compress.quantize.sensitivity import Sensitivity, analyze, with_float_layers
from tests.int8.helpers import PLAN, trained_student


def test_sensitivity_has_a_row_for_each_layer(run_copy: Path) -> None:
    folder = run_copy / "2-prune"
    command = ["sensitivity", str(folder), "--images", "50", "--calib", "64"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    report = json.loads((folder / "sensitivity.json").read_text())
    model = load_model(load_checkpoint(folder))
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    assert len(report["rows"]) == len(weights)
    assert all(row["layer"] in result.output for row in report["rows"])
    measured = {row["what"]: row["measured"] for row in report["measurements"]}
    assert f"int8 (measured {measured['layers in float and int8'][:10]}, spread" in (
        folder / "sensitivity.html"
    ).read_text(encoding="utf-8")
    assert "<svg" in (folder / "sensitivity.html").read_text()


@pytest.mark.parametrize("option", ["--images", "--calib"])
def test_sensitivity_requires_images(option: str, finished_run: Path) -> None:
    result = CliRunner().invoke(main, ["sensitivity", str(finished_run / "2-prune"), option, "0"])
    assert result.exit_code == 2
    assert f"Invalid value for '{option}'" in result.output


def test_sensitivity_requires_a_float_checkpoint(run_copy: Path) -> None:
    result = CliRunner().invoke(main, ["sensitivity", str(run_copy / "3-quantize")])
    assert result.exit_code == 2
    assert "already quantized" in result.output


def test_a_row_says_what_its_layer_alone_costs_and_regains() -> None:
    """int8 in the first layer costs loss and top-1, in the others nothing."""
    _, found = trained_student()
    names = list(layers_of(found.lowered(equalized=False)))
    costs = {names[0]: LayerCost(float_ms=0.5, int8_ms=0.2)}

    def score(model: torch.fx.GraphModule) -> tuple[float, float]:
        layers = [layer for layer in layers_of(model).values() if layer.mode == "fake_quantize"]
        first = int(bool(layers) and layers[0].is_int8)
        return 1.0 + 0.5 * first, 90.0 - 7.0 * first

    rows = analyze(found, PLAN, score, costs)
    assert [row.layer for row in rows] == names
    assert rows[0] == Sensitivity(
        layer=names[0],
        loss_alone=0.5,
        top1_alone=-7.0,
        loss_regained=0.5,
        top1_regained=7.0,
        ms_gained=0.5 - 0.2,
    )
    assert rows[1] == Sensitivity(
        layer=names[1], loss_alone=0, top1_alone=0, loss_regained=0, top1_regained=0, ms_gained=0
    )


def test_exactly_the_named_layers_stay_in_float() -> None:
    before = dataclasses.replace(PLAN, layout=QuantizedLayout(float_layers=("a",)))
    assert with_float_layers(before, ("b",)) == dataclasses.replace(
        PLAN, layout=QuantizedLayout(float_layers=("b",))
    )
