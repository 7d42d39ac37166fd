"""Checks and measures a bundle on this machine."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.bundle.manifest import BENCHMARKS, LABELS, SAMPLES, Manifest, opened
from compress.bundle.write import logits
from compress.errors import CompressError
from compress.files import parse_json, read_text
from compress.measure.benchmark import BenchmarkResult
from compress.onnx_file import read_facts
from compress.run.benchmark import benchmark_files

MIN_AGREEMENT = 99.0
"""Percent of the images whose class must be the expected one."""
MAX_DIFFERENCE = 0.05
"""Largest accepted difference of logits, as the root of mean squares relative to the logits'
standard deviation."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How a file of a bundle computes here."""

    file: str
    agreement: float
    """Percent of the images with the expected class."""
    difference: float
    """See `MAX_DIFFERENCE`."""
    top1: float | None
    """Percent; None for random images."""
    n_images: int


def verify_bundle(bundle: Path) -> list[Agreement]:
    """Compares all files of a bundle with their digests, and the logits with the expected ones.

    Raises:
        CompressError: a file or its results differ.
    """
    with opened(bundle) as (folder, manifest):
        samples = _read_samples(folder, manifest)
        found = [_agreement(folder, name, samples) for name in manifest.models]
    for one in found:
        if one.agreement < MIN_AGREEMENT or not one.difference <= MAX_DIFFERENCE:
            raise CompressError(
                f"{one.file} computes other results on this machine: {one.agreement:.1f} % of the "
                f"classes are the expected ones (at least {MIN_AGREEMENT:g} %), and logits differ "
                f"by {one.difference:.2g} (at most {MAX_DIFFERENCE:g}); do not use it here"
            )
    return found


def benchmark_bundle(
    folder: Path, threads: Sequence[int], batches: Sequence[int], **settings: Any
) -> BenchmarkResult:
    """Verifies and times a bundle's files on this machine, and appends a row to `BENCHMARKS`.

    Args:
        folder: the bundle's folder.
        threads: see `benchmark_files`.
        batches: see `benchmark_files`.
        **settings: see `benchmark_files`.

    Raises:
        CompressError: see `verify_bundle` and `benchmark_files`.
    """
    agreements = verify_bundle(folder)
    with opened(folder) as (_, manifest):
        images = _read_samples(folder, manifest)["images"] if manifest.images == "test" else None
    files = [folder / one.file for one in agreements]
    result = benchmark_files(files, threads, batches, images=images, **settings)
    rows = [dataclasses.replace(row, file=Path(row.file).name) for row in result.rows]
    row = {
        "created": result.created,
        "host": dataclasses.asdict(result.host),
        "agreement": [dataclasses.asdict(one) for one in agreements],
        "versions": result.versions,
        "latency": [dataclasses.asdict(one) for one in rows],
    }
    _append(folder / BENCHMARKS, json.dumps(row, allow_nan=False) + "\n")
    return result


def _append(path: Path, line: str) -> None:
    """Appends a line in one write, so that several processes do not mix theirs."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(handle, line.encode())
        os.fsync(handle)
    finally:
        os.close(handle)


def _agreement(folder: Path, name: str, samples: dict[str, np.ndarray]) -> Agreement:
    """Runs a file on the bundle's images.

    Raises:
        CompressError: the file, its images, and its expected logits do not belong together.
    """
    facts, images, labels = read_facts(folder / name), samples["images"], samples["labels"]
    expected, spec = samples[f"logits of {name}"], facts.preprocess
    n, classes = len(images), len(facts.class_names)
    wanted = {
        "images": (images, np.uint8, (n, spec.channels, spec.size, spec.size)),
        "labels": (labels, np.int64, (n,)),
        "logits": (expected, np.float32, (n, classes)),
    }
    for part, (array, kind, shape) in wanted.items():
        if n == 0 or array.dtype != kind or array.shape != shape:
            raise CompressError(
                f"{SAMPLES} does not fit {name}: {part} must be {np.dtype(kind)} {shape}, got "
                f"{array.dtype} {array.shape}; get the bundle anew"
            )
    if _labels(folder) != list(facts.class_names):
        raise CompressError(f"{LABELS} and {name} have different classes; get the bundle anew")
    got = logits(folder / name, images)
    predicted = got.argmax(1)
    error = np.sqrt(np.mean((got.astype(np.float64) - expected) ** 2))
    return Agreement(
        file=name,
        agreement=100 * float((predicted == expected.argmax(1)).mean()),
        difference=float(error / max(expected.std(dtype=np.float64), np.finfo(np.float32).tiny)),
        top1=100 * float((predicted == labels).mean()) if (labels >= 0).all() else None,
        n_images=n,
    )


def _labels(folder: Path) -> Any:
    return parse_json(read_text(folder / LABELS))


def _read_samples(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Reads `SAMPLES`, which anyone may have written.

    Raises:
        CompressError: it is damaged or lacks an array.
    """
    names = ("images", "labels", *(f"logits of {name}" for name in manifest.models))
    try:
        with np.load(folder / SAMPLES, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names}
    except Exception:  # of zipfile, zlib, and NumPy, and MemoryError where a header lies
        raise CompressError(
            f"{SAMPLES} is damaged, or lacks {', '.join(names)}; get the bundle anew"
        ) from None
