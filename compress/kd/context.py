"""Inputs of a stage other than its checkpoint and settings."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from compress.data.dataset import Data
from compress.kd.teachers import Teacher
from compress.measure.config import MeasureConfig


@dataclass(frozen=True, kw_only=True)
class Context:
    """Data, seed, folders, and teachers of a stage."""

    data: Data
    seed: int
    measure: MeasureConfig
    folder: Path
    """Working folder of the stage; becomes its checkpoint folder."""
    store: Path
    """Folder for stored teacher logits, shared by the stages of a run."""
    teachers: tuple[Teacher, ...]
    """The teachers to learn from; empty in the teacher stage."""


def subfolder(context: Context, name: str) -> Context:
    """Returns the context with a separate folder for one of the stage's training runs."""
    folder = context.folder / name
    folder.mkdir(exist_ok=True)
    return dataclasses.replace(context, folder=folder)
