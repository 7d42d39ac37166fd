"""Adds insights to a finished run."""

from pathlib import Path

from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.dataset import Data
from compress.files import file_digest, write_json
from compress.insights.config import InsightsConfig
from compress.insights.measuring import measure_insights
from compress.insights.results import INSIGHTS_JSON, Compared, read_insights
from compress.log import say
from compress.run.lookup import finished_stages, read_stage_report


def add_insights(run: Path, data: Data, config: InsightsConfig) -> None:
    """Measures what the run's page shows beside its report, unless that is done already.

    A run that is not finished, or whose teacher takes images of another size, has none.
    """
    compared = compared_by(run)
    if compared is None or not (config.predictions or config.maps or config.robustness):
        return
    done = read_insights(run)
    if done and (done.compared, done.config) == (compared, config):
        return
    folders = finished_stages(run)
    teacher, shipped = load_checkpoint(folders["teacher"]), load_checkpoint(folders["export"])
    if not teacher.spec.preprocess == shipped.spec.preprocess == data.preprocess:
        say("insights: none, since the teacher takes its images in another way")
        return
    floats = [load_checkpoint(folder) for folder in folders.values()]
    source = [one for one in floats if one.description.quantized is None][-1]
    insights = measure_insights(
        _with_file(teacher),
        _with_file(shipped),
        source,
        data,
        config=config,
        compared=compared,
    )
    write_json(run / INSIGHTS_JSON, insights)
    say(f"insights: measured in {insights.seconds:.0f} s")


def compared_by(run: Path) -> Compared | None:
    """Returns what insights of a run compare; None if it is unfinished or a file is missing."""
    folders = finished_stages(run)
    if not {"teacher", "export"} <= folders.keys():
        return None
    teacher, shipped = load_checkpoint(folders["teacher"]), load_checkpoint(folders["export"])
    (_, before), (_, after) = _with_file(teacher), _with_file(shipped)
    if not (before.is_file() and after.is_file()):
        return None
    data = shipped.description.step.data_fingerprint
    return Compared(teacher=file_digest(before), shipped=file_digest(after), data=data)


def _with_file(checkpoint: Checkpoint) -> tuple[Checkpoint, Path]:
    return checkpoint, checkpoint.folder / read_stage_report(checkpoint.folder).file
