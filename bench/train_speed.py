"""Our training loop against a bare PyTorch loop with the best settings, images a second.

    make pipeline MODEL=resnet18 && python -m bench.train_speed

Both train the same network on the same images, in turns; the bare loop has no augmentation, no
progress bar, no checks and no checkpoint. For distillation both read stored teacher logits or run
the teacher live. The bare loop runs twice: with freed memory kept, as `compress` has
it, and as PyTorch runs by itself. Writes bench/results/train_speed.json and a page. With --neighbor
see bench/neighbor.py.
"""

import ctypes
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.neighbor import PAGE as NEIGHBOR_PAGE
from bench.neighbor import compare_neighbors
from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.checkpoint import load_checkpoint
from compress.cli.process import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, keep_freed_memory
from compress.data.dataset import Data
from compress.data.splits import TensorSplit
from compress.files import atomic_write, write_json
from compress.host import Host, describe_host
from compress.kd.config import KDConfig
from compress.kd.losses import knowledge_distillation
from compress.kd.stored_logits import stored_logits
from compress.kd.teachers import TeacherModel, checkpoint_teacher, open_teacher
from compress.kd.training import distillation_loss, views_to_store
from compress.log import say
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.networks import model_spec
from compress.run.recipe import load_card
from compress.run.single_stage import data_of
from compress.train.config import TrainConfig
from compress.train.epoch import Loss, label_loss
from compress.train.evaluate import first_images
from compress.train.loop import train
from compress.train.precision import autocast, choose_precision

RESULTS = Path(__file__).parent / "results" / "train_speed.json"
PAGE = RESULTS.with_suffix(".md")
FOLDER = Path("runs/resnet18-fashion-mnist/0-teacher")
CARD, PLAIN = "resnet18", "simple_cnn"
IMAGES = {"plain CNN": 5120, "teacher": 2560, "student": 10240, "student, stored logits": 10240,
          "student, live teacher": 5120}  # fmt: skip
BATCH = 256
CPU = torch.device("cpu")
COLUMNS = (
    *("training", "precision", "ours, images/s", "bare loop, images/s", "ours / bare"),
    *("bare loop by itself, images/s", "ours / bare by itself"),
)
INTRODUCTION = """\
Our loop against a bare PyTorch loop (channels_last, the faster precision, no augmentation, no
checks), in turns on the same images; medians, and the median of the turns' ratios. *By itself*:
freed memory is not kept, as `compress` has it for its process (compress/cli/process.py)."""
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Row:
    """One kind of training."""

    training: str
    precision: str
    ours: float
    """Images a second."""
    bare: float
    ratio: float
    bare_itself: float
    ratio_itself: float


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    rows: tuple[Row, ...]
    rounds: int
    command: str
    date: str
    host: Host


def ours(spec: ModelSpec, data: Data, loss: Loss) -> float:
    """Returns the images a second of one epoch of our loop."""
    torch.manual_seed(0)
    schedule = TrainConfig(epochs=1, min_steps=0, batch_size=BATCH)
    with tempfile.TemporaryDirectory() as folder:
        (row,) = train(
            build(spec), data, schedule, loss=loss, seed=0, folder=Path(folder), title="ours"
        )
    return row.images_per_second


def bare(spec: ModelSpec, data: Data, soft: Callable[[Tensor, Tensor, Tensor], Tensor]) -> float:
    """Returns the images a second of one epoch of a bare loop.

    Args:
        spec: of the network.
        data: its training split, in memory.
        soft: from logits, pixels and places in the split to the loss beside the labels'.
    """
    split = data.train
    assert isinstance(split, TensorSplit)
    model = build(spec)
    precision = choose_precision(model, first_images(split, BATCH), CPU, training=True)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    started = time.perf_counter()
    for index in torch.randperm(len(split)).split(BATCH):
        images = split.images[index].float().contiguous(memory_format=torch.channels_last)
        with autocast(precision, CPU):
            logits = model(images)
        loss = F.cross_entropy(logits.float(), split.labels[index])
        loss = loss + soft(logits.float(), images, index)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return len(split) / (time.perf_counter() - started)


def subset(split: TensorSplit, count: int) -> TensorSplit:
    """Returns a split with so many of the images."""
    return dataclasses.replace(split, images=split.images[:count], labels=split.labels[:count])


def give_memory_back() -> None:
    """Sets what glibc's thresholds are once blocks of 32 MiB were freed, and empties its heap."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 * MIB)
    libc.mallopt(M_TRIM_THRESHOLD, 64 * MIB)
    libc.malloc_trim(0)


def compare(training: str, data: Data, teacher: TeacherModel, rounds: int) -> Row:
    """Runs both loops in turns."""
    assert isinstance(data.train, TensorSplit)
    n = IMAGES[training]
    few = dataclasses.replace(
        data, train=subset(data.train, n), validation=subset(data.train, BATCH)
    )
    start = dataclasses.replace(data, train=subset(data.train, 2 * BATCH))
    card = load_card(PLAIN if training == "plain CNN" else CARD)
    spec = model_spec(card.teacher if training == "teacher" else card.student, data)
    loss = label_loss(0.0)

    def soft(logits: Tensor, images: Tensor, index: Tensor) -> Tensor:
        if stored is None:
            return torch.zeros(())
        teacher_logits = stored.rows(index, 0) if stored.views else teacher.forward(images)
        return knowledge_distillation(logits, teacher_logits, temperature=kd.temperature)

    kd, stored = KDConfig(n_views=int("stored" in training)), None
    if "," in training:
        with tempfile.TemporaryDirectory() as store:
            stored = stored_logits([teacher], few, views_to_store(kd, seed=0), store=Path(store))
        loss = distillation_loss([teacher], stored, kd, TrainConfig())

    turns = []
    for _ in range(1 + rounds):  # the first builds the kernels
        keep_freed_memory()
        bare(spec, start, soft)  # fetches the memory that both then find
        kept = ours(spec, few, loss), bare(spec, few, soft)
        give_memory_back()
        turns.append((*kept, bare(spec, few, soft)))
    turns = turns[1:]
    row = Row(
        training=training,
        precision=choose_precision(build(spec), first_images(few.train, BATCH), CPU, training=True),
        ours=statistics.median(one for one, _, _ in turns),
        bare=statistics.median(other for _, other, _ in turns),
        ratio=statistics.median(one / other for one, other, _ in turns),
        bare_itself=statistics.median(other for _, _, other in turns),
        ratio_itself=statistics.median(one / other for one, _, other in turns),
    )
    say(
        f"{training}: {row.ours:.0f} images/s, bare {row.bare:.0f} ({row.ratio:.3f}), "
        f"by itself {row.bare_itself:.0f} ({row.ratio_itself:.3f})"
    )
    return row


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    host = results.host
    rows = [
        (
            *(row.training, row.precision, f"{row.ours:.0f}", f"{row.bare:.0f}"),
            *(f"{row.ratio:.3f}", f"{row.bare_itself:.0f}", f"{row.ratio_itself:.3f}"),
        )
        for row in results.rows
    ]
    return "\n".join(
        [
            "# Speed of training",
            "",
            INTRODUCTION,
            "",
            markdown_table(COLUMNS, rows),
            "",
            f"`{results.command}`, {results.date[:10]}, {results.rounds} turns, batch {BATCH}; "
            f"torch {host.versions['torch']}, {host_text(host)}.",
            "",
        ]
    )


@click.command()
@click.option("--rounds", default=3, show_default=True, help="Turns of each training.")
@click.option(
    "--neighbor", is_flag=True, help="Instead: a small network beside another busy process."
)
def main(rounds: int, neighbor: bool) -> None:
    """Compare our training loop's images a second with a bare loop's."""
    if neighbor:
        compare_neighbors(rounds)
        click.echo(NEIGHBOR_PAGE)
        return
    checkpoint = load_checkpoint(FOLDER)
    data = data_of(checkpoint)
    teacher = open_teacher(checkpoint_teacher(checkpoint), data, CPU)
    results = Results(
        rows=tuple(compare(training, data, teacher, rounds) for training in IMAGES),
        rounds=rounds,
        command=f"python -m bench.train_speed --rounds {rounds}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=describe_host(),
    )
    write_json(RESULTS, results)
    with atomic_write(PAGE) as partial:
        partial.write_text(results_markdown(results), encoding="utf-8")
    click.echo(PAGE)


if __name__ == "__main__":
    main()
