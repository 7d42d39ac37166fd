"""The README's table is the one its result file gives."""

import re
from pathlib import Path

from compress.cli import main
from compress.report.data import read_run_report
from compress.report.render import COLUMNS, conditions, markdown_table, run_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_result_table_is_rendered_from_its_file() -> None:
    report = read_run_report(ROOT / "bench/results/resnet18-fashion-mnist.json")
    assert markdown_table(COLUMNS, run_rows(report)) in README
    assert conditions(report.stages[-1]) in README


def test_the_comparison_with_other_tools_is_rendered_from_its_file() -> None:
    from bench.ptq_peers import PAGE, read_results, results_markdown

    assert PAGE.read_text() == results_markdown(read_results())
    assert str(PAGE.relative_to(ROOT)) in README


def test_each_command_is_named_and_exists() -> None:
    assert set(re.findall(r"compress ([a-z]+)\b", README)) <= set(main.commands)
    for command in main.commands:
        assert re.search(rf"`.*{command}", README), command


def test_the_tree_names_what_there_is() -> None:
    tree = README[README.index("## The tree") : README.index("## Develop")]
    for name in re.findall(r"([a-z_]+(?:\.py|/))", tree):
        assert (ROOT / name).exists() or (ROOT / "compress" / name).exists(), name
    for path in (ROOT / "compress").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in tree, path.name
