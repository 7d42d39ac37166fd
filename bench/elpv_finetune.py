"""Fine-tuning a pretrained network on photographs: our defaults against a plain loop, equal time.

    python -m bench.elpv_finetune elpv/

Photographs of solar cells and EfficientNet-Lite0 with ImageNet weights (bench/elpv.py, downloaded
if they are not there), three seeds. Writes bench/results/elpv_finetune.json and a page.
"""

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch

from bench.elpv import fetch
from bench.plain_loop import CPU, Plain, folder_split, plain_training
from bench.results_file import add_to_results, commands_text, spread_text
from compress.architectures.build import Classifier, build
from compress.architectures.weights import load_weights
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.names import FOLDER_PREFIX
from compress.data.splits import Split
from compress.host import Host, describe_host
from compress.log import say
from compress.measure.statistics import PairedDifference, compare_paired
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.networks import card_inputs, model_spec
from compress.run.recipe import ModelCard, load_card
from compress.teacher.config import FINETUNE
from compress.train.config import Precision
from compress.train.epoch import label_loss
from compress.train.evaluate import evaluation_batch, first_images
from compress.train.loop import train
from compress.train.precision import choose_precision

RESULTS = Path(__file__).parent / "results" / "elpv_finetune.json"
PAGE = RESULTS.with_suffix(".md")
SIZE, SEEDS = 128, 3
COLUMNS = (
    *("seed", "compress, top-1 %", "plain loop, top-1 %", "difference, points", "p"),
    *("compress, s", "plain loop, s", "its epochs"),
)
INTRODUCTION = f"""\
EfficientNet-Lite0 with ImageNet weights on ELPV's photographs at {SIZE} px. *compress*: the
defaults for pretrained weights, with validation and checkpoints after each epoch. *Plain loop*: the
same images as tensors in memory, torchvision's transforms for the same augmentation, SGD with one
cycle of the rate, the same batch, peak rate, precision, and new classifier; as many epochs as fill
at least the same time. Test images, float network in torch; *p*: McNemar's exact test."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One seed."""

    variant: str
    precision: Precision
    top1: float
    plain_top1: float
    difference: PairedDifference
    """Of ours from the plain loop, test images."""
    seconds: float
    plain_seconds: float
    plain_epochs: int
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    rows: tuple[Row, ...]
    host: Host


def pretrained(card: ModelCard, data: Data, seed: int) -> Classifier:
    """Returns the card's teacher with its weights and a new classifier."""
    torch.manual_seed(seed)
    model = build(model_spec(card.teacher, data))
    load_weights(model.network, card.teacher.architecture, card.teacher.weights)
    return model


@torch.no_grad()
def is_right(model: Classifier, split: Split) -> np.ndarray:
    """Returns which images the model classifies correctly, bool `[n]`."""
    model.eval()
    order = torch.arange(len(split))
    batches = split.batches(evaluation_batch(split), order=order)
    found = torch.cat([model(batch.images).argmax(1) for batch in batches])
    return np.asarray(found == split.labels)


def compare(card: ModelCard, data: Data, seed: int, command: str) -> Row:
    """Fine-tunes with both and compares them on the test images."""
    config = FINETUNE.train
    split = folder_split(data.train)
    batch = first_images(split, config.batch_size)
    precision = choose_precision(pretrained(card, data, seed), batch, CPU, training=True)
    config = dataclasses.replace(config, precision=precision)
    ours = pretrained(card, data, seed)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(
            ours, data, config, loss=label_loss(config.label_smoothing), seed=seed,
            folder=Path(folder), title="compress",
        )  # fmt: skip
    seconds = time.perf_counter() - started

    settings = Plain(epochs=1, batch_size=config.batch_size, lr=config.lr, precision=precision)
    (epoch_seconds,) = plain_training(pretrained(card, data, seed), split, settings)
    settings = dataclasses.replace(settings, epochs=-int(-seconds // epoch_seconds))
    plain = pretrained(card, data, seed)
    plain_seconds = sum(plain_training(plain, split, settings))
    difference = compare_paired(is_right(ours, data.test), is_right(plain, data.test))
    row = Row(
        variant=f"seed {seed}",
        precision=precision,
        top1=100 * is_right(ours, data.test).mean(),
        plain_top1=100 * is_right(plain, data.test).mean(),
        difference=difference,
        seconds=seconds,
        plain_seconds=plain_seconds,
        plain_epochs=settings.epochs,
        command=command,
        date=datetime.now(UTC).date().isoformat(),
    )
    say(f"seed {seed}: {row.top1:.2f} % against {row.plain_top1:.2f} %, {difference}")
    return row


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = [
        (
            row.variant.removeprefix("seed "),
            f"{row.top1:.2f}",
            f"{row.plain_top1:.2f}",
            f"{row.difference.points:+.2f}",
            f"{row.difference.p_value:.2g}",
            f"{row.seconds:.0f}",
            f"{row.plain_seconds:.0f}",
            f"{row.plain_epochs}",
        )
        for row in results.rows
    ]
    means = (
        "all",
        spread_text([row.top1 for row in results.rows]),
        spread_text([row.plain_top1 for row in results.rows]),
        f"{statistics.fmean([row.difference.points for row in results.rows]):+.2f}",
        "",
        f"{statistics.fmean([row.seconds for row in results.rows]):.0f}",
        f"{statistics.fmean([row.plain_seconds for row in results.rows]):.0f}",
        "",
    )
    facts = (
        f"{commands_text(results.rows)}; torch {results.host.versions['torch']}, "
        f"{host_text(results.host)}."
    )
    table = markdown_table(COLUMNS, [*rows, means])
    return "\n\n".join(("# Fine-tuning pretrained weights", INTRODUCTION, table, facts)) + "\n"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seeds", default=SEEDS, show_default=True)
def main(folder: Path, seeds: int) -> None:
    """Fine-tune with our defaults and with a plain loop, for the same time."""
    root = fetch(folder)
    card = load_card(str(root / "lite0.toml"))
    name = f"{FOLDER_PREFIX}{root / 'photos'}"
    for seed in range(seeds):
        data = load_data(name, DataConfig(size=SIZE), seed=0, inputs=card_inputs(card))
        row = compare(card, data, seed, f"python -m bench.elpv_finetune {folder.name}/")
        results = Results(rows=(row,), host=describe_host())
        add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


if __name__ == "__main__":
    main()
