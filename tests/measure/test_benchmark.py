"""When a ratio is concluded."""

import dataclasses
from typing import Any

import pytest

from compress.measure.benchmark import (
    Agreement,
    Cause,
    Doubt,
    Verdict,
    doubts_about_machine,
    doubts_about_outputs,
    judge,
)
from compress.measure.conditions import Conditions
from compress.measure.latency import Latency

IDLE = Conditions(cores=4, quota_cores=None, others_cores=0.02, throttled_share=0.0)
LATENCY = Latency(
    latency_ms_p50=1.0, latency_ms_p90=1.1, speedup=1.5, speedup_ci95=(1.4, 1.6), n_runs=60,
    batch=1, threads=1,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "threads", "noise", "cause", "text"),
    [
        ({}, 1, 0.02, None, ""),
        ({}, 4, 0.1, None, ""),
        ({"others_cores": None}, 4, 0.0, None, ""),
        ({"others_cores": 3.05}, 1, 0.02, None, ""),
        ({"quota_cores": 2.0}, 2, 0.02, None, ""),
        ({}, 5, 0.02, "affinity", "5 threads share 4 cores, all that this process may use"),
        ({"quota_cores": 1.5}, 2, 0.02, "quota", "2 threads share a CPU quota of 1.5 cores"),
        (
            {"throttled_share": 0.34}, 1, 0.02, "throttled",
            "the CPU quota stopped this process 34% of the time",
        ),
        (
            {"others_cores": 0.6}, 4, 0.02, "shared",
            "others kept 0.6 of 4 cores busy beside 4 threads",
        ),
        (
            {"others_cores": 3.6}, 1, 0.02, "shared",
            "others kept 3.6 of 4 cores busy beside 1 thread",
        ),
        ({}, 1, 0.23, "noise", "a file and its own copy differ by up to 23%, more than 10%"),
    ],
)  # fmt: skip
def test_each_fault_of_the_machine_is_a_doubt(
    change: dict[str, Any], threads: int, noise: float, cause: Cause | None, text: str
) -> None:
    conditions = dataclasses.replace(IDLE, **change)
    found = doubts_about_machine(conditions, threads=threads, noise=noise)
    assert found == (() if cause is None else (Doubt(cause=cause, text=text),))


def test_all_faults_are_told() -> None:
    worst = Conditions(cores=1, quota_cores=0.5, others_cores=0.9, throttled_share=0.5)
    found = doubts_about_machine(worst, threads=2, noise=1.0)
    assert [doubt.cause for doubt in found] == [
        *("affinity", "quota", "throttled", "shared", "noise")
    ]


def test_a_runtime_that_computes_something_else_is_not_compared() -> None:
    good = Agreement(top1_agreement=99.0, n_images=200, images="test")
    assert doubts_about_outputs(None, "onnxruntime") == ()
    assert doubts_about_outputs(good, "openvino") == ()
    bad = dataclasses.replace(good, top1_agreement=98.5, images="random")
    (doubt,) = doubts_about_outputs(bad, "openvino")
    assert doubt.cause == "outputs"
    assert doubt.text == "openvino agrees on the class of only 98.5 % of 200 random images"


@pytest.mark.parametrize(
    ("interval", "doubts", "verdict"),
    [
        ((1.01, 1.6), (), "faster"),
        ((0.4, 0.99), (), "slower"),
        ((0.9, 1.6), (), "no difference"),
        ((1.4, 1.6), (Doubt(cause="noise", text="noise"),), "not concluded"),
    ],
)
def test_a_ratio_is_judged_by_its_interval(
    interval: tuple[float, float], doubts: tuple[Doubt, ...], verdict: Verdict
) -> None:
    assert judge(dataclasses.replace(LATENCY, speedup_ci95=interval), doubts) == verdict
