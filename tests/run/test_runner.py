"""The whole pipeline on real digits, undisturbed and killed."""

import dataclasses
import os
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.checkpoint import INT8_FILE, load_checkpoint
from compress.cli.main import main
from compress.measure.latency import Latency
from compress.run.folder import STORE, WORK_FILE, begin
from compress.run.lookup import read_run_report, read_stage_report
from compress.run.stages import STAGES, stage_folder
from tests.conftest import CARD, RUN
from tests.processes import finish, start, wait_for

# Golden results of the run in conftest.py: least top-1 in percent, most bytes, most parameters.
GOLDEN = {
    "teacher": (95.0, 2_900_000, 700_000),
    "distill": (95.0, 750_000, 180_000),
    "prune": (94.0, 400_000, 95_000),
    "quantize": (94.0, 130_000, 95_000),
    "export": (94.0, 400_000, 95_000),  # int8 or not: what is faster on this machine
}


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_reaches_its_golden_result(finished_run: Path, stage: str) -> None:
    report = read_stage_report(stage_folder(finished_run, stage))
    least_top1, most_bytes, most_parameters = GOLDEN[stage]
    assert report.top1 >= least_top1
    assert report.size_bytes <= most_bytes
    assert report.parameters <= most_parameters
    assert report.n_images == 359
    assert report.top1_ci95[0] < report.top1 <= report.top1_ci95[1]
    file = stage_folder(finished_run, stage) / report.file
    assert file.stat().st_size == report.size_bytes


def test_the_file_to_ship_is_small_and_equals_torch(finished_run: Path) -> None:
    teacher = read_stage_report(finished_run / "0-teacher")
    export = read_stage_report(finished_run / "4-export")
    assert teacher.size_bytes > 5 * export.size_bytes
    for parity in export.result.parity.values():
        assert parity.top1_agreement >= 99.7  # one of 359 images
    assert export.result.ship in export.result.files


def test_the_reports_are_written_for_machines_and_people(finished_run: Path) -> None:
    reports = read_run_report(finished_run / "report.json").stages
    for stage, report in zip(STAGES, reports, strict=True):
        folder = stage_folder(finished_run, stage)
        assert read_stage_report(folder) == report
        assert (folder / "report.md").read_text().startswith("# ")
    page = (finished_run / "report.md").read_text()
    assert page.startswith("# ")
    for stage in STAGES:
        assert f"\n| {stage} |" in page
    assert not list(finished_run.glob("*.partial"))
    assert not list(finished_run.rglob("training.pt"))


def test_a_file_has_the_same_figures_in_each_row(finished_run: Path) -> None:
    """60.2 and 70.2 times faster were said of one file."""
    *_, prune, quantize, export = (
        read_stage_report(stage_folder(finished_run, stage)) for stage in STAGES
    )
    made = quantize if export.file == INT8_FILE else prune
    names = [field.name for field in dataclasses.fields(Latency)]
    assert [getattr(export, name) for name in names] == [getattr(made, name) for name in names]
    assert export.cold_latency_ms_p50
    assert export.change
    assert export.change == made.change


def test_a_run_killed_at_any_time_ends_as_an_undisturbed_one(
    finished_run: Path, run_copy: Path, tmp_path: Path
) -> None:
    """Kills the process in the middle of several stages; all tensors must come out the same."""
    run, log = run_copy, tmp_path / "log"
    for stage in list(STAGES)[1:]:
        shutil.rmtree(stage_folder(run, stage))
    shutil.rmtree(run / STORE)
    (run / "report.json").unlink()
    command = [*RUN, "--out", run, "--until", "quantize"]
    for progress in (
        "1-distill.partial/history.jsonl",  # in the middle of a training
        "2-prune.partial/model.safetensors",  # trained, not yet measured
        "3-quantize.partial",
    ):
        process = start(*command, log=log)
        wait_for(run / progress, process, log)
        process.kill()  # without a chance to clean up
        process.join()
        assert not (run / "report.json").exists()
    assert finish(start(*command, log=log)) == 0, log.read_text()
    assert "teacher: already done" in log.read_text()
    assert "prune: already done" in log.read_text()
    for stage in list(STAGES)[:-1]:
        killed = load_checkpoint(stage_folder(run, stage))
        undisturbed = load_checkpoint(stage_folder(finished_run, stage))
        assert killed.digest == undisturbed.digest, stage


def test_a_stage_killed_in_its_last_moment_is_not_run_again(run_copy: Path) -> None:
    """Complete, but still in its working folder: it is put in place as it is."""
    folder = stage_folder(run_copy, "quantize")
    digest = load_checkpoint(folder).digest
    partial = folder.rename(folder.with_name(f"{folder.name}.partial"))
    (partial / WORK_FILE).write_text('{"key": "any", "seconds": 1}')
    result = CliRunner().invoke(main, [*RUN, "--out", str(run_copy)])
    assert result.exit_code == 0, result.output
    assert "quantize: already done" in result.output
    assert load_checkpoint(folder).digest == digest


def test_the_time_before_a_stage_was_killed_is_counted(tmp_path: Path) -> None:
    """Up to the last file that it wrote; what lies between two attempts is not."""
    folder, partial = tmp_path / "0-teacher", tmp_path / "0-teacher.partial"
    assert begin(folder, "key") == pytest.approx(0, abs=0.1)
    state = partial / "iteration-1" / "training.pt"
    state.parent.mkdir()
    state.touch()
    for path in (partial / WORK_FILE, state.parent):
        os.utime(path, (1000, 1000))
    os.utime(state, (1030, 1030))
    assert begin(folder, "key") == pytest.approx(30, abs=0.1)
    assert begin(folder, "key") == pytest.approx(30, abs=0.1), "nothing was done in between"
    assert begin(folder, "another key") == pytest.approx(0, abs=0.1)


def test_other_settings_of_a_stage_redo_it_and_what_follows(run_copy: Path) -> None:
    command = [*RUN, "--out", str(run_copy)]
    result = CliRunner().invoke(main, [*command, "--set", "quantize.calib=64"])
    assert result.exit_code == 0, result.output
    assert result.output.count("already done") == 3
    assert "quantize: method = ptq, calib = 64\n" in result.output
    assert "3-quantize, made with calib = 512" in result.output
    assert "4-export, made from a different input" in result.output
    assert "export: default settings" in result.output
    until = CliRunner().invoke(main, [*command, "--from", "quantize", "--until", "quantize"])
    assert until.exit_code == 0, until.output
    assert "quantize: method = ptq\n" in until.output
    assert "export: default settings" not in until.output


def test_a_given_teacher_is_scored_on_images_of_its_own_size(
    finished_run: Path, tmp_path: Path
) -> None:
    small = finished_run / "1-distill"
    command = ["run", str(CARD), "--data", "digits", "--pipeline", "smoke", "--until", "distill"]
    command += ["--teacher", str(small), "--set", "data.size=24", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    folders = [tmp_path / "0-teacher", tmp_path / "1-distill"]
    assert [load_checkpoint(one).spec.preprocess.size for one in folders] == [16, 24]
    assert read_stage_report(folders[0]).top1 == read_stage_report(small).top1
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    lineage = page.split("How each stage came about")[-1].split("</table>")[0]
    assert re.findall(r"<th scope='row'[^>]*>(\w+)</th>", lineage) == ["teacher", "distill"]
