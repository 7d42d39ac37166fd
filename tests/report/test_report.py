import base64
import dataclasses
import html
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from compress.data.dataset import Data
from compress.errors import CompressError
from compress.files import file_digest, write_json
from compress.insights.config import InsightsConfig
from compress.insights.results import read_insights
from compress.measure.results import RunReport, StageReport
from compress.report.render import run_markdown, run_rows, short, size_text
from compress.report.tradeoff import tradeoff_html
from compress.run.insights import add_insights
from compress.run.lookup import read_run_report, read_stage_report
from compress.run.report import collect, write_run_report
from tests.report.test_render import difference


@pytest.fixture
def report(finished_run: Path) -> RunReport:
    return collect(finished_run)


def replaced(report: RunReport, stage: str, **changes: object) -> tuple[StageReport, ...]:
    return tuple(
        dataclasses.replace(row, **changes) if row.stage == stage else row  # type: ignore[arg-type]
        for row in report.stages
    )


def test_the_json_holds_everything(finished_run: Path, report: RunReport) -> None:
    assert read_run_report(finished_run / "report.json") == report


def test_changes_are_against_the_teacher(report: RunReport) -> None:
    teacher, _, _, quantize, _ = report.stages
    rows = run_rows(report)
    assert [row[0] for row in rows] == ["teacher", "distill", "prune", "quantize", "export"]
    assert rows[0][-3:] == ("", "", "")
    assert rows[3][-3:] == (
        f"{quantize.top1 - teacher.top1:+.2f}",
        f"{teacher.size_bytes / quantize.size_bytes:.1f}x",
        f"{quantize.speedup:.1f}x",
    )


def test_the_page_is_self_contained_and_well_formed(finished_run: Path) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"<script|src=(?!'data:)|<link rel='icon' href='(?!data:)|url\(", page)
    drawings = re.findall(r"<svg.*?</svg>", page)
    assert len(drawings) == 1 + 3 + 1 + 1  # files, stages that trained, cuts, calibration
    for drawing in drawings:
        ET.fromstring(drawing)


def test_the_plots_show_every_stage_and_name_their_axes(
    finished_run: Path, report: RunReport
) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    tradeoff, *training = re.findall(r"<figure>.*?</figure>", page)
    labels = re.findall(r"<span class='label[^>]*>([^<]+)<", tradeoff)
    assert set(labels) == {row.stage for row in report.stages if row.stage != "quantize"}
    for name in ("latency p50, ms", "top-1, %"):
        assert f">{name}</span>" in tradeoff
    for stage, curves in zip(("teacher", "distill", "prune"), training, strict=False):
        assert f"<figcaption>{stage}: " in curves
        assert ">epoch</span>" in curves


def test_the_page_has_the_numbers_of_the_report(finished_run: Path, report: RunReport) -> None:
    page = (finished_run / "report.html").read_text(encoding="utf-8")
    for row in run_rows(report):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in row[1:])
        assert f"<tr><th scope='row' class='name'>{row[0]}</th>{cells}</tr>" in page
    (link,) = re.findall(r"download='report.json' href='data:[^,]+,([^']+)'", page)
    assert base64.b64decode(link).decode() == (finished_run / "report.json").read_text()


def test_a_stage_that_does_not_pay_is_said(run_copy: Path) -> None:
    path = run_copy / "3-quantize"
    report = read_stage_report(path)
    slow = dataclasses.replace(report, step_speedup_ci95=(0.8, 0.9), step_change=difference(-5.0))
    write_json(path / "report.json", slow)
    remarks = " ".join(collect(run_copy).remarks)
    assert "quantize did not pay off on this machine: its file has 0.80 to 0.90 times" in remarks
    assert "quantize cost top-1: -5.00 points [" in remarks


def test_a_stage_is_compared_with_the_one_before_and_not_by_way_of_the_teacher(
    run_copy: Path,
) -> None:
    """Ratios to the teacher, minutes apart, called a file slower that was 1.5 times faster."""
    before, path = read_stage_report(run_copy / "1-distill"), run_copy / "2-prune"
    assert before.step_speedup_ci95 is None  # it started from the teacher
    report = read_stage_report(path)
    assert report.step_speedup_ci95 is not None
    low, high = (end * before.speedup_ci95[0] for end in (0.7, 0.8))
    wandered = dataclasses.replace(
        report, speedup=low, speedup_ci95=(low, high), step_speedup_ci95=(1.48, 1.57)
    )
    write_json(path / "report.json", wandered)
    assert not any("prune did not pay" in remark for remark in collect(run_copy).remarks)


def test_a_stage_that_is_slower_but_better_is_not_called_a_loss(run_copy: Path) -> None:
    """As when small teachers teach a larger network."""
    path = run_copy / "1-distill"
    better = dataclasses.replace(
        read_stage_report(path),
        speedup=0.25,
        speedup_ci95=(0.2, 0.3),
        change=difference(2.0),
    )
    write_json(path / "report.json", better)
    remarks = " ".join(collect(run_copy).remarks)
    assert "distill gained 2.00 points at the cost of latency: its file has 0.20" in remarks
    assert "distill did not pay" not in remarks


def test_what_the_chain_lost_is_not_blamed_on_the_export(run_copy: Path) -> None:
    path = run_copy / "4-export"
    report = read_stage_report(path)
    assert report.step_change is None  # it has the file of the stage before
    write_json(path / "report.json", dataclasses.replace(report, change=difference(-5.0)))
    assert not any("export cost top-1" in remark for remark in collect(run_copy).remarks)


def test_another_machine_is_said(run_copy: Path) -> None:
    path = run_copy / "4-export"
    report = read_stage_report(path)
    assert not any("different machines" in remark for remark in collect(run_copy).remarks)
    other = dataclasses.replace(report.host, cpu="another")
    write_json(path / "report.json", dataclasses.replace(report, host=other))
    (remark,) = (one for one in collect(run_copy).remarks if "different machines" in one)
    assert "export: another, " in remark


def test_without_a_teacher_there_is_no_report(run_copy: Path) -> None:
    shutil.rmtree(run_copy / "0-teacher")
    with pytest.raises(CompressError, match="has no 0-teacher, with which"):
        collect(run_copy)


def test_a_shipped_float_file_is_not_taken_for_the_int8_one(report: RunReport) -> None:
    """Both stages have the digest of the int8 network."""
    *_, pruned, quantize, export = report.stages
    assert export.digest == quantize.digest
    floats = {"size_bytes": pruned.size_bytes, "correct": pruned.correct, "top1": 12.34}
    stages = replaced(report, "export", **floats, top1_ci95=(12.0, 13.0))
    page = tradeoff_html(dataclasses.replace(report, stages=stages))
    assert f"<td>{quantize.top1:.2f}</td>" in page
    assert "<td>12.34</td>" in page
    assert "quantize, export" in tradeoff_html(report)
    assert "quantize, export" not in page


def test_insights_of_another_file_are_not_shown(run_copy: Path, digits: Data) -> None:
    config = InsightsConfig(maps=False, robustness=False, images=50)
    add_insights(run_copy, digits, config)
    first = read_insights(run_copy)
    assert first is not None
    assert first.predictions is not None
    write_run_report(run_copy)
    page = run_copy / "report.html"
    assert "id='calibration'" in page.read_text(encoding="utf-8")
    folder = run_copy / "4-export"
    report = read_stage_report(folder)
    assert report.file == "model-int8.onnx"
    write_json(folder / "report.json", dataclasses.replace(report, file="model-float.onnx"))
    write_run_report(run_copy)
    assert "id='calibration'" not in page.read_text(encoding="utf-8")
    add_insights(run_copy, digits, config)
    second = read_insights(run_copy)
    assert second is not None
    assert second.compared.shipped == file_digest(folder / "model-float.onnx")
    assert second.compared != first.compared


def test_a_stage_made_from_an_older_one_is_said(run_copy: Path) -> None:
    path = run_copy / "3-quantize"
    write_json(path / "report.json", dataclasses.replace(read_stage_report(path), parent="other"))
    assert any(
        "quantize was made from an earlier version" in remark
        for remark in collect(run_copy).remarks
    )


def test_a_damaged_report_is_named(run_copy: Path) -> None:
    (run_copy / "3-quantize" / "report.json").write_text("{")
    with pytest.raises(ValueError, match="missing or damaged"):
        collect(run_copy)


def test_markdown_names_file_and_conditions(report: RunReport) -> None:
    text = run_markdown(report)
    assert f"**Ship `{report.ship}`.**" in text
    assert "ONNX Runtime" in text
    assert json.dumps(report.stages[0].n_images) in text


@pytest.mark.parametrize(
    ("count", "text"),
    [(999, "999"), (1500, "1.5 k"), (11_181_642, "11.2 M"), (1_814_073_344, "1.81 G")],
)
def test_counts_are_short(count: int, text: str) -> None:
    assert short(count) == text


def test_sizes_are_decimal() -> None:
    assert size_text(44_685_421) == "44.7 MB"
    assert size_text(12) == "12 B"
