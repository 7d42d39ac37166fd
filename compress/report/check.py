"""Whether a run keeps its promises, and what became worse since another run."""

import math
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from compress.errors import CompressError
from compress.files import printable
from compress.log import count_of
from compress.measure.results import StageReport
from compress.measure.statistics import compare_paired, unpack_bools
from compress.report.render import size_text
from compress.report.tables import markdown_table
from compress.report.text import markdown_text

SLOWER, LARGER = 1.2, 1.01
"""Ratios to a baseline up to which a file is not called slower or larger. Two timings of one file,
minutes apart, have differed by a sixth."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The file that a report judges: a run's last one, or a stage's."""

    name: str
    data: str
    """Short name of the dataset; empty: unknown."""
    file: StageReport
    teacher: StageReport | None
    """None if only the report of one stage is known."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is promised; None: nothing."""

    max_drop: float | None = None
    """Points of test top-1 below the teacher's."""
    max_latency_ms: float | None = None
    """Median."""
    max_size_mb: float | None = None
    """Millions of bytes."""

    def __post_init__(self) -> None:
        for name, limit in vars(self).items():
            if limit is not None and not math.isfinite(limit):
                option = f"--{name.replace('_', '-')}"
                raise CompressError(f"{option} must be a finite number, got {limit}")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One thing that was checked."""

    name: str
    outcome: Literal["kept", "broken", "skipped"]
    text: str


@dataclass(frozen=True, kw_only=True)
class Change:
    """Top-1 of one file minus that of another, in points."""

    points: float
    points_ci95: tuple[float, float]
    is_significant: bool
    """At the 5 % level."""
    is_paired: bool
    """Compared image by image."""


def judge(judged: Judged, limits: Limits, baseline: Judged | None) -> list[Promise]:
    """Checks a file against limits, and for regressions against a baseline.

    Raises:
        CompressError: there is nothing to check, or nothing to compare with.
    """
    promises = _promises(judged, limits)
    if baseline is not None:
        promises += _regressions(judged, baseline)
    if not promises:
        raise CompressError(
            "nothing to check; specify --max-drop, --max-latency-ms, --max-size-mb, or --baseline"
        )
    return promises


def _promises(judged: Judged, limits: Limits) -> list[Promise]:
    file, promises = judged.file, []
    if (limit := limits.max_drop) is not None:
        if judged.teacher is None:
            raise CompressError(
                f"{judged.name} has no teacher to compare with; check the run, or drop --max-drop"
            )
        change = file.change or top1_change(judged.teacher, file)
        drop = -change.points
        low, high = (-end for end in reversed(change.points_ci95))
        doubt = ""
        if low <= limit < high:
            doubt = f"; {count_of(file.n_images, 'test image')} cannot tell for sure"
        promises.append(
            _promise(
                "top-1 drop",
                drop <= limit,
                f"{drop:.2f} points [{low:.2f}, {high:.2f}] below the teacher's "
                f"{judged.teacher.top1:.2f} %, at most {limit:g}{doubt}",
            )
        )
    if (limit := limits.max_latency_ms) is not None:
        text = f"{file.latency_ms_p50:.3f} ms (p50), at most {limit:g} ms; {conditions_of(file)}"
        promises.append(_promise("latency", file.latency_ms_p50 <= limit, text))
    if (limit := limits.max_size_mb) is not None:
        text = f"{file.size_bytes / 1e6:.3f} MB, at most {limit:g} MB"
        promises.append(_promise("size", file.size_bytes <= 1e6 * limit, text))
    return promises


def _regressions(judged: Judged, baseline: Judged) -> list[Promise]:
    file, before = judged.file, baseline.file
    check_same_images(judged, baseline)
    change = top1_change(before, file)
    low, high = change.points_ci95
    certainty = "significant" if change.is_significant else "not significant"
    images = "same images" if change.is_paired else "without each image's result"
    top1 = _promise(
        "top-1 against the baseline",
        change.points >= 0 or not change.is_significant,
        f"{change.points:+.2f} points [{low:.2f}, {high:.2f}], {certainty} ({images}): "
        f"{file.top1:.2f} % after {before.top1:.2f} %",
    )
    growth = file.size_bytes / before.size_bytes
    sizes = f"{size_text(file.size_bytes)} after {size_text(before.size_bytes)}"
    size = _promise("size against the baseline", growth <= LARGER, f"{growth:.3f} times: {sizes}")
    return [top1, _slowdown(judged, baseline), size]


def _slowdown(judged: Judged, baseline: Judged) -> Promise:
    """Compares latencies, by the ratios to the same teacher if possible: its drift cancels."""
    name, file, before = "latency against the baseline", judged.file, baseline.file
    if conditions_of(file) != conditions_of(before):
        text = f"not comparable: {conditions_of(file)}; before: {conditions_of(before)}"
        return Promise(name=name, outcome="skipped", text=text)
    teachers = [one.teacher and one.teacher.digest for one in (judged, baseline)]
    times = f"{file.latency_ms_p50:.3f} ms after {before.latency_ms_p50:.3f} ms"
    if None in teachers or len(set(teachers)) > 1:
        slowdown = file.latency_ms_p50 / before.latency_ms_p50
        text = f"takes {slowdown:.2f} times as long (no interval: no common teacher): {times}"
        return _promise(name, slowdown <= SLOWER, text)
    slowdown = before.speedup / file.speedup
    low = before.speedup_ci95[0] / max(file.speedup_ci95[1], 1e-9)
    high = before.speedup_ci95[1] / max(file.speedup_ci95[0], 1e-9)
    text = f"takes {slowdown:.2f} [{low:.2f}, {high:.2f}] times as long: {times}"
    return _promise(name, low <= SLOWER, text)


def _promise(name: str, kept: bool, text: str) -> Promise:
    return Promise(name=name, outcome="kept" if kept else "broken", text=text)


def check_same_images(first: Judged, second: Judged) -> None:
    """Raises CompressError if two files are known to be scored on different test images."""
    known = {one.data for one in (first, second) if one.data}
    if len(known) > 1 or first.file.n_images != second.file.n_images:
        seen = [f"{one.name}: {one.file.n_images} of {one.data}" for one in (first, second)]
        raise CompressError(f"these runs have different test images ({'; '.join(seen)})")


def top1_change(before: StageReport, after: StageReport) -> Change:
    """Compares the top-1 of two files, image by image if they are known to have the same ones.

    Otherwise the interval is Newcombe's (1998), method 10, from both Wilson intervals. It treats
    the test images as two independent samples and is too wide for the same images.
    """
    if before.test_images and before.test_images == after.test_images:
        right, baseline = (unpack_bools(one.correct, one.n_images) for one in (after, before))
        paired = compare_paired(right, baseline)
        return Change(
            points=paired.points,
            points_ci95=paired.points_ci95,
            is_significant=paired.is_significant,
            is_paired=True,
        )
    (low, high), (low_after, high_after) = before.top1_ci95, after.top1_ci95
    points = round(after.top1 - before.top1, 9)  # 0.2, not 0.2000000000000028
    interval = (
        points - math.hypot(high - before.top1, after.top1 - low_after),
        points + math.hypot(before.top1 - low, high_after - after.top1),
    )
    return Change(
        points=points,
        points_ci95=interval,
        is_significant=interval[0] > 0 or interval[1] < 0,
        is_paired=False,
    )


def conditions_of(file: StageReport) -> str:
    """Returns on what a latency depends besides the file."""
    host = file.host
    return (
        f"{host.cpu}, {', '.join(host.isa)}, {count_of(host.cores, 'core')}, ONNX Runtime "
        f"{host.versions['onnxruntime']}, {count_of(file.threads, 'thread')}, batch {file.batch}"
    )


def check_markdown(name: str, promises: list[Promise]) -> str:
    """Returns the outcome for a pull request."""
    rows = [(one.name, one.outcome.upper(), markdown_text(one.text)) for one in promises]
    broken = sum(one.outcome == "broken" for one in promises)
    verdict = f"{broken} of {count_of(len(promises), 'promise')} broken" if broken else "kept"
    table = markdown_table(("promise", "", "measured"), rows)
    return f"### {markdown_text(name)}: {verdict}\n\n{table}\n"


def check_junit(name: str, promises: list[Promise]) -> str:
    """Returns the outcome as JUnit XML, as CI servers read it."""
    count = {
        outcome: str(sum(one.outcome == outcome for one in promises))
        for outcome in ("broken", "skipped")
    }
    facts = {
        "name": printable(name),
        "tests": str(len(promises)),
        "failures": count["broken"],
        "errors": "0",
        "skipped": count["skipped"],
    }
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", facts)
    for one in promises:
        case = ET.SubElement(suite, "testcase", classname="compress.check", name=one.name)
        text = printable(one.text)
        if one.outcome == "kept":
            ET.SubElement(case, "system-out").text = text
        else:
            ET.SubElement(case, "failure" if one.outcome == "broken" else "skipped", message=text)
    ET.indent(suites)
    return ET.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"
