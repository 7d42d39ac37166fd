"""Post-training quantization: ours against other tools, in one run.

    make pipeline MODEL=resnet18 && make bench
    python -m bench.ptq_peers --untrained mobilenet_v3_large,resnet18 --size 224 --calib 64

Same float ONNX file, same calibration images, same scoring; latencies interleaved. Writes
bench/results/ptq_peers.json, where the results of other networks stay, and prints the tables.
"""

import shlex
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from bench.peers import BATCH, PEERS, Cost, run_peer
from bench.results_file import read_results
from compress.architectures.build import SMALL_IMAGE, build
from compress.architectures.spec import ModelSpec
from compress.checkpoint import Checkpoint, Product, load_checkpoint, write_checkpoint
from compress.cli.terminal import print_table
from compress.data.augment import Augmentation
from compress.data.dataset import IMAGENET_INPUTS
from compress.data.preprocess import Preprocess
from compress.data.splits import Split, TensorSplit, as_numpy, batch_count, calibration_order
from compress.files import write_json
from compress.host import Host, allowed_cores, describe_host
from compress.int8.restore import load_model
from compress.log import say, track
from compress.measure.accuracy import BATCH as SCORING_BATCH
from compress.measure.accuracy import accuracy
from compress.measure.latency import Latency, measure_latency
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import INPUT, OPSET, OUTPUT, export_onnx
from compress.report.render import host_text, size_text
from compress.report.tables import markdown_table
from compress.run.single_stage import data_of
from compress.teacher.result import TeacherResult

RESULTS = Path(__file__).parent / "results" / "ptq_peers.json"
PAGE = RESULTS.with_suffix(".md")
COLUMNS = (
    *("tool", "seconds", "MB", "size", "top-1 %", "as float %", "KL nats", "p50 ms", "faster"),
    "vs quantize_static",
)
INTRODUCTION = """\
Each tool quantizes the same float ONNX file with the same calibration images, in a process of its
own. *seconds* and *MB*: what quantizing took, and its peak memory above that before. *as float*:
test images with the float file's class; *KL*: mean divergence of the class probabilities from the
float file's. Latencies are interleaved; *faster* is against the float file, *vs quantize_static*
against its MinMax file. Networks without top-1 have random weights and images: of theirs only
speed, size and cost mean something. NNCF leaves the operators around SiLU and HardSwish in float,
which costs it its speed there."""
FOLDERS = (
    Path("runs/resnet18-fashion-mnist/0-teacher"),
    Path("runs/resnet18-fashion-mnist/2-prune"),
)
ROUNDS = 200
FLOAT, REFERENCE = "float", "quantize_static MinMax"
SYNTHETIC_CLASSES = 1000
SYNTHETIC_TEST_IMAGES = 64
SYNTHETIC_GRID = 8
"""Random colors a side, which a synthetic image interpolates."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool's file for one network."""

    tool: str
    cost: Cost | None
    """None for the float file."""
    size_bytes: int
    top1: float | None
    """Percent, test split; None for an untrained network."""
    agreement: float
    """Percent of test images with the float file's class."""
    kl_divergence: float
    """Of the classes' probabilities from the float file's, nats, mean over test images."""
    latency: Latency
    """Its speedup is against the float file."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A tool that made no file, or none that ONNX Runtime runs."""

    tool: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All tools on one network, and the circumstances."""

    network: str
    command: str
    date: str
    host: Host
    calibration_images: int
    test_images: int
    rows: tuple[Row, ...]
    failures: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds: the newest comparison of each network."""

    networks: tuple[Comparison, ...]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A float network to quantize, and images."""

    network: str
    checkpoint: Checkpoint
    calibration: np.ndarray
    """uint8 `[n, C, H, W]`."""
    test: Split
    labeled: bool
    """The test split's labels mean something."""


def trained_subject(folder: Path, count: int) -> Subject:
    """Returns a checkpoint with images of its own dataset; `count` for calibration."""
    checkpoint = load_checkpoint(folder)
    data = data_of(checkpoint)
    order = calibration_order(data.train, count, seed=0)
    batches = [as_numpy(batch.images) for batch in data.train.batches(BATCH, order=order)]
    return Subject(
        network=f"{folder.resolve().parent.name}/{folder.name}",
        checkpoint=checkpoint,
        calibration=np.concatenate(batches),
        test=data.test,
        labeled=True,
    )


def untrained_subject(name: str, size: int, count: int, scratch: Path) -> Subject:
    """Returns a network of torchvision with random weights, and synthetic images.

    Args:
        name: torchvision's.
        size: side of the images, pixels.
        count: of calibration images; on them BatchNorm's statistics are set, too.
        scratch: folder for the checkpoint.
    """
    spec = ModelSpec(
        architecture=name,
        stem="large" if size >= SMALL_IMAGE else "small",
        class_names=tuple(f"class {number}" for number in range(SYNTHETIC_CLASSES)),
        preprocess=Preprocess(
            size=size,
            resize=size,
            channels=3,
            mean=IMAGENET_INPUTS.mean,
            std=IMAGENET_INPUTS.std,
        ),
    )
    torch.manual_seed(0)
    model = build(spec)
    for parameter in model.parameters():
        if (parameter == parameter.flatten()[0]).all():  # as no trained network has
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    calibration = synthetic_images(count, size, seed=0)
    with torch.no_grad():
        update_bn(calibration.split(BATCH), model)
    folder = scratch / "checkpoint"
    folder.mkdir()
    checkpoint = write_checkpoint(
        folder,
        Product(model=model, spec=spec, result=TeacherResult()),
        stage="teacher",
        lineage=(),
    )
    return Subject(
        network=f"{name}, untrained, {size} px",
        checkpoint=checkpoint,
        calibration=as_numpy(calibration),
        test=TensorSplit(
            images=synthetic_images(SYNTHETIC_TEST_IMAGES, size, seed=1),
            labels=torch.zeros(SYNTHETIC_TEST_IMAGES, dtype=torch.int64),
            augmentation=Augmentation(),
            shift=0,
        ),
        labeled=False,
    )


def synthetic_images(count: int, size: int, *, seed: int) -> Tensor:
    """Returns smooth random images, uint8 `[count, 3, size, size]`."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(count, 3, SYNTHETIC_GRID, SYNTHETIC_GRID, generator=generator)
    smooth = F.interpolate(grid, size=(size, size), mode="bicubic")
    return (255 * smooth).clamp(0, 255).round().to(torch.uint8)


def compare(subject: Subject, scratch: Path, *, tools: Sequence[str], command: str) -> Comparison:
    """Quantizes one float network with some tools and measures the files.

    Args:
        subject: the network and the images.
        scratch: an empty folder.
        tools: their names.
        command: that the user gave, for the record.
    """
    say(subject.network)
    files, costs, failures = {FLOAT: scratch / "float.onnx"}, dict[str, Cost](), list[Failure]()
    checkpoint, images = subject.checkpoint, scratch / "calibration.npy"
    model = load_model(checkpoint)
    export_onnx(model, checkpoint.spec, files[FLOAT], digest="", stage=checkpoint.stage)
    np.save(images, subject.calibration)
    plain = scratch / "plain.onnx"
    _export_plainly(model, checkpoint, plain)
    for place, tool in enumerate(tools):
        path = scratch / f"{place}.onnx"
        try:
            costs[tool] = run_peer(
                tool,
                float_file=plain if PEERS[tool].takes_plain_export else files[FLOAT],
                checkpoint=checkpoint.folder,
                images=images,
                out=path,
            )
            files[tool] = path
            say(f"  {tool}: {costs[tool].seconds:.1f} s")
        except RuntimeError as error:
            failures.append(_failure(tool, error))

    logits: dict[str, np.ndarray] = {}
    for tool, path in list(files.items()):
        try:
            logits[tool] = _logits(path, subject.test, tool)
        except Exception as error:  # ONNX Runtime raises its own types for every fault of a file
            failures.append(_failure(tool, error))
            del files[tool]
    labels = subject.test.labels.numpy()
    expected = logits[FLOAT]
    latencies = measure_latency(list(files.values()), rounds=ROUNDS)
    rows = tuple(
        Row(
            tool=tool,
            cost=costs.get(tool),
            size_bytes=path.stat().st_size,
            top1=accuracy(logits[tool].argmax(1), labels).top1 if subject.labeled else None,
            agreement=100 * float((logits[tool].argmax(1) == expected.argmax(1)).mean()),
            kl_divergence=_kl_divergence(expected, logits[tool]),
            latency=latency,
        )
        for (tool, path), latency in zip(files.items(), latencies, strict=True)
    )
    return Comparison(
        network=subject.network,
        command=command,
        date=datetime.now(UTC).date().isoformat(),
        host=describe_host(),
        calibration_images=len(subject.calibration),
        test_images=len(subject.test),
        rows=rows,
        failures=tuple(failures),
    )


def _failure(tool: str, error: Exception) -> Failure:
    reason = str(error).splitlines()[0]
    say(f"  {tool}: {reason}")
    return Failure(tool=tool, reason=reason)


def _export_plainly(model: nn.Module, checkpoint: Checkpoint, path: Path) -> None:
    """Writes what `torch.onnx.export` makes of a network, as someone without us would have it."""
    preprocess = checkpoint.spec.preprocess
    example = torch.zeros(2, preprocess.channels, preprocess.size, preprocess.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals
        torch.onnx.export(
            model,
            (example.to(torch.uint8),),
            str(path),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )


def _logits(path: Path, split: Split, title: str) -> np.ndarray:
    """Returns a file's answers to a split, float32 `[n, classes]`.

    Raises:
        ValueError: ONNX Runtime cannot load the file, or some answers are no numbers.
    """
    session = open_session(path, threads=allowed_cores())
    total = batch_count(len(split), SCORING_BATCH)
    batches = track(split.batches(SCORING_BATCH), title, total=total)
    logits = np.concatenate([run_session(session, as_numpy(batch.images)) for batch in batches])
    if not np.isfinite(logits).all():
        raise ValueError("its logits are not finite")
    return logits


def _kl_divergence(expected: np.ndarray, found: np.ndarray) -> float:
    """Returns the mean KL divergence of softmax outputs, nats.

    Args:
        expected: logits `[n, classes]`.
        found: those that are to be the same.
    """
    p, q = (F.log_softmax(torch.from_numpy(logits).double(), 1) for logits in (expected, found))
    return float(F.kl_div(q, p, reduction="batchmean", log_target=True))


def add_to_results(comparison: Comparison) -> None:
    """Writes a comparison into the results, in the place of the network's older one."""
    kept: tuple[Comparison, ...] = ()
    if RESULTS.is_file():
        kept = tuple(
            entry
            for entry in read_results(Results, RESULTS).networks
            if _key(entry) != _key(comparison)
        )
    results = Results(networks=(*kept, comparison))
    write_json(RESULTS, results)
    PAGE.write_text(results_markdown(results), encoding="utf-8")


def _key(comparison: Comparison) -> tuple[str, int]:
    return comparison.network, comparison.calibration_images


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    parts = ["# Post-training quantization, ours and others'", "", INTRODUCTION]
    for comparison in results.networks:
        host = comparison.host
        parts += [
            "",
            f"## {comparison.network}",
            "",
            markdown_table(COLUMNS, table_rows(comparison)),
            "",
            f"`{comparison.command}`, {comparison.date[:10]}; {comparison.calibration_images} "
            f"calibration images, {comparison.test_images} test images; ONNX Runtime "
            f"{host.versions['onnxruntime']}, 1 thread, batch 1, {host_text(host)}.",
            *(f"{failure.tool}: {failure.reason}" for failure in comparison.failures),
        ]
    return "\n".join(parts) + "\n"


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Returns the cells of a network's table."""
    medians = {row.tool: row.latency.latency_ms_p50 for row in comparison.rows}
    return [
        (
            row.tool,
            "" if row.cost is None else f"{row.cost.seconds:.1f}",
            "" if row.cost is None else f"{row.cost.memory_mb:.0f}",
            size_text(row.size_bytes),
            "" if row.top1 is None else f"{row.top1:.2f}",
            f"{row.agreement:.2f}",
            f"{row.kl_divergence:.2g}",
            f"{row.latency.latency_ms_p50:.3f}",
            f"{row.latency.speedup:.2f}x",
            f"{medians[REFERENCE] / row.latency.latency_ms_p50:.2f}x"
            if REFERENCE in medians
            else "",
        )
        for row in comparison.rows
    ]


def print_comparison(comparison: Comparison) -> None:
    """Prints a network's table, and the tools that failed."""
    title = f"{comparison.network}, {comparison.calibration_images} calibration images"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(COLUMNS[0], no_wrap=True)
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right", no_wrap=column != COLUMNS[-1])
    for row in table_rows(comparison):
        table.add_row(*row)
    print_table(table)
    for failure in comparison.failures:
        click.echo(f"{failure.tool}: {failure.reason}")


@click.command()
@click.option(
    "--in", "folders", multiple=True, type=click.Path(path_type=Path, exists=True),
    help=f"Float checkpoints to quantize.  [default: {', '.join(map(str, FOLDERS))}]",
)  # fmt: skip
@click.option(
    "--untrained", default="",
    help="Networks of torchvision, with random weights and images: a,b,c; instead of checkpoints.",
)  # fmt: skip
@click.option("--size", default=224, show_default=True, help="Image side for --untrained, pixels.")
@click.option("--calib", default=512, show_default=True, help="Calibration images.")
@click.option(
    "--tools", default=",".join(PEERS), show_default=True, help="Which to compare, by commas."
)
def main(folders: tuple[Path, ...], untrained: str, size: int, calib: int, tools: str) -> None:
    """Compare post-training quantization tools on float networks."""
    chosen = tools.split(",")
    if unknown := set(chosen) - set(PEERS):
        raise click.UsageError(f"unknown tools: {', '.join(unknown)}")
    command = shlex.join(["python", "-m", "bench.ptq_peers", *sys.argv[1:]])
    names = [name for name in untrained.split(",") if name]

    def finish(subject: Subject, scratch: Path) -> None:
        comparison = compare(subject, scratch, tools=chosen, command=command)
        add_to_results(comparison)
        print_comparison(comparison)

    for folder in folders or (() if names else FOLDERS):
        with tempfile.TemporaryDirectory() as scratch:
            finish(trained_subject(folder, calib), Path(scratch))
    for name in names:
        with tempfile.TemporaryDirectory() as scratch:
            finish(untrained_subject(name, size, calib, Path(scratch)), Path(scratch))
    click.echo(RESULTS)


if __name__ == "__main__":
    main()
