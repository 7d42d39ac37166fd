"""README, docs/, and CONTRIBUTING: their numbers, commands, settings, links, and examples."""

import importlib
import itertools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from bench import (
    aa,
    distill_losses,
    distill_regimes,
    elpv_finetune,
    folder_speed,
    folders,
    mutation,
    neighbor,
    openvino,
    plot_readme,
    prune_peers,
    ptq_peers,
    train_speed,
)
from bench.api_page import api_page
from bench.results_file import read_results
from compress.cli.main import main
from compress.report.render import COLUMNS, conditions, run_rows, size_text
from compress.report.tables import markdown_table
from compress.run.lookup import read_run_report
from compress.run.recipe import (
    card_names,
    load_card,
    load_recipe,
    recipe_names,
    recipe_settings,
)
from tests.test_layout import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README = TEXTS["README.md"]
RESULTS = ROOT / "bench/results"
MAIN_RUN = read_run_report(plot_readme.RESULTS)
README_LINES = 150
DEFAULT = load_recipe("default")
SETTINGS = {setting.name for setting in recipe_settings(DEFAULT)}
"""As `--set` takes them."""
OTHER_OPTIONS = {
    "--help", "--standalone", "--nproc-per-node", "--nnodes", "--node-rank", "--master-addr",
    "--master-port", "--logdir",
}  # fmt: skip
"""torchrun's, TensorBoard's, and click's own."""

in_each_page = pytest.mark.parametrize("page", TEXTS)


def code_blocks(text: str) -> Iterator[str]:
    """Indented and fenced blocks, without their fences."""
    yield from re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for indented, lines in itertools.groupby(plain.splitlines(), lambda line: line[:4] == "    "):
        if indented:
            yield "\n".join(line[4:] for line in lines)


def commands(text: str, program: str) -> list[list[str]]:
    """The arguments of each complete command in a page, in blocks and between backticks."""
    lines = [
        line for block in code_blocks(text) for line in re.sub(r"\\\n\s*", "", block).splitlines()
    ]
    lines += re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    found = []
    for line in lines:
        plain = re.sub(r"\s+#.*", "", " ".join(line.split()))
        plain = re.sub(r"^torchrun .*?-m (?=compress )", "", plain)
        if plain.startswith(f"{program} ") and not re.search(r"\b[A-Z]{2,}\b|\.\.\.", plain):
            found.append(shlex.split(plain)[len(program.split()) :])
    return found


def test_commands_are_found_in_every_form() -> None:
    text = (
        "`compress report` `compress x PATH`\n\n    torchrun -m compress run \\\n        a  # b\n"
    )
    assert commands(text, "compress") == [["run", "a"], ["report"]]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= README_LINES


def test_the_main_table_is_rendered_from_its_file() -> None:
    assert markdown_table(COLUMNS, run_rows(MAIN_RUN)) in README
    assert conditions(MAIN_RUN.stages[-1]) in README


def test_the_plot_is_drawn_from_the_same_file(tmp_path: Path) -> None:
    plot_readme.draw(MAIN_RUN, tmp_path / "plot.svg")
    labels = re.findall(r">([^<>]+)</text>", (tmp_path / "plot.svg").read_text(encoding="utf-8"))
    for stage in MAIN_RUN.stages:
        wanted = {size_text(stage.size_bytes), f"{stage.latency_ms_p50:.3f} ms"}
        assert wanted | {f"{stage.top1:.2f} %", stage.stage} <= set(labels)
    committed = plot_readme.PLOT.read_text(encoding="utf-8")
    assert re.findall(r">([^<>]+)</text>", committed) == labels
    assert f"({plot_readme.PLOT.relative_to(ROOT)})" in README


def test_the_table_of_mutants_is_rendered_from_its_file() -> None:
    results = read_results(mutation.Results, mutation.RESULTS)
    assert mutation.table(results) in TEXTS["CONTRIBUTING.md"]
    assert mutation.facts(results) in TEXTS["CONTRIBUTING.md"]


@pytest.mark.parametrize(
    "bench",
    [
        *(aa, distill_regimes, elpv_finetune, folder_speed, folders, mutation),
        *(neighbor, openvino, prune_peers, ptq_peers, train_speed),
    ],
)
def test_the_page_of_a_comparison_is_rendered_from_its_file(bench: ModuleType) -> None:
    results = read_results(bench.Results, bench.RESULTS)
    assert bench.PAGE.read_text(encoding="utf-8") == bench.results_markdown(results)


@pytest.mark.parametrize(
    "file", sorted(RESULTS.glob("distill_*_epochs.json")), ids=lambda file: file.stem
)
def test_the_page_of_a_distillation_is_rendered_from_its_file(file: Path) -> None:
    results = read_results(distill_losses.Results, file)
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert page == distill_losses.results_markdown(results)


def test_every_result_is_linked_from_a_page() -> None:
    linked = {
        name for text in TEXTS.values() for name in re.findall(r"bench/results/(\w+\.md)", text)
    }
    assert linked == {page.name for page in RESULTS.glob("*.md")}


def quoting_sections() -> Iterator[tuple[str, str, str]]:
    """Sections that link to pages of results: where they are, their text, and those pages."""
    for page, text in TEXTS.items():
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
            sources = set(re.findall(r"\]\(\.\./bench/results/(\w+\.md)\)", section))
            if sources:
                quoted = "\n".join((RESULTS / name).read_text("utf-8") for name in sources)
                yield f"{page}, {section.splitlines()[0]}", section, quoted


@pytest.mark.parametrize(
    ("section", "source"), [case[1:] for case in quoting_sections()],
    ids=[case[0] for case in quoting_sections()],
)  # fmt: skip
def test_numbers_are_those_of_the_linked_results(section: str, source: str) -> None:
    """A row's numbers stand in one row of the source; so do a sentence's, and the conditions."""
    rows = [set(cells(row)) for row in source.splitlines() if row.startswith("| ")]
    for line in section.splitlines():
        numbers = {cell for cell in cells(line) if re.search(r"\d", cell)}
        if line.startswith("| ") and not any("px" in cell for cell in numbers):
            numbers -= {cell for cell in numbers if cell == cells(line)[0]}
            assert any(numbers <= row for row in rows), line
    prose = "\n".join(line for line in section.splitlines() if not line.startswith("|"))
    for number in re.findall(r"\d+\.\d{2,}(?: ± \d\.\d+)?", prose):
        assert number in source, number
    told = re.findall(r"(?:ONNX Runtime \d.*|torch \d.*|AMD .*)\.$", section, re.MULTILINE)
    assert told
    assert all(line in source for line in told)
    assert re.search(r"\b2\d{3}-\d\d-\d\d\b", section)


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("| ").split("|")]


@pytest.mark.parametrize("recipe", ["distill_from_small", "ptq", "qat"])
def test_the_result_in_a_recipe_s_header_is_that_of_its_file(recipe: str) -> None:
    (file,) = RESULTS.glob(f"*-{recipe}.json")
    header = (ROOT / f"pipelines/{recipe}.toml").read_text(encoding="utf-8")
    told = set(re.findall(r"\b(\d\d\.\d\d)\s(?:# )?%", header))
    assert told
    assert told <= {f"{stage.top1:.2f}" for stage in read_run_report(file).stages}


@in_each_page
def test_every_command_parses(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = commands(TEXTS[page], "compress")
    if page == "README.md":
        assert len(found) > 5
    make_files(found, tmp_path)
    for arguments in found:
        parse(arguments)


def make_files(found: list[list[str]], folder: Path) -> None:
    """Makes the files and checkpoint folders that commands name, and those of the main run."""
    for number, stage in enumerate(DEFAULT.stages):
        (folder / "runs/resnet18-fashion-mnist" / f"{number}-{stage}").mkdir(parents=True)
    for word in (word for arguments in found for word in arguments):
        for name in re.findall(r"[\w./-]+\.(?:onnx|jpg|png)", word):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        for name in re.findall(r"runs/[\w-]+/\d-[a-z]+(?![\w./])", word):
            (folder / name).mkdir(parents=True, exist_ok=True)


def parse(arguments: list[str]) -> None:
    """Lets click and the recipe check a command, without running it."""
    name, *rest = [argument for argument in arguments if argument != "--debug"]
    assert name in main.commands
    if not rest or "--help" in rest:  # named in a sentence
        return
    with (
        click.Context(main) as parent,
        main.commands[name].make_context(name, rest, parent=parent) as context,
    ):
        given = context.params
    if name == "run":
        load_recipe(given["pipeline"], given["overrides"])
        assert given["model"].endswith(".toml") or given["model"] in card_names()
        assert {given["first"], given["last"]} <= {*DEFAULT.stages, None}
    if name == "pipelines":
        assert given["name"] in {*recipe_names(), None}


def test_every_command_of_the_program_is_named() -> None:
    assert set(re.findall(r"`compress ([a-z]+)\b", README)) <= set(main.commands)
    for command in main.commands:
        assert re.search(rf"\| `.*\b{command}\b.*`.* \|", README), command


@in_each_page
def test_every_make_target_exists(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for arguments in commands(TEXTS[page], "make"):
        values = dict(one.split("=") for one in arguments if "=" in one)
        for target in (one for one in arguments if "=" not in one):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
        assert values.get("MODEL", "resnet18") in card_names()
        assert values.get("PIPELINE", "default") in recipe_names()


@in_each_page
def test_every_bench_command_parses(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = commands(TEXTS[page], "python -m")
    monkeypatch.chdir(tmp_path)
    make_files(found, tmp_path)
    for module, *arguments in found:
        program = importlib.import_module(module)
        if isinstance(getattr(program, "main", None), click.Command):
            program.main.make_context(module, list(arguments))


@in_each_page
def test_every_option_and_setting_exists(page: str) -> None:
    known = {
        option
        for command in main.commands.values()
        for parameter in command.get_params(click.Context(command, info_name=command.name))
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    bench = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bench").glob("*.py"))
    known |= {*re.findall(r'"(--[a-z-]+)"', bench), *OTHER_OPTIONS, "--debug"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"-m [a-z]+ ", "", TEXTS[page])))
    assert named <= known
    sections = "|".join({name.partition(".")[0] for name in SETTINGS})
    prose = re.sub(r"\w+\.(?:md|toml|py|json)\b", "", TEXTS[page])
    dotted = set(re.findall(rf"\b(?:{sections})\.[a-z_.]*[a-z]\b(?=[=`])", prose))
    assert dotted <= SETTINGS


@pytest.mark.parametrize("page", ["data", *DEFAULT.stages])
def test_a_page_explains_the_settings_of_its_stage(page: str) -> None:
    """The training's are on the teacher's page, those of learning from a teacher on distill's."""
    sections = {"teacher": ["teacher.train"], "distill": ["distill", "distill.kd"]}.get(
        page, [page]
    )
    table = TEXTS[f"docs/{page}.md"].rpartition("## Settings")[2]
    names = " ".join(cells(line)[0] for line in table.splitlines() if line.startswith("| `"))
    wanted = {name.rpartition(".")[2] for name in SETTINGS if name.rpartition(".")[0] in sections}
    assert set(re.findall(r"`(\w+)`", names)) == wanted


@pytest.mark.parametrize("stage", DEFAULT.stages)
def test_the_help_of_a_stage_names_its_page(stage: str) -> None:
    result = CliRunner().invoke(main, ["train" if stage == "teacher" else stage, "--help"])
    assert result.stdout.splitlines()[-1] == f"How it works: docs/{stage}.md"
    assert f"docs/{stage}.md" in TEXTS


def anchor(heading: str) -> str:
    """The fragment that GitHub and others give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@in_each_page
def test_every_link_resolves(page: str) -> None:
    folder = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        path, _, fragment = target.partition("#")
        if "://" in path:
            continue
        file = (folder / path).resolve() if path else ROOT / page
        assert file.is_file(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target
    for name in re.findall(
        r"`((?:bench|compress|models|pipelines|tests|docs)/[\w./]+)`", TEXTS[page]
    ):
        assert (ROOT / name).exists(), name


def test_every_page_can_be_reached_from_the_readme() -> None:
    linked = set(re.findall(r"\((docs/[\w-]+\.md)\)", README))
    assert linked == {name for name in TEXTS if "/" in name}


def test_every_recipe_is_listed() -> None:
    table = TEXTS["docs/runs.md"].partition("## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(recipe_names())


def test_the_floors_are_those_of_the_layout_test() -> None:
    section = TEXTS["docs/architecture.md"].partition("## Floors")[2].partition("## Tree")[0]
    drawn = [set(line.split()) for line in re.findall(r"^    (.+)$", section, re.MULTILINE)]
    assert drawn == [set(floor) for floor in reversed(FLOORS)]


def test_the_tree_names_what_there_is() -> None:
    tree = TEXTS["docs/architecture.md"].partition("## Tree")[2].partition("\n## ")[0]
    for name in re.findall(r"([a-z_]+(?:\.py|/))(?!\))", tree):
        assert (ROOT / name).exists() or (ROOT / "compress" / name).exists(), name
    for path in (ROOT / "compress").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert path.name in tree, path.name
        if path.is_dir() and (path / "__init__.py").exists():
            assert f"{path.name}/" in tree, path.name


def example(page: str, language: str, first: str = "") -> str:
    (found,) = re.findall(rf"```{language}\n({re.escape(first)}.*?)```", TEXTS[page], re.DOTALL)
    return str(found)


def test_the_page_s_own_model_becomes_a_teacher(
    digit_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its factory, card, and command, with weights that the factory's network saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_model.py").write_text(example("docs/models.md", "python"), encoding="utf-8")
    (tmp_path / "my_card.toml").write_text(
        example("docs/models.md", "toml", "# my"), encoding="utf-8"
    )
    weights = importlib.import_module("my_model").small_net(10).state_dict()
    torch.save(weights, tmp_path / "my_model.pth")
    (tmp_path / "photos").symlink_to(digit_folders)
    (command,) = (
        one for one in commands(TEXTS["docs/models.md"], "compress") if "my_card.toml" in one
    )
    result = CliRunner().invoke(main, [*command, "--until", "teacher"])
    assert result.exit_code == 0, result.output
    taken = load_file(tmp_path / "runs/my_card-photos/0-teacher/model.safetensors")
    assert all(torch.equal(taken[f"network.{name}"], weights[name]) for name in weights)


def test_the_program_that_calls_a_file_runs(
    finished_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished_run / "4-export")
    exec(compile(example("docs/export.md", "python"), "docs/export.md", "exec"), {})
    session = onnxruntime.InferenceSession("model-int8.onnx")
    assert (
        capsys.readouterr().out.strip()
        in session.get_modelmeta().custom_metadata_map["class_names"]
    )


def test_the_card_in_models_is_valid(tmp_path: Path) -> None:
    (tmp_path / "ours.pth").touch()
    (tmp_path / "card.toml").write_text(example("docs/models.md", "toml", "desc"), encoding="utf-8")
    assert load_card(str(tmp_path / "card.toml")).teacher.architecture == "resnet50"


def test_the_page_of_the_library_is_made_from_its_docstrings() -> None:
    assert TEXTS["docs/api.md"] == api_page(), "run: python -m bench.api_page"


@pytest.mark.slow
def test_the_example_of_the_library_runs_as_it_stands(tmp_path: Path) -> None:
    code = example("README.md", "python", "import compress")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "example.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    top1, latency = re.findall(r"[0-9.]+", done.stdout)
    assert float(top1) > 50
    assert float(latency) > 0
    assert (tmp_path / "digits.onnx").is_file()


def test_the_example_of_unlabeled_images_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(example("docs/api.md", "python"), "docs/api.md", "exec"), {})
    assert capsys.readouterr().out == "279 images with labels, 1100 without\n"
