"""The table of stages, from which commands, recipes, keys, folders, and reports are derived.

To add a stage `NAME`, add a row here and a folder `compress/NAME/` with `config.py` (`NameConfig`,
its settings, without torch), `result.py` (`NameResult`, its results), and `stage.py` (`run`). They
are imported when needed, so that help texts are fast.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from compress.errors import CheckpointError

DEFAULT_PIPELINE = "default"
"""Name of the default recipe."""
RUNS = Path("runs")
"""Parent of the run folders, in the working folder."""
TRACKERS = ("tensorboard", "mlflow")
"""Tools that training can be logged to (`--log`)."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage: a row of the table."""

    name: str
    follows: tuple[str, ...] = ()
    """Stages whose checkpoints it accepts; empty if it begins a run."""
    makes: Literal["teacher", "student"] | None = None
    """The card's network that it builds; None if it continues with its checkpoint's."""
    timed: bool = False
    """Whether its result depends on latency."""
    command: str
    help: str

    @property
    def module(self) -> str:
        """The module that runs it."""
        return f"compress.{self.name}.stage"

    @property
    def run(self) -> Callable[..., Any]:
        """`run(start, config, context) -> Product`."""
        run: Callable[..., Any] = import_module(self.module).run
        return run

    @property
    def config(self) -> Any:
        """Its default settings."""
        return self._type("config")()

    @property
    def result(self) -> type:
        """The type of its results."""
        return self._type("result")

    def _type(self, module: str) -> type:
        name = f"{self.name.capitalize()}{module.capitalize()}"
        found: type = getattr(import_module(f"compress.{self.name}.{module}"), name)
        return found


_ROWS = (
    Stage(
        name="teacher",
        makes="teacher",
        command="train",
        help="""Train the teacher of MODEL.

        \b
        compress train resnet18 --epochs 8
        """,
    ),
    Stage(
        name="distill",
        follows=("teacher",),
        makes="student",
        command="distill",
        help="""Train the student on the labels and the teacher logits.

        \b
        compress distill --epochs 20 --temperature 4
        """,
    ),
    Stage(
        name="prune",
        follows=("teacher", "distill", "prune"),
        timed=True,
        command="prune",
        help="""Remove channels and fine-tune.

        \b
        compress prune --latency-ratio 0.5
        """,
    ),
    Stage(
        name="quantize",
        follows=("teacher", "distill", "prune"),
        timed=True,
        command="quantize",
        help="""Quantize weights and activations to int8.

        \b
        compress quantize --calib 512
        compress quantize --method qat --in runs/resnet18-fashion-mnist/2-prune --out int8
        """,
    ),
    Stage(
        name="export",
        follows=("teacher", "distill", "prune", "quantize"),
        timed=True,
        command="export",
        help="""Export the ONNX files and choose the one to ship.

        \b
        compress export --max-drop 0.5
        """,
    ),
)
STAGES = {row.name: row for row in _ROWS}
"""Stages by name, in the order of a run."""


def stage_folder(run: Path, stage: str) -> Path:
    """Returns the folder of a stage in a run: `0-teacher`, `1-distill`, ..."""
    return run / f"{list(STAGES).index(stage)}-{stage}"


def require_stage(made_by: str, stage: Stage, folder: Path) -> None:
    """Raises CheckpointError unless a stage accepts checkpoints made by another."""
    if made_by not in stage.follows:
        raise CheckpointError(
            f"{stage.name} needs a checkpoint from stage {' or '.join(stage.follows)}; {folder} is "
            f"from stage {made_by}"
        )
