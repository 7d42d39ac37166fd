"""Post-training quantisation: ours against ONNX Runtime's quantize_static, in one run.

    make pipeline MODEL=resnet18 && make bench

Same float network, same calibration images, same scoring; latencies interleaved. Writes
bench/results/ptq_peers.json and prints the table.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from rich.box import SIMPLE_HEAD
from rich.table import Table

from compress.architectures.build import Classifier
from compress.checkpoint import load_checkpoint, write_json
from compress.data.load import as_numpy, calibration_order
from compress.data.splits import Split
from compress.export.onnx_file import INPUT, export_onnx
from compress.measure.accuracy import accuracy, predict_split
from compress.measure.host import Host, describe_host
from compress.measure.latency import Latency, measure_latency
from compress.quantize.placement import freeze, prepare
from compress.quantize.ptq import Calibration, Plan
from compress.quantize.stage import CALIBRATION_BATCH
from compress.report.render import size_text
from compress.restore import load_model
from compress.single import data_of
from compress.terminal import print_table

RESULTS = Path(__file__).parent / "results" / "ptq_peers.json"
ROUNDS = 200
PEERS = {
    "quantize_static MinMax": CalibrationMethod.MinMax,
    "quantize_static Entropy": CalibrationMethod.Entropy,
    "quantize_static Percentile": CalibrationMethod.Percentile,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One tool's file for one network."""

    network: str
    tool: str
    quantize_seconds: float
    """Calibration and conversion, without loading and scoring."""
    top1: float
    """Percent, test split."""
    agreement: float
    """Percent of test images with the float file's class."""
    size_bytes: int
    latency: Latency
    """Its speedup is against the float file."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the results file holds."""

    command: str
    calibration_images: int
    host: Host
    rows: tuple[Row, ...]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """quantize_static's view of the calibration images."""

    def __init__(self, split: Split, count: int) -> None:
        order = calibration_order(split, count, seed=0)
        self.batches: Iterator[np.ndarray] = (
            as_numpy(batch.images) for batch in split.batches(CALIBRATION_BATCH, order=order)
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels = next(self.batches, None)
        return None if pixels is None else {INPUT: pixels}


def compare(folder: Path, count: int, scratch: Path) -> list[Row]:
    """Quantises one float checkpoint with every tool and measures the files."""
    checkpoint = load_checkpoint(folder)
    data = data_of(checkpoint)
    model = load_model(checkpoint)
    assert isinstance(model, Classifier)
    files, seconds = {"float": scratch / "float.onnx"}, {"float": 0.0}
    export_onnx(model, checkpoint.spec, files["float"], digest="", stage=checkpoint.stage)

    order = calibration_order(data.train, count, seed=0)
    start = time.perf_counter()
    batches = data.train.batches
    calibration = Calibration(
        prepare(model), lambda: (b.images for b in batches(CALIBRATION_BATCH, order=order))
    )
    quantized = freeze(calibration.quantize(Plan(observer="minmax", weights="mse")))
    seconds["compress"] = time.perf_counter() - start
    files["compress"] = scratch / "compress.onnx"
    export_onnx(quantized, checkpoint.spec, files["compress"], digest="", stage="quantize")

    prepared = scratch / "prepared.onnx"
    quant_pre_process(files["float"], prepared)
    for name, method in PEERS.items():
        files[name] = scratch / f"{method.name}.onnx"
        start = time.perf_counter()
        quantize_static(
            prepared,
            files[name],
            _Reader(data.train, count),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )
        seconds[name] = time.perf_counter() - start

    labels = data.test.labels.numpy()
    predicted = {name: predict_split(path, data.test, title=name) for name, path in files.items()}
    latencies = measure_latency(list(files.values()), rounds=ROUNDS)
    return [
        Row(
            network=f"{folder.parent.name}/{folder.name}",
            tool=name,
            quantize_seconds=seconds[name],
            top1=accuracy(predicted[name], labels).top1,
            agreement=100 * float((predicted[name] == predicted["float"]).mean()),
            size_bytes=path.stat().st_size,
            latency=latency,
        )
        for (name, path), latency in zip(files.items(), latencies, strict=True)
    ]


def _table(network: str, rows: list[Row]) -> Table:
    table = Table(title=network, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("tool", "seconds", "top-1 %", "as float %", "size", "p50 ms", "faster"):
        table.add_column(column, justify="left" if column == "tool" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.tool,
            f"{row.quantize_seconds:.1f}",
            f"{row.top1:.2f}",
            f"{row.agreement:.2f}",
            size_text(row.size_bytes),
            f"{row.latency.latency_ms_p50:.3f}",
            f"{row.latency.speedup:.2f}x",
        )
    return table


@click.command()
@click.option(
    "--in", "folders", multiple=True, type=click.Path(path_type=Path, exists=True),
    default=("runs/resnet18-fashion-mnist/0-teacher", "runs/resnet18-fashion-mnist/2-prune"),
    show_default=True, help="Float checkpoints to quantise.",
)  # fmt: skip
@click.option("--calib", default=512, show_default=True, help="Calibration images.")
def main(folders: tuple[Path, ...], calib: int) -> None:
    """Compare post-training quantisation tools on float checkpoints."""
    rows: list[Row] = []
    for folder in folders:
        with tempfile.TemporaryDirectory() as scratch:
            rows += compare(folder, calib, Path(scratch))
    command = f"python -m bench.ptq_peers --calib {calib} --in {' --in '.join(map(str, folders))}"
    result = Result(
        command=command, calibration_images=calib, host=describe_host(), rows=tuple(rows)
    )
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, asdict(result))
    for network in dict.fromkeys(row.network for row in rows):
        print_table(_table(network, [row for row in rows if row.network == network]))
    click.echo(RESULTS)


if __name__ == "__main__":
    main()
