"""Logs training to TensorBoard and MLflow while it runs (`--log`)."""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.log import say, warn_once
from compress.measure.results import RunReport, StageReport
from compress.run.lookup import read_report
from compress.train.events import EpochEnd, Event, OnEvent, listening

EVENTS = "tensorboard"
"""Folder of TensorBoard's event files, beside the stages' folders."""
SCALARS = (
    "loss", "train_top1", "validation_loss", "validation_top1", "lr", "image_size",
    "images_per_second",
)  # fmt: skip
"""What is logged of an epoch."""
MAX_PARAMS = 100
"""MLflow's limit per request."""
OnEpoch = Callable[[str, int, Mapping[str, float]], None]
"""Logs the scalars of an epoch, given the training run's name and the epoch's number."""


@contextmanager
def tracking(
    tools: Sequence[str], settings: Mapping[str, object], *, run: Path, report: Path
) -> Iterator[None]:
    """Logs all training in this process while the context is open.

    If a tool fails later, such as a server that is gone, training goes on without it.

    Args:
        tools: some of `TRACKERS`.
        settings: MLflow's parameters.
        run: folder that holds the stages' folders; it gives MLflow's run its name.
        report: report file, there at the end, whose numbers become MLflow's metrics.

    Raises:
        CompressError: a tool is not installed, or MLflow cannot start a run.
    """
    with ExitStack() as stack:
        if "tensorboard" in tools:
            stack.enter_context(_tensorboard(run / EVENTS))
        if "mlflow" in tools:
            stack.enter_context(_mlflow(run.name, settings, report))
        yield


@contextmanager
def _tensorboard(folder: Path) -> Iterator[None]:
    """Writes event files, a subfolder for each training run."""
    writer_type = _installed("torch.utils.tensorboard", "tensorboard").SummaryWriter
    writers: dict[str, Any] = {}

    def log(run: str, epoch: int, scalars: Mapping[str, float]) -> None:
        if run not in writers:  # of a run that is repeated, TensorBoard hides the old epochs
            writers[run] = writer_type(str(folder / run), purge_step=epoch)
            stack.callback(writers[run].close)
        for name, value in scalars.items():
            writers[run].add_scalar(name, value, epoch)
        writers[run].flush()

    say(f"to watch the training: tensorboard --logdir {folder}")
    with ExitStack() as stack, listening(_on_epoch("tensorboard", log)):
        yield


@contextmanager
def _mlflow(name: str, settings: Mapping[str, object], report: Path) -> Iterator[None]:
    """Keeps a run, in the store that MLflow is configured for (MLFLOW_TRACKING_URI)."""
    mlflow = _installed("mlflow", "mlflow")
    try:
        mlflow.start_run(run_name=name)
        rows = list(settings.items())
        for start in range(0, len(rows), MAX_PARAMS):
            mlflow.log_params(dict(rows[start : start + MAX_PARAMS]))
    except Exception as error:  # of its stores, clients, and servers
        raise CompressError(f"MLflow cannot start a run: {error}") from None

    def log(run: str, epoch: int, scalars: Mapping[str, float]) -> None:
        mlflow.log_metrics({f"{run}/{name}": value for name, value in scalars.items()}, step=epoch)

    def finish() -> None:
        for stage in _stages(read_report(report)):
            mlflow.log_metrics({f"{stage.stage}/{key}": one for key, one in _numbers(stage)})
        mlflow.end_run()

    try:
        with listening(_on_epoch("mlflow", log)):
            yield
    except BaseException:
        _tolerate("mlflow", lambda: mlflow.end_run("FAILED"))
        raise
    _tolerate("mlflow", finish)


def _on_epoch(tool: str, log: OnEpoch) -> OnEvent:
    """Returns the listener that logs each epoch, until that fails."""
    working = True

    def listen(event: Event) -> None:
        nonlocal working
        if working and isinstance(event, EpochEnd):
            run = event.title.replace(", ", "/").replace(" ", "-")  # `prune/iteration-1`
            scalars = {name: getattr(event.row, name) for name in SCALARS}
            working = _tolerate(tool, lambda: log(run, event.row.epoch, scalars))

    return listen


def _tolerate(tool: str, action: Callable[[], None]) -> bool:
    """Returns whether an action succeeded; warns if not."""
    try:
        action()
    except Exception as error:  # of libraries, disks, and servers
        warn_once(f"  nothing more is logged to {tool}: {error}")
        return False
    return True


def _installed(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise CompressError(
            f"{package} is not installed: run `.venv/bin/uv pip install {package}` or "
            f"`pip install {package}`, or leave out --log {package}"
        ) from None


def _stages(report: RunReport | StageReport) -> tuple[StageReport, ...]:
    return report.stages if isinstance(report, RunReport) else (report,)


def _numbers(stage: StageReport) -> Iterator[tuple[str, float]]:
    """Yields the plain numbers of a report."""
    for name, value in vars(stage).items():
        if isinstance(value, int | float):
            yield name, value
