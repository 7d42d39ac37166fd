"""Datasets in folders: speed of training, memory at 224 px, and listing 200,000 files.

    python -m bench.folders

Trains resnet18's teacher on generated photographs, through the command line: at 128 px with the
default number of decoding threads and with one, in turns; at 224 px with the default batch, for its
peak of memory. Then lists sets of up to 200,000 small files. Writes bench/results/folders.json and
a page.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from compress.files import write_json
from compress.host import Host, describe_host
from compress.log import say, track
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.train.micro_batch import free_memory

RESULTS = Path(__file__).parent / "results" / "folders.json"
PAGE = RESULTS.with_suffix(".md")
MODEL = "resnet18"
CLASSES = ("pagoda", "flower")
FEW, MANY, SIDE = 600, 4800, 300
WATCHED_S = 120
ROUNDS = 2
GIB = 2**30
INTERRUPTED = 130
FILES = (50_000, 100_000, 200_000)
LIST = """
import json, resource, sys, time
from pathlib import Path
from compress.data.config import DataConfig
from compress.data.folders import read_folders
from compress.data.preprocess import Inputs
from compress.log import console
console.quiet = True

def resident():
    pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    return int(pages) * resource.getpagesize()

found = {}
before = resident()
for name in ("first", "again"):
    started = time.perf_counter()
    folders = read_folders(Path(sys.argv[1]), Inputs().preprocess(0), DataConfig())
    found[name] = time.perf_counter() - started
    if name == "first":
        folders = None
print(json.dumps({**found, "bytes": resident() - before}))
"""
INTRODUCTION = f"""\
Generated JPEG photographs of {SIDE} x {SIDE} px (crops of two of scikit-learn's, with noise),
`compress run resnet18 --until teacher`. Speed: {FEW} of them at 128 px; *default threads*: one for
each core; *one*: no parallel decoding. Memory: {MANY:,} of them, so that the default batch is not
made smaller; the peak of the process in its first {WATCHED_S} s of training, against the memory
that was free before it started. Listing: PNG files of 8 x 8 px in two splits and 100 classes; the
first time each image is decoded once to see whether it can be read, later this is remembered."""


@dataclass(frozen=True, kw_only=True)
class Listed:
    """One size of set."""

    files: int
    first_seconds_per_10000: float
    again_seconds_per_10000: float
    bytes_per_file: float
    """Of the process's resident memory, with everything listed."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    images_per_second_default: tuple[float, ...]
    images_per_second_one_thread: tuple[float, ...]
    default_to_one_thread: float
    """Median of the turns' ratios."""
    peak_224_bytes: int
    free_before_bytes: int
    peak_224_share: float
    listed: tuple[Listed, ...]
    command: str
    date: str
    host: Host


def make_photographs(root: Path, photographs: int) -> None:
    """Writes a set of so many training photographs, and test ones, in two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", photographs), ("test", photographs // 10)):
        for name, image in zip(CLASSES, load_sample_images().images, strict=True):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count // 2):
                top = generator.integers(image.shape[0] - SIDE)
                left = generator.integers(image.shape[1] - SIDE)
                crop = image[top : top + SIDE, left : left + SIDE].astype(np.int16)
                noise = generator.integers(-20, 20, crop.shape)
                pixels = (crop + noise).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)


def make_files(root: Path, count: int) -> None:
    """Writes a set of so many small files."""
    generator = np.random.default_rng(0)
    for place in track(range(count), f"writing {count} files", total=count):
        split = "train" if place % 10 else "test"
        folder = root / split / f"class {place // 10 % 100:02}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photograph-{place:07}.png")


@contextmanager
def training(
    root: Path, *settings: str, model: str = MODEL
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Yields the process that trains the teacher, and its folder."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "compress", "run", model, "--until", "teacher"]
        command += ["--data", f"imagefolder:{root}", "--out", f"{scratch}/run"]
        for setting in ("teacher.train.min_steps=0", "teacher.train.start_size=1", *settings):
            command += ["--set", setting]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            yield process, Path(scratch) / "run"


def speed(root: Path, *settings: str) -> float:
    """Returns the images a second of two epochs, their median."""
    small = ("data.size=128", "teacher.train.epochs=2")
    with training(root, *small, *settings) as (process, run):
        if process.wait():
            raise click.ClickException("the training failed")
        lines = (run / "0-teacher" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return float(statistics.median(json.loads(line)["images_per_second"] for line in lines))


def peak(root: Path, *settings: str, model: str = MODEL, watched_s: float = WATCHED_S) -> int:
    """Returns the peak memory of the first seconds of a training with the default batch, bytes."""
    most = 0
    with training(root, *settings, model=model) as (process, _):
        end = time.monotonic() + watched_s
        while time.monotonic() < end and process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
            most = max([most, *map(int, re.findall(r"VmHWM:\s+(\d+) kB", status))])
            time.sleep(1)
        process.send_signal(signal.SIGINT)
    if process.returncode not in (0, INTERRUPTED):
        raise click.ClickException(f"the training ended with {process.returncode}")
    return 1024 * most


def listed(root: Path, count: int) -> Listed:
    """Lists a set in a process of its own, twice."""
    output = subprocess.run(
        [sys.executable, "-c", LIST, str(root)], check=True, stdout=subprocess.PIPE
    ).stdout
    found = json.loads(output)
    return Listed(
        files=count,
        first_seconds_per_10000=1e4 * found["first"] / count,
        again_seconds_per_10000=1e4 * found["again"] / count,
        bytes_per_file=found["bytes"] / count,
    )


@click.command()
@click.option("--rounds", default=ROUNDS, show_default=True, help="Turns of the speeds.")
def main(rounds: int) -> None:
    """Measures all and writes the results."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["COMPRESS_CACHE"] = f"{scratch}/cache"
        few, many = Path(scratch) / "few", Path(scratch) / "many"
        make_photographs(few, FEW)
        default, one = [], []
        for turn in range(1 + rounds):  # the first fills the page cache and chooses the arithmetic
            speeds = speed(few), speed(few, "data.threads=1")
            if turn:
                default.append(speeds[0])
                one.append(speeds[1])
                say(f"default {speeds[0]:.1f} images/s, one thread {speeds[1]:.1f}")
        make_photographs(many, MANY)
        free = free_memory(torch.device("cpu"))
        most = peak(many)
        say(f"peak {most / GIB:.2f} GiB of {free / GIB:.2f} free")
        sizes = []
        for count in FILES:
            make_files(Path(scratch) / f"{count}", count)
            sizes.append(listed(Path(scratch) / f"{count}", count))
            say(str(sizes[-1]))
    results = Results(
        images_per_second_default=tuple(default),
        images_per_second_one_thread=tuple(one),
        default_to_one_thread=statistics.median(a / b for a, b in zip(default, one, strict=True)),
        peak_224_bytes=most,
        free_before_bytes=free,
        peak_224_share=most / free,
        listed=tuple(sizes),
        command="python -m bench.folders",
        date=datetime.now(UTC).date().isoformat(),
        host=describe_host(),
    )
    write_json(RESULTS, results)
    PAGE.write_text(results_markdown(results), encoding="utf-8")
    click.echo(PAGE)


def results_markdown(results: Results) -> str:
    """Returns the results as Markdown."""
    speeds = markdown_table(
        ("threads", "images/s"),
        [
            ("default", f"{statistics.median(results.images_per_second_default):.1f}"),
            ("one", f"{statistics.median(results.images_per_second_one_thread):.1f}"),
            ("ratio, median of the turns", f"{results.default_to_one_thread:.3f}"),
        ],
    )
    listing = markdown_table(
        ("files", "first time, s per 10,000", "again, s per 10,000", "memory, bytes a file"),
        [
            (
                f"{row.files:,}",
                f"{row.first_seconds_per_10000:.2f}",
                f"{row.again_seconds_per_10000:.2f}",
                f"{row.bytes_per_file:.0f}",
            )
            for row in results.listed
        ],
    )
    memory = (
        "At 224 px with the default batch the process's peak is "
        f"{results.peak_224_bytes / GIB:.1f} GiB, {results.peak_224_share:.0%} of the "
        f"{results.free_before_bytes / GIB:.1f} GiB that were free before it started."
    )
    facts = f"`{results.command}`, {results.date}, {host_text(results.host)}."
    parts = ("# Folders", INTRODUCTION, speeds, memory, listing, facts)
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
