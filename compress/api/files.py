"""Scoring and timing of ONNX files."""

from collections.abc import Sequence
from pathlib import Path

from compress.api.stages import Result
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.measure.accuracy import Accuracy, accuracy, predict_split
from compress.measure.benchmark import BenchmarkResult
from compress.measure.config import ROUNDS
from compress.run.benchmark import benchmark_files
from compress.run.lookup import find_onnx


def evaluate(model: Result | str | Path, data: Data, *, split: str = "test") -> Accuracy:
    """Scores an ONNX file.

    Args:
        model: the result of a stage, an ONNX file, a checkpoint, or a run.
        data: images and labels.
        split: `train`, `validation`, or `test`.

    Raises:
        CompressError: it is not an ONNX file, or does not take these images; there is no such
            split.
    """
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    if split not in splits:
        raise CompressError(f"split must be one of {', '.join(splits)}, got {split!r}")
    chosen = splits[split]
    return accuracy(predict_split(_file(model), chosen), chosen.labels.numpy())


def benchmark(
    *models: Result | str | Path,
    threads: Sequence[int] = (1,),
    batches: Sequence[int] = (1,),
    size: int | None = None,
    against: Sequence[str] = (),
    profile: bool = False,
    rounds: int = ROUNDS,
) -> BenchmarkResult:
    """Compares the latency of ONNX files with that of the first.

    Args:
        models: results of stages, ONNX files of any origin, checkpoints, or runs.
        threads: thread counts.
        batches: batch sizes.
        size: image size for files that accept any.
        against: other runtimes to time the same models in: `openvino`, `torch`.
        profile: measure the time by operator as well.
        rounds: number of turns per file.

    Raises:
        CompressError: one is not an ONNX file, or does not run with that batch size; a runtime is
            unknown, not installed, or cannot run the models.
    """
    files = [_file(model) for model in models]
    return benchmark_files(
        files, threads, batches, size=size, against=against, profiled=profile, rounds=rounds
    )


def _file(model: Result | str | Path) -> Path:
    return model.file if isinstance(model, Result) else find_onnx(Path(model))
