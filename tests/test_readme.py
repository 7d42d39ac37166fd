"""The README's table is the one its result file gives."""

import re
from pathlib import Path
from types import ModuleType

import pytest

from bench import distill_losses, prune_peers, ptq_peers, train_speed
from bench.results_file import read_results
from compress.cli.main import main
from compress.measure.results import read_run_report
from compress.report.render import COLUMNS, conditions, markdown_table, run_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_result_table_is_rendered_from_its_file() -> None:
    report = read_run_report(ROOT / "bench/results/resnet18-fashion-mnist.json")
    assert markdown_table(COLUMNS, run_rows(report)) in README
    assert conditions(report.stages[-1]) in README


@pytest.mark.parametrize("bench", [prune_peers, ptq_peers, train_speed])
def test_the_page_of_a_comparison_is_rendered_from_its_file(bench: ModuleType) -> None:
    results = read_results(bench.Results, bench.RESULTS)
    assert bench.PAGE.read_text() == bench.results_markdown(results)
    assert str(bench.PAGE.relative_to(ROOT)) in README


@pytest.mark.parametrize(
    "file", sorted((ROOT / "bench/results").glob("distill_*.json")), ids=lambda file: file.stem
)
def test_the_page_of_a_card_s_distillation_is_rendered_from_its_file(file: Path) -> None:
    page = file.with_suffix(".md")
    results = read_results(distill_losses.Results, file)
    assert page.read_text() == distill_losses.results_markdown(results)
    assert str(page.relative_to(ROOT)) in README


@pytest.mark.parametrize("recipe", ["distill_from_small", "ptq", "qat"])
def test_the_result_in_a_recipe_s_header_is_that_of_its_file(recipe: str) -> None:
    (file,) = (ROOT / "bench/results").glob(f"*-{recipe}.json")
    header = (ROOT / f"pipelines/{recipe}.toml").read_text()
    told = set(re.findall(r"\b(\d\d\.\d\d)\s(?:# )?%", header))
    assert told
    assert told <= {f"{stage.top1:.2f}" for stage in read_run_report(file).stages}


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
