"""Training from folders against a plain loop over tensors in memory, on photographs.

    python -m bench.folder_speed
    python -m bench.folder_speed --elpv elpv/ --cases elpv-128,12mp-224

The photographs are ELPV's (bench/elpv.py) and generated JPEGs of 12 megapixels; the network is
EfficientNet-Lite0. Writes bench/results/folder_speed.json and a page.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from bench.elpv import fetch
from bench.folders import GIB, peak
from bench.plain_loop import CPU, Plain, folder_split, plain_training
from bench.results_file import add_to_results, commands_text
from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.image_cache import decode_all
from compress.data.load import load_data
from compress.data.names import FOLDER_PREFIX
from compress.data.preprocess import Inputs
from compress.data.splits import FolderSplit, Split
from compress.host import Host, describe_host
from compress.log import say
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.networks import card_inputs, model_spec
from compress.run.recipe import load_card
from compress.teacher.config import FINETUNE
from compress.train.config import Precision
from compress.train.epoch import label_loss
from compress.train.evaluate import first_images
from compress.train.events import EpochEnd, Event
from compress.train.loop import train
from compress.train.micro_batch import free_memory
from compress.train.precision import choose_precision

RESULTS = Path(__file__).parent / "results" / "folder_speed.json"
PAGE = RESULTS.with_suffix(".md")
LARGE = (4000, 3000)
COUNTS = {"train": 140, "test": 12}
"""Of the training photographs, 12 are held out for validation."""
NOISE = 4.0
"""Standard deviation of the generated photographs' noise, of 0..255."""
EPOCHS, READINGS = 6, 3
WATCHED_S = 40
COLUMNS = (
    *("photographs", "folder, images/s", "in memory, images/s", "ratio"),
    *("decoding, s", "first reading, s", "ratio", "peak, GiB", "of the free memory"),
)
INTRODUCTION = f"""\
EfficientNet-Lite0, fine-tuned with the defaults for pretrained weights (batch
{FINETUNE.train.batch_size}) from a folder, against a plain loop that has the same images, shrunk
alike, as tensors in memory: torchvision's transforms for the same augmentation, SGD with the same
batch and precision, no checks. Both train in one process, an epoch each in turns; medians from the
second of {EPOCHS} epochs, and the median of their ratios. *Decoding*: every photograph once,
shrunk, in one thread per core. *First reading*: `compress` loads the folder with an empty cache,
medians of {READINGS} turns. *Peak*: `compress run` in its first {WATCHED_S} s, with default
settings, against the memory that was free before it started. ELPV: 2,624 photographs of
300 x 300 px, some of which make an epoch. 12 megapixels: {sum(COUNTS.values())} generated JPEGs of
{LARGE[0]} x {LARGE[1]} px, enlarged from ELPV's, with noise."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What to train on."""

    name: str
    generated: bool
    size: int
    images: int
    """In an epoch."""


CASES = {
    "elpv-128": Case(name="ELPV, 128 px", generated=False, size=128, images=320),
    "elpv-224": Case(name="ELPV, 224 px", generated=False, size=224, images=128),
    "12mp-128": Case(name="12 megapixels, 128 px", generated=True, size=128, images=128),
    "12mp-224": Case(name="12 megapixels, 224 px", generated=True, size=224, images=128),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case."""

    variant: str
    images: int
    """In an epoch."""
    precision: Precision
    ours: tuple[float, ...]
    """Images a second of each epoch."""
    plain: tuple[float, ...]
    ratio: float
    decoding_seconds: float
    first_seconds: float
    first_ratio: float
    peak_bytes: int
    free_bytes: int
    peak_share: float
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    rows: tuple[Row, ...]
    epochs: int
    host: Host


def make_photographs(root: Path, source: Path) -> None:
    """Writes large JPEGs, enlarged from smaller photographs, in their classes."""
    tasks: list[tuple[int, Path, Path]] = []
    for split, count in COUNTS.items():
        classes = sorted((source / split).iterdir())
        for folder in classes:
            (root / split / folder.name).mkdir(parents=True)
            for path in sorted(folder.iterdir())[: count // len(classes)]:
                target = root / split / folder.name / f"{path.stem}.jpg"
                tasks.append((len(tasks), path, target))
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda task: _enlarge(*task), tasks))


def _enlarge(seed: int, source: Path, target: Path) -> None:
    width, height = LARGE
    with Image.open(source) as image:
        gray = image.convert("L")
    part = gray.crop((0, 0, gray.width, gray.width * height // width))
    pixels = np.asarray(part.resize(LARGE, Image.Resampling.BICUBIC), dtype=np.float32)
    generator = np.random.default_rng(seed)
    noise = NOISE * generator.standard_normal((height, width, 3), dtype=np.float32)
    colors = (pixels[..., None] + noise).clip(0, 255).astype(np.uint8)
    Image.fromarray(colors).save(target, quality=90)


def readings(
    root: Path, config: DataConfig, inputs: Inputs, scratch: Path
) -> tuple[Data, float, float]:
    """Returns the data and the seconds of decoding all images and of loading them at first."""
    decoding, first = [], []
    spec = inputs.preprocess(config.size)
    for _ in range(1 + READINGS):  # the first one fills the page cache
        os.environ["COMPRESS_CACHE"] = tempfile.mkdtemp(dir=scratch)
        started = time.perf_counter()
        data = load_data(f"{FOLDER_PREFIX}{root}", config, seed=0, inputs=inputs)
        first.append(time.perf_counter() - started)
        splits = map(folder_split, (data.train, data.validation, data.test))
        names = [name for split in splits for name in split.names]
        started = time.perf_counter()
        for _image in decode_all(root, names, spec):
            pass
        decoding.append(time.perf_counter() - started)
    return data, statistics.median(decoding[1:]), statistics.median(first[1:])


def few_images(split: Split, count: int) -> FolderSplit:
    """Returns a split with so many of the images."""
    whole = folder_split(split)
    chosen = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[:count]
    names = [whole.names[index] for index in chosen.tolist()]
    return dataclasses.replace(
        whole, names=names, labels=whole.labels[chosen], rows=whole.rows[chosen]
    )


def speeds(spec: ModelSpec, data: Data) -> tuple[list[float], list[float], Precision]:
    """Returns the images a second of each epoch: our training's and, in turns, a plain loop's."""
    split = folder_split(data.train)
    config = dataclasses.replace(FINETUNE.train, epochs=EPOCHS, min_steps=0)
    batch = first_images(split, config.batch_size)
    precision = choose_precision(build(spec), batch, CPU, training=True)
    config = dataclasses.replace(config, precision=precision)
    settings = Plain(epochs=EPOCHS, batch_size=config.batch_size, lr=config.lr, precision=precision)
    plain_epochs = plain_training(build(spec), split, settings)
    ours, plain = [], []

    def take_turns(event: Event) -> None:
        if isinstance(event, EpochEnd):
            ours.append(event.row.images_per_second)
            plain.append(len(split) / next(plain_epochs))

    with tempfile.TemporaryDirectory() as folder:
        train(
            build(spec), data, config, loss=label_loss(config.label_smoothing), seed=0,
            folder=Path(folder), title="ours", on_event=take_turns,
        )  # fmt: skip
    return ours, plain, precision


def measure(case: Case, root: Path, card_path: Path, scratch: Path, command: str) -> Row:
    """Measures one case on the photographs in `root`."""
    card = load_card(str(card_path))
    config = DataConfig(size=case.size)
    data, decoding, first = readings(root, config, card_inputs(card), scratch)
    few = dataclasses.replace(
        data,
        train=few_images(data.train, case.images),
        validation=few_images(data.validation, 8),
    )
    ours, plain, precision = speeds(model_spec(card.teacher, data), few)
    free = free_memory(CPU)
    most = peak(root, f"data.size={case.size}", model=str(card_path), watched_s=WATCHED_S)
    row = Row(
        variant=case.name,
        images=case.images,
        precision=precision,
        ours=tuple(ours),
        plain=tuple(plain),
        ratio=statistics.median(a / b for a, b in zip(ours[1:], plain[1:], strict=True)),
        decoding_seconds=decoding,
        first_seconds=first,
        first_ratio=first / decoding,
        peak_bytes=most,
        free_bytes=free,
        peak_share=most / free,
        command=command,
        date=datetime.now(UTC).date().isoformat(),
    )
    say(
        f"{case.name}: ratio {row.ratio:.3f}, first reading {row.first_ratio:.2f}, peak "
        f"{row.peak_share:.0%} of {free / GIB:.1f} GiB"
    )
    return row


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = [
        (
            row.variant,
            f"{statistics.median(row.ours[1:]):.1f}",
            f"{statistics.median(row.plain[1:]):.1f}",
            f"{row.ratio:.3f}",
            f"{row.decoding_seconds:.2f}",
            f"{row.first_seconds:.2f}",
            f"{row.first_ratio:.2f}",
            f"{row.peak_bytes / GIB:.1f}",
            f"{row.peak_share:.0%}",
        )
        for row in results.rows
    ]
    table = markdown_table(COLUMNS, rows)
    facts = (
        f"{commands_text(results.rows)}; torch {results.host.versions['torch']}, "
        f"{host_text(results.host)}."
    )
    return "\n\n".join(("# Speed of training from folders", INTRODUCTION, table, facts)) + "\n"


@click.command()
@click.option("--elpv", type=click.Path(path_type=Path), help="Folder made by bench.elpv.")
@click.option("--cases", default=",".join(CASES), show_default=True)
def main(elpv: Path | None, cases: str) -> None:
    """Compare training from folders with a plain loop over tensors in memory."""
    names = cases.split(",")
    command = "python -m bench.folder_speed"
    if names != list(CASES):
        command += f" --cases {cases}"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        source = fetch(elpv or scratch / "elpv")
        chosen = [CASES[name] for name in names]
        large = scratch / "photos"
        if any(case.generated for case in chosen):
            make_photographs(large, source / "photos")
        for case in chosen:
            root = large if case.generated else source / "photos"
            row = measure(case, root, source / "lite0.toml", scratch, command)
            results = Results(rows=(row,), epochs=EPOCHS, host=describe_host())
            add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


if __name__ == "__main__":
    main()
