"""Pruning to the same measured int8 latency: ours against torch-pruning's own pruners.

    make pipeline MODEL=resnet18 && python -m bench.prune_peers
    python -m bench.prune_peers --variants "ours l2;ours hessian;ours random" --seeds 1

Every variant starts from the same network, is cut at once to the same share of its int8 latency,
and is trained with the same recipe and seeds; then it is quantized and scored in ONNX Runtime. That
takes nearly two hours on 2 cores.
Writes bench/results/prune_peers.json, where the results of other variants stay, and a page.
"""

import copy
import dataclasses
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from bench.results_file import add_to_results, commands_text, spread_text
from compress.architectures.build import Classifier, example_input
from compress.checkpoint import Checkpoint, load_checkpoint
from compress.data.dataset import Data
from compress.data.splits import calibration_order
from compress.host import Host, describe_host
from compress.int8.conversion import convert
from compress.int8.lowering import lower
from compress.int8.ptq import CALIBRATION_BATCH, Calibration, fit_to_cpu
from compress.int8.restore import load_model
from compress.kd.config import KDConfig
from compress.kd.context import Context
from compress.kd.teachers import checkpoint_teacher
from compress.kd.training import train_with_kd
from compress.log import say
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.cost import count_macs, count_parameters
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from compress.prune.batchnorm import reestimate_batchnorm
from compress.prune.config import Importance, PruneConfig
from compress.prune.probe import export_to_time
from compress.prune.search import SCORING_BATCH, SCORING_IMAGES, Search
from compress.quantize.calibration import plan_of
from compress.quantize.config import QuantizeConfig
from compress.report.render import host_text, size_text
from compress.report.tables import markdown_table
from compress.run.single_stage import data_of, measure_of
from compress.train.config import TrainConfig

RESULTS = Path(__file__).parent / "results" / "prune_peers.json"
PAGE = RESULTS.with_suffix(".md")
FOLDER = Path("runs/resnet18-fashion-mnist/0-teacher")
ROUND_TO = 16
PROBES = 8
"""Ratios tried to make torch-pruning's network as fast as asked."""
ROUNDS = 200
UNPRUNED = "unpruned"
TP_IMPORTANCES: dict[str, Callable[[], tp.importance.Importance]] = {
    "L1": lambda: tp.importance.GroupMagnitudeImportance(p=1, group_reduction="first"),
    "group-L2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    "Taylor": tp.importance.GroupTaylorImportance,
}
PEERS = {
    f"torch-pruning {'global' if everywhere else 'uniform'} {name}": (name, everywhere)
    for name in TP_IMPORTANCES
    for everywhere in (False, True)
}
OURS = {
    f"ours {criterion}{'' if blocks else ', all blocks stay'}": (criterion, blocks)
    for criterion in get_args(Importance)
    for blocks in (True, False)
}
PACE = f"ours {PruneConfig().importance}"
"""Sets the latency that the others are cut to."""
MAIN = (UNPRUNED, PACE, *PEERS)
COLUMNS = (
    *("variant", "latency ratio", "p50 ms", "int8 top-1 %", "float top-1 %", "seeds"),
    *("size", "MACs", "parameters"),
)
INTRODUCTION = """\
Each variant starts from the same trained network and is cut at once; *latency ratio* is its int8
file's latency against the unpruned int8 file's, interleaved. torch-pruning's ratio was searched for
so that its network is as fast as ours, or as near as its rounding to 16 lets it. All are trained
with the same recipe and seeds, the unpruned network too. *top-1* on the test split: mean and
standard deviation over the seeds, int8 and float files in ONNX Runtime."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant."""

    variant: str
    ratio: float
    """Latency against the unpruned file's."""
    latency_ms_p50: float
    size_bytes: int
    macs: int
    parameters: int
    int8_top1: tuple[float, ...]
    """Percent, test split, by seed."""
    float_top1: tuple[float, ...]
    command: str
    date: str
    host: Host


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds: the newest row of each variant."""

    network: str
    target: float
    epochs: int
    rows: tuple[Row, ...]


def prune_ours(
    criterion: Importance, blocks: bool, target: float, checkpoint: Checkpoint, context: Context
) -> Classifier:
    """Returns the network pruned by our own search in one iteration."""
    model = _load(checkpoint)
    config = PruneConfig(
        latency_ratio=target, importance=criterion, remove_blocks=blocks, iterations=1
    )
    Search(checkpoint, model, config, context, context.folder).prune(model, 1)
    return model


def prune_theirs(
    importance: str, everywhere: bool, pace: Path, checkpoint: Checkpoint, context: Context
) -> Classifier:
    """Returns the network that torch-pruning cuts nearest to the latency of a file."""
    low, high = 0.05, 0.95
    best: tuple[float, Classifier] | None = None
    for _ in range(PROBES):
        ratio = (low + high) / 2
        model = _load(checkpoint)
        _prune_with_torch_pruning(model, importance, everywhere, ratio, context.data)
        file = context.folder / "probe.onnx"
        _export_quick(model, checkpoint, context.data, file)
        _, latency = measure_latency([pace, file])
        reached = 1 / latency.speedup
        say(f"  pruning ratio {ratio:.3f}: {reached:.3f} of our latency")
        if best is None or abs(reached - 1) < abs(best[0] - 1):
            best = (reached, model)
        low, high = (ratio, high) if reached > 1 else (low, ratio)
    assert best is not None
    return best[1]


def _prune_with_torch_pruning(
    model: Classifier, importance: str, everywhere: bool, ratio: float, data: Data
) -> None:
    network = model.network.eval()
    if importance == "Taylor":
        for inputs, labels in _scoring_batches(model, data):
            F.cross_entropy(network(inputs), labels).backward()
    classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
    pruner = tp.pruner.BasePruner(
        network,
        example_input(model),
        importance=TP_IMPORTANCES[importance](),
        global_pruning=everywhere,
        pruning_ratio=ratio,
        round_to=ROUND_TO,
        ignored_layers=[classifier],
    )
    pruner.step()
    network.zero_grad()


def _scoring_batches(model: Classifier, data: Data) -> list[tuple[torch.Tensor, torch.Tensor]]:
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    batches = data.train.batches(SCORING_BATCH, order=order[:SCORING_IMAGES])
    return [(model.normalize(batch.images), batch.labels) for batch in batches]


def _load(checkpoint: Checkpoint) -> Classifier:
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    return model


def _export_quick(model: Classifier, checkpoint: Checkpoint, data: Data, path: Path) -> None:
    images = next(iter(data.train.batches(CALIBRATION_BATCH))).images
    export_to_time(model, checkpoint.spec, images, path, precision="int8")


def train_and_score(
    model: Classifier, checkpoint: Checkpoint, context: Context, schedule: TrainConfig
) -> tuple[float, float]:
    """Trains a copy with the unpruned network's help; returns its int8 and float top-1."""
    model = copy.deepcopy(model)
    reestimate_batchnorm(model, context.data.train)
    with tempfile.TemporaryDirectory() as folder:
        inside = dataclasses.replace(context, folder=Path(folder))
        kd = KDConfig(n_views=schedule.epochs)
        train_with_kd(model, kd, schedule, inside, "prune", title=f"seed {context.seed}")
        config = QuantizeConfig()
        order = calibration_order(context.data.train, config.calib, seed=context.seed)
        calibration = Calibration(
            lower(model),
            lambda: (b.images for b in context.data.train.batches(CALIBRATION_BATCH, order=order)),
        )
        plan = fit_to_cpu(plan_of(config), calibration)
        scores = []
        for network in (convert(calibration.quantize(plan)), model):
            path = Path(folder) / "scored.onnx"
            export_onnx(network, checkpoint.spec, path, digest="", stage="prune")
            predicted = predict_split(path, context.data.test)
            scores.append(accuracy(predicted, context.data.test.labels.numpy()).top1)
    return scores[0], scores[1]


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = sorted(results.rows, key=lambda row: -statistics.fmean(row.int8_top1))
    host = rows[0].host
    return "\n".join(
        [
            "# Pruning to the same latency, ours and torch-pruning's",
            "",
            INTRODUCTION,
            "",
            f"{results.network}, target {results.target} of the int8 latency, {results.epochs} "
            "epochs of training.",
            "",
            markdown_table(COLUMNS, [_cells(row) for row in rows]),
            "",
            f"{commands_text(rows)}; ONNX Runtime {host.versions['onnxruntime']}, torch-pruning "
            f"{host.versions['torch-pruning']}, 1 thread, batch 1, {host_text(host)}.",
            "",
        ]
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.variant,
        f"{row.ratio:.3f}",
        f"{row.latency_ms_p50:.3f}",
        spread_text(row.int8_top1),
        spread_text(row.float_top1),
        str(len(row.int8_top1)),
        size_text(row.size_bytes),
        f"{row.macs / 1e6:.1f} M",
        f"{row.parameters / 1e6:.2f} M",
    )


@click.command()
@click.option(
    "--in", "folder", type=click.Path(path_type=Path, exists=True), default=FOLDER,
    show_default=True, help="Float checkpoint to prune.",
)  # fmt: skip
@click.option(
    "--variants", default=";".join(MAIN), show_default=True, help="Which to compare, by semicolons."
)
@click.option("--target", default=0.485, show_default=True, help="Share of the int8 latency.")
@click.option("--epochs", default=3, show_default=True, help="Of training after the cut.")
@click.option("--seeds", default=3, show_default=True, help="Trainings of each variant.")
def main(folder: Path, variants: str, target: float, epochs: int, seeds: int) -> None:
    """Compare ways of pruning at the same measured int8 latency."""
    checkpoint = load_checkpoint(folder)
    data = data_of(checkpoint)
    chosen = variants.split(";")
    schedule = TrainConfig(epochs=epochs, batch_size=128, lr=0.03)
    command = shlex.join(["python", "-m", "bench.prune_peers", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as scratch:
        context = Context(
            data=data,
            seed=0,
            measure=measure_of(folder),
            folder=Path(scratch),
            store=Path(scratch) / "teacher-logits",
            teachers=(checkpoint_teacher(checkpoint),),
        )
        pace = Path(scratch) / "pace.onnx"
        say(PACE)
        ours = prune_ours(*OURS[PACE], target, checkpoint, context)
        _export_quick(ours, checkpoint, data, pace)
        networks: dict[str, Classifier] = {}
        for variant in chosen:
            if variant != PACE:
                say(variant)
            if variant == UNPRUNED:
                networks[variant] = _load(checkpoint)
            elif variant == PACE:
                networks[variant] = ours
            elif variant in OURS:
                networks[variant] = prune_ours(*OURS[variant], target, checkpoint, context)
            else:
                networks[variant] = prune_theirs(*PEERS[variant], pace, checkpoint, context)
        files = {name: Path(scratch) / f"{place}.onnx" for place, name in enumerate(networks)}
        reference = Path(scratch) / "unpruned-reference.onnx"
        _export_quick(_load(checkpoint), checkpoint, data, reference)
        for name, network in networks.items():
            _export_quick(network, checkpoint, data, files[name])
        measured = measure_latency([reference, *files.values()], rounds=ROUNDS)[1:]
        scores: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
        for seed in range(seeds):  # outermost: every variant has a row soon
            inside = dataclasses.replace(context, seed=seed)
            for (name, network), latency in zip(networks.items(), measured, strict=True):
                scores[name].append(train_and_score(network, checkpoint, inside, schedule))
                say(f"{name}: int8 and float top-1 {scores[name]}")
                row = Row(
                    variant=name,
                    ratio=1 / latency.speedup,
                    latency_ms_p50=latency.latency_ms_p50,
                    size_bytes=files[name].stat().st_size,
                    macs=count_macs(network, checkpoint.spec),
                    parameters=count_parameters(network),
                    int8_top1=tuple(int8 for int8, _ in scores[name]),
                    float_top1=tuple(plain for _, plain in scores[name]),
                    command=command,
                    date=datetime.now(UTC).isoformat(timespec="seconds"),
                    host=describe_host(),
                )
                results = Results(
                    network=f"{folder.parent.name}/{folder.name}",
                    target=target,
                    epochs=epochs,
                    rows=(row,),
                )
                add_to_results(results, RESULTS, results_markdown)
    click.echo(PAGE)


if __name__ == "__main__":
    main()
