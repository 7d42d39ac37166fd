"""Promises, regressions, and comparisons of runs."""

import dataclasses
import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from compress.cli.main import main
from compress.errors import CompressError
from compress.measure.statistics import compare_paired, pack_bools, wilson_interval
from compress.report.check import Judged, Limits, check_junit, check_markdown, judge, top1_change
from compress.report.compare import COLUMNS, compare_cells, compare_html, compare_runs
from compress.run.check import read_judged

FULL = Path(__file__).parents[2] / "bench/results/resnet18-fashion-mnist.json"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def judged() -> Judged:
    """The main job's run: 94.08 %, the teacher 93.47 %, 10,000 images."""
    return read_judged(FULL)


def test_folders_may_have_another_path_on_another_machine(judged: Judged, tmp_path: Path) -> None:
    paths: list[Path] = []
    for home in ("/home/me", "/ci/build"):
        raw = {**json.loads(FULL.read_text()), "data": f"imagefolder:{home}/photos"}
        paths.append(tmp_path / f"{len(paths)}.json")
        paths[-1].write_text(json.dumps(raw))
    mine, built = map(read_judged, paths)
    assert mine.data == "photos"
    assert len(judge(mine, Limits(), built)) == 3
    with pytest.raises(CompressError, match="have different test images"):
        judge(mine, Limits(), judged)


def changed(judged: Judged, **changes: object) -> Judged:
    file = dataclasses.replace(judged.file, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(judged, file=file)


def scored(judged: Judged, correct: int, n: int = 10_000) -> Judged:
    interval = wilson_interval(correct, n)
    return changed(judged, top1=100 * correct / n, top1_ci95=interval, n_images=n, change=None)


def test_the_interval_of_a_difference_is_newcombe_s(judged: Judged) -> None:
    """His example (b): 9 of 10 and 3 of 10, method 10: 0.1705 to 0.8090."""
    nine, three = scored(judged, 9, 10), scored(judged, 3, 10)
    change = top1_change(three.file, nine.file)
    assert change.points_ci95 == pytest.approx((17.05, 80.90), abs=0.005)
    assert not change.is_paired


def test_the_same_images_are_compared_one_by_one(judged: Judged) -> None:
    """22 lost and 2 gained of 10,000: the intervals overlap, McNemar's test tells them apart."""
    before, after = np.arange(10_000) < 9_408, np.arange(10_000) < 9_386
    after[-2:] = True
    files = [
        changed(scored(judged, int(right.sum())), test_images="the same", correct=pack_bools(right))
        for right in (before, after)
    ]
    change = top1_change(*(one.file for one in files))
    expected = compare_paired(after, before)
    assert (expected.gained, expected.lost) == (2, 22)
    assert (change.points, change.points_ci95) == (expected.points, expected.points_ci95)
    assert change.is_paired
    assert change.is_significant
    top1 = judge(files[1], Limits(), files[0])[0]
    assert top1.outcome == "broken"
    assert "significant (same images): 93.88 % after 94.08 %" in top1.text
    other = changed(files[1], test_images="others")
    assert judge(other, Limits(), files[0])[0].outcome == "kept"


def test_a_damaged_list_of_correct_images_is_refused(judged: Judged) -> None:
    with pytest.raises(ValueError, match="do not hold"):
        changed(judged, correct="AAAA")


def test_kept_promises(judged: Judged) -> None:
    limits = Limits(max_drop=0.5, max_latency_ms=8, max_size_mb=2)
    promises = judge(judged, limits, None)
    assert [one.name for one in promises] == ["top-1 drop", "latency", "size"]
    assert {one.outcome for one in promises} == {"kept"}


def test_broken_promises(judged: Judged) -> None:
    bad = changed(scored(judged, 9_200), latency_ms_p50=8.1, size_bytes=2_000_001)
    drop, latency, size = judge(bad, Limits(max_drop=1.4, max_latency_ms=8, max_size_mb=2), None)
    assert {drop.outcome, latency.outcome, size.outcome} == {"broken"}
    assert "1.47 points" in drop.text
    assert "8.100 ms (p50), at most 8 ms; AMD EPYC" in latency.text
    assert "2.000 MB, at most 2 MB" in size.text
    (at_the_limit,) = judge(changed(bad, size_bytes=2_000_000), Limits(max_size_mb=2), None)
    assert at_the_limit.outcome == "kept"


def test_exactly_the_limit_is_kept(judged: Judged) -> None:
    """93.47 - 93.27 is 0.2000000000000028 in floating point."""
    right = np.arange(10_000) < 9_347
    fewer = right & (np.arange(10_000) >= 20)
    for change in (None, compare_paired(fewer, right)):
        lower = changed(scored(judged, 9_327), change=change)
        assert judge(lower, Limits(max_drop=0.2), None)[0].outcome == "kept"
        assert judge(lower, Limits(max_drop=0.19), None)[0].outcome == "broken"


def test_a_stage_folder_knows_its_dataset(finished_run: Path, judged: Judged) -> None:
    stage = read_judged(finished_run / "3-quantize")
    assert stage.data == "digits"
    with pytest.raises(CompressError, match="have different test images"):
        judge(stage, Limits(), scored(judged, 300, stage.file.n_images))


def test_too_few_images_are_told(judged: Judged) -> None:
    few = scored(judged, 93, 100)
    (drop,) = judge(few, Limits(max_drop=1), None)
    assert drop.outcome == "kept"
    assert drop.text.endswith("; 100 test images cannot tell for sure")


@pytest.mark.parametrize(
    ("correct", "outcome", "text"),
    [
        (9_408, "kept", r"\+0.00 points \[-0\.\d+, 0\.\d+\], not significant \(without"),
        (9_380, "kept", r"-0.28 points \[-0\.\d+, 0\.\d+\], not significant \(without"),
        (9_300, "broken", r"-1.08 points \[-1\.\d+, -0\.\d+\], significant \(without"),
        (9_500, "kept", r"\+0.92 points \[0\.\d+, 1\.\d+\], significant \(without"),
    ],
)
def test_regressions_of_accuracy(judged: Judged, correct: int, outcome: str, text: str) -> None:
    top1 = judge(scored(judged, correct), Limits(), scored(judged, 9_408))[0]
    assert top1.outcome == outcome
    assert re.match(text, top1.text)


@pytest.mark.parametrize(
    ("changes", "outcome", "text"),
    [
        ({"speedup": 50.0, "speedup_ci95": (45.0, 55.0)}, "kept", "takes 1.20 ["),
        ({"speedup": 30.0, "speedup_ci95": (29.0, 31.0)}, "broken", "takes 2.01 ["),
        ({"threads": 2}, "skipped", "not comparable: AMD EPYC"),
    ],
)
def test_regressions_of_latency(
    judged: Judged, changes: dict[str, object], outcome: str, text: str
) -> None:
    latency = judge(changed(judged, **changes), Limits(), judged)[1]
    assert latency.outcome == outcome
    assert latency.text.startswith(text)


def test_regressions_without_a_common_teacher_and_of_size(judged: Judged) -> None:
    slow = changed(judged, latency_ms_p50=1.0, size_bytes=2 * judged.file.size_bytes)
    alone = dataclasses.replace(slow, teacher=None)
    _, latency, size = judge(alone, Limits(), judged)
    assert latency.outcome == size.outcome == "broken"
    assert "(no interval: no common teacher)" in latency.text
    assert size.text.startswith("2.000 times: ")


def test_what_cannot_be_judged_is_told(judged: Judged) -> None:
    with pytest.raises(CompressError, match="nothing to check; specify --max-drop"):
        judge(judged, Limits(), None)
    with pytest.raises(CompressError, match="--max-drop must be a finite number, got nan"):
        Limits(max_drop=float("nan"))
    with pytest.raises(CompressError, match="has no teacher to compare with"):
        judge(dataclasses.replace(judged, teacher=None), Limits(max_drop=1), None)
    for other in (scored(judged, 93, 100), dataclasses.replace(judged, data="digits")):
        with pytest.raises(CompressError, match="have different test images"):
            judge(judged, Limits(), other)


def test_markdown_and_junit_hold_every_promise(judged: Judged) -> None:
    promises = judge(changed(judged, threads=2), Limits(max_drop=-9, max_size_mb=2), judged)
    name = 'a "run" | <b>\x1b'
    text = check_markdown(name, promises)
    assert text.startswith('### a "run" \\| \\<b>\\x1b: 1 of 5 promises broken\n')
    assert text.count("\n| ") == 7
    suite = ET.fromstring(check_junit(name, promises))[0]
    assert suite.attrib == {
        "name": 'a "run" | <b>\\x1b', "tests": "5", "failures": "1", "errors": "0", "skipped": "1",
    }  # fmt: skip
    assert [case[0].tag for case in suite] == [
        "failure", "system-out", "system-out", "skipped", "system-out",
    ]  # fmt: skip


def test_check_is_a_command_for_ci(finished_run: Path, tmp_path: Path) -> None:
    junit, markdown = tmp_path / "junit.xml", tmp_path / "summary.md"
    files = ("--junit", junit, "--markdown", markdown)
    kept = call("check", finished_run, "--max-drop", 99, "--baseline", finished_run, *files)
    assert kept.exit_code == 0, kept.output
    assert [line.split()[0] for line in kept.output.splitlines()] == ["kept"] * 4
    broken = call("check", finished_run, "--max-size-mb", 0.0001, *files)
    assert broken.exit_code == 1
    assert broken.output.startswith("broken  size: ")
    assert ET.parse(junit).getroot()[0].attrib["failures"] == "1"
    assert markdown.read_text().count("### small-digits: ") == 2
    stage = call("check", finished_run / "2-prune", "--max-drop", 99)
    assert stage.exit_code == 0, stage.output
    alone = shutil.copytree(finished_run / "2-prune", tmp_path / "alone")
    without = call("check", alone, "--max-drop", 99)
    assert without.exit_code == 2
    assert "alone has no teacher" in without.output


def test_damaged_and_unfinished_runs_are_refused(run_copy: Path, tmp_path: Path) -> None:
    path = run_copy / "report.json"
    raw = json.loads(path.read_text())
    for harm in (
        "{",
        "7",
        "[]",
        json.dumps({**raw, "stages": []}),
        json.dumps({**raw, "stages": [{}]}),
    ):
        path.write_text(harm)
        for command in (("check", run_copy, "--max-drop", 1), ("compare", run_copy, FULL)):
            result = call(*command)
            assert result.exit_code == 2, harm
            assert "report.json is missing or damaged" in result.output
    path.write_text(json.dumps({**raw, "stages": raw["stages"][:3]}))
    result = call("check", run_copy, "--max-drop", 1)
    assert result.exit_code == 2
    assert "is unfinished: it ends with stage prune" in result.output
    for path in (tmp_path, tmp_path / "absent"):
        assert "is missing or damaged" in call("compare", path).output


def test_runs_are_compared_in_one_table_and_page(
    judged: Judged, finished_run: Path, tmp_path: Path
) -> None:
    page = tmp_path / "compared.html"
    result = call("compare", FULL, finished_run, FULL, "--html", page)
    assert result.exit_code == 0, result.output
    assert "small-digits" in result.output
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == 1
    assert text.count("small-digits") >= 2
    other = read_judged(finished_run)
    slower = changed(scored(judged, 9_300), latency_ms_p50=2 * judged.file.latency_ms_p50)
    first, second, third = map(compare_cells, compare_runs([judged, slower, other]))
    assert len(first) == len(COLUMNS)
    assert first[-4:] == ("",) * 4
    assert second[-4:] == ("-1.08", "-1.8 to -0.4", "1.00x", "0.50x")
    assert third[-4:-2] == ("", "")  # other images
    hostile = dataclasses.replace(judged, name="<script>", data="$x_{$")
    assert "<script>" not in compare_html(compare_runs([hostile, judged]))
