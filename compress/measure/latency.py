"""Latency in ONNX Runtime: files take turns in one process, so that noise affects all equally."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from compress.errors import CompressError
from compress.log import count_of, track
from compress.measure.config import ROUNDS
from compress.measure.runtime import open_session, run_file

SLICE_S = 0.02
"""Each file's turn takes this long, or one run if that is longer."""
WARMUP_RUNS = 10
MAX_ELEMENTS = 2**24
"""Largest input per image; 3 channels of 2048 x 2048 fit."""
RESAMPLES = 1000
NUMPY_TYPES = {
    "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
}


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Latency of a file, absolute and relative to the first file."""

    latency_ms_p50: float
    latency_ms_p90: float
    speedup: float
    """Speed relative to the reference: median of the ratios of all rounds."""
    speedup_ci95: tuple[float, float]
    """Bootstrap interval over the rounds."""
    n_runs: int
    batch: int
    threads: int
    rounds: int = ROUNDS

    @property
    def speedup_spread(self) -> float:
        """Width of the interval, relative to the speedup."""
        low, high = self.speedup_ci95
        return (high - low) / self.speedup


def measure_latency(
    paths: Sequence[Path], *, threads: int = 1, batch: int = 1, rounds: int = ROUNDS
) -> list[Latency]:
    """Times ONNX files against each other; the first is the reference.

    In each round, the files take turns, each running for a short slice. Ratios are taken within
    a round, so slow phases of the machine cancel.

    Args:
        paths: ONNX files with one input, whose first dimension is the batch.
        threads: ONNX Runtime's intra-op threads.
        batch: batch size.
        rounds: number of rounds.
    """
    sessions = [open_session(path, threads=threads) for path in paths]
    feeds = [
        random_feed(session, batch, path) for session, path in zip(sessions, paths, strict=True)
    ]
    for session, feed in zip(sessions, feeds, strict=True):
        for _ in range(WARMUP_RUNS):
            run_file(session, feed)
    slices: list[list[list[float]]] = [[] for _ in sessions]
    title = f"latency, {count_of(threads, 'thread')}, batch {batch}"
    for number in track(range(rounds), title, total=rounds):
        # Another file starts each round, so that no file always follows the same one.
        for shift in range(len(sessions)):
            index = (number + shift) % len(sessions)
            slices[index].append(_run_slice(sessions[index], feeds[index]))
    medians = np.array([[statistics.median(runs) for runs in rows] for rows in slices])
    return [
        _summary(rows, medians[0] / medians[index], batch=batch, threads=threads)
        for index, rows in enumerate(slices)
    ]


def _run_slice(session: ort.InferenceSession, feed: dict[str, np.ndarray]) -> list[float]:
    """Returns the seconds of each run in one slice."""
    runs: list[float] = []
    while sum(runs) < SLICE_S:
        start = time.perf_counter()
        session.run(None, feed)
        runs.append(time.perf_counter() - start)
    return runs


def _summary(
    rows: Sequence[Sequence[float]], ratios: np.ndarray, *, batch: int, threads: int
) -> Latency:
    milliseconds = 1000 * np.concatenate([np.asarray(row) for row in rows])
    generator = np.random.default_rng(0)
    resampled = generator.choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(resampled, axis=1), [2.5, 97.5])
    return Latency(
        latency_ms_p50=float(np.percentile(milliseconds, 50)),
        latency_ms_p90=float(np.percentile(milliseconds, 90)),
        speedup=float(np.median(ratios)),
        speedup_ci95=(float(low), float(high)),
        n_runs=len(milliseconds),
        batch=batch,
        threads=threads,
        rounds=len(ratios),
    )


def random_feed(session: ort.InferenceSession, batch: int, path: Path) -> dict[str, np.ndarray]:
    """Returns random inputs for a file; unknown dimensions other than the batch become 1.

    Raises:
        CompressError: the file has a different fixed batch size, or an input without a batch
            dimension, of an unsupported type, or with too many elements.
    """
    generator = np.random.default_rng(0)
    feed = {}
    for put in session.get_inputs():
        if put.type not in NUMPY_TYPES:
            raise CompressError(f"{path}: cannot time an input of type {put.type}")
        if not put.shape:
            raise CompressError(f"{path}: its input {put.name} has no batch dimension")
        if isinstance(put.shape[0], int) and put.shape[0] != batch:
            raise CompressError(f"{path} accepts only batches of {put.shape[0]}, got {batch}")
        shape = [batch, *(size if isinstance(size, int) else 1 for size in put.shape[1:])]
        if not 0 < math.prod(shape) <= batch * MAX_ELEMENTS:
            raise CompressError(f"{path}: cannot time an input of shape {shape}")
        bytes_ = generator.integers(0, 256, shape, np.uint8)
        feed[put.name] = bytes_.astype(NUMPY_TYPES[put.type])
    return feed
