"""The `compress` command, and its commands that make checkpoints: parse, call, print.

`compress --help` must answer at once, so nothing but click is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress import __version__
from compress.cli.group import FOLDER, RUNS, Program, StageCommand, starting
from compress.cli.inspect_commands import COMMANDS
from compress.trust import trust_option

DEFAULT_DATA, DEFAULT_PIPELINE = "fashion-mnist", "default"
remeasure_option = click.option(
    "--remeasure",
    is_flag=True,
    help="Time everything anew on this machine instead of taking what is remembered, and run the "
    "stages again that latency decides.",
)


@click.group(
    cls=Program, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]}
)
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
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="PATH[=WEIGHT]",
    help="A trained teacher instead of the card's: a checkpoint folder or, after the first, an "
    "ONNX file; may be repeated.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Fixes all that is random.")
@click.option("--from", "first", metavar="STAGE", help="Run this stage and later ones again.")
@click.option("--until", "last", metavar="STAGE", help="Stop after this stage.")
@click.option("--out", type=FOLDER, help="Run folder.  [default: runs/MODEL-DATA]")
@remeasure_option
@trust_option
def run(
    model: str,
    pipeline: str,
    data: str,
    overrides: tuple[str, ...],
    teachers: tuple[str, ...],
    seed: int | None,
    first: str | None,
    last: str | None,
    out: Path | None,
    remeasure: bool,
) -> None:
    """Run all stages of a recipe for MODEL, a model card's name or file.

    Finished stages are skipped, a cut-off one continues.

    \b
    compress run resnet18 --data digits
    compress run resnet18 --set prune.latency_ratio=0.5 --from prune
    """
    from compress.run.recipe import check_stages, load_card, load_recipe

    card, recipe = load_card(model), load_recipe(pipeline, overrides, seed=seed)
    check_stages(recipe, first, last)
    with starting():
        from compress.cli.terminal import print_report
        from compress.data.load import load_data
        from compress.kd.teachers import read_teachers
        from compress.run.folder import claim_run, owned_run
        from compress.run.runner import run_recipe

    folder = out or RUNS / run_name(model, data, pipeline)
    with owned_run(folder):
        given = read_teachers(teachers)
        loaded = load_data(data, recipe.data, seed=recipe.seed)
        claim_run(folder, model=model, pipeline=pipeline, data=loaded)
        report = run_recipe(
            card,
            recipe,
            loaded,
            folder,
            teachers=given,
            first=first,
            last=last,
            remeasure=remeasure,
        )
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
@remeasure_option
@trust_option
def train(model: str, data: str, out: Path | None, remeasure: bool, **settings: Any) -> None:
    """Train the teacher of MODEL alone.

    \b
    compress train resnet18 --epochs 8
    """
    from compress.cli.options import stage_config
    from compress.run.recipe import load_card, load_recipe

    card, recipe = load_card(model), load_recipe(DEFAULT_PIPELINE)
    config = stage_config("teacher", settings)
    with starting():
        from compress.cache import now
        from compress.data.load import load_data
        from compress.run.folder import claim_run, owned_run, stage_folder
        from compress.run.key import Request
        from compress.run.runner import run_stage

    folder = out or RUNS / run_name(model, data, DEFAULT_PIPELINE)
    with owned_run(folder):
        loaded = load_data(data, recipe.data, seed=recipe.seed)
        claim_run(folder, model=model, pipeline=DEFAULT_PIPELINE, data=loaded)
        checkpoint = run_stage(
            Request(
                stage="teacher",
                config=config,
                folder=stage_folder(folder, "teacher"),
                run=folder,
                card=card,
                parent=None,
                teachers=(),
                data=loaded,
                measure=recipe.measure,
                seed=recipe.seed,
                again=remeasure,
                measured_since=now() if remeasure else "",
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
        "teachers",
        multiple=True,
        metavar="PATH[=WEIGHT]",
        help="Whom to learn from: a checkpoint folder, with which the result is compared too; may "
        "be repeated, also with ONNX files.  [default: the teacher of the same run]",
    )
    @remeasure_option
    @trust_option
    def command(
        source: Path | None,
        out: Path | None,
        teachers: tuple[str, ...],
        remeasure: bool,
        **settings: Any,
    ) -> None:
        from compress.cli.options import stage_config

        config = stage_config(stage, settings)
        with starting():
            from compress.run.single_stage import run_single_stage

        checkpoint = run_single_stage(
            stage, config, source=source, out=out, teachers=teachers, remeasure=remeasure
        )
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
    compress prune --latency-ratio 0.5
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


def run_name(model: str, data: str, pipeline: str) -> str:
    """Returns the name of a run's folder: model, data and, unless default, the recipe."""
    parts = [Path(model).stem, data.removeprefix("imagefolder:").rstrip("/").rpartition("/")[2]]
    if pipeline != DEFAULT_PIPELINE:
        parts.append(Path(pipeline).stem)
    return "-".join(parts)
