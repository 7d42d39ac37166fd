"""Whose fault an error is decides the exit code."""

import errno
import os
import re
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from compress.cli.group import Program
from compress.errors import CheckpointError, CompressError
from compress.files import cache_folder


def fail_with(error: BaseException) -> Result:
    @click.group(cls=Program)
    @click.option("--debug", is_flag=True)
    def program(debug: bool) -> None: ...

    @program.command()
    def work() -> None:
        raise error

    return CliRunner().invoke(program, ["work"])


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CompressError("two\nlines [old] 50 %"), "Error: two lines [old] 50 %"),
        (CheckpointError("x is damaged; make it anew"), "Error: x is damaged; make it anew"),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/model.onnx"),
            "Error: run/model.onnx: No space left on device; free some space and run the same "
            "command again to resume",
        ),
        (
            PermissionError(errno.EROFS, os.strerror(errno.EROFS), "run"),
            "Error: run: Read-only file system; choose a writable folder (--out, COMPRESS_CACHE)",
        ),
    ],
)
def test_the_users_mistake_is_one_line_and_exit_code_2(error: Exception, message: str) -> None:
    result = fail_with(error)
    assert result.exit_code == 2
    assert result.output == f"{message}\n"


def bug_in_numpy() -> None:
    np.zeros(3).reshape(2, 2)


def bug_in_torch() -> None:
    torch.zeros(3) @ torch.zeros(4)


def end_of_file() -> None:
    raise EOFError


@pytest.mark.parametrize("bug", [bug_in_numpy, bug_in_torch, end_of_file])
def test_a_bug_is_one_line_exit_code_1_and_a_file_with_the_traceback(bug: object) -> None:
    """A ValueError of a library was printed as if the user had made a mistake."""
    try:
        bug()  # type: ignore[operator]
    except Exception as error:
        result = fail_with(error)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: this is a bug in compress: ")
    found = re.search(r"the traceback is in (\S+)$", line)
    assert found is not None
    assert Path(found[1]).parent == cache_folder() / "errors"
    assert f"in {bug.__name__}" in Path(found[1]).read_text()  # type: ignore[attr-defined]


def test_too_little_memory_says_what_to_make_smaller() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    result = fail_with(caught.value)
    assert result.exit_code == 2
    assert result.output.startswith("Error: out of memory; use smaller batches (--set ")


def test_ctrl_c_has_the_exit_code_of_shells() -> None:
    result = fail_with(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.output == "Error: interrupted; run the same command again to resume\n"
