"""Times models in a fresh process, which starts at once because it imports no torch unasked."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from compress.host import forget_peak_memory, resident_bytes
from compress.measure.engines import Engine, Feed, Runtime, load_engine

WARMUP_RUNS, WARMUP_S = 10, 2.0
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
MIN_SWEEP_BYTES = 2**26
"""Swept before a run with cold caches; more if the last-level cache is larger than half of it."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A file in a runtime."""

    file: str
    """See `load_engine`."""
    runtime: Runtime = "onnxruntime"
    inputs: Mapping[str, tuple[list[int], str]]
    """Shape and dtype of each input, by name."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What to time; JSON."""

    models: list[Model]
    threads: int
    rounds: int
    slice_s: float
    """Each model's turn takes this long, or one run if that is longer."""
    cold_runs: int
    first: int
    """Index of the model that is loaded first."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """One model's times in one process, milliseconds, and its memory."""

    load_ms: float
    """Without importing the runtime."""
    first_ms: float
    memory_bytes: int | None
    """Peak resident memory of the process while the model was loaded and first run, beyond that
    before; None where the system does not tell. It means something only of the first one loaded:
    later ones reuse freed memory."""
    rounds_ms: list[list[float]]
    """Steady runs of each round: back to back, with warm caches."""
    cold_ms: list[float]
    """Runs after a sweep through more memory than the caches hold."""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    engine: Engine
    feed: Feed
    load_ms: float
    first_ms: float
    memory_bytes: int | None


def main() -> None:
    """Reads a task from stdin and writes a list of times to stdout."""
    raw = json.load(sys.stdin)
    task = Task(**{**raw, "models": [Model(**model) for model in raw["models"]]})
    json.dump([vars(times) for times in time_models(task)], sys.stdout)


def time_models(task: Task) -> list[Times]:
    """Loads the models and lets them take turns."""
    n_models = len(task.models)
    for model in task.models:
        import_module(model.runtime)
    loaded: dict[int, _Loaded] = {}
    for shift in range(n_models):
        index = (task.first + shift) % n_models
        loaded[index] = _load(task.models[index], threads=task.threads)
    rounds: list[list[list[float]]] = [[] for _ in task.models]
    cold: list[list[float]] = [[] for _ in task.models]
    for number in range(task.rounds):
        # Another model starts each round, so that none always follows the same one.
        for shift in range(n_models):
            index = (task.first + number + shift) % n_models
            rounds[index].append(_run_slice(loaded[index], task.slice_s))
    memory = np.zeros(_sweep_bytes() if task.cold_runs else 0, np.uint8)
    for _ in range(task.cold_runs):
        for index, one in loaded.items():
            memory += 1
            cold[index].append(_time_run(one.engine, one.feed))
    return [
        Times(
            load_ms=loaded[index].load_ms,
            first_ms=loaded[index].first_ms,
            memory_bytes=loaded[index].memory_bytes,
            rounds_ms=rounds[index],
            cold_ms=cold[index],
        )
        for index in range(n_models)
    ]


def _load(model: Model, *, threads: int) -> _Loaded:
    """Loads a model, and runs it once and then until it is warm."""
    feed = random_feed(model.inputs)
    forget_peak_memory()
    before = resident_bytes()
    start = time.perf_counter()
    engine = load_engine(Path(model.file), model.runtime, feed, threads=threads)
    load_ms = 1000 * (time.perf_counter() - start)
    first_ms = _time_run(engine, feed)
    for _ in range(WARMUP_RUNS):
        engine(feed)
        if time.perf_counter() - start > WARMUP_S:
            break
    peak = resident_bytes(peak=True)
    return _Loaded(
        engine=engine,
        feed=feed,
        load_ms=load_ms,
        first_ms=first_ms,
        memory_bytes=None if before is None or peak is None else max(0, peak - before),
    )


def _run_slice(model: _Loaded, seconds: float) -> list[float]:
    runs: list[float] = []
    while sum(runs) < 1000 * seconds:
        runs.append(_time_run(model.engine, model.feed))
    return runs


def _time_run(engine: Engine, feed: Feed) -> float:
    start = time.perf_counter()
    engine(feed)
    return 1000 * (time.perf_counter() - start)


def _sweep_bytes() -> int:
    sizes = [path.read_text(encoding="utf-8") for path in CACHES.glob("index*/size")]
    kib = [int(size.strip().removesuffix("K")) for size in sizes if size.strip().endswith("K")]
    return max([MIN_SWEEP_BYTES, *(2 * 1024 * size for size in kib)])


def random_feed(inputs: Mapping[str, tuple[Sequence[int], str]]) -> dict[str, np.ndarray]:
    """Returns the same random bytes each time, as numbers of each input's type."""
    return {
        name: np.random.default_rng(0).integers(0, 256, shape, np.uint8).astype(kind)
        for name, (shape, kind) in inputs.items()
    }


if __name__ == "__main__":
    main()
