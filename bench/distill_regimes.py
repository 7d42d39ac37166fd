r"""Where does a teacher help? Its student against the same student alone, for the same time.

    make pipeline MODEL=resnet18
    python -m bench.distill_regimes --regimes "1 % of the labels;10 % of the labels"
    python -m bench.elpv elpv/
    compress run elpv/lite0.toml --until teacher --data imagefolder:elpv/photos --set data.size=128
    python -m bench.distill_regimes --regimes "pretrained teacher" \
        --teacher runs/lite0-photos/0-teacher --card elpv/lite0.toml
    python -m bench.distill_regimes --regimes "shipped shape" --runs runs/resnet18-fashion-mnist

Each student is trained from scratch by the default recipe's distillation. Alone, it is trained for
that time and for a quarter of it, which may overfit less, and the better one on the test images
counts. "shipped shape" compares a run's pruned network with new ones of its shape, trained alone
for the time of distilling and pruning. Writes bench/results/distill_regimes.json and a page.
"""

import dataclasses
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import torch

from bench.results_file import add_to_results, commands_text, spread_text
from compress.architectures.build import build
from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.config import DataConfig
from compress.data.dataset import Data
from compress.data.load import load_data
from compress.data.preprocess import inputs_of
from compress.distill.config import DistillConfig
from compress.files import parse_json, read_text
from compress.host import Host, describe_host
from compress.int8.restore import build_pruned, load_model
from compress.kd.ablation import ablate
from compress.kd.context import Context, subfolder
from compress.kd.result import Ablation
from compress.kd.teachers import checkpoint_teacher
from compress.kd.training import train_with_kd
from compress.log import say
from compress.measure.statistics import PairedDifference, mcnemar_p_value
from compress.prune.config import PruneConfig
from compress.prune.from_scratch import distilling_seconds
from compress.report.render import host_text
from compress.report.tables import markdown_table
from compress.run.folder import STORE
from compress.run.lookup import read_stage_report
from compress.run.networks import model_spec
from compress.run.recipe import load_card, load_recipe
from compress.run.single_stage import measure_of
from compress.settings import parse

RESULTS = Path(__file__).parent / "results" / "distill_regimes.json"
PAGE = RESULTS.with_suffix(".md")
TEACHER = Path("runs/resnet18-fashion-mnist/0-teacher")
RECIPE = load_recipe("default").settings
SHAPE = "shipped shape"
REGIMES: Mapping[str, dict[str, float]] = {
    "1 % of the labels": {"labels": 0.01, "validation": 0.02},
    "10 % of the labels": {"labels": 0.1, "validation": 0.02},
    "all labels": {},
    "pretrained teacher": {},
    SHAPE: {},
}
"""Changed data settings by regime."""
SHARES = (1.0, 0.25)
"""Of the time, for the student alone."""
SMALLEST_P = 1e-99
COLUMNS = (
    *("regime", "teacher", "labels", "images", "seconds", "distilled, top-1 %", "alone, top-1 %"),
    *("gain, points", "p", "seeds"),
)
INTRODUCTION = f"""\
*distilled*: the student, trained from scratch by the default recipe's distillation; the teacher was
trained on all labels, the student sees some of them, and the other images without. *{SHAPE}*: the
pruned network of the default recipe. *alone*: the same network, trained from scratch on the same
labels for the same time, teacher logits included, or for a quarter of it, whichever is better on
the test images. *top-1* and *gain*: test images, float file in ONNX Runtime, mean and standard
deviation over the seeds; *p*: McNemar's exact test on the flips of all seeds."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One seed."""

    seconds: float
    """Of the distilled network."""
    alone: tuple[Ablation, ...]
    """For each share of the time."""

    @property
    def best(self) -> Ablation:
        """The better one alone."""
        return max(self.alone, key=lambda one: one.top1)

    @property
    def gain(self) -> PairedDifference:
        """Of the distilled network over the better one."""
        return self.best.gain


@dataclass(frozen=True, kw_only=True)
class Row:
    """One regime."""

    variant: str
    teacher: str
    labels: int
    images: int
    """Training images, with labels and without."""
    pairs: tuple[Pair, ...]
    """By seed."""
    command: str
    date: str


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    host: Host
    rows: tuple[Row, ...]


def distilled_pair(student: str, epochs: int, context: Context) -> Pair:
    """Trains the card's student with the teacher and without."""
    config: DistillConfig = RECIPE["distill"]
    training = dataclasses.replace(config.train, epochs=epochs)
    spec = model_spec(load_card(student).student, context.data)
    make = partial(build, spec)
    torch.manual_seed(context.seed)
    model = make()
    inside = subfolder(context, f"seed-{context.seed}")
    kd = train_with_kd(model, config.kd, training, inside, "distill")
    alone = []
    for share in SHARES:
        part = subfolder(inside, f"share-{share:g}")
        seconds = share * kd.seconds
        alone.append(ablate(model, make, spec, training, part, seconds=seconds))
    return Pair(seconds=kd.seconds, alone=tuple(alone))


def shape_pair(run: Path, context: Context) -> Pair:
    """Trains new networks of a run's pruned shape, without a teacher."""
    pruned = load_checkpoint(run / "2-prune")
    logits = sum(parse_json(read_text(path))["seconds"] for path in (run / STORE).glob("*.json"))
    seconds = logits + sum(distilling_seconds(run / stage) for stage in ("1-distill", "2-prune"))
    model, make = load_model(pruned), partial(build_pruned, pruned.description)
    config: PruneConfig = RECIPE["prune"]
    inside = subfolder(context, run.name)
    alone = ablate(model, make, pruned.spec, config.train, inside, seconds=seconds)
    return Pair(seconds=seconds, alone=(alone,))


def pairs(
    regime: str,
    context: Context,
    *,
    student: str,
    runs: tuple[Path, ...],
    seeds: int,
    epochs: int,
) -> Iterator[Pair]:
    """Yields a pair for each seed, or for each run."""
    if regime == SHAPE:
        for run in runs:
            seed = load_checkpoint(run / "2-prune").description.step.seed
            yield shape_pair(run, dataclasses.replace(context, seed=seed))
    else:
        for seed in range(seeds):
            yield distilled_pair(student, epochs, dataclasses.replace(context, seed=seed))


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    return "\n".join(
        [
            "# Where a teacher helps",
            "",
            INTRODUCTION,
            "",
            markdown_table(COLUMNS, [_cells(row) for row in results.rows]),
            "",
            f"{commands_text(results.rows)}; torch {results.host.versions['torch']}, "
            f"{host_text(results.host)}.",
            "",
        ]
    )


def _cells(row: Row) -> tuple[str, ...]:
    gains = [pair.gain for pair in row.pairs]
    alone = [pair.best.top1 for pair in row.pairs]
    gained, lost = sum(gain.gained for gain in gains), sum(gain.lost for gain in gains)
    p_value = mcnemar_p_value(gained, lost)
    return (
        *(row.variant, row.teacher, f"{row.labels:,}", f"{row.images:,}"),
        f"{statistics.fmean([pair.seconds for pair in row.pairs]):.0f}",
        spread_text([top1 + gain.points for top1, gain in zip(alone, gains, strict=True)]),
        spread_text(alone),
        spread_text([gain.points for gain in gains]),
        f"{p_value:.2g}" if p_value > SMALLEST_P else f"< {SMALLEST_P:g}",
        str(len(row.pairs)),
    )


@click.command()
@click.option("--regimes", default=";".join(REGIMES), show_default=True, help="By semicolons.")
@click.option(
    "--teacher", "folder", type=click.Path(path_type=Path, exists=True), default=TEACHER,
    show_default=True, help="The checkpoint to learn from, on whose dataset the student trains.",
)  # fmt: skip
@click.option("--card", default="resnet18", show_default=True, help="Whose student is trained.")
@click.option(
    "--runs", type=click.Path(path_type=Path, exists=True), multiple=True,
    default=[TEACHER.parent], show_default=True, help=f"Run of {SHAPE!r}; may be repeated.",
)  # fmt: skip
@click.option("--seeds", default=3, show_default=True, help="Of each other regime.")
@click.option(
    "--epochs", default=RECIPE["distill"].train.epochs, show_default=True,
    help="Of distillation, in each other regime.",
)  # fmt: skip
def main(
    *, regimes: str, folder: Path, card: str, runs: tuple[Path, ...], seeds: int, epochs: int
) -> None:
    """Compare a distilled network with the same one trained alone."""
    teacher = load_checkpoint(folder)
    command = shlex.join(["python", "-m", "bench.distill_regimes", *sys.argv[1:]])
    found: list[Pair]
    for regime in regimes.split(";"):
        data, found = _data(teacher, REGIMES[regime]), []
        with tempfile.TemporaryDirectory() as scratch:
            context = Context(
                data=data,
                seed=0,
                measure=measure_of(folder),
                folder=Path(scratch),
                store=Path(scratch),
                teachers=(checkpoint_teacher(teacher),),
            )
            for pair in pairs(regime, context, student=card, runs=runs, seeds=seeds, epochs=epochs):
                say(f"{regime}: {pair.gain}")
                found.append(pair)
                row = Row(
                    variant=regime,
                    teacher=f"{read_stage_report(folder).top1:.2f} %",
                    labels=len(data.train),
                    images=len(data.with_unlabeled().train),
                    pairs=tuple(found),
                    command=command,
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                )
                results = Results(host=describe_host(), rows=(row,))
                add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


def _data(teacher: Checkpoint, changes: Mapping[str, float]) -> Data:
    step = teacher.description.step
    config = parse(DataConfig(), {**step.data_config, **changes}, section="data")
    inputs = inputs_of(teacher.description.spec.preprocess)
    return load_data(step.data, config, seed=step.seed, inputs=inputs)


if __name__ == "__main__":
    main()
