"""docs/doctor.md has all checks and the whole shape of the JSON."""

import dataclasses
import re
from pathlib import Path

from compress.doctor.examine import CHECKS, Diagnosis
from compress.doctor.finding import Finding

PAGE = (Path(__file__).parents[2] / "docs/doctor.md").read_text(encoding="utf-8")


def _link(upstream: str) -> str:
    repository, number = upstream.split("#")
    return f"[{upstream.partition('/')[2]}](https://github.com/{repository}/issues/{number})"


def test_the_table_of_checks_is_that_of_the_code() -> None:
    rows = [
        (f"`{check.name}`", check.severity, check.subject, ", ".join(map(_link, check.upstream)))
        for check in CHECKS
    ]
    head = "| check | severity | looks for | discussed in |\n|---|---|---|---|\n"
    assert head + "\n".join(f"| {' | '.join(row)} |" for row in rows) in PAGE


def test_the_shape_of_the_json_is_documented() -> None:
    keys = re.findall(r"^\| `([a-z.\[\]]+)` \|", PAGE.partition("## JSON")[2], re.MULTILINE)
    of_finding = [f"findings[].{field.name}" for field in dataclasses.fields(Finding)]
    assert keys == [*(field.name for field in dataclasses.fields(Diagnosis)), *of_finding]
