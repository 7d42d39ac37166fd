"""A small network trained in quiet and beside a busy neighbor, by how its threads wait.

    python -m bench.train_speed --neighbor

OpenMP reads its settings once, so each setting has a process of its own; these train in turns.
Writes bench/results/train_speed_neighbor.json and a page.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F

from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.data.preprocess import Preprocess
from compress.files import write_json, write_text
from compress.host import Host, describe_host
from compress.log import track
from compress.report.render import host_text
from compress.report.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "train_speed_neighbor.json"
PAGE = RESULTS.with_suffix(".md")
ARCHITECTURE, SIDE, BATCH = "timm:efficientnet_lite0", 64, 32
SLICE_S, HEAD_START_S = 1.5, 0.2
"""Each trains so long in its turn; the neighbor begins earlier and ends later."""
OMP = ("OMP_", "GOMP_")
ITSELF, OURS = "OpenMP by itself", "compress"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    ITSELF: {"GOMP_SPINCOUNT": "300000"},  # what GNU's takes if nothing is set
    "1,000 spins": {"GOMP_SPINCOUNT": "1000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    OURS: {},  # see bench/__init__.py
}
QUIET, LOOP, TRAINING = "quiet", "a busy loop", "the same training"
COLUMNS = (
    *("threads and waiting", "quiet, images/s", "beside a busy loop", "share of quiet"),
    *("beside the same training", "share of quiet", "both together"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One setting; images a second, medians of the rounds."""

    setting: str
    quiet: float
    beside_loop: float
    beside_training: float
    both: float
    """The sum with the neighbor's, which trains the same in the same setting."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    rows: tuple[Row, ...]
    rounds: int
    command: str
    date: str
    host: Host


class Trainer:
    """A process that trains when told to, with settings of OpenMP's of its own."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        inherited = {name: one for name, one in os.environ.items() if not name.startswith(OMP)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.neighbor"],
            env={**inherited, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, seconds: float) -> None:
        """Lets it train for so long."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def images_per_second(self) -> float:
        """Waits for the end of its training."""
        assert self._process.stdout is not None
        return float(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def measure(rounds: int) -> tuple[Row, ...]:
    """Trains in each setting, in quiet and beside each neighbor, in turns."""
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        pairs = {
            name: [stack.enter_context(Trainer(environment)) for _ in range(2)]
            for name, environment in SETTINGS.items()
        }
        for pair in pairs.values():
            for trainer in pair:  # builds the kernels
                trainer.start(0.1)
                trainer.images_per_second()
        turns = [name for _ in range(rounds) for name in SETTINGS]
        for name in track(turns, "training in turns", total=len(turns)):
            one, other = pairs[name]
            found.setdefault((name, QUIET), []).append(_train(one))
            with _busy_loop():
                found.setdefault((name, LOOP), []).append(_train(one))
            other.start(SLICE_S + 2 * HEAD_START_S)
            found.setdefault((name, TRAINING), []).append(_train(one))
            found.setdefault((name, "neighbor"), []).append(other.images_per_second())
    median = {place: statistics.median(values) for place, values in found.items()}
    return tuple(
        Row(
            setting=name,
            quiet=median[name, QUIET],
            beside_loop=median[name, LOOP],
            beside_training=median[name, TRAINING],
            both=median[name, TRAINING] + median[name, "neighbor"],
        )
        for name in SETTINGS
    )


def _train(trainer: Trainer) -> float:
    time.sleep(HEAD_START_S)
    trainer.start(SLICE_S)
    return trainer.images_per_second()


@contextmanager
def _busy_loop() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        try:
            yield
        finally:
            loop.send_signal(signal.SIGKILL)


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = [
        (
            *(row.setting, f"{row.quiet:.0f}", f"{row.beside_loop:.0f}"),
            *(f"{row.beside_loop / row.quiet:.0%}", f"{row.beside_training:.0f}"),
            *(f"{row.beside_training / row.quiet:.0%}", f"{row.both:.0f}"),
        )
        for row in results.rows
    ]
    host = results.host
    return "\n".join(
        [
            "# Training beside a neighbor",
            "",
            f"{ARCHITECTURE.removeprefix('timm:')}, {SIDE} px, batches of {BATCH}, fp32, on all "
            "cores; images a second, medians, in quiet and while another process uses the same "
            "cores: an endless loop in one thread, or the same training in the same setting. "
            "compress/cli/process.py says what `compress` sets.",
            "",
            markdown_table(COLUMNS, rows),
            "",
            f"`{results.command}`, {results.date[:10]}, {results.rounds} turns; torch "
            f"{host.versions['torch']}, {host_text(host)}.",
            "",
        ]
    )


def compare_neighbors(rounds: int) -> None:
    """Measures and writes the results."""
    results = Results(
        rows=measure(rounds),
        rounds=rounds,
        command=f"python -m bench.train_speed --neighbor --rounds {rounds}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=describe_host(),
    )
    write_json(RESULTS, results)
    write_text(PAGE, results_markdown(results))


def train_when_told() -> None:
    """Trains for as many seconds as each line of the input says, and answers images a second."""
    torch.manual_seed(0)
    classes = tuple(map(str, range(10)))
    preprocess = Preprocess(size=SIDE, resize=SIDE, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)
    spec = ModelSpec(
        architecture=ARCHITECTURE, stem="large", class_names=classes, preprocess=preprocess
    )
    model = build(spec).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE)).float()
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, len(classes), (BATCH,))
    for line in sys.stdin:
        count, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < float(line):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            count += BATCH
        print(count / seconds, flush=True)


if __name__ == "__main__":
    train_when_told()
