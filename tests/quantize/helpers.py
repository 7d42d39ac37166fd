"""Surroundings of the stage."""

from pathlib import Path

from compress.data.dataset import Data
from compress.kd.context import Context
from compress.measure.config import MeasureConfig


def context_for(data: Data, folder: Path) -> Context:
    """A context without teachers."""
    return Context(
        data=data, seed=0, measure=MeasureConfig(), folder=folder, store=folder, teachers=()
    )
