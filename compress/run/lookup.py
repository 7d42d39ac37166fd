"""Finding the newest run and its stages, for commands that are given no folder."""

from __future__ import annotations

from pathlib import Path

from compress.checkpoint import DESCRIPTION, STAGES
from compress.errors import CompressError

RUN_FILE = "run.json"
"""What a run is of; its presence makes a folder a run's."""


def is_run(folder: Path) -> bool:
    """Tells whether a folder is a run's."""
    return (folder / RUN_FILE).is_file()


def newest_run(runs: Path) -> Path:
    """Returns the run whose stages changed last.

    Raises:
        CompressError: there is none.
    """
    made = {path.parent.parent: path.stat().st_mtime for path in _descriptions(runs)}
    if not made:
        raise CompressError(
            f"there is no run under {runs}/; start one with `compress run resnet18`"
        )
    return max(made, key=lambda run: made[run])


def newest_stage_before(stage: str, runs: Path) -> Path:
    """Returns the folder of the last finished stage before `stage` in the newest run.

    Raises:
        CompressError: the newest run has none.
    """
    run = newest_run(runs)
    for place in reversed(range(STAGES.index(stage))):
        folder = run / f"{place}-{STAGES[place]}"
        if (folder / DESCRIPTION).is_file():
            return folder
    raise CompressError(f"{run} has no finished stage before {stage}; give one with --in")


def _descriptions(runs: Path) -> list[Path]:
    found = [
        path
        for place, stage in enumerate(STAGES)
        for path in runs.glob(f"*/{place}-{stage}/{DESCRIPTION}")
    ]
    return sorted(found, key=lambda path: path.stat().st_mtime)
