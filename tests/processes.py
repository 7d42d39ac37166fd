"""The `compress` command in a process of its own, which may be killed.

It is forked from a server that has already imported everything: importing torch, the exporter, and
the stages takes a core several seconds, more than most of these tests need for the rest.
`tests/cli` tests how the command starts from nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from compress.cli.main import main
from compress.run.stages import STAGES

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 300
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(
    [
        *("compress.cli.terminal", "compress.run.runner", "compress.run.single_stage"),
        *(stage.module for stage in STAGES.values()),
        *("torch._dynamo", "torch.onnx._internal.exporter._core"),
    ]
)


def start(*arguments: object, log: Path) -> ForkServerProcess:
    """Starts the command in the working folder, with its output in a file."""
    given = (list(map(str, arguments)), log.absolute(), Path.cwd(), dict(os.environ))
    process = _SERVER.Process(target=_run, args=given, daemon=True)
    with contextlib.chdir(ROOT):  # so that the server imports this checkout
        process.start()
    return process


def finish(process: ForkServerProcess) -> int | None:
    """Waits for the end of a process and returns its exit code."""
    process.join(TIMEOUT_S)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def wait_for(path: Path, process: ForkServerProcess, log: Path) -> None:
    """Waits for a file that a process writes."""
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert process.is_alive(), f"it ended before {path} appeared: {log.read_text()}"
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def commands_program(*commands: list[str]) -> str:
    """A Python program that runs commands one after the other; all must succeed."""
    return f"""
from compress.cli.main import main
for command in {list(commands)!r}:
    try:
        main(command)
    except SystemExit as end:
        assert end.code == 0, end.code
"""


def _run(arguments: list[str], log: Path, folder: Path, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    main(arguments)
