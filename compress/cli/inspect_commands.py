"""Commands that do not create checkpoints: score, compare, list, classify."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from compress.cli.group import FOLDER, starting
from compress.cli.json_output import json_option, print_json
from compress.errors import CompressError
from compress.files import printable
from compress.run.stages import RUNS
from compress.trust import trust_option

MODEL = click.Path(path_type=Path, exists=True)
COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model", type=MODEL)
@click.option("--data", help="Dataset.  [default: the checkpoint's]")
@click.option(
    "--split",
    type=click.Choice(["test", "validation"]),
    default="test",
    show_default=True,
    help="Split to score.",
)
@json_option
def evaluate(model: Path, data: str | None, split: str, json_out: TextIO | None) -> None:
    """Score MODEL (a run, a checkpoint, or an ONNX file) in ONNX Runtime.

    \b
    compress evaluate runs/resnet18-fashion-mnist/3-quantize
    compress evaluate model.onnx --data imagefolder:photos
    """
    with starting():
        from compress.run.evaluate import evaluate_file

    result = evaluate_file(model, data, split)
    if json_out is not None:
        print_json(result, json_out)
        return
    scores = result.accuracy
    low, high = scores.top1_ci95
    balanced = ""
    if scores.balanced_top1 is not None:
        balanced = f", balanced (mean over classes) {scores.balanced_top1:.2f} %,"
    click.echo(
        f"{result.file}: top-1 {scores.top1:.2f} % [{low:.2f}, {high:.2f}]{balanced} on "
        f"{scores.n_images} {split} images of {result.data}"
    )


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--images", type=COUNT, default=1000, show_default=True, help="Validation images.")
@click.option("--calib", type=COUNT, default=512, show_default=True, help="Calibration images.")
@click.option("--remeasure", is_flag=True, help="Ignore cached measurements.")
@json_option
@trust_option
def sensitivity(
    checkpoint: Path, images: int, calib: int, remeasure: bool, json_out: TextIO | None
) -> None:
    """Show the int8 sensitivity of each layer of a float CHECKPOINT.

    Writes sensitivity.json and sensitivity.html to the checkpoint's folder.

    \b
    compress sensitivity runs/resnet18-fashion-mnist/2-prune
    """
    with starting():
        from compress.cli.terminal import print_table
        from compress.quantize.config import QuantizeConfig
        from compress.report.layers import EXPLANATION, LAYERS_HTML, layers_table
        from compress.run.sensitivity import analyze_layers

    report = analyze_layers(checkpoint, QuantizeConfig(calib=calib), images, remeasure=remeasure)
    if json_out is not None:
        print_json(report, json_out)
        return
    click.echo(EXPLANATION)
    print_table(layers_table(report))
    click.echo(checkpoint / LAYERS_HTML)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=MODEL, metavar="MODEL [MODEL]...")
@click.option("--threads", default="1", show_default=True, help="Thread counts, e.g. 1,2,4.")
@click.option("--batch", default="1", show_default=True, help="Batch sizes, e.g. 1,8,32.")
@click.option("--size", type=COUNT, help="Image size for files that accept any.")
@click.option(
    "--against",
    multiple=True,
    metavar="RUNTIME",
    help="Also time the same models in openvino, or in torch (checkpoints and runs); repeatable.",
)
@click.option("--profile", is_flag=True, help="Also show the time by operator.")
@json_option
@trust_option
def benchmark(
    paths: Sequence[Path],
    threads: str,
    batch: str,
    size: int | None,
    against: tuple[str, ...],
    profile: bool,
    json_out: TextIO | None,
) -> None:
    """Compare the latency of models in ONNX Runtime, and in other runtimes, on this CPU.

    A MODEL is any ONNX file, or a checkpoint or a run, whose ONNX file is timed. The models take
    turns; ratios are relative to the first. None is concluded on a machine that is too busy, too
    small, or throttled. For one bundle (an unpacked one), its files are verified and measured, and
    a row for this host is appended to its benchmarks.jsonl. docs/measuring.md explains the numbers.

    \b
    compress benchmark float.onnx int8.onnx --threads 1,2 --batch 1,8
    compress benchmark runs/resnet18-fashion-mnist --against openvino --profile
    """
    counts = (_counts(threads, "--threads"), _counts(batch, "--batch"))
    with starting():
        from compress.bundle.manifest import is_bundle
        from compress.bundle.verify import benchmark_bundle
        from compress.cli.terminal import print_benchmark
        from compress.run.benchmark import benchmark_files

    if len(paths) == 1 and is_bundle(paths[0]):
        result = benchmark_bundle(paths[0], *counts, against=against, profiled=profile)
    else:
        result = benchmark_files(paths, *counts, size=size, against=against, profiled=profile)
    if json_out is None:
        print_benchmark(result)
    else:
        print_json(result, json_out)


@click.command()
@click.argument("model", type=MODEL)
@json_option
@click.pass_context
def doctor(context: click.Context, model: Path, json_out: TextIO | None) -> None:
    """Find what makes MODEL slow, wrong, or awkward to deploy on CPUs.

    MODEL is any ONNX classifier, or a run or a checkpoint. Ends with exit code 1 if there are
    errors or warnings. docs/doctor.md lists the checks.

    \b
    compress doctor model.onnx
    """
    with starting():
        from compress.cli.terminal import print_diagnosis
        from compress.doctor.examine import examine
        from compress.run.lookup import find_onnx

    diagnosis = examine(find_onnx(model))
    if json_out is not None:
        print_json(diagnosis, json_out)
    else:
        print_diagnosis(diagnosis)
    context.exit(0 if diagnosis.is_sound else 1)


@click.command()
@click.argument("run_folder", metavar="[RUN]", required=False, type=FOLDER)
@json_option
def report(run_folder: Path | None, json_out: TextIO | None) -> None:
    """Print the table of RUN (default: the newest run) and rewrite its report.

    \b
    compress report runs/resnet18-digits
    """
    from compress.cli.terminal import print_report
    from compress.run.lookup import newest_run
    from compress.run.report import write_run_report

    folder = run_folder or newest_run(RUNS)
    result = write_run_report(folder)
    if json_out is not None:
        print_json(result, json_out)
    else:
        print_report(result, folder)


@click.command()
@json_option
def models(json_out: TextIO | None) -> None:
    """List the model cards.

    \b
    compress models
    """
    from compress.cli.terminal import print_list
    from compress.run.recipe import list_cards

    cards = list_cards()
    if json_out is not None:
        print_json(cards, json_out)
    else:
        print_list([(card.name, card.description) for card in cards])


@click.command()
@click.argument("name", required=False)
@json_option
def pipelines(name: str | None, json_out: TextIO | None) -> None:
    """List the recipes, or the settings of recipe NAME.

    \b
    compress pipelines
    compress pipelines default
    """
    from compress.cli.terminal import print_list
    from compress.run.recipe import list_recipes, load_recipe, recipe_settings

    result: object
    if name is None:
        result = recipes = list_recipes()
        rows = [(one.name, one.description) for one in recipes]
    else:
        result = settings = recipe_settings(load_recipe(name))
        rows = [(f"{one.name}={one.value}", f"{one.help}  [{one.allowed}]") for one in settings]
    if json_out is not None:
        print_json(result, json_out)
    else:
        print_list(rows)


@click.command()
@click.argument("model", type=MODEL)
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option("--top", default=3, show_default=True, type=COUNT, help="Number of classes.")
@json_option
def predict(model: Path, images: Sequence[Path], top: int, json_out: TextIO | None) -> None:
    """Classify images with MODEL (a run, a checkpoint, or an ONNX file written by compress).

    \b
    compress predict runs/resnet18-fashion-mnist/4-export/model-int8.onnx shoe.png
    """
    from compress.run.evaluate import predict_images

    predictions = []
    for one in predict_images(model, images, top):
        predictions.append(one)
        if one.error is not None:
            click.echo(printable(one.error), err=True)
        elif json_out is None:
            ranking = ", ".join(f"{it.name} {100 * it.probability:.1f} %" for it in one.classes)
            click.echo(printable(f"{one.image}: {ranking}"))
    if json_out is not None:
        print_json(predictions, json_out)
    if unreadable := sum(one.error is not None for one in predictions):
        raise CompressError(f"{unreadable} of {len(images)} images could not be read")


@click.command()
@click.argument("command")
def schema(command: str) -> None:
    """Print the JSON Schema of what COMMAND prints with --json.

    \b
    compress schema run
    """
    with starting():
        from compress.cli.schemas import json_schema

    print_json(json_schema(command), sys.stdout)


def _counts(text: str, option: str) -> list[int]:
    counts = text.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise CompressError(f"{option} must be positive integers separated by commas, got {text!r}")
    return [int(count) for count in counts]


COMMANDS = (evaluate, sensitivity, benchmark, doctor, report, models, pipelines, predict, schema)
