"""Who is learned from: one trained network or several, as checkpoints or as ONNX files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress import distributed
from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.load import Data, as_numpy
from compress.data.preprocess import Preprocess
from compress.errors import CompressError
from compress.files import file_digest
from compress.host import allowed_cores
from compress.int8.restore import load_model
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import read_facts
from compress.train.evaluate import evaluation_batch, first_images
from compress.train.precision import autocast, choose_precision

Forward = Callable[[Tensor], Tensor]
"""From pixels 0..255, float `[N, C, H, W]`, to float32 logits `[N, classes]`."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network that others learn from."""

    path: Path
    checkpoint: Checkpoint | None
    """None if it is an ONNX file."""
    class_names: tuple[str, ...]
    preprocess: Preprocess
    digest: str
    weight: float = 1.0
    """Of its answers among those of all teachers."""


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A teacher, opened."""

    source: Teacher
    forward: Forward
    model: nn.Module | None
    """None if it is an ONNX file."""


def checkpoint_teacher(checkpoint: Checkpoint, *, weight: float = 1.0) -> Teacher:
    """Returns a checkpoint as a teacher."""
    return Teacher(
        path=checkpoint.folder,
        checkpoint=checkpoint,
        class_names=checkpoint.spec.class_names,
        preprocess=checkpoint.spec.preprocess,
        digest=checkpoint.digest,
        weight=weight,
    )


def read_teachers(texts: Sequence[str]) -> tuple[Teacher, ...]:
    """Reads teachers as the command line names them: `PATH` or `PATH=WEIGHT`.

    Raises:
        CompressError: one is neither a checkpoint nor an ONNX file of ours, a weight is not
            positive, or the first is no checkpoint.
    """
    teachers = tuple(_read_teacher(text) for text in texts)
    if teachers and teachers[0].checkpoint is None:
        raise CompressError(
            f"the first --teacher must be a checkpoint folder, because the results are compared "
            f"with it; {teachers[0].path} is an ONNX file, name it after one"
        )
    return teachers


def _read_teacher(text: str) -> Teacher:
    before, _, after = text.rpartition("=")
    try:
        path, weight = (Path(before), float(after)) if before else (Path(text), 1.0)
    except ValueError:  # an = in the path
        path, weight = Path(text), 1.0
        if not path.exists():
            raise CompressError(
                f"--teacher {text}: there is no {path}, and {after!r} is not a number; it takes "
                "PATH or PATH=WEIGHT"
            ) from None
    if not weight > 0:
        raise CompressError(f"--teacher {text}: the weight must be positive, got {weight:g}")
    if path.suffix != ".onnx":
        return checkpoint_teacher(load_checkpoint(path), weight=weight)
    if not path.is_file():
        raise CompressError(f"--teacher {text}: there is no file {path}")
    facts = read_facts(path)
    return Teacher(
        path=path,
        checkpoint=None,
        class_names=facts.class_names,
        preprocess=facts.preprocess,
        digest=file_digest(path),
        weight=weight,
    )


def check_teacher(teacher: Teacher, data: Data) -> None:
    """Raises CompressError if a teacher knows other classes than the data's, or other channels."""
    if teacher.class_names != data.class_names:
        raise CompressError(
            f"the teacher {teacher.path} knows the classes {', '.join(teacher.class_names)}; the "
            f"data has {', '.join(data.class_names)}: its answers would teach wrong labels"
        )
    if teacher.preprocess.channels != data.preprocess.channels:
        raise CompressError(
            f"the teacher {teacher.path} takes {teacher.preprocess.channels} channels, the data "
            f"has {data.preprocess.channels}"
        )


def open_teacher(teacher: Teacher, data: Data, device: torch.device) -> TeacherModel:
    """Makes a teacher ready to be asked about a data set's pixels, of whatever size.

    Raises:
        CompressError: see `check_teacher`.
    """
    check_teacher(teacher, data)
    side = teacher.preprocess.size

    # A network of the data's size sees images grow along with the student; a file cannot.
    grows = teacher.checkpoint is not None and side == data.preprocess.size

    def sized(images: Tensor) -> Tensor:
        if grows or images.shape[-1] == side:
            return images
        return F.interpolate(images, size=side, mode="bilinear", antialias=True)

    if teacher.checkpoint is None:
        session = open_session(teacher.path, threads=allowed_cores())

        def run(images: Tensor) -> Tensor:
            whole = sized(images).round().clamp(0, 255).to(torch.uint8).cpu()
            return torch.from_numpy(run_session(session, as_numpy(whole))).to(images.device)

        return TeacherModel(source=teacher, forward=run, model=None)
    model = load_model(teacher.checkpoint).to(device).to(memory_format=torch.channels_last)
    model.requires_grad_(requires_grad=False)
    probe = sized(first_images(data.train, evaluation_batch(data.train)).float()).to(torch.uint8)
    precision = distributed.decide(lambda: choose_precision(model, probe, device, training=False))

    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        images = sized(images).contiguous(memory_format=torch.channels_last)
        with autocast(precision, device):
            return model(images).float()  # type: ignore[no-any-return]

    return TeacherModel(source=teacher, forward=forward, model=model)


def mean_logits(answers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted mean of teachers' logits, each centerd, float `[N, classes]`.

    The softmax of it is the geometric mean of the teachers' probabilities at any temperature
    (Hinton et al., arXiv 1503.02531, section 3, take either mean).

    Args:
        answers: logits of each teacher, `[N, classes]`.
        weights: positive, one for each.
    """
    total = sum(weights)
    centerd = [logits - logits.mean(1, keepdim=True) for logits in answers]
    return torch.stack(
        [weight / total * logits for weight, logits in zip(weights, centerd, strict=True)]
    ).sum(0)
