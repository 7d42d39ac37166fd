"""Names of classes, files and folders may be anything that a file system takes."""

import dataclasses
import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from PIL import Image
from rich.console import Console

from compress.checkpoint import load_checkpoint
from compress.cli.main import main
from compress.data.config import DataConfig
from compress.data.load import load_data
from compress.files import printable, write_text
from compress.log import say, track, waiting
from compress.onnx_file import read_facts
from compress.prune.result import PruneResult, Width
from compress.report.render import run_markdown, stage_markdown
from compress.report.run_page import RunFacts, run_html
from compress.report.text import markdown_text
from compress.run.lookup import read_run_report
from tests.processes import commands_program

FOLDERS = (
    b"[raw]", b"a|b", b"<b>&amp;", "日本語".encode(), "naïve *x*".encode(), b"_x_ `y`", b":smile:",
    b"two\nlines", b"caf\xe9", b"\x1b[31mred",
)  # fmt: skip
CLASSES = (
    "[raw]", "a|b", "<b>&amp;", "日本語", "naïve *x*", "_x_ `y`", ":smile:", "two\nlines",
    r"caf\xe9", "\x1b[31mred",
)  # fmt: skip
NAMES = (
    *CLASSES,
    "[/old]",
    "[x](http://a.b)",
    r"C:\new\*",
    "~~a~~",
    "max_drop",
    "![a][b]",
    "\udcff",
)
SMALL_CARD = """
[teacher]
architecture = "scaled_resnet"
arguments = { width = 0.125, depths = [1, 1] }
[student]
architecture = "scaled_resnet"
arguments = { width = 0.125, depths = [1] }
"""


SMALL = (
    *("--set", "data.size=16", "--set", "measure.rounds=5"),
    *("--set", "teacher.train.epochs=1"),
    *("--set", "teacher.train.min_steps=4"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A color for each class; the files' names, too, are odd."""
    root = tmp_path_factory.mktemp("names") / "[" / "old]"  # together [/old]
    for number, name in enumerate(FOLDERS):
        for split, count in (("train", 4), ("test", 2)):
            folder = root / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for place in range(count):
                image = Image.new("RGB", (32, 32), (25 * number, 128, 255 - 25 * number))
                image.save(folder / os.fsdecode(b"\xff[%d].png" % place))
    return root


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("names-run")
    card, recipe = home / "card.toml", home / "recipe.toml"
    card.write_text(SMALL_CARD, encoding="utf-8")
    recipe.write_text('stages = ["teacher", "export"]\n', encoding="utf-8")
    run = home / "[b]|*x* 日本"
    command = ["run", str(card), "--data", f"imagefolder:{photos}", "--out", str(run)]
    command += ["--pipeline", str(recipe), *SMALL]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert f"imagefolder:{photos}" in result.stderr
    assert run.name in result.stdout
    return run


def test_classes_are_called_as_their_folders(run: Path) -> None:
    for stage in sorted(run.glob("[0-4]-*")):
        assert sorted(load_checkpoint(stage).spec.class_names) == sorted(CLASSES)
        for path in stage.glob("*.onnx"):
            assert read_facts(path).class_names == load_checkpoint(stage).spec.class_names
    raw = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert json.loads(raw["class_names"]) == sorted(CLASSES)


def test_images_are_classified_by_name(run: Path, photos: Path) -> None:
    file = run / "4-export" / "model-float.onnx"
    images = [str(path) for path in sorted(photos.glob("test/*/*"))]
    result = CliRunner().invoke(main, ["predict", str(file), *images, "--top", "10"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == len(images)
    for line, image in zip(lines, images, strict=True):
        assert line.startswith(f"{printable(image)}: ")
        assert all(f"{printable(name)} " in line for name in CLASSES)
    evaluated = CliRunner().invoke(main, ["evaluate", str(run / "4-export")])
    assert f"test images of imagefolder:{photos}" in evaluated.stdout


def test_what_goes_wrong_is_told_of_any_name(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / os.fsdecode(b"[b]\xff\n.png")
    broken.write_bytes(b"not an image")
    file = run / "4-export" / "model-float.onnx"
    for target in (broken, tmp_path / os.fsdecode(b"[/no]\xfe.png")):
        result = CliRunner().invoke(main, ["predict", str(file), str(target)])
        assert result.exit_code == 2
        first, *rest = result.stderr.splitlines()
        assert first.startswith(printable(str(target)))
        assert rest[-1] == "Error: 1 of 1 images could not be read"
    odd = os.fsdecode(b"[/c]\xff")
    for command in (
        ["run", str(tmp_path / f"{odd}.toml")],
        ["run", odd],
        ["run", "resnet18", "--data", f"imagefolder:{tmp_path / odd}"],
        ["evaluate", str(broken)],
        ["benchmark", str(broken)],
        ["predict", str(broken), str(broken)],
        ["report", str(tmp_path)],
        ["quantize", "--in", str(tmp_path / odd)],
    ):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, (command, result.output)
        assert result.stderr.splitlines()[-1].startswith("Error: ")


def test_a_run_may_lie_anywhere(photos: Path, run: Path, tmp_path: Path) -> None:
    """Copies of data and results in folders whose names are not UTF-8."""
    home = tmp_path / os.fsdecode(b"[b]\xff")
    home.mkdir()
    shutil.copytree(photos, home / "photos")
    card = home / "card.toml"
    card.write_text(SMALL_CARD, encoding="utf-8")
    out = home / os.fsdecode(b"r\xfen")
    command = ["run", str(card), "--data", f"imagefolder:{home / 'photos'}", "--out", str(out)]
    command += ["--pipeline", "smoke", "--until", "teacher", *SMALL]
    for _ in range(2):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert "teacher: already done" in result.stderr
    assert printable(str(out)) in result.stdout
    for command in (["evaluate", str(out / "0-teacher")], ["report", str(out)]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_any_terminal_will_do(run: Path, photos: Path, encoding: str) -> None:
    file, image = run / "4-export" / "model-float.onnx", next(photos.glob("test/*/*"))
    predict, report = ["predict", str(file), str(image), "--top", "10"], ["report", str(run)]
    process = subprocess.run(
        [sys.executable, "-c", commands_program(predict, report)],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    # click takes UTF-8 where ASCII is asked for
    shown = process.stdout.decode("utf-8" if encoding == "ascii" else encoding)
    assert len(re.findall(r"日本|\\u65e5\\u672c", shown)) >= 2


def test_a_data_set_tells_of_any_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "[" / "old]"
    for split in ("train", "test"):
        for name in FOLDERS[:3]:
            folder = root / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(12):
                source = next((photos / "train" / os.fsdecode(name)).iterdir())
                (folder / f"{number}.png").write_bytes(source.read_bytes())
    broken = root / "train" / "[raw]" / os.fsdecode(b"\xff.png")
    broken.write_bytes(b"not an image")
    for path in (root / "test" / "[raw]").iterdir():
        path.unlink()
    data = load_data(f"imagefolder:{root}", DataConfig(size=16), seed=0)
    assert data.class_names == tuple(sorted(CLASSES[:3]))
    said = capsys.readouterr().err
    assert f"data: imagefolder:{root}, 16 x 16 px" in said
    assert f"warning: 1 unreadable image skipped: {printable(str(broken))}" in said
    assert "warning: test/ has no images of: [raw]; its top-1" in said


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_said_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with waiting(name):
        assert list(track([1], name, total=1)) == [1]
    say(name)
    assert capsys.readouterr().err == f"{printable(name)}\n"


@pytest.mark.parametrize("name", NAMES)
def test_any_name_is_shown_as_it_is_while_working(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=200)
    monkeypatch.setattr("compress.log.console", terminal)
    with waiting(name):
        pass
    waited = shown.tell()
    assert printable(name) in shown.getvalue()
    assert list(track([1], name, total=1)) == [1]
    assert printable(name) in shown.getvalue()[waited:]


def test_reports_tell_any_name_as_it_is(run: Path, tmp_path: Path) -> None:
    report = read_run_report(run / "report.json")
    result = PruneResult(
        precision="/a/[/b]|c\udcff",
        importance="magnitude",
        unpruned_ms=1.0,
        iterations=(),
        widths=tuple(Width(layer=name, before=2, after=1) for name in NAMES),
        removed_blocks=(),
        not_pruned={},
    )
    stage = dataclasses.replace(report.stages[-1], result=result, findings=NAMES)
    for name in NAMES:
        odd = dataclasses.replace(report, name=name, remarks=NAMES, stages=(stage,))
        write_text(tmp_path / "report.html", run_html(RunFacts(report=odd)))
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        assert f"<h1>{html.escape(printable(name))}</h1>" in page
        items = [html.unescape(item) for item in re.findall(r"<li>(.*?)</li>", page, re.DOTALL)]
        assert items == list(map(printable, NAMES))
    write_text(tmp_path / "report.md", run_markdown(odd) + stage_markdown(stage))
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page)
    cells = [html.unescape(text) for text in re.findall(r"<li>(.*)</li>", rendered)]
    assert cells == list(map(printable, NAMES))
    cells = [html.unescape(text) for text in re.findall(r"<td[^>]*>(.*)</td>", rendered)]
    assert all(printable(name) in cells for name in NAMES)
    assert printable("/a/[/b]|c\udcff") in cells


@pytest.mark.parametrize("name", NAMES)
def test_any_name_reads_as_it_is_in_markdown(name: str) -> None:
    page = f"# {markdown_text(name)}\n\n- of {markdown_text(name)} it\n\n| a |\n|---|\n"
    page += f"| {markdown_text(name)} |\n"
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(page)
    texts = [html.unescape(text) for text in re.findall(r">([^<>\n]+)</", rendered)]
    assert texts == [printable(name), f"of {printable(name)} it", "a", printable(name)]


def test_what_needs_no_escape_has_none() -> None:
    for text in ("max_drop = 1", "[0.97, 1.02]", "a & b", "2.1x", "runs/a_b/4-export/model.onnx"):
        assert markdown_text(text) == text
