import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from compress.checkpoint import load_checkpoint
from compress.errors import CheckpointError
from compress.run.stages import STAGES, require_stage
from tests.processes import commands_program

ROOT = Path(__file__).parents[2]
ROW = """    Stage(
        name="nothing",
        follows=("teacher",),
        command="nothing",
        help="Do nothing.",
    ),
"""
CONFIG = '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NothingConfig:
    """Settings of stage nothing."""

    reason: str = "none"
    """Reason to do nothing."""
'''
RESULT = '''
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class NothingResult:
    """The figures of stage nothing."""

    reason: str
'''
STAGE = '''
from compress.checkpoint import Checkpoint, Product
from compress.int8.restore import load_model
from compress.nothing.result import NothingResult


def run(start, config, context):
    """Returns the network as it is."""
    assert isinstance(start, Checkpoint)
    result = NothingResult(reason=config.reason)
    return Product(model=load_model(start), spec=start.spec, result=result)
'''


def test_a_new_stage_is_a_row_in_the_table_and_a_folder(tmp_path: Path) -> None:
    """It gets a command, settings in recipes, a key, a folder, and a row in the report."""
    for folder in ("compress", "models", "pipelines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, dirs_exist_ok=True)
    for folder in ("models", "pipelines"):  # the wheel has them inside the package
        shutil.copytree(ROOT / folder, tmp_path / "compress" / folder, dirs_exist_ok=True)
    table = tmp_path / "compress/run/stages.py"
    text = table.read_text()
    before_last = text.index('    Stage(\n        name="export"')
    table.write_text(text[:before_last] + ROW + text[before_last:])
    (tmp_path / "compress/nothing").mkdir()
    for name, content in (("config", CONFIG), ("result", RESULT), ("stage", STAGE)):
        (tmp_path / f"compress/nothing/{name}.py").write_text(content)
    (tmp_path / "compress/nothing/__init__.py").touch()
    recipe = tmp_path / "short.toml"
    recipe.write_text('stages = ["teacher", "nothing"]\n[nothing]\nreason = "a test"\n')

    settings = ("teacher.train.epochs=1", "teacher.train.min_steps=0", "measure.rounds=5")
    quick = [part for setting in settings for part in ("--set", setting)]
    run = ["run", "simple_cnn", "--data", "digits", "--pipeline", str(recipe), *quick]
    run += ["--out", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-c", commands_program(run, ["nothing", "--help"], run)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "nothing: reason = a test" in result.stderr
    assert "| nothing |" in (tmp_path / "run/report.md").read_text()
    assert "| reason | a test |" in (tmp_path / "run/4-nothing/report.md").read_text()
    assert "--reason" in result.stdout
    assert result.stderr.count("nothing: already done") == 1


def test_a_stage_refuses_a_checkpoint_that_it_cannot_follow(finished_run: Path) -> None:
    checkpoint = load_checkpoint(finished_run / "3-quantize")
    with pytest.raises(CheckpointError, match="prune needs a checkpoint from stage teacher or"):
        require_stage(checkpoint.stage, STAGES["prune"], checkpoint.folder)


@pytest.mark.parametrize("name", STAGES)
def test_each_row_of_the_table_is_complete(name: str) -> None:
    row = STAGES[name]
    assert type(row.config).__name__.removesuffix("Config").lower() == row.name
    assert row.result.__name__.removesuffix("Result").lower() == row.name
    assert row.run.__module__ == row.module
    assert set(row.follows) <= set(STAGES)
