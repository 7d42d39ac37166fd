"""Two processes under torchrun, as a user starts them: on real data, over gloo."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from compress.cli.main import main
from compress.run.lookup import read_stage_report
from tests.conftest import RUN

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
TEACHER = (
    *("run", "simple_cnn", "--data", "digits", "--pipeline", "smoke", "--until", "teacher"),
    *("--set", "teacher.train.precision=fp32", "--set", "teacher.train.epochs=4"),
    *("--set", "measure.rounds=5"),
    *("--set", "teacher.train.min_steps=0", "--set", "teacher.train.batch_size=64"),
    *("--set", "teacher.train.optimizer=sgd", "--set", "teacher.train.lr=0.02"),
    *("--set", "teacher.train.weight_decay=0", "--set", "teacher.train.data_fraction=1"),
)
USER_NETWORK = """
import os
import torch

class Network(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 8, 3)
        self.fc = torch.nn.Linear(8, num_classes)

    def forward(self, x):
        if self.training and os.environ.get("RANK") == "1":
            raise OSError(28, "No space left on device", "/data/somewhere")
        return self.fc(self.conv(x).relu().mean((2, 3)))

def make(num_classes):
    return Network(num_classes)
"""


def start(
    command: Sequence[str], *, launcher: Sequence[str] = ("--standalone", "--nproc-per-node=2")
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [TORCHRUN, *launcher, "-m", "compress", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], *, code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output
    return output


def losses(run: Path) -> list[float]:
    rows = (run / "0-teacher" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(row)["loss"] for row in rows]


def tensors(run: Path) -> list[torch.Tensor]:
    return list(load_file(run / "0-teacher" / "model.safetensors").values())


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run of which one process was killed, and what the job said then and when it went on."""
    run = tmp_path_factory.mktemp("two") / "run"
    job = start([*TEACHER, "--out", str(run)])
    history = run / "0-teacher.partial" / "history.jsonl"
    while not history.is_file():
        assert job.poll() is None
        time.sleep(0.05)
    os.kill(_process_of_rank(job.pid, 1), signal.SIGKILL)
    killed = finish(job, code=1)
    assert not (run / "0-teacher").exists()
    return run, killed, finish(start([*TEACHER, "--out", str(run)]))


def _process_of_rank(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in environment:
            return int(child)
    raise AssertionError(f"no process of rank {rank} among {children}")


def test_a_killed_process_ends_the_job_and_the_same_command_goes_on(
    by_two: tuple[Path, str, str],
) -> None:
    _, killed, resumed = by_two
    said = " ".join(killed.split())
    assert "another process of the job ended" in said
    assert "run the same command again" in said
    assert "resuming after epoch" in resumed


def test_two_processes_learn_what_one_does(by_two: tuple[Path, str, str], tmp_path: Path) -> None:
    """The batch is the setting's whatever their number, and also after a kill.

    The network has no BatchNorm and the optimizer is SGD, so only rounding differs, which four
    epochs amplify to about 1e-4 of the loss. Muon takes small differences of a gradient to large
    ones of a step: 0.6 % of the loss here.
    """
    run, _, output = by_two
    alone = tmp_path / "alone"
    done = CliRunner().invoke(main, [*TEACHER, "--out", str(alone)])
    assert done.exit_code == 0, done.output
    assert losses(run) == pytest.approx(losses(alone), rel=1e-3)
    reports = [read_stage_report(folder / "0-teacher") for folder in (run, alone)]
    assert reports[0].top1 == pytest.approx(reports[1].top1, abs=1)
    ours = [line for line in output.splitlines() if "torch/distributed" not in line]
    assert len(ours) <= len(done.stderr.splitlines()) + 20  # told by one of them
    assert output.count("data: digits") == 1
    names = {path.name for path in alone.rglob("*")}
    assert {path.name for path in run.rglob("*")} == names


@pytest.mark.slow
def test_two_machines_are_like_one(by_two: tuple[Path, str, str], tmp_path: Path) -> None:
    """And an undisturbed job like a killed one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = ("--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={port}")
    nodes = [
        start([*TEACHER, "--out", str(tmp_path / "run")], launcher=(*job, f"--node-rank={rank}"))
        for rank in range(2)
    ]
    outputs = [finish(node) for node in nodes]
    assert "data: digits" in outputs[0]
    assert "data: digits" not in outputs[1]
    for here, there in zip(tensors(tmp_path / "run"), tensors(by_two[0]), strict=True):
        assert torch.equal(here, there)


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    output = finish(start(["run", "resnet81", "--out", str(tmp_path / "run")]), code=1)
    assert output.count("resnet81") == 1
    assert "exitcode  : 2" in output
    assert not (tmp_path / "run").exists()


def test_an_error_in_one_process_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also: a network of the user's reaches all processes."""
    (tmp_path / "mynet.py").write_text(USER_NETWORK, encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        'description = "mine"\n[teacher]\narchitecture = "mynet:make"\n'
        '[student]\narchitecture = "simple_cnn"\n',
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    command = ["run", "mine.toml", *TEACHER[2:], "--out", "run", "--trust"]
    output = finish(start(command), code=1)
    assert "process 1 of 2 on" in output
    assert "/data/somewhere: No space left on device; free some space" in output
    assert "bug in compress" not in output


@pytest.mark.slow
def test_all_stages_by_two_processes(finished_run: Path, tmp_path: Path) -> None:
    """QAT, sparse training and the ablation included: all that trains."""
    settings = (
        *("quantize.method=qat", "prune.sparse_epochs=1", "distill.ablation=true"),
        *("quantize.train.epochs=1", "quantize.train.min_steps=0"),
    )
    changes = [part for value in settings for part in ("--set", value)]
    run = tmp_path / "run"
    finish(start([*RUN, "--out", str(run), *changes]))
    report, alone = (
        read_stage_report(run / "4-export"),
        read_stage_report(finished_run / "4-export"),
    )
    low, high = alone.top1_ci95
    assert low <= report.top1 <= high
    for stage in (path.name for path in finished_run.iterdir() if path.is_dir()):
        assert (run / stage).is_dir()
