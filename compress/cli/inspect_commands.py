"""Commands that do not create checkpoints: score, compare, list, classify."""

from collections.abc import Sequence
from pathlib import Path

import click

from compress.cli.group import FOLDER, starting
from compress.errors import CompressError
from compress.files import printable
from compress.run.stages import RUNS
from compress.trust import trust_option

MODEL = click.Path(path_type=Path, exists=True)


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
def evaluate(model: Path, data: str | None, split: str) -> None:
    """Score MODEL (a run, a checkpoint, or an ONNX file) in ONNX Runtime.

    \b
    compress evaluate runs/resnet18-fashion-mnist/3-quantize
    compress evaluate model.onnx --data imagefolder:photos
    """
    with starting():
        from compress.run.evaluate import evaluate_file

    path, scores, dataset = evaluate_file(model, data, split)
    low, high = scores.top1_ci95
    balanced = ""
    if scores.balanced_top1 is not None:
        balanced = f", balanced (mean over classes) {scores.balanced_top1:.2f} %,"
    click.echo(
        f"{path}: top-1 {scores.top1:.2f} % [{low:.2f}, {high:.2f}]{balanced} on "
        f"{scores.n_images} {split} images of {dataset}"
    )


@click.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--images", default=1000, show_default=True, help="Number of validation images.")
@click.option("--calib", default=512, show_default=True, help="Number of calibration images.")
@click.option("--remeasure", is_flag=True, help="Ignore cached measurements.")
@trust_option
def sensitivity(checkpoint: Path, images: int, calib: int, remeasure: bool) -> None:
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
    click.echo(EXPLANATION)
    print_table(layers_table(report))
    click.echo(checkpoint / LAYERS_HTML)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=MODEL, metavar="MODEL [MODEL]...")
@click.option("--threads", default="1", show_default=True, help="Thread counts, e.g. 1,2,4.")
@click.option("--batch", default="1", show_default=True, help="Batch sizes, e.g. 1,8,32.")
@click.option(
    "--against",
    multiple=True,
    metavar="RUNTIME",
    help="Also time the same models in openvino, or in torch (checkpoints and runs); repeatable.",
)
@click.option("--profile", is_flag=True, help="Also show the time by operator.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, not as tables.")
@trust_option
def benchmark(
    paths: Sequence[Path],
    threads: str,
    batch: str,
    against: tuple[str, ...],
    profile: bool,
    as_json: bool,
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
        from compress.files import to_json
        from compress.run.benchmark import benchmark_files

    if len(paths) == 1 and is_bundle(paths[0]):
        result = benchmark_bundle(paths[0], *counts, against=against, profiled=profile)
    else:
        result = benchmark_files(paths, *counts, against=against, profiled=profile)
    if as_json:
        click.echo(to_json(result), nl=False)
    else:
        print_benchmark(result)


@click.command()
@click.argument("model", type=MODEL)
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the findings to this file.",
)
@click.pass_context
def doctor(context: click.Context, model: Path, json_path: Path | None) -> None:
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
    print_diagnosis(diagnosis)
    if json_path is not None:
        from compress.files import write_json

        write_json(json_path, diagnosis)
        click.echo(json_path)
    context.exit(0 if diagnosis.is_sound else 1)


@click.command()
@click.argument("run_folder", metavar="[RUN]", required=False, type=FOLDER)
def report(run_folder: Path | None) -> None:
    """Print the table of RUN (default: the newest run) and rewrite its report.

    \b
    compress report runs/resnet18-digits
    """
    from compress.cli.terminal import print_report
    from compress.run.lookup import newest_run
    from compress.run.report import write_run_report

    folder = run_folder or newest_run(RUNS)
    print_report(write_run_report(folder), folder)


@click.command()
def models() -> None:
    """List the model cards.

    \b
    compress models
    """
    from compress.cli.terminal import print_list
    from compress.run.recipe import card_names, load_card

    print_list([(name, load_card(name).description) for name in card_names()])


@click.command()
@click.argument("name", required=False)
def pipelines(name: str | None) -> None:
    """List the recipes, or the settings of recipe NAME.

    \b
    compress pipelines
    compress pipelines default
    """
    from compress.cli.terminal import print_list
    from compress.run.recipe import load_recipe, recipe_names, recipe_settings

    if name is not None:
        print_list(recipe_settings(load_recipe(name)))
        return
    print_list([(name, load_recipe(name).description) for name in recipe_names()])


@click.command()
@click.argument("model", type=MODEL)
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option(
    "--top", default=3, show_default=True, type=click.IntRange(min=1), help="Number of classes."
)
def predict(model: Path, images: Sequence[Path], top: int) -> None:
    """Classify images with MODEL (a run, a checkpoint, or an ONNX file written by compress).

    \b
    compress predict runs/resnet18-fashion-mnist/4-export/model-int8.onnx shoe.png
    """
    from compress.run.evaluate import predict_images

    unreadable = 0
    for path, classes in predict_images(model, images, top):
        if isinstance(classes, str):
            unreadable += 1
            click.echo(printable(classes), err=True)
            continue
        ranking = ", ".join(f"{name} {100 * share:.1f} %" for name, share in classes)
        click.echo(printable(f"{path}: {ranking}"))
    if unreadable:
        raise CompressError(f"{unreadable} of {len(images)} images could not be read")


def _counts(text: str, option: str) -> list[int]:
    counts = text.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise CompressError(f"{option} must be positive integers separated by commas, got {text!r}")
    return [int(count) for count in counts]


COMMANDS = (evaluate, sensitivity, benchmark, doctor, report, models, pipelines, predict)
