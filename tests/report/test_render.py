import dataclasses
from pathlib import Path

import numpy as np
import pytest

from compress.distill.result import DistillResult
from compress.kd.result import Ablation
from compress.measure.results import StageReport
from compress.measure.statistics import PairedDifference, compare_paired
from compress.report.render import ablation_text, speedup_text, stage_markdown
from compress.run.lookup import read_stage_report


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (60.2, "60.2x faster than"),
        (1.06, "1.1x faster than"),
        (1.04, "as fast as"),
        (0.96, "as fast as"),
        (0.5, "2.0x slower than"),
    ],
)
def test_a_speed_ratio_reads_as_faster_or_slower(ratio: float, text: str) -> None:
    assert speedup_text(ratio) == text


def difference(points: float) -> PairedDifference:
    """On 1000 images; with 10 flips the other way."""
    ahead = round(10 * points)
    found = np.zeros((2, 1000), bool)
    found[0, : max(ahead, 0) + 10] = found[1, 500 : 510 + max(-ahead, 0)] = True
    return compare_paired(found[0], found[1])


def distilled(report: StageReport, alone_top1: float) -> StageReport:
    alone = Ablation(
        top1=alone_top1,
        top1_ci95=(alone_top1 - 1, alone_top1 + 1),
        gain=difference(90.0 - alone_top1),
        epochs=1,
        seconds=9.7,
        available_seconds=10.2,
    )
    assert isinstance(report.result, DistillResult)
    result = dataclasses.replace(report.result, epochs=3, alone=alone)
    return dataclasses.replace(report, top1=90.0, top1_ci95=(89.0, 91.0), result=result)


@pytest.mark.parametrize(
    ("alone_top1", "text"),
    [
        (85.0, "distillation helped (+5.00 points [3.43, 6.72], 60 images gained and 10 lost): "
               "90.00 % with the teacher, 3 epochs in 10 s; 85.00 % after 1 epoch in 10 s "
               "on labels alone"),
        (89.5, "distillation made no significant difference (+0.50 points ["),
        (95.0, "distillation did not help (-5.00 points ["),
    ],
)  # fmt: skip
def test_the_ablation_is_one_sentence(finished_run: Path, alone_top1: float, text: str) -> None:
    report = distilled(read_stage_report(finished_run / "1-distill"), alone_top1)
    assert ablation_text(report).startswith(text)
    assert f"| ablation | {ablation_text(report)} |" in stage_markdown(report)


def test_without_an_ablation_there_is_nothing_to_say(finished_run: Path) -> None:
    for stage in ("0-teacher", "1-distill", "2-prune"):
        assert ablation_text(read_stage_report(finished_run / stage)) == ""
