import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from compress.cli.main import main, run_name
from compress.data.dataset import Data
from tests.conftest import RUN


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_help_imports_nothing_slow() -> None:
    program = (
        "import sys; from compress.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'pydantic', 'rich', 'numpy', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", sorted(main.commands))
def test_each_command_has_a_help_with_an_example(command: str) -> None:
    result = call(command, "--help")
    assert result.exit_code == 0
    assert re.search(rf"^ +compress {command}\b", result.output, re.M)


def test_stage_options_come_from_the_settings() -> None:
    output = call("prune", "--help").output
    for heading in (
        "Options:",
        "Stage settings:",
        "Distillation:",
        "Training:",
    ):
        assert f"\n{heading}\n" in output
    text = " ".join(output.split())
    assert "--latency-ratio FLOAT Target latency as a fraction" in text
    assert "a number in (0, 1]; default: 0.8" in text


def test_python_m_compress_is_the_same_program() -> None:
    command = [sys.executable, "-m", "compress", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "version" in done.stdout


def test_models_and_pipelines_are_listed() -> None:
    assert "resnet18" in call("models").output
    assert "default" in call("pipelines").output
    settings = call("pipelines", "smoke").output
    assert "data.size=0 " in settings
    assert "teacher.train.min_steps=60 " in settings


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run", "resnet19"], "unknown model 'resnet19'; did you mean resnet18"),
        (["run", "resnet18", "--data", "digit"], "unknown dataset 'digit'; did you mean digits?"),
        (["run", "resnet18", "--pipeline", "defautl"], "unknown recipe 'defautl'; did you mean"),
        (
            ["run", "resnet18", "--set", "prune.macs_ratio=2"],
            "prune.macs_ratio must be a number in (0, 1]",
        ),
        (["run", "resnet18", "--data", "imagefolder:/nowhere"], "folder /nowhere does not exist"),
        (["run", "resnet18", "--data", "digits", "--until", "prum"], "no stage 'prum'"),
        (
            ["prune", "--min-channels-ratio", "1.5"],
            "prune.min_channels_ratio must be a number in (0, 1], got 1.5",
        ),
        (["quantize", "--in", "nowhere"], "nowhere is not a checkpoint: the folder does not exist"),
        (["quantize"], "no runs in runs/; start one"),
        (["benchmark", "a.onnx"], "does not exist"),
        (["report", "nowhere"], "has no finished stage"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert part in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("--debug", "run", "resnet19")
    assert isinstance(result.exception, ValueError)


def test_the_run_ends_with_a_table_and_the_file_to_ship(run_copy: Path) -> None:
    result = call("report", run_copy)
    assert result.exit_code == 0, result.output
    for word in ("teacher", "distill", "prune", "quantize", "export", "ship:", "report:"):
        assert word in result.output
    ship = re.search(r"ship: +(\S+)", result.output)
    assert ship is not None
    assert Path(ship.group(1)).is_file()


def test_a_second_run_skips_everything(run_copy: Path) -> None:
    before = (run_copy / "4-export" / "checkpoint.json").stat().st_mtime_ns
    result = call(*RUN, "--out", run_copy)
    assert result.exit_code == 0, result.output
    assert result.output.count("already done") == 5
    assert (run_copy / "4-export" / "checkpoint.json").stat().st_mtime_ns == before


def test_single_stages_find_the_newest_run(run_copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_copy.parents[1])
    # The budget of the run itself: its candidates are cached.
    macs_decide = ("--latency-ratio", "1", "--macs-ratio", "0.6")
    for arguments in (
        ["prune", *macs_decide, "--iterations", "1", "--epochs", "0"],
        ["quantize", "--calib", "64", "--method", "ptq"],
        ["export"],
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
    description = json.loads((run_copy / "3-quantize" / "checkpoint.json").read_text())
    assert description["lineage"][-1]["config"]["calib"] == 64
    assert [step["stage"] for step in description["lineage"]] == [
        "teacher", "distill", "prune", "quantize",
    ]  # fmt: skip
    report = json.loads((run_copy / "report.json").read_text())
    assert not any("earlier version" in remark for remark in report["remarks"])


def test_a_stage_takes_in_and_out_and_all_images_there_are(run_copy: Path, tmp_path: Path) -> None:
    before = (run_copy / "3-quantize" / "checkpoint.json").read_bytes()
    out = tmp_path / "int8"
    command = ["quantize", "--in", run_copy / "2-prune", "--out", out, "--method", "ptq"]
    result = call(*command, "--calib", "100000")
    assert result.exit_code == 0, result.output
    assert (out / "model.onnx").is_file()
    assert (run_copy / "3-quantize" / "checkpoint.json").read_bytes() == before
    facts = json.loads((out / "report.json").read_text())["result"]
    assert facts["calibration_images"] == 1322  # all of the digits' training images


def test_a_teacher_of_random_weights_is_told(tmp_path: Path) -> None:
    card, out = tmp_path / "card.toml", tmp_path / "run"
    own = "{ width = 0.25, depths = [1, 1] }"
    card.write_text(
        f'[teacher]\narchitecture = "scaled_resnet"\narguments = {own}\n'
        f'[student]\narchitecture = "scaled_resnet"\narguments = {own}\n'
    )
    command = ["run", card, "--data", "digits", "--pipeline", "ptq", "--until", "teacher"]
    command += ["--set", "measure.rounds=5"]
    result = call(*command, "--out", out)
    assert result.exit_code == 0, result.output
    assert "the teacher is untrained" in " ".join(result.output.split())
    assert "the teacher is untrained" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["prune", "--in", "3-quantize"], "prune needs a checkpoint from stage teacher"),
        (["distill", "--in", "2-prune"], "distill needs a checkpoint from stage teacher"),
    ],
)
def test_a_mistake_in_a_stage_loses_nothing(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(run_copy if "--in" in arguments else run_copy.parents[1])
    files = {path: path.read_bytes() for path in run_copy.rglob("*.json")}
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert part in result.output
    assert all(path.read_bytes() == content for path, content in files.items())


def test_a_damaged_checkpoint_is_named(run_copy: Path) -> None:
    tensors = run_copy / "2-prune" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:1000])
    result = call("quantize", "--in", run_copy / "2-prune", "--out", run_copy / "new")
    assert result.exit_code == 2
    assert "truncated, or changed" in result.output
    assert not (run_copy / "new").exists()


def test_train_makes_a_run_s_teacher_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ("--data", "digits", "--epochs", "1", "--min-steps", "0", "--out", run)
    logged = (*options, "--log", "tensorboard")
    first, again = (call("train", "simple_cnn", *logged) for _ in range(2))
    assert first.exit_code == again.exit_code == 0, first.output
    assert first.stdout.splitlines()[-1] == str(run / "0-teacher")
    assert "already done" not in first.output
    assert f"tensorboard --logdir {run / 'tensorboard'}" in first.stderr
    assert len(list((run / "tensorboard/teacher").iterdir())) == 1
    assert "teacher: already done" in again.output
    other = call("run", "simple_cnn", "--data", "digits", "--pipeline", "smoke", "--out", run)
    assert other.exit_code == 2
    assert "is a run of the pipeline default, not of smoke" in other.output


def test_evaluate_scores_checkpoints_and_files_alike(finished_run: Path, tmp_path: Path) -> None:
    report = json.loads((finished_run / "3-quantize" / "report.json").read_text())
    expected = f"top-1 {report['top1']:.2f} %"
    assert expected in call("evaluate", finished_run / "3-quantize").output
    alone = tmp_path / "alone.onnx"
    shutil.copy(finished_run / "3-quantize" / "model.onnx", alone)
    assert expected in call("evaluate", alone, "--data", "digits").output
    without = call("evaluate", alone)
    assert without.exit_code == 2
    assert "specify the dataset with --data" in without.output
    other = call("evaluate", alone, "--data", "fashion-mnist")
    assert other.exit_code == 2
    assert "has the classes 0, 1" in other.output


def test_predict_names_the_class(finished_run: Path, tmp_path: Path, digits: Data) -> None:
    """Of the ten test images that ONNX Runtime is surest of, enlarged."""
    report = json.loads((finished_run / "report.json").read_text())
    ship = finished_run / report["ship"]
    images = next(iter(digits.test.batches(len(digits.test)))).images.numpy()
    (logits,) = onnxruntime.InferenceSession(ship).run(None, {"images": images})
    paths = []
    for digit in range(10):
        small = images[(logits[:, digit] - np.delete(logits, digit, axis=1).max(1)).argmax(), 0]
        paths.append(tmp_path / f"{digit}.png")
        Image.fromarray(small).resize((160, 160), Image.Resampling.NEAREST).save(paths[-1])
    result = call("predict", ship, *paths)
    assert result.exit_code == 0, result.output
    answers = [line.split(": ")[1][0] for line in result.output.splitlines()]
    assert answers == [str(digit) for digit in range(10)]


def test_predict_tells_each_bad_image_in_a_line_and_goes_on(
    finished_run: Path, tmp_path: Path
) -> None:
    good = tmp_path / "good.png"
    Image.new("L", (16, 16), 99).save(good)
    long = tmp_path / "long.png"
    Image.new("L", (1, 60_000), 99).save(long)
    (tmp_path / "broken.png").write_text("not an image")
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:50])
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    Image.new("F", (16, 16)).save(tmp_path / "float.tif")
    names = ("broken.png", "empty.png", "cut.png", "bomb.png", "float.tif", "absent.png")
    bad = [tmp_path / name for name in names]
    report = json.loads((finished_run / "report.json").read_text())
    result = call("predict", finished_run / report["ship"], good, *bad, long)
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0].startswith(f"{good}: ")
    for path, line in zip(bad, lines[1:-2], strict=True):
        assert line.startswith(f"{path} ")
    assert lines[-2].startswith(f"{long}: ")
    assert "6 of 8 images could not be read" in lines[-1]


@pytest.mark.parametrize(
    ("model", "data", "pipeline", "name"),
    [
        ("resnet18", "digits", "default", "resnet18-digits"),
        ("cards/my_card.toml", "imagefolder:/data/birds/", "default", "my_card-birds"),
        ("resnet18", "digits", "smoke", "resnet18-digits-smoke"),
    ],
)
def test_runs_are_named_after_what_made_them(
    model: str, data: str, pipeline: str, name: str
) -> None:
    assert run_name(model, data, pipeline) == name


def test_another_yardstick_trains_nothing_anew_before_the_cut(run_copy: Path) -> None:
    before = (run_copy / "1-distill" / "checkpoint.json").read_bytes()
    result = call(*RUN, "--out", run_copy, "--set", "measure.batch=4", "--until", "prune")
    assert result.exit_code == 0, result.output
    assert result.output.count("measuring again") == 2
    assert "measure.batch = 1" in result.output
    assert (run_copy / "1-distill" / "checkpoint.json").read_bytes() == before
    reports = [json.loads(path.read_text()) for path in run_copy.glob("[0-2]-*/report.json")]
    assert [report["batch"] for report in reports] == [4, 4, 4]
