from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from compress.data.dataset import Data
from compress.errors import CompressError
from compress.measure import engines, latency, worker
from compress.measure.latency import measure_latency, measure_memory, onnx_model
from compress.measure.runtime import open_session
from compress.measure.worker import Model, Task, Times, time_models
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
    large, small = measure_latency(paths, rounds=5, batch=2, cold_runs=1)
    assert (large.speedup, large.speedup_ci95) == (1.0, (1.0, 1.0))
    for one in (large, small):
        assert one.speedup_ci95[0] <= one.speedup <= one.speedup_ci95[1]
        assert 0 < one.latency_ms_p50 <= one.latency_ms_p90
        assert (one.latency_ms_p99 is None) == (one.n_runs < 1000)
        assert one.n_runs >= 5
        assert (one.batch, one.threads, one.rounds) == (2, 1, 5)
        assert one.load_ms is not None
        assert one.load_ms > 0
        assert one.first_ms is not None
        assert one.first_ms > 0
        assert one.cold_latency_ms_p50 is not None
        assert one.cold_latency_ms_p50 > 0
    assert small.speedup_noise == large.speedup_noise


def test_one_file_alone_has_no_ratio(paths: list[Path]) -> None:
    (alone,) = measure_latency(paths[:1], rounds=3)
    assert (alone.speedup, alone.speedup_ci95, alone.speedup_noise) == (1.0, (1.0, 1.0), 0.0)
    assert alone.cold_latency_ms_p50 is None


@pytest.mark.parametrize(("rounds", "expected"), [(5, [1, 0, 0]), (20, [1, 1, 0])])
def test_few_rounds_sweep_the_caches_in_fewer_processes(
    rounds: int, expected: list[int], paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks: list[Task] = []

    def note(task: Task) -> list[Times]:
        tasks.append(task)
        return run(task)

    monkeypatch.setattr(latency, "MIN_PROCESSES", 3)
    run = latency._time_in_process
    monkeypatch.setattr(latency, "_time_in_process", note)
    assert measure_latency(paths[1:], rounds=rounds, cold_runs=1)[0].cold_latency_ms_p50
    assert [task.cold_runs for task in tasks] == expected


def test_a_process_that_dies_is_an_error(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(CompressError, match=r"timing .*large.onnx, .* failed"):
        measure_latency(paths, rounds=3)


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

    def run(self, outputs: None, feed: dict[str, object]) -> None:
        self.session.run(outputs, feed)
        self.clock.run(self.name)


def test_files_take_turns_and_slow_phases_cancel(
    paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_up, round_ = 11 * 4 + 11 * 1, 3 * 4 + 11 * 1
    clock = Clock(slow_after=warm_up + round_)
    spec = (open_session(path, threads=1).get_inputs()[0] for path in paths)
    models = [
        Model(file=str(path), inputs={put.name: ([1, *put.shape[1:]], "uint8")})
        for path, put in zip(paths, spec, strict=True)
    ]
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=clock))
    timed = SimpleNamespace(
        SessionOptions=ort.SessionOptions,
        InferenceSession=lambda path, *_, **__: TimedSession(path, clock),
    )
    monkeypatch.setattr(engines, "ort", timed)
    task = Task(models=models, threads=1, rounds=4, slice_s=0.02, cold_runs=0, first=0)
    large, small = time_models(task)
    assert [len(row) for row in large.rounds_ms] == [3, 1, 1, 1]
    assert [len(row) for row in small.rounds_ms] == [11, 3, 3, 3]
    for slow, fast in zip(large.rounds_ms, small.rounds_ms, strict=True):
        assert np.median(slow) == 4 * np.median(fast)
    turns = [(name, len(list(runs))) for name, runs in groupby(clock.runs)]
    # Another file starts each round, so every second file has two turns in a row.
    assert turns == [
        *(("large", 11), ("small", 11)),  # the first run, and to warm up
        *(("large", 3), ("small", 11 + 3), ("large", 1 + 1), ("small", 3 + 3), ("large", 1)),
    ]


def test_memory_is_that_of_the_weights(tmp_path: Path) -> None:
    """A process that has another's memory in its record would tell hundreds of MB for both."""
    kinds = onnx.TensorProto
    taken = []
    for size in (1, 4096):
        weights = onnx.numpy_helper.from_array(np.ones((size, size), np.float32), "w")
        put = onnx.helper.make_tensor_value_info("x", kinds.FLOAT, ["batch", size])
        out = onnx.helper.make_tensor_value_info("y", kinds.FLOAT, ["batch", size])
        node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
        graph = onnx.helper.make_graph([node], "g", [put], [out], [weights])
        opset = [onnx.helper.make_opsetid("", 20)]
        path = tmp_path / f"{size}.onnx"
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
        taken.append(measure_memory(onnx_model(path, threads=1, batch=1), threads=1))
    small, large = taken
    assert small is not None
    assert large is not None
    mib = 2**20
    assert 0 < small < 32 * mib
    assert 64 * mib <= large - small < 300 * mib
