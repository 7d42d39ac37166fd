"""Compares a file with its copy many times: how many intervals of the speedup exclude 1?

    python -m bench.aa MODEL.onnx              # about 8 minutes
    python -m bench.aa MODEL.onnx --part 3/8   # one of eight parts

Half of the comparisons run in quiet, half beside a busy process. Adds to bench/results/aa.json, and
writes a page.
"""

import multiprocessing
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from bench.results_file import read_results
from compress.cache import now
from compress.files import file_digest, write_json, write_text
from compress.host import Host, describe_host
from compress.log import say
from compress.measure import latency
from compress.report.render import host_text
from compress.report.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "aa.json"
PAGE = RESULTS.with_suffix(".md")
COMPARISONS = 200
COLUMNS = ("machine", "comparisons", "intervals that exclude 1", "median width")
INTRODUCTION = """\
How often is a file called faster or slower than its own copy? 95 % intervals of the speedup, as in
reports, but with shorter turns. *Width*: upper end over lower end, less 1."""
SLICE_S = 0.005
"""Shorter turns than in reports, so that 200 comparisons take minutes."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One comparison of a file with its copy."""

    number: int
    busy: bool
    """Whether another process kept a core busy."""
    speedup: float
    speedup_ci95: tuple[float, float]
    speedup_noise: float | None


@dataclass(frozen=True, kw_only=True)
class Results:
    """All comparisons of one file."""

    digest: str
    command: str
    date: str
    host: Host
    comparisons: tuple[Comparison, ...]


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--part", default="1/1", help="Which part of the comparisons: 3/8.")
def main(model: Path, part: str) -> None:
    """Runs the comparisons, or a part of them, and adds them to the results."""
    number, parts = map(int, part.split("/"))
    rows = [_compare(model, place) for place in range(number - 1, COMPARISONS, parts)]
    digest = file_digest(model)
    if RESULTS.is_file() and (old := read_results(Results, RESULTS)).digest == digest:
        new = {row.number for row in rows}
        rows += [row for row in old.comparisons if row.number not in new]
    rows.sort(key=lambda row: row.number)
    results = Results(
        digest=digest,
        command=f"python -m bench.aa {model.name}",
        date=now()[:10],
        host=describe_host(),
        comparisons=tuple(rows),
    )
    write_json(RESULTS, results)
    write_text(PAGE, results_markdown(results))
    say(f"{PAGE}")


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = []
    for busy in (False, True):
        chosen = [row for row in results.comparisons if row.busy == busy]
        excluded = sum(not row.speedup_ci95[0] <= 1 <= row.speedup_ci95[1] for row in chosen)
        widths = [row.speedup_ci95[1] / row.speedup_ci95[0] - 1 for row in chosen]
        rows.append(
            (
                "beside a busy process" if busy else "in quiet",
                *(str(len(chosen)), str(excluded)),
                f"{statistics.median(widths):.3f}" if widths else "",
            )
        )
    runtime = f"ONNX Runtime {results.host.versions['onnxruntime']}"
    facts = f"`{results.command}`, {results.date}; {runtime}, {host_text(results.host)}."
    return (
        "\n\n".join(
            ("# A file against its copy", INTRODUCTION, markdown_table(COLUMNS, rows), facts)
        )
        + "\n"
    )


def _compare(model: Path, number: int) -> Comparison:
    busy = number >= COMPARISONS // 2
    with TemporaryDirectory() as folder, _neighbor(busy=busy):
        copy = Path(folder) / "copy.onnx"
        shutil.copyfile(model, copy)
        latency.SLICE_S = SLICE_S
        found = latency.measure_latency([model, copy])[1]
    return Comparison(
        number=number,
        busy=busy,
        speedup=found.speedup,
        speedup_ci95=found.speedup_ci95,
        speedup_noise=found.speedup_noise,
    )


@contextmanager
def _neighbor(*, busy: bool) -> Iterator[None]:
    process = multiprocessing.get_context("spawn").Process(target=_spin, daemon=True)
    if busy:
        process.start()
    try:
        yield
    finally:
        if busy:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
