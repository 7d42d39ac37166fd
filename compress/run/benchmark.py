"""Compares the latency of files and runtimes on this machine."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch

from compress.cache import now
from compress.checkpoint import is_checkpoint, load_checkpoint
from compress.data.splits import as_numpy, stratified_sample
from compress.errors import CompressError
from compress.host import allowed_cores, describe_host
from compress.int8.restore import load_model
from compress.log import say, warn
from compress.measure import latency
from compress.measure.benchmark import (
    Agreement,
    BenchmarkResult,
    BenchmarkRow,
    doubts_about_machine,
    doubts_about_outputs,
    judge,
)
from compress.measure.conditions import conditions_since, read_clocks
from compress.measure.config import ROUNDS
from compress.measure.engines import Feed, Runtime, load_engine
from compress.measure.latency import measure_memory, onnx_model, time_models
from compress.measure.profile import OperatorTime, profile, times_by_kind
from compress.measure.worker import Model
from compress.onnx_file import read_onnx
from compress.run.lookup import find_onnx
from compress.run.single_stage import data_of

RIVALS: tuple[Runtime, ...] = ("openvino", "torch")
N_IMAGES = 200
"""On which runtimes must agree before they are timed."""
SAME_OUTPUT = 0.01
"""Difference of an only output up to which it is the same, as a share of the outputs' range."""


@dataclass(frozen=True, kw_only=True)
class _Entrant:
    """An ONNX file in a runtime."""

    path: Path
    runtime: Runtime = "onnxruntime"
    program: Path
    """What the runtime loads: the file, or for torch the network that it was exported from."""
    size: int | None = None
    """Image size, if the file accepts any."""
    agreement: Agreement | None = None


def benchmark_files(
    models: Sequence[Path],
    threads: Sequence[int],
    batches: Sequence[int],
    *,
    size: int | None = None,
    against: Sequence[str] = (),
    profiled: bool = False,
    rounds: int = ROUNDS,
    images: np.ndarray | None = None,
) -> BenchmarkResult:
    """Times files against the first, for every pair of thread count and batch size.

    Args:
        models: ONNX files of any origin, checkpoints, or runs.
        threads: thread counts of the runtimes.
        batches: batch sizes.
        size: image size for files that accept any.
        against: runtimes that the same models are timed in: `openvino`, `torch`.
        profiled: measure the time by operator as well.
        rounds: number of turns per model.
        images: test images, uint8 `[n, channels, size, size]`, on which runtimes must agree; by
            default those of the checkpoint's dataset, or random ones.

    Raises:
        CompressError: one is not an ONNX file, or does not run with that batch size; a runtime is
            unknown, not installed, or cannot run the models.
    """
    rivals = _check_rivals(against)
    files = [find_onnx(model) for model in models]
    for path in files:
        read_onnx(path)
    with TemporaryDirectory() as folder:
        entrants = [replace(one, size=size) for one in _entrants(files, rivals, Path(folder))]
        if rivals:
            samples = {path: _test_images(path) if images is None else images for path in files}
            entrants = [_compared(one, batches[0], samples[one.path]) for one in entrants]
        rows = [
            row
            for count in threads
            for batch in batches
            for row in _rows(entrants, count, batch, rounds=rounds, profiled=profiled)
        ]
    return BenchmarkResult(
        created=now(),
        host=describe_host(),
        versions={runtime: version(runtime) for runtime in ("onnxruntime", *rivals)},
        rows=tuple(rows),
    )


def _check_rivals(names: Sequence[str]) -> tuple[Runtime, ...]:
    for name in names:
        if name not in RIVALS:
            raise CompressError(f"--against must be {' or '.join(RIVALS)}, got {name!r}")
        if find_spec(name) is None:
            raise CompressError(f"{name} is not installed: run `pip install {name}`")
    return cast(tuple[Runtime, ...], tuple(dict.fromkeys(names)))


def _entrants(files: Sequence[Path], rivals: Sequence[Runtime], folder: Path) -> list[_Entrant]:
    """Returns all files in all runtimes; torch's programs are written into the folder.

    Raises:
        CompressError: torch can run none of the files.
    """
    entrants, problems = [], []
    for number, path in enumerate(files):
        entrants.append(_Entrant(path=path, program=path))
        for runtime in rivals:
            program = path
            if runtime == "torch":
                program = folder / f"{number}.pt2"
                try:
                    _write_program(path, program)
                except CompressError as error:
                    problems.append(str(error))
                    continue
            entrants.append(_Entrant(path=path, runtime=runtime, program=program))
    if len(problems) == len(files):
        raise CompressError(problems[0])
    for problem in problems:
        warn(f"{problem}; not timed in torch")
    return entrants


def _write_program(path: Path, program: Path) -> None:
    """Writes the network that an ONNX file was exported from, for `load_engine`."""
    if not is_checkpoint(path.parent):
        raise CompressError(
            f"torch cannot run {path}: it needs the network, from a checkpoint or a run"
        )
    checkpoint = load_checkpoint(path.parent)
    if checkpoint.description.quantized is not None:
        raise CompressError(
            f"torch only simulates the int8 network of {path.parent}; specify the float checkpoint "
            "that it was made from"
        )
    spec = checkpoint.spec.preprocess
    example = torch.zeros(2, spec.channels, spec.size, spec.size, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("batch")},)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about the exporter's own internals
        exported = torch.export.export(load_model(checkpoint), (example,), dynamic_shapes=shapes)
        torch.export.save(exported, program)


def _compared(entrant: _Entrant, batch: int, images: np.ndarray | None) -> _Entrant:
    """Returns a rival with its agreement with ONNX Runtime, on these or on random images.

    Raises:
        CompressError: its runtime cannot run it.
    """
    if entrant.runtime == "onnxruntime":
        return entrant
    path = entrant.path
    inputs = onnx_model(path, threads=1, batch=batch, size=entrant.size).inputs
    places = np.arange(math.ceil(N_IMAGES / batch) * batch)
    if images is None:
        drawn = np.random.default_rng(0)
        arrays = {
            name: drawn.integers(0, 256, (len(places), *shape[1:]), np.uint8).astype(dtype)
            for name, (shape, dtype) in inputs.items()
        }
    else:
        arrays = {name: images.take(places, 0, mode="wrap") for name in inputs}
    feeds = [
        {name: array[start : start + batch] for name, array in arrays.items()}
        for start in range(0, len(places), batch)
    ]
    same = _same(_outputs(entrant, feeds), _outputs(_Entrant(path=path, program=path), feeds))
    agreement = Agreement(
        top1_agreement=100 * float(same.mean()),
        n_images=len(same) if images is None else min(len(same), len(images)),
        images="random" if images is None else "test",
    )
    return replace(entrant, agreement=agreement)


def _test_images(path: Path) -> np.ndarray | None:
    """Returns test images of the checkpoint that a file is in; None if it is in none."""
    if not is_checkpoint(path.parent):
        return None
    try:
        test = data_of(load_checkpoint(path.parent)).test
    except CompressError as error:
        say(f"  without test images, runtimes are compared on random ones: {error}")
        return None
    order = stratified_sample(test.labels, N_IMAGES, seed=0)
    return np.concatenate([as_numpy(batch.images) for batch in test.batches(N_IMAGES, order=order)])


def _same(outputs: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Returns for which images two runtimes agree, bool `[n]`.

    On the class; a file with one output, such as a probability or the class itself, has no others
    to compare with, so that the output must be the same but for rounding.
    """
    if outputs.shape != expected.shape:
        return np.zeros(len(expected), dtype=bool)
    if expected.shape[1] > 1:
        same: np.ndarray = outputs.argmax(1) == expected.argmax(1)
        return same
    tolerance = SAME_OUTPUT * (np.ptp(expected) or 1)
    close: np.ndarray = np.abs(outputs - expected)[:, 0] <= tolerance
    return close


def _outputs(entrant: _Entrant, feeds: Sequence[Feed]) -> np.ndarray:
    """Returns the first output for each image, float64 `[n, values]`."""
    try:
        engine = load_engine(entrant.program, entrant.runtime, feeds[0], threads=allowed_cores())
        parts = [np.asarray(engine(feed)[0], dtype=np.float64) for feed in feeds]
        outputs = np.concatenate([part.reshape(len(part), -1) for part in parts])
    except Exception as error:  # of any type: each runtime has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CompressError(f"{entrant.runtime} cannot run {entrant.path}: {reason}") from None
    return outputs


def _rows(
    entrants: Sequence[_Entrant], threads: int, batch: int, *, rounds: int, profiled: bool
) -> list[BenchmarkRow]:
    """Times all entrants against each other."""
    models = [_model(entrant, threads=threads, batch=batch) for entrant in entrants]
    memory = [measure_memory(model, threads=threads) for model in models]
    start = read_clocks()
    latencies = time_models(
        models, threads=threads, batch=batch, rounds=rounds, cold_runs=latency.COLD_RUNS
    )
    conditions = conditions_since(start)
    noise = latencies[0].speedup_noise or 0.0
    machine = doubts_about_machine(conditions, threads=threads, noise=noise)
    rows = []
    for place, entrant in enumerate(entrants):
        doubts = machine + doubts_about_outputs(entrant.agreement, entrant.runtime)
        operators: tuple[OperatorTime, ...] = ()
        if profiled and entrant.runtime == "onnxruntime":
            timed = profile(entrant.path, threads=threads, batch=batch, size=entrant.size)
            operators = times_by_kind(timed)
        rows.append(
            BenchmarkRow(
                file=str(entrant.path),
                runtime=entrant.runtime,
                size_bytes=entrant.path.stat().st_size,
                latency=latencies[place],
                memory_bytes=memory[place],
                agreement=entrant.agreement,
                conditions=conditions,
                doubts=doubts,
                verdict=judge(latencies[place], doubts) if place else None,
                operators=operators,
            )
        )
    return rows


def _model(entrant: _Entrant, *, threads: int, batch: int) -> Model:
    model = onnx_model(entrant.path, threads=threads, batch=batch, size=entrant.size)
    return replace(model, file=str(entrant.program.resolve()), runtime=entrant.runtime)
