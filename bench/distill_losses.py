r"""Does distillation help? The same student without a teacher and with each loss, at equal cost.

    make pipeline MODEL=resnet18 && python -m bench.distill_losses
    python -m bench.distill_losses --variants "KD;alone" --seeds 1
    python -m bench.distill_losses --card resnet10_from_small --epochs 4 --variants "KD;alone" \
        --teacher runs/simple_cnn-fashion-mnist/0-teacher \
        --teacher runs/shufflenet_v2-fashion-mnist/0-teacher

Every variant trains the student of the card anew, with the same seeds and schedule: once for equal
epochs, and once for equal wall time, which includes teacher logits. Stored logits cost nothing in
later epochs; a live teacher (hints) costs a forward pass per step. Logits of the same views are
computed once, and every variant that uses them is charged their time.
Writes bench/results/distill_CARD_EPOCHS_epochs.json, where results of other variants stay, and a
page.
"""

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
from compress.checkpoint import load_checkpoint
from compress.distill.config import DistillConfig
from compress.host import Host, describe_host
from compress.kd.ablation import train_on_labels
from compress.kd.config import KDConfig
from compress.kd.context import Context
from compress.kd.teachers import checkpoint_teacher
from compress.kd.training import train_with_kd
from compress.log import say
from compress.measure.accuracy import accuracy, predict_split
from compress.onnx_file import export_onnx
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.lookup import read_stage_report
from compress.run.networks import model_spec
from compress.run.recipe import Network, load_card
from compress.run.single_stage import data_of, measure_of
from compress.train.schedule import epochs_for, total_images

CARD = "resnet18"
TEACHER = Path("runs/resnet18-fashion-mnist/0-teacher")
ALONE, KD = "alone", "KD"
STORED = DistillConfig().kd
LIVE = dataclasses.replace(STORED, n_views=0)
HINTS = "blocks.1:layer2,blocks.2:layer3"
VARIANTS: Mapping[str, KDConfig | None] = {
    KD: STORED,
    ALONE: None,
    "KD, stored views only": dataclasses.replace(STORED, n_views=2, fresh_views=False),
    "KD, live teacher": LIVE,
    "KD, standardized logits": dataclasses.replace(STORED, soft_loss="standardized"),
    "DKD": dataclasses.replace(STORED, soft_loss="dkd"),
    "DIST": dataclasses.replace(STORED, soft_loss="dist"),
    "KD and attention": dataclasses.replace(LIVE, hints=HINTS),
    "KD and features": dataclasses.replace(LIVE, hints=HINTS, hint_loss="features"),
}
COLUMNS = (
    *("variant", "epochs", "seconds", "top-1 %", "epochs, equal time", "seconds, equal time"),
    *("top-1 %, equal time", "seeds"),
)
INTRODUCTION = """\
The card's student, trained from scratch with the same seeds and schedule; several teachers form
an ensemble. KD is the default of `compress distill`. *Equal time*: as many epochs as fit into the
time that KD takes for its epochs and the teacher logits; training the teacher does not count.
*top-1* on the test split, float file in ONNX Runtime: mean and
standard deviation over the seeds."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One training."""

    epochs: int
    seconds: float
    """Student's epochs plus stored teacher logits."""
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

    teachers: tuple[str, ...]
    """Name, and top-1 on the test split."""
    student: str
    epochs: int
    rows: tuple[Row, ...]


def results_file(card: str, epochs: int) -> Path:
    """Returns where a card's results are; the page lies beside it."""
    return Path(__file__).parent / "results" / f"distill_{card}_{epochs}_epochs.json"


def train_and_score(
    student: Network, kd: KDConfig | None, epochs: int, context: Context
) -> Trained:
    """Trains a new student with or without KD and scores its ONNX file."""
    spec = model_spec(student, context.data)
    schedule = dataclasses.replace(DistillConfig().train, epochs=epochs)
    torch.manual_seed(context.seed)
    model = build(spec)
    title = f"seed {context.seed}"
    with tempfile.TemporaryDirectory() as scratch:
        inside = dataclasses.replace(context, folder=Path(scratch))
        if kd is None:
            trained = train_on_labels(model, schedule, inside, title=title)
        else:
            trained = train_with_kd(model, kd, schedule, inside, "distill", title=title)
        path = inside.folder / "student.onnx"
        export_onnx(model, spec, path, digest="", stage="distill")
        test = context.data.test
        scores = accuracy(predict_split(path, test), test.labels.numpy())
    return Trained(epochs=epochs, seconds=trained.seconds, top1=scores.top1)


def train_twice(
    student: Network,
    kd: KDConfig | None,
    epochs: int,
    seconds: float | None,
    context: Context,
) -> tuple[Trained, Trained]:
    """Trains for so many epochs and for so many seconds; None takes the first for both."""
    equal_epochs = train_and_score(student, kd, epochs, context)
    n_images, data_fraction = len(context.data.train), DistillConfig().train.data_fraction
    images: float = total_images(epochs, data_fraction, n_images)
    if seconds is not None:
        images *= seconds / equal_epochs.seconds
    fitting = epochs_for(images, data_fraction, n_images)
    if fitting == epochs:
        return equal_epochs, equal_epochs
    return equal_epochs, train_and_score(student, kd, fitting, context)


def seconds_of_kd(path: Path, teachers: tuple[str, ...]) -> float | None:
    """Returns what KD took when these teachers were compared last, or None."""
    if not path.is_file():
        return None
    results = read_results(Results, path)
    for row in results.rows if results.teachers == teachers else ():
        if row.variant == KD:
            return statistics.fmean(one.seconds for one in row.equal_epochs)
    return None


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = sorted(
        results.rows, key=lambda row: -statistics.fmean([one.top1 for one in row.equal_time])
    )
    host = rows[0].host
    return "\n".join(
        [
            "# What the student learns from",
            "",
            INTRODUCTION,
            "",
            f"Teachers: {', '.join(results.teachers)}. Card: {results.student}.",
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
    return (*cells, str(len(row.equal_time)))


@click.command()
@click.option("--card", default=CARD, show_default=True, help="Whose student is trained.")
@click.option(
    "--teacher", "folders", type=click.Path(path_type=Path, exists=True), multiple=True,
    default=[TEACHER], show_default=True, help="A checkpoint to learn from; may be repeated.",
)  # fmt: skip
@click.option(
    "--variants",
    default=";".join(VARIANTS),
    show_default=True,
    help="By semicolons; KD sets the time.",
)
@click.option(
    "--epochs", default=DistillConfig().train.epochs, show_default=True, help="When equal."
)
@click.option("--seeds", default=3, show_default=True, help="Trainings of each variant.")
def main(card: str, folders: tuple[Path, ...], variants: str, epochs: int, seeds: int) -> None:
    """Compare ways of learning from teachers with learning alone, at equal cost."""
    teachers = [load_checkpoint(folder) for folder in folders]
    names = tuple(
        f"{folder.parent.name} {read_stage_report(folder).top1:.2f} %" for folder in folders
    )
    command = shlex.join(["python", "-m", "bench.distill_losses", *sys.argv[1:]])
    network, path = load_card(card), results_file(card, epochs)
    context = Context(
        data=data_of(teachers[0]),
        seed=0,
        measure=measure_of(folders[0]),
        folder=folders[0],
        store=folders[0],
        teachers=tuple(checkpoint_teacher(teacher) for teacher in teachers),
    )

    with tempfile.TemporaryDirectory() as store:
        context = dataclasses.replace(context, store=Path(store))
        scores: dict[str, tuple[list[Trained], list[Trained]]] = {}
        for seed in range(seeds):  # outermost: what is compared is trained near in time
            inside = dataclasses.replace(context, seed=seed)
            seconds = seconds_of_kd(path, names)
            for variant in variants.split(";"):
                say(f"{variant}, seed {seed}")
                budget = None if variant == KD else seconds
                equal_epochs, equal_time = train_twice(
                    network.student, VARIANTS[variant], epochs, budget, inside
                )
                if variant == KD or seconds is None:
                    seconds = equal_epochs.seconds
                say(f"  equal epochs: {equal_epochs}")
                say(f"  equal time: {equal_time}")
                lists = scores.setdefault(variant, ([], []))
                lists[0].append(equal_epochs)
                lists[1].append(equal_time)
                row = Row(
                    variant=variant,
                    equal_epochs=tuple(lists[0]),
                    equal_time=tuple(lists[1]),
                    command=command,
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    host=describe_host(),
                )
                results = Results(
                    teachers=names,
                    student=network.description,
                    epochs=epochs,
                    rows=(row,),
                )
                add_to_results(results, path, results_markdown)
    click.echo(path.with_suffix(".md"))


if __name__ == "__main__":
    main()
