from itertools import groupby
from pathlib import Path

import onnxruntime as ort
import pytest

from compress.data.dataset import Data
from compress.measure import latency
from compress.measure.latency import measure_latency
from compress.measure.runtime import open_session
from compress.onnx_file import export_onnx
from tests.conftest import settled, student_spec


@pytest.fixture(scope="module")
def paths(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files, `large` and `small`."""
    folder = tmp_path_factory.mktemp("latency")
    found = []
    for name, width in (("large", 1.0), ("small", 0.125)):
        spec = student_spec(digits, width=width, depths=[1])
        found.append(folder / f"{name}.onnx")
        export_onnx(settled(spec, digits.train), spec, found[-1], digest="", stage="teacher")
    return found


def test_files_are_timed_against_the_first(paths: list[Path]) -> None:
    large, small = measure_latency(paths, rounds=5, batch=2)
    assert (large.speedup, large.speedup_ci95) == (1.0, (1.0, 1.0))
    for one in (large, small):
        assert one.speedup_ci95[0] <= one.speedup <= one.speedup_ci95[1]
        assert 0 < one.latency_ms_p50 <= one.latency_ms_p90
        assert one.n_runs >= 5
        assert (one.batch, one.threads, one.rounds) == (2, 1, 5)


class Clock:
    """Time that passes only while a file runs, in 512ths of a second."""

    def __init__(self, *, slow_after: int) -> None:
        self.ticks, self.slow_after = 0, slow_after
        self.runs: list[str] = []

    def __call__(self) -> float:
        return self.ticks / 512

    def run(self, name: str) -> None:
        self.runs.append(name)
        slowness = 4 if self.ticks >= self.slow_after else 1
        self.ticks += slowness * {"large": 4, "small": 1}[name]


class TimedSession:
    """A session whose time is the clock's."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.name, self.clock = path.stem, clock
        self.session = open_session(path, threads=1)

    def get_inputs(self) -> list[ort.NodeArg]:
        return self.session.get_inputs()  # type: ignore[no-any-return]

    def run(self, outputs: None, feed: dict[str, object]) -> None:
        self.session.run(outputs, feed)
        self.clock.run(self.name)


def test_files_take_turns_and_slow_phases_cancel(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up, round_ = 10 * 4 + 10 * 1, 3 * 4 + 11 * 1
    clock = Clock(slow_after=warm_up + round_)
    monkeypatch.setattr("compress.measure.latency.time.perf_counter", clock)
    monkeypatch.setattr(latency, "open_session", lambda path, **_: TimedSession(path, clock))
    large, small = measure_latency(paths, rounds=4)
    assert (small.speedup, small.speedup_ci95) == (4.0, (4.0, 4.0))
    assert (large.n_runs, small.n_runs) == (3 + 1 + 1 + 1, 11 + 3 + 3 + 3)
    # All runs together would make it ten times as fast: the slow phase has half of the large
    # file's runs, but fewer than half of the small one's.
    assert large.latency_ms_p50 / small.latency_ms_p50 == 10
    turns = [(name, len(list(runs))) for name, runs in groupby(clock.runs)]
    # Another file starts each round, so every second file has two turns in a row.
    assert turns == [
        *(("large", 10), ("small", 10)),  # to warm up
        *(("large", 3), ("small", 11 + 3), ("large", 1 + 1), ("small", 3 + 3), ("large", 1)),
    ]
