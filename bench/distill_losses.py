"""Does the teacher earn its place? The same student alone and with each loss, at equal cost.

    make pipeline MODEL=resnet18 && python -m bench.distill_losses
    python -m bench.distill_losses --variants "alone;kd" --epochs 12

Every variant trains the student of the card anew, with the same seeds and schedule: once for equal
epochs, and once for equal time on the clock, where the teacher's answers count. What is stored
costs nothing more in later epochs; live answers (hints) cost a teacher's pass at every step.
Writes bench/results/distill_losses.json, where the results of other variants stay, and a page.
"""

from __future__ import annotations

import dataclasses
import shlex
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import torch

from bench.results_file import add_to_results, commands_text, read_results, spread_text
from compress.architectures.build import build
from compress.checkpoint import Checkpoint, load_checkpoint
from compress.context import Context
from compress.distill.ablation import seconds_of
from compress.distill.config import GuidanceConfig
from compress.distill.guidance import Guided, train_guided
from compress.distill.teachers import checkpoint_teacher
from compress.export.onnx_file import export_onnx
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.host import Host, describe_host
from compress.pipeline import model_spec
from compress.progress import say
from compress.recipe import Recipe, load_card
from compress.report.render import host_text, markdown_table
from compress.single import data_of, measure_of
from compress.train.loop import label_loss, train

RESULTS = Path(__file__).parent / "results" / "distill_losses.json"
PAGE = RESULTS.with_suffix(".md")
CARD = "resnet18"
FOLDER = Path("runs/resnet18-fashion-mnist/0-teacher")
ALONE = "alone"
STORED = Recipe.distill.guidance
LIVE = dataclasses.replace(STORED, views=0)
HINTS = "blocks.1:layer2,blocks.2:layer3"
VARIANTS: Mapping[str, GuidanceConfig | None] = {
    ALONE: None,
    "KD": STORED,
    "KD, teacher asked at every step": LIVE,
    "KD, standardised logits": dataclasses.replace(STORED, soft_loss="standardized"),
    "DKD": dataclasses.replace(STORED, soft_loss="dkd"),
    "DIST": dataclasses.replace(STORED, soft_loss="dist"),
    "KD and attention": dataclasses.replace(LIVE, hints=HINTS),
    "KD and features": dataclasses.replace(LIVE, hints=HINTS, hint_loss="features"),
}
COLUMNS = (
    *("variant", "epochs", "seconds", "top-1 %", "epochs, equal time", "seconds, equal time"),
    "top-1 %, equal time",
)
INTRODUCTION = """\
The student of the card, trained anew with the same seeds and schedule. *Equal time*: as many epochs
as the longest of the variants with stored answers takes for its epochs and for asking the teacher;
the teacher's own training is not counted. *top-1* on the test split, float file in ONNX Runtime:
mean and standard deviation over the seeds."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training."""

    epochs: int
    seconds: float
    """Epochs of the student, and the teacher's answers."""
    top1: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant."""

    variant: str
    equal_epochs: tuple[Trained, ...]
    """By seed."""
    equal_time: tuple[Trained, ...]
    command: str
    date: str
    host: Host


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds: the newest row of each variant."""

    teacher: str
    student: str
    epochs: int
    seconds: float
    """That all may take when they take the same."""
    rows: tuple[Row, ...]


def train_and_score(
    guidance: GuidanceConfig | None, epochs: int, teacher: Checkpoint, context: Context
) -> Trained:
    """Trains a new student with that guidance, or alone, and scores its file."""
    spec = model_spec(load_card(CARD).student, context.data)
    schedule = dataclasses.replace(Recipe.distill.train, epochs=epochs)
    torch.manual_seed(context.seed)
    model = build(spec)
    title = f"seed {context.seed}"
    with tempfile.TemporaryDirectory() as scratch:
        inside = dataclasses.replace(
            context,
            folder=Path(scratch),
            store=Path(scratch) / "answers",  # asked anew, and timed
            teachers=(checkpoint_teacher(teacher),),
        )
        if guidance is None:
            history = train(
                model,
                context.data,
                schedule,
                loss=label_loss(schedule.label_smoothing),
                seed=context.seed,
                folder=inside.folder,
                title=title,
            )
            guided = Guided(history=history, findings=[], asking_seconds=0.0)
        else:
            guided = train_guided(model, guidance, schedule, inside, title)
        path = inside.folder / "student.onnx"
        export_onnx(model, spec, path, digest="", stage="distill")
        test = context.data.test
        scores = accuracy(predict_split(path, test), test.labels.numpy())
    seconds = guided.asking_seconds + seconds_of(guided.history, len(context.data.train))
    return Trained(epochs=epochs, seconds=seconds, top1=scores.top1)


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = sorted(
        results.rows, key=lambda row: -statistics.fmean([one.top1 for one in row.equal_time])
    )
    host = rows[0].host
    seeds = len(rows[0].equal_time)
    return "\n".join(
        [
            "# What the student learns from",
            "",
            INTRODUCTION,
            "",
            f"Teacher {results.teacher}; student: {results.student}; {seeds} seeds; equal time is "
            f"{results.seconds:.0f} s.",
            "",
            markdown_table(COLUMNS, [_cells(row) for row in rows]),
            "",
            f"{commands_text(rows)}; torch {host.versions['torch']}, {host_text(host)}.",
            "",
        ]
    )


def _cells(row: Row) -> tuple[str, ...]:
    cells = [row.variant]
    for trained in (row.equal_epochs, row.equal_time):
        cells += [
            f"{statistics.fmean([one.epochs for one in trained]):.0f}",
            f"{statistics.fmean([one.seconds for one in trained]):.0f}",
            spread_text([one.top1 for one in trained]),
        ]
    return tuple(cells)


@click.command()
@click.option(
    "--in", "folder", type=click.Path(path_type=Path, exists=True), default=FOLDER,
    show_default=True, help="The teacher's checkpoint.",
)  # fmt: skip
@click.option(
    "--variants", default=";".join(VARIANTS), show_default=True, help="By semicolons; KD first."
)
@click.option(
    "--epochs", default=Recipe.distill.train.epochs, show_default=True, help="When equal."
)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each variant.")
def main(folder: Path, variants: str, epochs: int, seeds: int) -> None:
    """Compare ways of learning from a teacher with learning alone, at equal cost."""
    teacher = load_checkpoint(folder)
    command = shlex.join(["python", "-m", "bench.distill_losses", *sys.argv[1:]])
    context = Context(
        data=data_of(teacher),
        seed=0,
        measure=measure_of(folder),
        folder=folder,
        store=folder,
        teachers=(),
    )

    def of_seeds(variant: str, epochs: int) -> tuple[Trained, ...]:
        return tuple(
            train_and_score(
                VARIANTS[variant], epochs, teacher, dataclasses.replace(context, seed=seed)
            )
            for seed in range(seeds)
        )

    seconds = read_results(Results, RESULTS).seconds if RESULTS.is_file() else 0.0
    for variant in variants.split(";"):
        say(f"{variant}")
        equal_epochs = of_seeds(variant, epochs)
        taken = statistics.fmean(one.seconds for one in equal_epochs)
        if variant == "KD" or not seconds:
            seconds = taken
        equal_time = equal_epochs
        if abs(taken / seconds - 1) > 1 / (2 * epochs):  # at least half an epoch more or less
            equal_time = of_seeds(variant, max(1, round(epochs * seconds / taken)))
        for name, trained in (("equal epochs", equal_epochs), ("equal time", equal_time)):
            say(f"  {name}: {[(one.top1, round(one.seconds)) for one in trained]}")
        row = Row(
            variant=variant,
            equal_epochs=equal_epochs,
            equal_time=equal_time,
            command=command,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            host=describe_host(),
        )
        results = Results(
            teacher=f"{folder.parent.name}/{folder.name}",
            student=load_card(CARD).description,
            epochs=epochs,
            seconds=seconds,
            rows=(row,),
        )
        add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


if __name__ == "__main__":
    main()
