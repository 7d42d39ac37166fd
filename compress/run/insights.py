"""Adds insights to a finished run."""

from pathlib import Path

from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.dataset import Data
from compress.files import write_json
from compress.insights.config import InsightsConfig
from compress.insights.measuring import measure_insights
from compress.insights.results import INSIGHTS_JSON, read_insights
from compress.log import say
from compress.run.lookup import finished_stages, read_stage_report


def add_insights(run: Path, data: Data, config: InsightsConfig) -> None:
    """Measures what the run's page shows beside its report, unless that is done already.

    A run that is not finished, or whose teacher takes images of another size, has none.
    """
    folders = finished_stages(run)
    if "export" not in folders or not (config.predictions or config.maps or config.robustness):
        return
    teacher, shipped = load_checkpoint(folders["teacher"]), load_checkpoint(folders["export"])
    done = read_insights(run)
    if done and (done.teacher, done.shipped, done.config) == (
        teacher.digest, shipped.digest, config,
    ):  # fmt: skip
        return
    if not teacher.spec.preprocess == shipped.spec.preprocess == data.preprocess:
        say("insights: none, since the teacher takes its images in another way")
        return
    floats = [load_checkpoint(folder) for folder in folders.values()]
    source = [one for one in floats if one.description.quantized is None][-1]
    insights = measure_insights(_with_file(teacher), _with_file(shipped), source, data, config)
    write_json(run / INSIGHTS_JSON, insights)
    say(f"insights: measured in {insights.seconds:.0f} s")


def _with_file(checkpoint: Checkpoint) -> tuple[Checkpoint, Path]:
    return checkpoint, checkpoint.folder / read_stage_report(checkpoint.folder).file
