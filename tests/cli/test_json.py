"""`--json`: what each command prints fits its schema, and standard output holds nothing else."""

import copy
import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result
from jsonschema import Draft202012Validator
from PIL import Image

from compress.cli.main import main
from compress.cli.schemas import RESULTS, json_schema
from compress.run.stages import STAGES, stage_folder
from compress.trust import set_trusted
from tests.conftest import RUN, RUN_SETTINGS
from tests.report.test_check import FULL

PRINTING = """
from sklearn.datasets import load_digits

def digits():
    print("files already downloaded")
    found = load_digits()
    pairs = list(zip((found.images * 15.9).astype("uint8"), found.target))
    return {"train": pairs[:900], "test": pairs[900:], "mean": [0.3], "std": [0.38]}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def printed(command: str, *arguments: object, exit_code: int = 0, told: str = "") -> Any:
    """What a command prints with --json, checked against its schema."""
    result = call(command, *arguments, "--json")
    assert result.exit_code == exit_code, result.output
    assert told in result.stderr
    value = json.loads(result.stdout)
    Draft202012Validator(json_schema(command)).validate(value)
    return value


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", RESULTS)
def test_schemas_are_valid(command: str) -> None:
    Draft202012Validator.check_schema(json_schema(command))


def test_every_command_with_json_has_a_schema() -> None:
    offering = {
        name
        for name, command in main.commands.items()
        for parameter in command.get_params(click.Context(command, info_name=name))
        if parameter.name == "json_out"
    }
    assert offering == set(RESULTS)


def test_a_command_prints_the_schemas() -> None:
    schema = json.loads(call("schema", "run").stdout)
    assert schema == json_schema("run")
    fields = schema["$defs"]["StageReport"]["properties"]
    assert fields["load_ms"]["description"] == "To load the file and optimize its graph."
    unknown = call("schema", "runs")
    assert unknown.exit_code == 2
    assert "no command 'runs' with --json; did you mean run or" in unknown.stderr


def test_a_run_prints_its_report(run_copy: Path) -> None:
    report = printed(*RUN, "--out", run_copy)
    assert report == content(run_copy / "report.json")
    assert printed("report", run_copy) == report


def test_a_schema_is_strict(finished_run: Path) -> None:
    report = content(finished_run / "report.json")
    validator = Draft202012Validator(json_schema("report"))
    assert validator.is_valid(report)
    missing, unknown, wrong, other = (copy.deepcopy(report) for _ in range(4))
    del missing["stages"][0]["top1"]
    unknown["stages"][0]["top2"] = 99.0
    wrong["stages"][0]["top1"] = "99"
    other["stages"][0]["result"] = {}
    assert not any(map(validator.is_valid, (missing, unknown, wrong, other)))


@pytest.mark.parametrize("stage", list(STAGES)[1:])
def test_a_stage_prints_its_report(stage: str, run_copy: Path) -> None:
    options = [
        part
        for setting in RUN_SETTINGS
        if setting.startswith(f"{stage}.")
        for name, _, value in [setting.partition("=")]
        for part in ("--" + name.rpartition(".")[2].replace("_", "-"), value)
    ]
    before = list(STAGES)[list(STAGES).index(stage) - 1]
    report = printed(stage, "--in", stage_folder(run_copy, before), *options)
    assert report == content(stage_folder(run_copy, stage) / "report.json")
    assert report["stage"] == stage


def test_latencies_are_printed(finished_run: Path) -> None:
    results = printed("benchmark", finished_run, finished_run / "2-prune", "--profile")
    assert [row["runtime"] for row in results["rows"]] == ["onnxruntime"] * 2
    assert results["rows"][0]["operators"]


def test_a_score_is_printed(finished_run: Path) -> None:
    checkpoint = finished_run / "3-quantize"
    evaluation = printed("evaluate", checkpoint)
    assert evaluation["accuracy"]["top1"] == content(checkpoint / "report.json")["top1"]
    assert evaluation["file"] == str(checkpoint / "model.onnx")
    assert (evaluation["data"], evaluation["split"]) == ("digits", "test")


def test_a_diagnosis_is_printed(finished_run: Path) -> None:
    assert printed("doctor", finished_run)["file"].startswith(str(finished_run / "4-export"))


def test_predictions_are_printed_and_bad_images_named(finished_run: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.new("L", (16, 16), 99).save(good)
    bad.write_text("not an image")
    first, second = printed("predict", finished_run, good, bad, "--top", 10, exit_code=2)
    assert (first["image"], first["error"]) == (str(good), None)
    shares = [one["probability"] for one in first["classes"]]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert (second["image"], second["classes"]) == (str(bad), [])
    assert "bad.png" in second["error"]


def test_promises_are_printed_and_keep_the_exit_code(finished_run: Path) -> None:
    (kept,) = printed("check", finished_run, "--max-drop", 99)
    assert kept["outcome"] == "kept"
    (broken,) = printed("check", finished_run, "--max-size-mb", 0.0001, exit_code=1)
    assert (broken["name"], broken["outcome"]) == ("size", "broken")


def test_a_comparison_is_printed(finished_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "compared.html"
    first, again, other = printed("compare", FULL, FULL, finished_run, "--html", page)
    assert page.is_file()
    assert (first["smaller"], first["change_points"]) == (None, None)
    assert (again["smaller"], again["faster"], again["change_points"]) == (1, 1, 0)
    assert other["change_points"] is None
    ratio = first["file"]["size_bytes"] / other["file"]["size_bytes"]
    assert other["smaller"] == pytest.approx(ratio)


def test_a_verified_bundle_is_printed(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    assert call("bundle", finished_run, "--out", folder, "--images", 20).exit_code == 0
    verified = printed("verify", folder)
    assert [one["file"] for one in verified] == ["model-float.onnx", "model-int8.onnx"]
    assert {one["agreement"] for one in verified} == {100}


def test_cards_recipes_and_settings_are_printed() -> None:
    assert "resnet18" in {card["name"] for card in printed("models")}
    assert "default" in {recipe["name"] for recipe in printed("pipelines")}
    settings = {one["name"]: one["value"] for one in printed("pipelines", "smoke")}
    assert settings["teacher.train.min_steps"] == 60
    assert settings["distill.ablation"] is False


def test_what_the_user_s_code_prints_goes_to_stderr(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("compress.measure.latency.SLICE_S", 0.001)
    (tmp_path / "printing_data.py").write_text(PRINTING, encoding="utf-8")
    data = ("--data", "printing_data:digits", "--trust", "--out", "run")
    try:
        report = printed("train", "simple_cnn", "--epochs", 0, *data, told="already downloaded")
    finally:
        set_trusted(False)
    assert report == content(Path("run/0-teacher/report.json"))
