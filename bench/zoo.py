"""Networks that nobody here wrote: 60 architectures of timm, quantized and pruned.

    python -m bench.zoo
    python -m bench.zoo --names ghostnet_100,tf_efficientnet_lite0

Random weights, random images, one process a network and core. Each is traced, quantized like by
`compress quantize`, and exported; its file is compared with its simulation in torch, and half the
channels of each group are removed. Then, one network after the other, the file, now without layers
that are faster in float, is timed in turns with that of `quantize_static` (MinMax, uint8
activations) on the same float file. Writes bench/results/zoo.json and a page.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np
import torch
from pydantic import TypeAdapter

from bench.peers import run_peer
from bench.ptq_peers import FLOAT, REFERENCE, untrained_subject
from bench.results_file import add_to_results
from compress.architectures.build import Classifier, build, example_input
from compress.architectures.spec import ModelSpec
from compress.checkpoint import MODEL_FILE
from compress.data.splits import as_numpy
from compress.errors import CompressError
from compress.export.stage import judge
from compress.host import Host, allowed_cores, describe_host
from compress.int8.conversion import convert
from compress.int8.layer_profile import layer_costs, layer_edges
from compress.int8.lowering import lower
from compress.int8.ptq import CALIBRATION_BATCH, Calibration, fit_to_cpu
from compress.int8.restore import load_model
from compress.log import say, track
from compress.measure.config import MeasureConfig
from compress.measure.cost import count_macs
from compress.measure.latency import measure_latency
from compress.measure.profile import profile, summarize
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import export_onnx
from compress.prune.groups import find_groups
from compress.prune.surgery import best_channels, keep_channels
from compress.quantize.calibration import plan_of
from compress.quantize.config import QuantizeConfig
from compress.quantize.layer_timing import choose_float_layers
from compress.quantize.sensitivity import with_float_layers
from compress.report.render import host_text
from compress.report.tables import markdown_table

RESULTS = Path(__file__).parent / "results" / "zoo.json"
PAGE = RESULTS.with_suffix(".md")
SIZE, CALIBRATION = 128, 64
SIZES = {"crossvit_9_240": 240, "efficientformer_l1": 224}
"""Pixels, for networks that accept no others."""
TIMEOUT_S = 400
AT_ONCE = 10
"""Networks whose files are made before they are timed."""
COMMAND = "python -m bench.zoo --names {}"
OURS, MIXED = "compress", "mixed.onnx"
FILES = {
    OURS: "ours.onnx",
    REFERENCE: "static.onnx",
    FLOAT: f"checkpoint/{MODEL_FILE}",
}
"""By tool. `quantize_static` may fail."""
MEASURE = MeasureConfig(rounds=30)
MAX_DISAGREEMENT = 2.0
"""Percent of images: float operators round a little differently in ONNX Runtime."""
NAMES = (
    "botnet26t_256",
    "coatnet_nano_rw_224",
    "convit_tiny",
    "convmixer_768_32",
    "convnext_atto",
    "convnextv2_atto",
    "crossvit_9_240",
    "cs3darknet_m",
    "cspresnet50",
    "darknet53",
    "deit_tiny_patch16_224",
    "densenet121",
    "dla34",
    "dpn68",
    "edgenext_xx_small",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "efficientnet_b0",
    "efficientvit_b0",
    "efficientvit_m0",
    "fasternet_t0",
    "fbnetc_100",
    "fbnetv3_b",
    "gernet_s",
    "ghostnet_100",
    "ghostnetv2_100",
    "hardcorenas_a",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_v3",
    "lcnet_050",
    "levit_128s",
    "mambaout_femto",
    "mixnet_s",
    "mnasnet_100",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobileone_s0",
    "mobilevit_xxs",
    "nfnet_l0",
    "pit_ti_224",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetx_004",
    "regnety_004",
    "repvgg_a0",
    "repvit_m0_9",
    "res2net50_26w_4s",
    "resnest14d",
    "resnet18",
    "resnext50_32x4d",
    "rexnet_100",
    "selecsls42b",
    "seresnet18",
    "spnasnet_100",
    "tf_efficientnet_lite0",
    "tiny_vit_5m_224",
    "xception41",
)
INTRODUCTION = f"""\
Networks of timm with random weights at {SIZE} px ({
    ", ".join(f"{name}: {size}" for name, size in SIZES.items())
}), one thread, batch 1.
*int8 / float / Q+DQ*: operators in ONNX Runtime's optimized graph; conversions that were not fused
away count apart. *same class*: images for which the file and its simulation in torch agree, before
layers that are faster in float are excepted; in parentheses, for which the simulation agrees with
itself if it computes one image at a time, which sums floats in another order: random weights
amplify what is rounded. *difference*: the largest one between the logits of file and simulation, in
percent of the logits' range, and, in parentheses, between simulation and float network. *vs
static*, *vs float*: how much faster our int8 file is than `quantize_static`'s and than the float
file, in turns. *ships*: the file that `export` chooses by latency. *half*: MACs left when half of
the channels of every group are removed, or why that is not possible."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network."""

    variant: str
    command: str
    date: str
    problem: str = ""
    """Why there is no int8 file; empty if there is one."""
    n_int8: int = 0
    n_float: int = 0
    n_conversions: int = 0
    same_class: float = 0.0
    """Percent of the images for which file and simulation agree, all layers in int8."""
    itself: float = 0.0
    """The same for the simulation and itself, one image at a time."""
    max_difference: float = 0.0
    """Largest difference of a logit, in percent of the range of all logits."""
    rounding: float = 0.0
    """The same between simulation and float network: what int8 changes by itself."""
    vs_static: float | None = None
    """Speedup over the file of `quantize_static`; None if it made none."""
    vs_float: float = 0.0
    ships: str = ""
    """What `export` would choose on this machine if the accuracies were equal."""
    half: str = ""
    """MACs left at half of the channels, or why it was not pruned."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the results file holds."""

    host: Host
    rows: tuple[Row, ...]


def examine(name: str, folder: Path) -> Row:
    """Quantizes and prunes one network, and writes its `FILES`; nothing is timed."""
    today = datetime.now(UTC).date().isoformat()
    row = Row(variant=name, command=COMMAND.format(name), date=today)
    size = SIZES.get(name, SIZE)
    subject = untrained_subject(f"timm:{name}", size, CALIBRATION, folder)
    spec, model = subject.checkpoint.spec, load_model(subject.checkpoint)
    assert isinstance(model, Classifier)
    files = {tool: folder / file for tool, file in FILES.items()}
    export_onnx(model, spec, files[FLOAT], digest="", stage="teacher")
    tensors = torch.from_numpy(subject.calibration)
    try:
        calibration = Calibration(lower(model), lambda: tensors.split(CALIBRATION_BATCH))
        plan = fit_to_cpu(plan_of(QuantizeConfig()), calibration)
        quantized = convert(calibration.quantize(plan))
        export_onnx(quantized, spec, files[OURS], digest="", stage="quantize")
    except CompressError as error:
        return dataclasses.replace(row, problem=str(error).splitlines()[0], half=_halved(spec))
    images = next(iter(subject.test.batches(len(subject.test)))).images
    with torch.no_grad():
        expected, in_float = quantized(images), model(images)
        one_by_one = torch.cat([quantized(image) for image in images.split(1)])
    found = torch.from_numpy(run_session(open_session(files[OURS], threads=2), as_numpy(images)))
    costs, _ = layer_costs(files[FLOAT], files[OURS], threads=1)
    layers = choose_float_layers(costs, layer_edges(files[OURS], threads=1))
    if 0 < len(layers) < len(costs):
        mixed = convert(calibration.quantize(with_float_layers(plan, layers)))
        export_onnx(mixed, spec, folder / MIXED, digest="", stage="quantize")
    np.save(folder / "images.npy", subject.calibration)
    try:
        run_peer(
            REFERENCE,
            float_file=files[FLOAT],
            checkpoint=subject.checkpoint.folder,
            images=folder / "images.npy",
            out=files[REFERENCE],
        )
        open_session(files[REFERENCE], threads=1)
    except Exception as error:  # the peer's fault, whatever it is
        say(f"  {REFERENCE}: {str(error).splitlines()[0]}")
        files[REFERENCE].unlink(missing_ok=True)
    return dataclasses.replace(
        row,
        same_class=_agreement(found, expected),
        itself=_agreement(one_by_one, expected),
        max_difference=_percent_of_range(found - expected, expected),
        rounding=_percent_of_range(expected - in_float, expected),
        half=_halved(spec),
    )


def timed(row: Row, folder: Path) -> Row:
    """Times a network's files against each other.

    Like `compress.quantize.layer_timing`, it keeps layers in float if that is faster beyond noise.
    """
    ours, mixed = folder / FILES[OURS], folder / MIXED
    if mixed.is_file():
        _, latency = measure_latency([ours, mixed], **asdict(MEASURE))
        if latency.speedup_ci95[0] > 1:
            mixed.replace(ours)
    operators = summarize(profile(ours, threads=1))
    files = {tool: folder / file for tool, file in FILES.items() if (folder / file).is_file()}
    latencies = measure_latency(list(files.values()), **asdict(MEASURE))
    ratios = dict(zip(files, latencies, strict=True))
    low, high = ratios[FLOAT].speedup_ci95
    return dataclasses.replace(
        row,
        n_int8=operators.n_int8,
        n_float=operators.n_float,
        n_conversions=operators.n_conversions,
        vs_static=1 / ratios[REFERENCE].speedup if REFERENCE in files else None,
        vs_float=1 / ratios[FLOAT].speedup,
        ships=judge(0, 0, (1 / high, 1 / low)).ship,
    )


def _agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    return 100 * (one.argmax(1) == other.argmax(1)).float().mean().item()


def _percent_of_range(difference: torch.Tensor, logits: torch.Tensor) -> float:
    return 100 * (difference.abs().max() / (logits.max() - logits.min())).item()


def _halved(spec: ModelSpec) -> str:
    """Removes half of the channels of every group; returns the MACs left, or why it failed."""
    try:
        model = build(spec).eval()
        macs, groups = count_macs(model, spec), find_groups(model.network, example_input(model))
        if not groups.groups:
            return "; ".join(groups.fixed.values())[:100] or "no groups"
        kept = {}
        for group in groups.groups:
            width = max(1, group.channels // group.partitions // 2) * group.partitions
            kept[group.name] = best_channels(torch.zeros(group.channels), width, group.partitions)
        keep_channels(model.network, groups.groups, kept)
        return f"{count_macs(model, spec) / macs:.2f}"
    except (CompressError, RuntimeError, ValueError, IndexError, AssertionError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''}"


def results_markdown(results: Results) -> str:
    """Returns the results as a page."""
    rows = sorted(results.rows, key=lambda row: row.variant)
    good = [row for row in rows if not row.problem]
    ratios = [row.vs_static for row in good if row.vs_static]
    same = sum(row.same_class >= min(100 - MAX_DISAGREEMENT, row.itself) for row in good)
    slower = [row.variant for row in good if row.vs_static and row.vs_static < 1 / 1.03]
    table = markdown_table(
        (
            *("network", "int8 / float / Q+DQ", "same class %", "difference %"),
            *("vs static", "vs float", "ships", "half"),
        ),
        [
            (
                row.variant,
                row.problem or f"{row.n_int8} / {row.n_float} / {row.n_conversions}",
                "" if row.problem else f"{row.same_class:.0f} ({row.itself:.0f})",
                "" if row.problem else f"{row.max_difference:.1f} ({row.rounding:.0f})",
                f"{row.vs_static:.2f}x" if row.vs_static else "",
                "" if row.problem else f"{row.vs_float:.2f}x",
                row.ships.removeprefix("model-").removesuffix(".onnx"),
                row.half,
            )
            for row in rows
        ],
    )
    summary = (
        f"{len(good)} of {len(rows)} are quantized and exported; for {same} of them file and "
        f"simulation agree on at least {100 - MAX_DISAGREEMENT:.0f} % of the images, or as well as "
        "the simulation with itself. Compared with "
        f"`quantize_static`: {statistics.geometric_mean(ratios or [1]):.2f} times as fast in the "
        f"geometric mean of {len(ratios)}; more than 3 % slower: {', '.join(slower) or 'none'}."
    )
    dates = ", ".join(sorted({row.date for row in results.rows}))
    facts = f"`{COMMAND.format('NAME')}` for each network, {dates}; {host_text(results.host)}."
    return "\n\n".join(("# A zoo of networks", INTRODUCTION, summary, table, facts)) + "\n"


@click.command()
@click.option("--names", default=",".join(NAMES), help="Networks of timm: a,b,c.")
@click.option("--one", type=click.Path(path_type=Path), hidden=True, help="Folder of one's files.")
def main(names: str, one: Path | None) -> None:
    """Examines networks, then times them, and writes the results."""
    chosen = names.split(",")
    if one:
        click.echo(json.dumps(asdict(examine(chosen[0], one))))
        return
    for start in track(
        range(0, len(chosen), AT_ONCE), "networks", total=-(-len(chosen) // AT_ONCE)
    ):
        few = chosen[start : start + AT_ONCE]
        with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(allowed_cores()) as pool:
            folders = [Path(scratch) / name for name in few]
            for row, folder in zip(list(pool.map(_in_process, few, folders)), folders, strict=True):
                done = row if row.problem else timed(row, folder)
                ratio = f"{done.vs_static:.2f}x" if done.vs_static else ""
                say(f"{row.variant}: {row.problem or f'{row.same_class:.0f} % {ratio}'}")
                add_to_results(
                    Results(host=describe_host(), rows=(done,)), RESULTS, results_markdown
                )


def _in_process(name: str, folder: Path) -> Row:
    folder.mkdir()
    line = [sys.executable, "-m", "bench.zoo", "--one", str(folder), "--names", name]
    today = datetime.now(UTC).date().isoformat()
    failed = Row(variant=name, command=COMMAND.format(name), date=today)
    try:
        done = subprocess.run(
            line, capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return dataclasses.replace(failed, problem=f"not finished in {TIMEOUT_S} s")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return dataclasses.replace(failed, problem=reason[:120])
    return TypeAdapter(Row).validate_json(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
