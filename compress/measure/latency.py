"""Latency: models take turns in several fresh processes, one after the other."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress.errors import CompressError
from compress.log import count_of, track
from compress.measure.config import ROUNDS
from compress.measure.runtime import open_session, run_file
from compress.measure.statistics import compare_times
from compress.measure.worker import Model, Task, Times, random_feed

SLICE_S = 0.015
PROCESSES, MIN_PROCESSES, ROUNDS_EACH = 5, 3, 10
"""Memory layout and frequency differ between processes, more than the rounds in one of them do."""
COLD_RUNS = 4
"""Runs with cold caches, for each process that has any."""
BATCHES, BATCH_ROUNDS = (8, 32), 3
RUNS_FOR_P99 = 1000
MAX_OPEN = 2
"""Dimensions that may be open: height and width."""
MAX_ELEMENTS = 2**24
"""Largest input per image; 3 channels of 2048 x 2048 fit."""
NUMPY_TYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of a model, absolute and relative to the first one.

    Steady: back to back, with warm caches. Cold: after other work has filled the caches.
    """

    latency_ms_p50: float
    """Steady, as p90, p99, and the speedup."""
    latency_ms_p90: float
    latency_ms_p99: float | None = None
    """None with fewer than 1000 runs."""
    cold_latency_ms_p50: float | None = None
    load_ms: float | None = None
    """To load the file and optimize its graph."""
    first_ms: float | None = None
    """The first run after loading."""
    speedup: float
    """Speed relative to the reference: mean of the processes' ratios."""
    speedup_ci95: tuple[float, float]
    """See `compare_times`."""
    speedup_noise: float | None = None
    """By how much the ratio of a file to its copy may differ from 1, measured alongside."""
    n_runs: int
    batch: int
    threads: int
    rounds: int = ROUNDS

    @property
    def speedup_spread(self) -> float:
        """Width of the interval, relative to the speedup."""
        low, high = self.speedup_ci95
        return (high - low) / self.speedup


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a model delivers with larger batches, and the memory it takes."""

    memory_bytes: int | None
    """Peak beyond that before loading, at the run's batch size; see `Times.memory_bytes`."""
    images_per_second: Mapping[int, float]
    """By batch size."""


def measure_latency(
    paths: Sequence[Path],
    *,
    threads: int = 1,
    batch: int = 1,
    rounds: int = ROUNDS,
    cold_runs: int = 0,
) -> list[Latency]:
    """Times ONNX files in ONNX Runtime; see `time_models`.

    Args:
        paths: ONNX files, all of whose inputs begin with the batch dimension.
        threads: ONNX Runtime's intra-op threads.
        batch: batch size.
        rounds: number of rounds.
        cold_runs: runs with cold caches in each process.
    """
    models = [onnx_model(path, threads=threads, batch=batch) for path in paths]
    return time_models(models, threads=threads, batch=batch, rounds=rounds, cold_runs=cold_runs)


def time_models(
    models: Sequence[Model], *, threads: int, batch: int, rounds: int, cold_runs: int
) -> list[Latency]:
    """Times models against each other; the first is the reference.

    The rounds are spread over several processes. In each round, the models take turns, each running
    for a short slice. Ratios are taken within a round, so slow phases of the machine cancel. The
    last model is loaded twice: what it gains on its copy is noise.

    Args:
        models: files, each in a runtime, with inputs of the batch size.
        threads: threads of the runtimes.
        batch: batch size.
        rounds: number of rounds.
        cold_runs: runs with cold caches in each process; with few rounds, only in the first ones,
            because sweeping the caches takes longer than the rounds.
    """
    entrants = [*models, *([models[-1]] if len(models) > 1 else [])]
    full = rounds // ROUNDS_EACH
    processes = min(PROCESSES, max(MIN_PROCESSES, full))
    title = f"latency, {count_of(threads, 'thread')}, batch {batch}"
    blocks = [
        _time_in_process(
            Task(
                models=entrants,
                threads=threads,
                rounds=math.ceil(rounds / processes),
                slice_s=SLICE_S,
                cold_runs=cold_runs if number < max(1, full) else 0,
                first=number % len(entrants),
            )
        )
        for number in track(range(processes), title, total=processes)
    ]
    times = list(zip(*blocks, strict=True))
    copy = times[len(models)] if len(models) > 1 else times[0]
    return [
        _summary(
            one, reference=times[0], pair=(times[len(models) - 1], copy), batch=batch,
            threads=threads, rounds=rounds,
        )
        for one in times[: len(models)]
    ]  # fmt: skip


def measure_memory(model: Model, *, threads: int) -> int | None:
    """Returns the memory that a model takes, bytes; see `Times.memory_bytes`."""
    task = Task(models=[model], threads=threads, rounds=0, slice_s=0, cold_runs=0, first=0)
    (times,) = _time_in_process(task)
    return times.memory_bytes


def measure_throughput(path: Path, *, threads: int, batch: int) -> Throughput:
    """Measures an ONNX file's memory, and its speed with batches, in one process."""
    models = [onnx_model(path, threads=threads, batch=size) for size in (batch, *BATCHES)]
    task = Task(
        models=models, threads=threads, rounds=BATCH_ROUNDS, slice_s=SLICE_S, cold_runs=0, first=0
    )
    own, *batched = _time_in_process(task)
    return Throughput(
        memory_bytes=own.memory_bytes,
        images_per_second={
            size: 1000 * size / float(np.median(np.concatenate(times.rounds_ms)))
            for size, times in zip(BATCHES, batched, strict=True)
        },
    )


def onnx_model(path: Path, *, threads: int, batch: int, size: int | None = None) -> Model:
    """Returns an ONNX file in ONNX Runtime, after running it once to see that it can be.

    Args:
        path: ONNX file.
        threads: intra-op threads.
        batch: batch size.
        size: image size, if the file accepts any.

    Raises:
        CompressError: see `input_shapes` and `run_file`.
    """
    session = open_session(path, threads=threads)
    inputs = input_shapes(session, batch, path, size=size)
    run_file(session, random_feed(inputs))
    return Model(file=str(path.resolve()), inputs=inputs)


def _time_in_process(task: Task) -> list[Times]:
    done = subprocess.run(
        [sys.executable, "-m", "compress.measure.worker"],
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": str(task.threads),  # torch's; ONNX Runtime and OpenVINO have none
        },
        check=False,
    )
    if done.returncode:
        files = ", ".join(model.file for model in task.models)
        raise CompressError(f"timing {files} failed: {done.stderr.strip()[-500:]}")
    return [Times(**times) for times in json.loads(done.stdout)]


def _summary(
    blocks: Sequence[Times],
    *,
    reference: Sequence[Times],
    pair: tuple[Sequence[Times], Sequence[Times]],
    batch: int,
    threads: int,
    rounds: int,
) -> Latency:
    """Summarizes a model's times, a block for each process; the pair are a model and its copy."""
    ms = np.concatenate([np.asarray(row) for block in blocks for row in block.rounds_ms])
    cold = [run for block in blocks for run in block.cold_ms]
    ratio = compare_times(_log_medians(reference), _log_medians(blocks), *map(_log_medians, pair))
    return Latency(
        latency_ms_p50=float(np.percentile(ms, 50)),
        latency_ms_p90=float(np.percentile(ms, 90)),
        latency_ms_p99=float(np.percentile(ms, 99)) if len(ms) >= RUNS_FOR_P99 else None,
        cold_latency_ms_p50=float(np.median(cold)) if cold else None,
        load_ms=float(np.median([block.load_ms for block in blocks])),
        first_ms=float(np.median([block.first_ms for block in blocks])),
        speedup=ratio.ratio,
        speedup_ci95=ratio.ratio_ci95,
        speedup_noise=ratio.noise,
        n_runs=len(ms),
        batch=batch,
        threads=threads,
        rounds=rounds,
    )


def _log_medians(blocks: Sequence[Times]) -> np.ndarray:
    """Returns the logarithm of the median of each round, float `[processes, rounds]`."""
    return np.log([[np.median(row) for row in block.rounds_ms] for block in blocks])


def input_shapes(
    session: ort.InferenceSession, batch: int, path: Path, *, size: int | None = None
) -> dict[str, tuple[list[int], str]]:
    """Returns the shape and dtype of each input; open dimensions are those of images of `size`.

    Raises:
        CompressError: the file has a different fixed batch size, or an input without a batch
            dimension, of an unsupported type, with too many elements, or with open dimensions
            although no size is given, or with too many of them.
    """
    inputs = {}
    for put in session.get_inputs():
        if put.type not in NUMPY_TYPES:
            raise CompressError(f"{path}: cannot time an input of type {put.type}")
        if not put.shape:
            raise CompressError(f"{path}: its input {put.name} has no batch dimension")
        if isinstance(put.shape[0], int) and put.shape[0] != batch:
            raise CompressError(f"{path} accepts only batches of {put.shape[0]}, got {batch}")
        unknown = sum(not isinstance(length, int) for length in put.shape[1:])
        if unknown > MAX_OPEN or (unknown and size is None):
            shown = ", ".join(str(length) for length in put.shape)
            remedy = "export it with a fixed number of channels"
            if unknown <= MAX_OPEN:
                remedy = "specify the image size with --size"
            raise CompressError(f"{path}: its input {put.name} has shape [{shown}]; {remedy}")
        lengths = (length if isinstance(length, int) else size for length in put.shape[1:])
        shape = [batch, *(length for length in lengths if length is not None)]
        if not 0 < math.prod(shape) <= batch * MAX_ELEMENTS:
            raise CompressError(f"{path}: cannot time an input of shape {shape}")
        inputs[put.name] = (shape, np.dtype(NUMPY_TYPES[put.type]).str)
    return inputs
