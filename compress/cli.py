"""The `compress` command: parse, call, print.

`compress --help` must answer at once, so nothing but click is imported before a command runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from compress import __version__

RUNS = Path("runs")
DEFAULT_DATA, DEFAULT_PIPELINE = "fashion-mnist", "default"
FOLDER = click.Path(path_type=Path, file_okay=False)
ONNX_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)


class UserFault(click.ClickException):
    """A mistake of the user's: one line, exit code 2."""

    exit_code = 2


class Program(click.Group):
    """Turns the errors meant for users into one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; with --debug its errors keep their tracebacks."""
        try:
            return super().invoke(ctx)
        except (ValueError, OSError) as error:
            if ctx.params["debug"]:
                raise
            raise UserFault(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException(
                "interrupted; the same command continues where it stopped"
            ) from None


class StageCommand(click.Command):
    """A command whose options are its stage's settings, read only when they are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the command's own options and the stage's settings."""
        from compress.options import stage_options

        own = super().get_params(ctx)
        return [*own[:-1], *stage_options(str(self.name)), own[-1]]


@click.group(cls=Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__)
def main(debug: bool) -> None:
    """Turn an image classifier into a small, fast ONNX file, and prove every step.

    \b
    The whole way, from a trained teacher to the file that ships:
        compress run resnet18
    One stage of it, on the newest run:
        compress quantize --calib 512
    """


@main.command()
@click.argument("model")
@click.option("--pipeline", default=DEFAULT_PIPELINE, show_default=True, help="Recipe to follow.")
@click.option(
    "--data",
    default=DEFAULT_DATA,
    show_default=True,
    help="fashion-mnist, digits or imagefolder:PATH.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Change a setting of the recipe, as `compress pipelines default` lists them; may be "
    "repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Fixes all that is random.")
@click.option("--from", "first", metavar="STAGE", help="Run this stage and later ones again.")
@click.option("--until", "last", metavar="STAGE", help="Stop after this stage.")
@click.option("--out", type=FOLDER, help="Run folder.  [default: runs/MODEL-DATA]")
def run(
    model: str,
    pipeline: str,
    data: str,
    overrides: tuple[str, ...],
    seed: int | None,
    first: str | None,
    last: str | None,
    out: Path | None,
) -> None:
    """Run all stages of a recipe for MODEL, a model card's name or file.

    Finished stages are skipped, a cut-off one continues.

    \b
    compress run resnet18 --data digits
    compress run resnet18 --set prune.ratio=0.25 --from prune
    """
    from compress.recipe import load_card, load_recipe

    card, recipe = load_card(model), load_recipe(pipeline, overrides, seed=seed)
    with _starting():
        from compress.data.load import load_data
        from compress.pipeline import run_recipe
        from compress.terminal import print_report

    loaded = load_data(data, recipe.data, seed=recipe.seed)
    folder = out or RUNS / run_name(model, data, pipeline)
    report = run_recipe(card, recipe, loaded, folder, first=first, last=last)
    print_report(report, folder)


@main.command(cls=StageCommand)
@click.argument("model")
@click.option(
    "--data",
    default=DEFAULT_DATA,
    show_default=True,
    help="fashion-mnist, digits or imagefolder:PATH.",
)
@click.option("--out", type=FOLDER, help="Run folder.  [default: runs/MODEL-DATA]")
def train(model: str, data: str, out: Path | None, **settings: Any) -> None:
    """Train the teacher of MODEL alone.

    \b
    compress train resnet18 --epochs 8
    """
    from compress.options import stage_config
    from compress.recipe import load_card, load_recipe

    card, recipe = load_card(model), load_recipe(DEFAULT_PIPELINE)
    config = stage_config("teacher", settings)
    with _starting():
        from compress.data.load import load_data
        from compress.pipeline import run_stage, stage_folder
        from compress.request import Request

    folder = out or RUNS / run_name(model, data, DEFAULT_PIPELINE)
    loaded = load_data(data, recipe.data, seed=recipe.seed)
    checkpoint = run_stage(
        Request(
            stage="teacher",
            config=config,
            folder=stage_folder(folder, "teacher"),
            card=card,
            parent=None,
            teacher=None,
            data=loaded,
            measure=recipe.measure,
            seed=recipe.seed,
        )
    )
    click.echo(checkpoint.folder)


def _stage_command(stage: str, help_text: str) -> None:
    """Adds the command of a stage that takes a checkpoint and makes one."""

    @main.command(stage, cls=StageCommand, help=help_text)
    @click.option(
        "--in",
        "source",
        type=FOLDER,
        metavar="CHECKPOINT",
        help="Folder to start from.  [default: the stage before, in the newest run]",
    )
    @click.option(
        "--out", type=FOLDER, help="Folder of the new checkpoint.  [default: beside the old one]"
    )
    @click.option(
        "--teacher",
        type=FOLDER,
        metavar="CHECKPOINT",
        help="The teacher to learn from and to compare with.  [default: of the same run]",
    )
    def command(
        source: Path | None, out: Path | None, teacher: Path | None, **settings: Any
    ) -> None:
        from compress.options import stage_config

        config = stage_config(stage, settings)
        with _starting():
            from compress.single import run_single_stage

        checkpoint = run_single_stage(stage, config, source=source, out=out, teacher=teacher)
        click.echo(checkpoint.folder)


_stage_command(
    "distill",
    """Train the student with the teacher's help.

    \b
    compress distill --epochs 20 --temperature 4
    """,
)
_stage_command(
    "prune",
    """Remove channels and fine-tune.

    \b
    compress prune --ratio 0.5
    """,
)
_stage_command(
    "quantize",
    """Turn weights and activations into int8.

    \b
    compress quantize --calib 512
    compress quantize --method qat --in runs/resnet18-fashion-mnist/2-prune --out int8
    """,
)
_stage_command(
    "export",
    """Write the ONNX files and name the one to ship.

    \b
    compress export --max-drop 0.5
    """,
)


@main.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--data", help="Data set.  [default: the one the checkpoint was made with]")
@click.option(
    "--split", type=click.Choice(["test", "validation"]), default="test", show_default=True
)
def evaluate(model: Path, data: str | None, split: str) -> None:
    """Score MODEL, a checkpoint's folder or an ONNX file, in ONNX Runtime.

    \b
    compress evaluate runs/resnet18-fashion-mnist/3-quantize
    compress evaluate model.onnx --data imagefolder:photos
    """
    with _starting():
        from compress.single import evaluate_file

    path, scores, dataset = evaluate_file(model, data, split)
    low, high = scores.top1_ci95
    click.echo(
        f"{path}: top-1 {scores.top1:.2f} % [{low:.2f}, {high:.2f}] on {scores.n_images} "
        f"{split} images of {dataset}"
    )


@main.command()
@click.argument("checkpoint", type=FOLDER)
@click.option("--images", default=1000, show_default=True, help="Validation images to score.")
@click.option("--calib", default=512, show_default=True, help="Calibration images.")
def sensitivity(checkpoint: Path, images: int, calib: int) -> None:
    """Show what each layer of CHECKPOINT (a float one) would lose and gain in int8.

    Writes sensitivity.json and sensitivity.html, with a plot, into the checkpoint's folder.

    \b
    compress sensitivity runs/resnet18-fashion-mnist/2-prune
    """
    with _starting():
        from compress.layers import analyse_layers
        from compress.quantize.config import QuantizeConfig
        from compress.report.layers import EXPLANATION, LAYERS_HTML, layers_table
        from compress.terminal import print_table

    report = analyse_layers(checkpoint, QuantizeConfig(calib=calib), images)
    print_table(layers_table(report))
    click.echo(EXPLANATION)
    click.echo(checkpoint / LAYERS_HTML)


@main.command()
@click.argument("files", nargs=-1, required=True, type=ONNX_FILE, metavar="A.onnx [B.onnx]...")
@click.option("--threads", default="1", show_default=True, help="Thread counts, e.g. 1,2.")
@click.option("--batch", default="1", show_default=True, help="Batch sizes, e.g. 1,8.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write the figures to this file.",
)
def bench(files: Sequence[Path], threads: str, batch: str, json_path: Path | None) -> None:
    """Compare the latency of ONNX files in ONNX Runtime on this CPU.

    The files take turns in one process; the first is the reference of the ratios.

    \b
    compress bench float.onnx int8.onnx --threads 1,2 --batch 1,8
    """
    from compress.single import bench_files, bench_table
    from compress.terminal import print_table

    result = bench_files(files, _counts(threads, "--threads"), _counts(batch, "--batch"))
    print_table(bench_table(result))
    if json_path is not None:
        from compress.checkpoint import write_json

        write_json(json_path, result)
        click.echo(json_path)


@main.command()
@click.argument("run_folder", metavar="[RUN]", required=False, type=FOLDER)
def report(run_folder: Path | None) -> None:
    """Print the table of RUN (default: the newest) and write its report anew.

    \b
    compress report runs/resnet18-digits
    """
    from compress.report.run import write_run_report
    from compress.runs import newest_run
    from compress.terminal import print_report

    folder = run_folder or newest_run(RUNS)
    print_report(write_run_report(folder), folder)


@main.command()
def models() -> None:
    """List the model cards.

    \b
    compress models
    """
    from compress.recipe import card_names, load_card
    from compress.terminal import print_list

    print_list([(name, load_card(name).description) for name in card_names()])


@main.command()
@click.argument("name", required=False)
def pipelines(name: str | None) -> None:
    """List the recipes, or all settings of the recipe NAME.

    \b
    compress pipelines
    compress pipelines default
    """
    from compress.recipe import load_recipe, recipe_names, recipe_settings
    from compress.terminal import print_list

    if name is not None:
        print_list(recipe_settings(load_recipe(name)))
        return
    print_list([(name, load_recipe(name).description) for name in recipe_names()])


@main.command()
@click.argument("model", type=ONNX_FILE)
@click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE..."
)
@click.option(
    "--top", default=3, show_default=True, type=click.IntRange(min=1), help="Classes shown."
)
def predict(model: Path, images: Sequence[Path], top: int) -> None:
    """Classify pictures with an ONNX file that compress wrote.

    \b
    compress predict runs/resnet18-fashion-mnist/4-export/model-int8.onnx shoe.png
    """
    from compress.single import predict_images

    unreadable = 0
    for path, answers in predict_images(model, images, top):
        if isinstance(answers, str):
            unreadable += 1
            click.echo(f"{path}: {answers}", err=True)
            continue
        said = ", ".join(f"{name} {100 * share:.1f} %" for name, share in answers)
        click.echo(f"{path}: {said}")
    if unreadable:
        raise ValueError(f"{unreadable} of {len(images)} pictures could not be read")


def run_name(model: str, data: str, pipeline: str) -> str:
    """Returns the name of a run's folder: model, data and, unless default, the recipe."""
    parts = [Path(model).stem, data.removeprefix("imagefolder:").rstrip("/").rpartition("/")[2]]
    if pipeline != DEFAULT_PIPELINE:
        parts.append(Path(pipeline).stem)
    return "-".join(parts)


def _starting() -> AbstractContextManager[object]:
    """Shows that the program is alive while it imports torch, which takes seconds."""
    from compress.progress import waiting

    return waiting("starting")


def _counts(text: str, option: str) -> list[int]:
    counts = text.split(",")
    if not all(count.strip().isdecimal() and int(count) > 0 for count in counts):
        raise ValueError(f"{option} takes positive whole numbers with commas, got {text!r}")
    return [int(count) for count in counts]
