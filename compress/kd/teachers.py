"""Teachers: trained networks, from checkpoints or ONNX files, alone or as an ensemble."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from compress import distributed
from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.dataset import Data
from compress.data.preprocess import Preprocess
from compress.data.splits import as_numpy
from compress.errors import CompressError
from compress.files import file_digest
from compress.host import allowed_cores
from compress.int8.restore import load_model
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import read_facts
from compress.train.evaluate import evaluation_batch, first_images, resized
from compress.train.precision import autocast, choose_precision

Forward = Callable[[Tensor], Tensor]
"""Maps images, float 0..255 `[N, C, H, W]`, to float32 logits `[N, classes]`."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """Where a teacher comes from, and what it expects."""

    path: Path
    checkpoint: Checkpoint | None
    """The teacher's checkpoint; None for an ONNX file."""
    class_names: tuple[str, ...]
    preprocess: Preprocess
    digest: str
    weight: float = 1.0
    """Weight in the ensemble."""


@dataclass(frozen=True, kw_only=True)
class TeacherModel:
    """A teacher ready to run."""

    source: Teacher
    forward: Forward
    model: nn.Module | None
    """The network; None for an ONNX file."""
    precision: str = ""
    """For reports: what computes the logits, and why."""


def checkpoint_teacher(checkpoint: Checkpoint, *, weight: float = 1.0) -> Teacher:
    """Returns the teacher stored in a checkpoint."""
    return Teacher(
        path=checkpoint.folder,
        checkpoint=checkpoint,
        class_names=checkpoint.spec.class_names,
        preprocess=checkpoint.spec.preprocess,
        digest=checkpoint.digest,
        weight=weight,
    )


def read_teachers(texts: Sequence[str]) -> tuple[Teacher, ...]:
    """Reads teachers given on the command line as `PATH` or `PATH=WEIGHT`.

    Raises:
        CompressError: a path is neither a checkpoint nor an ONNX file written by compress, a weight
            is not positive, or the first teacher is not a checkpoint.
    """
    teachers = tuple(_read_teacher(text) for text in texts)
    if teachers and teachers[0].checkpoint is None:
        raise CompressError(
            "the first --teacher is the report's baseline and must be a checkpoint folder; "
            f"{teachers[0].path} is an ONNX file, list it after a checkpoint"
        )
    return teachers


def _read_teacher(text: str) -> Teacher:
    before, _, after = text.rpartition("=")
    try:
        path, weight = (Path(before), float(after)) if before else (Path(text), 1.0)
    except ValueError:  # the path contains "="
        path, weight = Path(text), 1.0
        if not path.exists():
            raise CompressError(
                f"--teacher {text}: {path} does not exist, and {after!r} is not a number; use PATH "
                "or PATH=WEIGHT"
            ) from None
    if not weight > 0:
        raise CompressError(f"--teacher {text}: the weight must be positive, got {weight:g}")
    if path.suffix != ".onnx":
        return checkpoint_teacher(load_checkpoint(path), weight=weight)
    if not path.is_file():
        raise CompressError(f"--teacher {text}: {path} does not exist")
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
    """Raises CompressError if the teacher's classes or channels differ from the data's."""
    if teacher.class_names != data.class_names:
        raise CompressError(
            f"the teacher {teacher.path} predicts the classes {', '.join(teacher.class_names)}, "
            f"the data has {', '.join(data.class_names)}; use a teacher trained on these classes"
        )
    if teacher.preprocess.channels != data.preprocess.channels:
        raise CompressError(
            f"the teacher {teacher.path} takes {teacher.preprocess.channels} channels, the data "
            f"has {data.preprocess.channels}; use a teacher trained on this data"
        )


def open_teacher(teacher: Teacher, data: Data, device: torch.device) -> TeacherModel:
    """Loads a teacher; it accepts images of any size and resizes them to its own.

    Raises:
        CompressError: see `check_teacher`.
    """
    check_teacher(teacher, data)
    if teacher.checkpoint is None:
        forward = onnx_forward(teacher.path, teacher.preprocess.size)
        return TeacherModel(source=teacher, forward=forward, model=None)
    model = load_model(teacher.checkpoint).to(device).to(memory_format=torch.channels_last)
    model.requires_grad_(requires_grad=False)
    return TeacherModel(
        source=teacher, forward=_torch_forward(teacher, model, data, device), model=model
    )


def onnx_forward(path: Path, size: int) -> Forward:
    """Returns the forward pass of an ONNX file, which takes images of one size.

    Raises:
        CompressError: ONNX Runtime cannot load it.
    """
    session = open_session(path, threads=allowed_cores())

    def forward(images: Tensor) -> Tensor:
        rounded = resized(images, size).round().clamp(0, 255).to(torch.uint8).cpu()
        return torch.from_numpy(run_session(session, as_numpy(rounded))).to(images.device)

    return forward


def _torch_forward(teacher: Teacher, model: nn.Module, data: Data, device: torch.device) -> Forward:
    # At the data's own size, the teacher follows progressive resizing; an ONNX file cannot.
    follows = teacher.preprocess.size == data.preprocess.size

    def sized(images: Tensor) -> Tensor:
        return resized(images, None if follows else teacher.preprocess.size)

    probe = sized(first_images(data.train, evaluation_batch(data.train)).float()).to(torch.uint8)
    precision = distributed.decide(lambda: choose_precision(model, probe, device, training=False))

    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        with autocast(precision, device):
            return model(sized(images)).float()  # type: ignore[no-any-return]

    return forward


def mean_logits(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted mean of the teachers' centered logits, float `[N, classes]`.

    Its softmax is the geometric mean of the teachers' probabilities, at any temperature (Hinton et
    al., arXiv 1503.02531, section 3, allow geometric and arithmetic means).

    Args:
        logits: each teacher's logits, `[N, classes]`.
        weights: positive, one per teacher.
    """
    total = sum(weights)
    centered = [one - one.mean(1, keepdim=True) for one in logits]
    return torch.stack(
        [weight / total * one for weight, one in zip(weights, centered, strict=True)]
    ).sum(0)
