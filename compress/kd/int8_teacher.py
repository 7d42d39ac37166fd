"""Live teachers in int8: the same logits in less time, in ONNX Runtime on the CPU."""

import dataclasses
import hashlib
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from compress import distributed
from compress.architectures.build import Classifier
from compress.cache import Measurement, cached_measurement, spread_of
from compress.checkpoint import Checkpoint
from compress.data.dataset import Data
from compress.data.splits import Split, batch_count
from compress.errors import CompressError
from compress.files import file_digest
from compress.int8.conversion import convert
from compress.int8.lowering import lower
from compress.int8.ptq import Calibration, Plan, calibration_batches, fit_to_cpu
from compress.int8.restore import load_model
from compress.kd.teachers import Forward, TeacherModel, onnx_forward
from compress.log import count_of
from compress.onnx_file import export_onnx
from compress.train.evaluate import evaluation_batch, first_images
from compress.train.events import OnEvent, print_event, progress_bar

MIN_AGREEMENT = 98.0
"""Percent of the validation images to which int8 and float must give the same class. A student that
learned well still disagrees with its teacher on about twice as many as may differ here."""
MIN_SPEEDUP = 1.1
"""Required speedup, above the noise of a short benchmark."""
CALIBRATION_IMAGES = 512
PROBE_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Int8Trial:
    """A teacher's int8 file, compared with the teacher in float."""

    agreement: float
    """Percent of the validation images with the same predicted class."""
    speedup: float


def int8_if_better(
    teacher: TeacherModel, data: Data, *, store: Path, on_event: OnEvent = print_event
) -> TeacherModel:
    """Returns a float teacher in int8 if that is faster and agrees with it, else the teacher.

    Args:
        teacher: on the CPU.
        data: its training images calibrate, its validation images compare.
        store: keeps the int8 file.
        on_event: is told which one is used, and why.
    """
    checkpoint = teacher.source.checkpoint
    if checkpoint is None or not isinstance(teacher.model, Classifier):
        return teacher  # its file, or the int8 network, is what there is
    path = _int8_path(checkpoint, data, store)
    trial = distributed.decide(lambda: _try_int8(teacher, checkpoint, data, path, on_event))
    if isinstance(trial, str):
        text, is_better = f"float, since int8 is not possible: {trial}", False
    else:
        text, is_better = _described(trial, len(data.validation)), _is_better(trial)
    on_event(f"logits of {teacher.source.path.name}: {text}")
    teacher = dataclasses.replace(teacher, precision=text)
    if not is_better:
        return teacher
    forward = onnx_forward(path, teacher.source.preprocess.size)
    return dataclasses.replace(teacher, forward=forward, model=None)


def _is_better(trial: Int8Trial) -> bool:
    return trial.agreement >= MIN_AGREEMENT and trial.speedup >= MIN_SPEEDUP


def _described(trial: Int8Trial, n_images: int) -> str:
    agreement = f"{trial.agreement:.2f} % of {count_of(n_images, 'validation image')}"
    if _is_better(trial):
        return f"int8, {trial.speedup:.1f}x as fast as float; they agree on {agreement}"
    if trial.agreement < MIN_AGREEMENT:
        return f"float, since int8 agrees with it on {agreement}; {MIN_AGREEMENT:g} % are needed"
    return f"float, since int8 is only {trial.speedup:.1f}x as fast"


def _int8_path(checkpoint: Checkpoint, data: Data, store: Path) -> Path:
    key = hashlib.sha256(f"{checkpoint.digest} {data.fingerprint}".encode()).hexdigest()[:16]
    return store / f"{key}-int8.onnx"


def _try_int8(
    teacher: TeacherModel, checkpoint: Checkpoint, data: Data, path: Path, on_event: OnEvent
) -> Int8Trial | str:
    """Quantizes a teacher, unless its file exists, and compares; or returns what is in the way."""
    try:
        if not path.is_file():
            _write_int8(checkpoint, data.train, path)
        forward = onnx_forward(path, teacher.source.preprocess.size)
    except CompressError as error:
        return str(error)
    forwards = (teacher.forward, forward)
    return cached_measurement(
        Int8Trial,
        "teacher in float and int8",
        {"file": file_digest(path), "data": data.fingerprint, "threads": torch.get_num_threads()},
        lambda: _compare(forwards, data.validation, on_event),
    )


def _write_int8(checkpoint: Checkpoint, images: Split, path: Path) -> None:
    """Quantizes a float checkpoint as `compress quantize` does first.

    Raises:
        CompressError: an operator is not supported.
    """
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    calibration = Calibration(
        lower(model), lambda: calibration_batches(images, CALIBRATION_IMAGES, seed=0)
    )
    plan = fit_to_cpu(Plan(observer="mse", weights="mse"), calibration)
    path.parent.mkdir(parents=True, exist_ok=True)
    quantized = convert(calibration.quantize(plan))
    export_onnx(quantized, checkpoint.spec, path, digest=checkpoint.digest, stage=checkpoint.stage)


def _compare(
    forwards: tuple[Forward, Forward], split: Split, on_event: OnEvent
) -> Measurement[Int8Trial]:
    """Compares float and int8: the predicted classes of all images, and the time for a batch."""
    size, agreeing = evaluation_batch(split), 0
    batches, total = split.batches(size), batch_count(len(split), size)
    for batch in progress_bar(batches, "trying int8", total=total, on_event=on_event):
        images = batch.images.float()
        one, other = (forward(images).argmax(1) for forward in forwards)
        agreeing += int((one == other).sum())
    images = first_images(split, size).float()
    seconds = [[_seconds(forward, images) for forward in forwards] for _ in range(PROBE_STEPS)]
    ratios = [in_float / in_int8 for in_float, in_int8 in seconds]
    trial = Int8Trial(agreement=100 * agreeing / len(split), speedup=statistics.median(ratios))
    return Measurement(value=trial, spread=spread_of(ratios))


def _seconds(forward: Forward, images: Tensor) -> float:
    started = time.perf_counter()
    forward(images)
    return time.perf_counter() - started
