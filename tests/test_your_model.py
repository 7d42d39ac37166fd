"""docs/your-model.md: its numbers, its card, and its commands as they stand."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench.elpv import CARD
from compress.report.render import COLUMNS, change_text, conditions, run_rows
from compress.report.tables import markdown_table
from compress.run.lookup import read_run_report
from tests.test_docs import RESULTS, ROOT, TEXTS, code_blocks, example

PAGE = TEXTS["docs/your-model.md"]
REPORT = read_run_report(RESULTS / "your_model.json")


def test_the_numbers_are_those_of_the_report() -> None:
    teacher, last = REPORT.stages[0], REPORT.stages[-1]
    assert markdown_table(COLUMNS, run_rows(REPORT)) in PAGE
    assert conditions(last) in PAGE
    assert last.change is not None
    assert change_text(last.change) in PAGE
    told = set(re.findall(r"\d+\.\d\d(?= %)", PAGE))
    assert told == {f"{stage.balanced_top1:.2f}" for stage in (teacher, last)}


def test_the_card_is_the_one_that_the_bench_writes() -> None:
    assert example("docs/your-model.md", "toml") == CARD


@pytest.mark.slow  # 10 minutes; downloads photographs and weights
def test_the_commands_run_as_they_stand(tmp_path: Path) -> None:
    lines = [
        line
        for block in code_blocks(PAGE)
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.startswith(("compress ", "python "))
    ]
    assert [line.split()[1] for line in lines] == [
        *("-m", "run", "check", "predict", "bundle", "verify")
    ]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (line, done.stderr)
    report = read_run_report(tmp_path / "runs/lite0-photos/report.json")
    (teacher, *_, last), told = report.stages, REPORT.stages
    assert teacher.n_images == told[0].n_images
    assert teacher.top1_ci95[0] <= told[0].top1 <= teacher.top1_ci95[1]
    assert last.top1_ci95[0] <= told[-1].top1 <= last.top1_ci95[1]
    assert last.size_bytes < teacher.size_bytes / 20
    assert last.speedup > 1
