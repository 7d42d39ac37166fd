"""A few seeded cases of what `make fuzz` does at length."""

import mmap
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from bench import fuzz as fuzzing
from bench.fuzz import Case, Target, fuzz, targets
from compress.errors import CompressError

CASES = 16
"""Of each target; the slow ones have a quarter."""
SLOW = ("int8", "report")
NAMES = (
    *("checkpoint.json, float", "model.safetensors, float", "checkpoint.json, int8"),
    *("model.safetensors, int8", "report.json", "cards", "recipes", "images"),
    *("ONNX to evaluate, float", "ONNX to benchmark, float", "ONNX to predict, float"),
    *("ONNX to evaluate, int8", "ONNX to benchmark, int8", "ONNX to predict, int8"),
    *("ONNX to doctor, float", "ONNX to doctor, int8", "bundles", "zipped bundles"),
)


@pytest.fixture(scope="module")
def all_targets(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    return {target.name: target for target in targets(finished_run, folder)}


def test_every_target_is_tested(all_targets: dict[str, Target]) -> None:
    assert set(NAMES) == set(all_targets)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_end_in_a_line(all_targets: dict[str, Target], name: str) -> None:
    count = CASES // 4 if any(word in name for word in SLOW) else CASES
    result, faults = fuzz(all_targets[name], count, seed=1)
    assert not faults, faults[0].what
    assert result.returned + result.refused == count


def _target(tmp_path: Path, read: Callable[[Path], object]) -> Target:
    (tmp_path / "file").write_bytes(b"good")

    def cases(count: int, _seed: int) -> Sequence[Case]:
        return [{"file": b"bad"}, *[{"file": b"good"}] * (count - 1)]

    return Target(name="own", source=tmp_path, cases=cases, read=read, memory_mib=64)


def _crash(folder: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(folder: Path) -> None:
    time.sleep(600)


def _raise(folder: Path) -> None:
    raise KeyError("a bug")


def _fill(folder: Path) -> None:
    block = mmap.mmap(-1, 128 * 2**20)  # not from memory that the process has already freed
    block.write(b"x" * (64 * 2**20))
    block.write(b"x" * (64 * 2**20))


def _refuse(folder: Path) -> None:
    raise CompressError("a line")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(_crash, "crash"), (_hang, "hang"), (_raise, "traceback"), (_fill, "memory")],
)
def test_each_kind_of_fault_is_counted_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Path], None], kind: str
) -> None:
    monkeypatch.setattr(fuzzing, "CASE_S", 3)

    def read(folder: Path) -> None:
        if (folder / "file").read_bytes() == b"bad":
            fault(folder)

    result, faults = fuzz(_target(tmp_path, read), 4, seed=0)
    assert [found.kind for found in faults] == [kind]
    assert faults[0].files == {"file": b"bad"}
    assert result.returned == 3


def test_a_refusal_is_no_fault(tmp_path: Path) -> None:
    def read(folder: Path) -> None:
        if (folder / "file").read_bytes() == b"bad":
            _refuse(folder)

    result, faults = fuzz(_target(tmp_path, read), 3, seed=0)
    assert (result.refused, result.returned, faults) == (1, 2, [])
