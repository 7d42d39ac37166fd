"""Training logged to TensorBoard and MLflow, and read back with their libraries."""

import dataclasses
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compress.data.dataset import Data
from compress.errors import CompressError
from compress.run.stages import TRACKERS
from compress.run.tracking import SCALARS, tracking
from compress.train.config import TrainConfig
from compress.train.epoch import label_loss
from compress.train.events import EpochEnd, print_event
from compress.train.loop import train
from tests.train.test_epoch import Linear
from tests.train.test_events import ROW

READ_MLFLOW = """
import json, mlflow
(run,) = mlflow.search_runs(output_format="list", search_all_experiments=True)
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "teacher/loss")
print(json.dumps({
    "name": run.info.run_name, "status": run.info.status, "params": run.data.params,
    "metrics": run.data.metrics, "losses": [[one.step, one.value] for one in history],
}))
"""


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_every_epoch(digits: Data, tmp_path: Path) -> None:
    config = TrainConfig(epochs=2, min_steps=0, precision="fp32")
    torch.manual_seed(0)
    with tracking(("tensorboard",), {}, run=tmp_path, report=tmp_path / "report.json"):
        history = train(
            Linear(), digits, config, loss=label_loss(0.0), seed=0, folder=tmp_path,
            title="prune, iteration 1",
        )  # fmt: skip
    for name in SCALARS:
        found = scalars(tmp_path / "tensorboard/prune/iteration-1", name)
        expected = [(row.epoch, getattr(row, name)) for row in history]
        assert [step for step, _ in found] == [step for step, _ in expected] == [1, 2]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])


def log_losses(folder: Path, losses: dict[int, float]) -> None:
    with tracking(("tensorboard",), {}, run=folder, report=folder / "report.json"):
        for epoch, loss in losses.items():
            row = dataclasses.replace(ROW, epoch=epoch, loss=loss)
            print_event(EpochEnd(title="teacher", epochs=3, row=row))


def test_epochs_that_are_trained_again_replace_the_old_ones(tmp_path: Path) -> None:
    log_losses(tmp_path, {1: 4.0, 2: 3.0, 3: 2.0})
    log_losses(tmp_path, {2: 1.0, 3: 0.5})
    found = scalars(tmp_path / "tensorboard/teacher", "loss")
    assert found == [(1, 4.0), (2, 1.0), (3, 0.5)]


def test_training_goes_on_if_the_log_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    log_losses(tmp_path, {1: 4.0, 2: 3.0})
    err = capsys.readouterr().err
    assert err.count("nothing more is logged to tensorboard: ") == 1
    assert "epoch 2/3" in err


@pytest.mark.parametrize("tool", TRACKERS)
def test_a_tool_that_is_not_installed_is_named(
    tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torch.utils.tensorboard", "mlflow"):
        monkeypatch.setitem(sys.modules, module, None)
    message = f"{tool} is not installed: run `.venv/bin/uv pip install {tool}` or `pip install"
    with (
        pytest.raises(CompressError, match=message),
        tracking((tool,), {}, run=tmp_path, report=tmp_path / "report.json"),
    ):
        pass


@pytest.fixture
def mlflow_python(tmp_path: Path) -> Path:
    """A Python with MLflow, which is large and pins libraries, so not in our environment."""
    folder = tmp_path / "environment"
    venv.create(folder, symlinks=True)
    python = folder / "bin/python"
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "pip", "install", "--python", python, "mlflow"], check=True)
    (site,) = (folder / "lib").glob("python*/site-packages")
    lent = Path(pytest.__file__).parents[1]
    (site / "lend.pth").write_text(f"import site; site.addsitedir({str(lent)!r})", encoding="utf-8")
    return python


@pytest.mark.slow
def test_mlflow_keeps_settings_epochs_and_results(mlflow_python: Path, tmp_path: Path) -> None:
    """In MLflow's own default store, and then in the one of MLFLOW_TRACKING_URI."""
    environment = dict(os.environ)
    environment.pop("MLFLOW_TRACKING_URI", None)

    def python(*arguments: object, **variables: str) -> Any:
        done = subprocess.run(
            [mlflow_python, *map(str, arguments)], cwd=tmp_path, check=True, text=True,
            stdout=subprocess.PIPE, env=environment | variables,
        )  # fmt: skip
        return json.loads(done.stdout)

    options = ("--data", "digits", "--epochs", 2, "--min-steps", 0, "--out", tmp_path / "run")
    command = ("-m", "compress", "train", "simple_cnn", *options, "--log", "mlflow", "--json")
    report = python(*command)
    kept = python("-c", READ_MLFLOW)
    assert (tmp_path / "mlflow.db").is_file()
    assert (kept["name"], kept["status"]) == ("run", "FINISHED")
    assert kept["params"]["teacher.train.epochs"] == "2"
    assert kept["params"]["data"] == "digits"
    assert kept["metrics"]["teacher/top1"] == report["top1"]
    rows = (tmp_path / "run/0-teacher/history.jsonl").read_text(encoding="utf-8").splitlines()
    assert kept["losses"] == [[row["epoch"], row["loss"]] for row in map(json.loads, rows)]
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    python(*command, MLFLOW_TRACKING_URI=elsewhere)  # nothing is left to train
    again = python("-c", READ_MLFLOW, MLFLOW_TRACKING_URI=elsewhere)
    assert (again["status"], again["losses"]) == ("FINISHED", [])
    assert again["metrics"]["teacher/top1"] == report["top1"]
