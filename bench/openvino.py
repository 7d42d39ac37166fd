"""How does OpenVINO run our files? Those of the main run in both runtimes, taking turns.

    make pipeline MODEL=resnet18 && .venv/bin/uv pip install openvino
    python -m bench.openvino

Writes bench/results/openvino.json and openvino.md.
"""

from dataclasses import dataclass
from pathlib import Path

import click

from bench.results_file import read_results
from compress.files import write_json, write_text
from compress.log import say
from compress.measure.benchmark import BenchmarkResult
from compress.report.benchmark import (
    LATENCY_COLUMNS,
    LOADING_COLUMNS,
    latency_rows,
    loading_rows,
    remarks,
)
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.benchmark import benchmark_files

RESULTS = Path(__file__).parent / "results" / "openvino.json"
PAGE = RESULTS.with_suffix(".md")
RUN = Path("runs/resnet18-fashion-mnist")
FILES = (RUN / "0-teacher", RUN)
THREADS, BATCHES, ROUNDS = (1, 2), (1, 8), 200
INTRODUCTION = """\
Each file in ONNX Runtime and in OpenVINO, which take turns in the same processes. OpenVINO has a
fixed batch size and is tuned for latency; it computes float layers in bf16 where the CPU can.
*faster* is against the same file in ONNX Runtime. The other columns are explained in
[measuring.md](../../docs/measuring.md#benchmarks)."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """A comparison of each file."""

    command: str
    files: tuple[BenchmarkResult, ...]


@click.command()
def main() -> None:
    """Compares, and writes the results and their page."""
    found = [
        benchmark_files([file], THREADS, BATCHES, against=["openvino"], rounds=ROUNDS)
        for file in FILES
    ]
    write_json(RESULTS, Results(command="python -m bench.openvino", files=tuple(found)))
    write_text(PAGE, results_markdown(read_results(Results, RESULTS)))
    say(f"{PAGE}")


def results_markdown(results: Results) -> str:
    """Returns the page."""
    last = results.files[-1]
    versions = f"ONNX Runtime {last.versions['onnxruntime']}, OpenVINO {last.versions['openvino']}"
    latency = [row for one in results.files for row in latency_rows(one)]
    loading = [row for one in results.files for row in loading_rows(one)]
    notes = [f"- {remark}" for one in results.files for remark in remarks(one)]
    parts = [
        "# OpenVINO",
        INTRODUCTION,
        markdown_table(LATENCY_COLUMNS, latency),
        markdown_table(LOADING_COLUMNS, loading),
        "\n".join(notes),
        f"`{results.command}`, {last.created[:10]}; {versions}, {host_text(last.host)}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
