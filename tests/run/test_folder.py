"""Nothing of the user's is lost: what a run's folder may replace, and who may write to it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compress.checkpoint import load_checkpoint
from compress.cli.main import main
from tests.conftest import RUN
from tests.processes import finish, start, wait_for

QUICK = (
    *("teacher.train.epochs=1", "teacher.train.min_steps=0", "teacher.train.batch_size=256"),
    "measure.rounds=5",
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def run_settings(settings: tuple[str, ...]) -> list[str]:
    return [part for value in settings for part in ("--set", value)]


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "where",
    [
        *("notes.txt", "model.onnx", "checkpoint.json", "keep/notes.txt"),
        *("../out.partial/notes.txt", "../out.partial/work.json", "../out.partial/model.onnx"),
        *("../out.retired/a", "../out.retired/report.md", "../out.retired/checkpoint.json"),
    ],
)
def test_export_to_a_folder_with_other_files_is_refused(run_copy: Path, where: str) -> None:
    out = run_copy.parent / "out"
    precious = out / where
    out.mkdir()
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("the only copy")
    result = call("export", "--in", run_copy / "3-quantize", "--out", out)
    assert result.exit_code == 2, result.output
    assert precious.read_text() == "the only copy"
    assert "compress did not write" in result.output.replace("\n", " ")
    assert f"({precious.name})" in result.output or "(keep)" in result.output


@pytest.mark.parametrize("name", ["report.md", "checkpoint.json"])
def test_a_folder_that_happens_to_be_called_retired_is_not_moved(run_copy: Path, name: str) -> None:
    theirs = run_copy.parent / "out.retired" / name
    theirs.parent.mkdir()
    theirs.write_text("{}")
    result = call("export", "--in", run_copy / "3-quantize", "--out", run_copy.parent / "out")
    assert result.exit_code == 2, result.output
    assert theirs.read_text() == "{}"
    assert not (run_copy.parent / "out").exists()


def test_a_note_beside_a_checkpoint_keeps_it_from_being_replaced(run_copy: Path) -> None:
    note = run_copy / "3-quantize" / "notes.txt"
    note.write_text("observed in the field")
    before = files_in(run_copy / "3-quantize")
    result = call(*RUN, "--out", run_copy, "--set", "quantize.calib=64")
    assert result.exit_code == 2, result.output
    assert files_in(run_copy / "3-quantize") == before


def test_a_checkpoint_outside_of_a_run_is_replaced_and_nothing_is_left_behind(
    run_copy: Path,
) -> None:
    home = run_copy.parent
    out = home / "out"
    assert call("export", "--in", run_copy / "3-quantize", "--out", out).exit_code == 0
    again = call("export", "--in", run_copy / "3-quantize", "--out", out, "--max-drop", "2")
    assert again.exit_code == 0, again.output
    assert load_checkpoint(out).description.lineage[-1].config == {"max_drop": 2.0}
    assert sorted(path.name for path in home.iterdir()) == ["out", run_copy.name]


@pytest.mark.parametrize("out", ["..", pytest.param(".", marks=pytest.mark.slow), "../out"])
def test_a_folder_may_be_named_from_inside(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    here = run_copy.parent / "out" / "here"
    here.mkdir(parents=True)
    target = here / out
    monkeypatch.chdir(here)
    result = call("export", "--in", run_copy / "3-quantize", "--out", out)
    if out == "..":  # it holds the working folder
        assert result.exit_code == 2, result.output
        assert "(here)" in result.output
    else:
        assert result.exit_code == 0, result.output
        assert load_checkpoint(target.resolve()).stage == "export"


def test_a_checkpoint_may_be_named_from_inside(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_copy / "3-quantize")
    result = call("export", "--in", ".")
    assert result.exit_code == 0, result.output
    assert "export: already done" in result.output
    assert not (run_copy / "3-quantize" / "4-export").exists()


def test_a_stage_does_not_replace_what_it_starts_from(run_copy: Path) -> None:
    before = files_in(run_copy)
    result = call("prune", "--in", run_copy / "1-distill", "--out", run_copy / "0-teacher")
    assert result.exit_code == 2
    assert "would be replaced" in result.output
    assert files_in(run_copy) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("my thesis")
    result = call("run", "resnet18", "--data", "digits", "--out", tmp_path)
    assert result.exit_code == 2
    assert "report.md" in result.output
    assert files_in(tmp_path) == {"report.md": b"my thesis"}


def test_a_report_is_written_into_runs_only(run_copy: Path) -> None:
    home = run_copy.parent / "home"
    shutil.copytree(run_copy / "0-teacher", home / "0-teacher")
    (home / "report.md").write_text("my thesis")
    result = call("report", home)
    assert result.exit_code == 2
    assert "is not a run folder" in result.output
    assert (home / "report.md").read_text() == "my thesis"


def test_a_single_stage_beside_other_files_writes_no_run_report(run_copy: Path) -> None:
    """`--in` a checkpoint that was copied out of its run: its neighbors stay as they are."""
    home = run_copy.parent / "home"
    home.mkdir()
    for stage in ("0-teacher", "3-quantize"):
        shutil.copytree(run_copy / stage, home / stage)
    (home / "report.md").write_text("my thesis")
    result = call("export", "--in", home / "3-quantize")
    assert result.exit_code == 0, result.output
    assert (home / "report.md").read_text() == "my thesis"
    assert load_checkpoint(home / "4-export").stage == "export"


def test_two_data_sets_of_the_same_name_do_not_share_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, digit_folders: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for parent in ("a", "b"):
        shutil.copytree(digit_folders, tmp_path / parent / "photos")
    other = next((tmp_path / "b/photos/train/0").iterdir())
    other.unlink()
    common = ["run", "simple_cnn", "--until", "teacher", "--set", "data.size=16"]
    common += ["--set", "measure.rounds=5"]
    common += run_settings(QUICK)
    first = call(*common, "--data", f"imagefolder:{tmp_path}/a/photos")
    assert first.exit_code == 0, first.output
    run = tmp_path / "runs" / "simple_cnn-photos"
    before = files_in(run)
    second = call(*common, "--data", f"imagefolder:{tmp_path}/b/photos")
    assert second.exit_code == 2, second.output
    assert "/a/photos" in second.output
    assert "--out" in second.output
    assert files_in(run) == before
    (tmp_path / "a/photos").rename(tmp_path / "moved")  # the same images elsewhere are the same set
    moved = call(*common, "--out", run, "--data", f"imagefolder:{tmp_path}/moved")
    assert moved.exit_code == 0, moved.output
    assert "already done" in moved.output


def test_a_replacement_cut_off_between_two_renames_is_undone(run_copy: Path) -> None:
    folder = run_copy / "3-quantize"
    digest = load_checkpoint(folder).digest
    folder.rename(run_copy / "3-quantize.retired")
    result = call(*RUN, "--out", run_copy)
    assert result.exit_code == 0, result.output
    assert "quantize: already done" in result.output
    assert load_checkpoint(folder).digest == digest
    assert not (run_copy / "3-quantize.retired").exists()


def teacher_only(out: Path) -> list[str]:
    return ["run", "simple_cnn", "--data", "digits", "--until", "teacher", "--out", str(out)]


def test_one_run_one_process_and_a_lock_left_behind_is_taken_over(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    command = teacher_only(out)
    long = [*command, "--set", "teacher.train.epochs=500"]
    first = start(*long, log=log)
    try:
        wait_for(out / "0-teacher.partial" / "history.jsonl", first, log)
        second = call(*long)
        assert second.exit_code == 2
        (line,) = second.output.strip().splitlines()
        assert f"process {first.pid} on " in line
        assert str(out) in line
    finally:
        first.kill()
        first.join()
    third = call(*command, *run_settings(QUICK))
    assert third.exit_code == 0, third.output
    assert f"was left unfinished by process {first.pid}" in " ".join(third.output.split())
    assert not (out / ".lock").exists()


def test_two_runs_share_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both probe the arithmetic and time the layers, at about the same moment."""
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    card, recipe = tmp_path / "tiny.toml", tmp_path / "recipe.toml"
    network = 'architecture = "simple_cnn"\narguments = { widths = [16, 16], hidden = 32 }\n'
    card.write_text(f"[teacher]\n{network}[student]\n{network}")
    recipe.write_text(
        'stages = ["teacher", "prune"]\n[teacher.train]\nepochs = 1\nmin_steps = 0\n'
        "[prune]\niterations = 1\nlatency_ratio = 1\n[prune.train]\nepochs = 0\n"
        "[measure]\nrounds = 5\n"
    )
    command = ("run", str(card), "--data", "digits", "--pipeline", str(recipe))
    runs = [tmp_path / name for name in ("one", "other")]
    logs = [tmp_path / f"{run.name}.log" for run in runs]
    processes = [
        start(*command, "--out", run, log=log) for run, log in zip(runs, logs, strict=True)
    ]
    for run, process, log in zip(runs, processes, logs, strict=True):
        assert finish(process) == 0, log.read_text()
        assert "damaged" not in log.read_text()
        load_checkpoint(run / "2-prune")
    assert not list((tmp_path / "cache").rglob("*.unfinished"))


def test_ctrl_c_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log"
    command = teacher_only(out)
    first = start(*command, "--set", "teacher.train.epochs=500", log=log)
    wait_for(out / "0-teacher.partial" / "history.jsonl", first, log)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGINT)
    assert finish(first) == 130
    errors = log.read_text()
    assert errors.strip().splitlines()[-1] == (
        "Error: interrupted; run the same command again to resume"
    )
    assert "Traceback" not in errors


SIX_EPOCHS = run_settings(
    ("teacher.train.epochs=6", "teacher.train.min_steps=0", "measure.rounds=5")
)


@pytest.fixture(scope="module")
def killed_training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose process was killed after an epoch of its teacher."""
    home = tmp_path_factory.mktemp("killed")
    out, log = home / "run", home / "log"
    first = start(*teacher_only(out), *SIX_EPOCHS, log=log)
    wait_for(out / "0-teacher.partial" / "training.pt", first, log)
    first.kill()
    first.join()
    return out


@pytest.mark.parametrize("content", [b"", b"\x80\x02", b"PK\x03\x04" + bytes(100)])
def test_a_damaged_training_state_starts_the_training_anew(
    killed_training: Path, tmp_path: Path, content: bytes
) -> None:
    out = shutil.copytree(killed_training, tmp_path / "run")
    (out / "0-teacher.partial" / "training.pt").write_bytes(content)
    result = call(*teacher_only(out), *SIX_EPOCHS)
    assert result.exit_code == 0, result.output
    assert "is damaged: training restarts from the first epoch" in " ".join(result.output.split())
    assert "epoch 1/6" in result.output


FULL_DISK = """
import subprocess, sys
from compress.cli.main import main

def exit_code():
    try:
        main(sys.argv[2:])
    except SystemExit as end:
        return end.code

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", sys.argv[1]], check=True)
print(exit_code())
subprocess.run(["mount", "-o", "remount,size=200m", sys.argv[1]], check=True)
print(exit_code())
"""


def test_a_full_disk_is_one_line_that_names_the_file(tmp_path: Path) -> None:
    """A small disk of the test's own, in a mount namespace: no root needed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    command = [*teacher_only(disk / "run"), *run_settings(QUICK)]
    done = subprocess.run(
        [*own, sys.executable, "-c", FULL_DISK, disk, *command],
        capture_output=True,
        text=True,
        check=False,
    )
    codes = [line for line in done.stdout.splitlines() if line.isdecimal()]
    assert codes == ["2", "0"], done.stderr
    assert "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    assert "No space left on device; free some space" in line
    assert "training.pt" in line
