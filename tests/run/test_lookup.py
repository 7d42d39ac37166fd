import json
import os
import shutil
from pathlib import Path

import pytest

from compress.errors import CompressError
from compress.run.lookup import (
    find_onnx,
    finished_stages,
    newest_run,
    newest_stage_before,
    read_run_report,
    read_stage_report,
)
from compress.run.stages import STAGES
from compress.teacher.result import TeacherResult


def test_a_run_stands_for_the_file_that_it_ships(finished_run: Path) -> None:
    report = json.loads((finished_run / "report.json").read_text())
    assert find_onnx(finished_run) == finished_run / report["ship"]
    assert find_onnx(finished_run / "1-distill") == finished_run / "1-distill/model.onnx"
    file = finished_run / "0-teacher/model.onnx"
    assert find_onnx(file) == file


def test_other_folders_stand_for_nothing(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="neither a run nor a checkpoint"):
        find_onnx(tmp_path)
    shutil.copy(finished_run / "run.json", tmp_path)
    with pytest.raises(CompressError, match="has no finished stage"):
        find_onnx(tmp_path)


def test_stages_are_listed_in_the_order_of_the_run(run_copy: Path) -> None:
    assert list(finished_stages(run_copy)) == list(STAGES)
    shutil.rmtree(run_copy / "1-distill")
    assert list(finished_stages(run_copy)) == ["teacher", "prune", "quantize", "export"]
    assert newest_stage_before("prune", run_copy.parent) == run_copy / "0-teacher"
    assert newest_stage_before("export", run_copy.parent) == run_copy / "3-quantize"
    with pytest.raises(CompressError, match="no finished stage before teacher"):
        newest_stage_before("teacher", run_copy.parent)


def test_the_newest_run_is_the_one_that_changed_last(run_copy: Path) -> None:
    other = run_copy.with_name("other")
    shutil.copytree(run_copy, other)
    for run, time in ((other, 2_000_000_000), (run_copy, 1_900_000_000)):
        os.utime(run / "0-teacher/checkpoint.json", (time, time))
    assert newest_run(run_copy.parent) == other
    os.utime(run_copy / "4-export/checkpoint.json", (2_100_000_000, 2_100_000_000))
    assert newest_run(run_copy.parent) == run_copy
    with pytest.raises(CompressError, match="no runs in"):
        newest_run(run_copy)


def test_results_are_read_with_their_types(finished_run: Path) -> None:
    report = read_run_report(finished_run / "report.json")
    assert [type(stage.result) for stage in report.stages] == [
        stage.result for stage in STAGES.values()
    ]
    assert read_stage_report(finished_run / "0-teacher").result == TeacherResult(epochs=3)


@pytest.mark.parametrize(
    "change",
    [
        {"stage": "sparsify"},
        {"result": {"epochs": -1}},
        {"result": {"epochs": "2"}},
        {"result": 5},
        {"findings": "none"},
    ],
)
def test_a_changed_report_is_damaged(run_copy: Path, change: dict[str, object]) -> None:
    path = run_copy / "0-teacher/report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CompressError, match="missing or damaged"):
        read_stage_report(run_copy / "0-teacher")
