"""Times ONNX files in a fresh process, which starts at once because it imports no torch."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

WARMUP_RUNS = 10
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MIN_SWEEP_BYTES = 2**26
"""Swept before a run with cold caches; more if the last-level cache is larger than half of it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to time; JSON."""

    files: list[str]
    inputs: list[dict[str, tuple[list[int], str]]]
    """Shape and dtype of each file's inputs, by name."""
    threads: int
    rounds: int
    slice_s: float
    """Each file's turn takes this long, or one run if that is longer."""
    cold_runs: int
    first: int
    """Index of the file that is loaded first."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """One file's times in one process, milliseconds."""

    load_ms: float
    first_ms: float
    rounds_ms: list[list[float]]
    """Steady runs of each round: back to back, with warm caches."""
    cold_ms: list[float]
    """Runs after a sweep through more memory than the caches hold."""


def main() -> None:
    """Reads a task from stdin and writes a list of times to stdout."""
    task = Task(**json.load(sys.stdin))
    json.dump([vars(times) for times in time_files(task)], sys.stdout)


def time_files(task: Task) -> list[Times]:
    """Loads the files and lets them take turns."""
    n_files = len(task.files)
    loaded: dict[int, tuple[Any, dict[str, np.ndarray], float, float]] = {}
    for shift in range(n_files):
        index = (task.first + shift) % n_files
        loaded[index] = _load(task, index)
    rounds: list[list[list[float]]] = [[] for _ in task.files]
    cold: list[list[float]] = [[] for _ in task.files]
    for number in range(task.rounds):
        # Another file starts each round, so that no file always follows the same one.
        for shift in range(n_files):
            index = (task.first + number + shift) % n_files
            session, feed, *_ = loaded[index]
            rounds[index].append(_run_slice(session, feed, task.slice_s))
    memory = np.zeros(_sweep_bytes() if task.cold_runs else 0, np.uint8)
    for _ in range(task.cold_runs):
        for index, (session, feed, *_) in loaded.items():
            memory += 1
            cold[index].append(_time_run(session, feed))
    return [
        Times(
            load_ms=loaded[index][2],
            first_ms=loaded[index][3],
            rounds_ms=rounds[index],
            cold_ms=cold[index],
        )
        for index in range(n_files)
    ]


def _load(task: Task, index: int) -> tuple[Any, dict[str, np.ndarray], float, float]:
    """Returns a session with its inputs, and the milliseconds to load and to run it first."""
    options = session_options(threads=task.threads)
    start = time.perf_counter()
    session = ort.InferenceSession(
        as_model(Path(task.files[index])), options, providers=["CPUExecutionProvider"]
    )
    load_ms = 1000 * (time.perf_counter() - start)
    inputs = task.inputs[index].items()
    feed = {name: random_input(shape, np.dtype(kind)) for name, (shape, kind) in inputs}
    first_ms = _time_run(session, feed)
    for _ in range(WARMUP_RUNS):
        session.run(None, feed)
    return session, feed, load_ms, first_ms


def _run_slice(session: Any, feed: dict[str, np.ndarray], seconds: float) -> list[float]:
    runs: list[float] = []
    while sum(runs) < 1000 * seconds:
        runs.append(_time_run(session, feed))
    return runs


def _time_run(session: Any, feed: dict[str, np.ndarray]) -> float:
    start = time.perf_counter()
    session.run(None, feed)
    return 1000 * (time.perf_counter() - start)


def _sweep_bytes() -> int:
    sizes = [path.read_text(encoding="utf-8") for path in CACHES.glob("index*/size")]
    kib = [int(size.strip().removesuffix("K")) for size in sizes if size.strip().endswith("K")]
    return max([MIN_SWEEP_BYTES, *(2 * 1024 * size for size in kib)])


def random_input(shape: list[int], kind: np.dtype[Any]) -> np.ndarray:
    """Returns the same random bytes each time, as numbers of a type."""
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(kind)


def as_model(path: Path) -> Path | bytes:
    """Returns what to pass to ONNX Runtime: the path, or the content if the path is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return path.read_bytes()
    return path


def session_options(*, threads: int) -> ort.SessionOptions:
    """Returns the options of all sessions."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    return options


if __name__ == "__main__":
    main()
