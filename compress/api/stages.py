"""Stages as functions: networks and datasets in, results with reports out."""

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from compress.architectures.build import Classifier
from compress.architectures.sources import give_network
from compress.checkpoint import Checkpoint
from compress.data.dataset import Data
from compress.errors import CompressError
from compress.files import atomic_write
from compress.int8.restore import load_model
from compress.kd.teachers import Teacher, checkpoint_teacher
from compress.measure.config import MeasureConfig
from compress.measure.results import StageReport
from compress.run.folder import claim_run, owned_run
from compress.run.key import Request
from compress.run.lookup import read_stage_report
from compress.run.recipe import ModelCard, Network
from compress.run.report import write_run_report
from compress.run.stage import run_stage
from compress.run.stages import STAGES, stage_folder
from compress.settings import with_options
from compress.teacher.config import FINETUNE, TeacherConfig

Folder = str | Path | None
PIPELINE = "calls of the library"
"""What stands for the recipe in a run's report."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a stage made: a checkpoint in a run's folder, and its report."""

    checkpoint: Checkpoint
    report: StageReport
    """Size, latency, and accuracy of the stage's ONNX file."""
    data: Data
    teacher: Checkpoint
    """The network that reports compare with."""

    @cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode: normalized float images `[N, C, H, W]` in, logits out.

        Raises:
            CompressError: it is int8, which takes images; run `file` in ONNX Runtime.
        """
        model = load_model(self.checkpoint)
        if not isinstance(model, Classifier):
            raise CompressError(f"the network is int8; run {self.file} in ONNX Runtime")
        return model.network

    @property
    def file(self) -> Path:
        """The measured ONNX file."""
        return self.checkpoint.folder / self.report.file

    @property
    def run(self) -> Path:
        """The run's folder, with the reports of all stages so far."""
        return self.checkpoint.folder.parent


def train(
    model: nn.Module,
    *,
    data: Data,
    pretrained: bool = False,
    out: Folder = None,
    **settings: Any,
) -> Result:
    """Trains a network, from the weights that it has.

    Args:
        model: takes normalized float images `[N, C, H, W]`, returns logits `[N, classes]`; it is
            copied, not changed.
        data: images and labels.
        pretrained: use the defaults for fine-tuning.
        out: folder for checkpoints and reports; by default a temporary one.
        settings: as the options of `compress train`: `epochs=8`.

    Raises:
        CompressError: a setting is wrong, or the network does not fit the data.
    """
    config = FINETUNE if pretrained else TeacherConfig()
    return _first(model, data, out, with_options(config, settings, section="teacher"))


def distill(
    student: nn.Module,
    *,
    teacher: nn.Module | Result,
    data: Data,
    out: Folder = None,
    **settings: Any,
) -> Result:
    """Trains a student on the labels and the logits of a trained teacher.

    Args:
        student: see `train`.
        teacher: a trained network, or the result of a stage.
        data: images and labels.
        out: folder for checkpoints and reports; by default the teacher's run or a temporary one.
        settings: as the options of `compress distill`: `temperature=2`.

    Raises:
        CompressError: see `train`.
    """
    start = _as_result(teacher, data, out)
    return _next("distill", start, data, settings, student=student)


def prune(
    model: nn.Module | Result,
    *,
    data: Data | None = None,
    out: Folder = None,
    **settings: Any,
) -> Result:
    """Removes channels and fine-tunes.

    Args:
        model: a trained network, or the result of a stage.
        data: images and labels; by default the result's.
        out: folder for checkpoints and reports; by default the result's run or a temporary one.
        settings: as the options of `compress prune`: `latency_ratio=0.5`.

    Raises:
        CompressError: see `train`; or the target cannot be met.
    """
    return _next("prune", _as_result(model, data, out), data, settings)


def quantize(
    model: nn.Module | Result,
    *,
    data: Data | None = None,
    out: Folder = None,
    **settings: Any,
) -> Result:
    """Quantizes weights and activations to int8.

    Args:
        model: a trained network, or the result of a stage.
        data: images and labels; by default the result's.
        out: folder for checkpoints and reports; by default the result's run or a temporary one.
        settings: as the options of `compress quantize`: `calib=512`.

    Raises:
        CompressError: see `train`; or an operator of the network is not supported.
    """
    return _next("quantize", _as_result(model, data, out), data, settings)


def export(
    model: nn.Module | Result,
    path: str | Path,
    *,
    data: Data | None = None,
    out: Folder = None,
    **settings: Any,
) -> Result:
    """Chooses the faster one of the float and the int8 file and writes it.

    Args:
        model: a trained network, or the result of a stage.
        path: the ONNX file to write: uint8 images `[N, C, H, W]` in, logits out.
        data: images and labels; by default the result's.
        out: folder for checkpoints and reports; by default the result's run or a temporary one.
        settings: as the options of `compress export`: `max_drop=0.5`.

    Raises:
        CompressError: see `train`; or the file and the network disagree.
    """
    result = _next("export", _as_result(model, data, out), data, settings)
    with atomic_write(Path(path)) as partial:
        shutil.copyfile(result.file, partial)
    return result


def _as_result(model: nn.Module | Result, data: Data | None, out: Folder) -> Result:
    """Returns a result that stages can start from: a trained network becomes a teacher."""
    if isinstance(model, Result):
        if out is not None and Path(out).resolve() != model.run.resolve():
            raise CompressError(
                f"the network is a result in {model.run}, and its next stage goes there too; leave "
                "`out` away, or pass `result.model`"
            )
        return model
    if data is None:
        raise CompressError("pass data=, the images and labels that the network is measured on")
    return _first(model, data, out, with_options(TeacherConfig(), {"epochs": 0}, section="teacher"))


def _first(model: nn.Module, data: Data, out: Folder, config: TeacherConfig) -> Result:
    network = _network(model)
    run = Path(out) if out is not None else _temporary_run()
    card = ModelCard(teacher=network, student=network)
    return _run("teacher", run, data, config, card=card, parent=None, teachers=())


def _next(
    stage: str,
    start: Result,
    data: Data | None,
    settings: dict[str, Any],
    student: nn.Module | None = None,
) -> Result:
    """Runs a stage that follows another; None for the data: those of the other."""
    teacher = _network_of(start.teacher)
    return _run(
        stage,
        start.run,
        start.data if data is None else data,
        with_options(STAGES[stage].config, settings, section=stage),
        card=ModelCard(teacher=teacher, student=teacher if student is None else _network(student)),
        parent=start.checkpoint,
        teachers=(checkpoint_teacher(start.teacher),),
    )


def _run(
    stage: str,
    run: Path,
    data: Data,
    config: Any,
    *,
    card: ModelCard,
    parent: Checkpoint | None,
    teachers: tuple[Teacher, ...],
) -> Result:
    with owned_run(run):
        claim_run(run, model=card.teacher.architecture, pipeline=PIPELINE, data=data)
        checkpoint = run_stage(
            Request(
                stage=stage,
                config=config,
                folder=stage_folder(run, stage),
                run=run,
                card=card,
                parent=parent,
                teachers=teachers,
                data=data,
                measure=MeasureConfig(),
                seed=0,
            )
        )
        write_run_report(run)
    return Result(
        checkpoint=checkpoint,
        report=read_stage_report(checkpoint.folder),
        data=data,
        teacher=teachers[0].checkpoint if teachers and teachers[0].checkpoint else checkpoint,
    )


def _network(model: nn.Module) -> Network:
    return Network(architecture=give_network(model), stem="large")


def _network_of(checkpoint: Checkpoint) -> Network:
    spec = checkpoint.spec
    return Network(architecture=spec.architecture, arguments=dict(spec.arguments), stem=spec.stem)


def _temporary_run() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="compress-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder / "run"
