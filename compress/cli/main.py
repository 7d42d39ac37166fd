"""The `compress` command and its subcommands that create checkpoints: parse, call, print.

`compress --help` must be fast, so torch is imported by the commands that need it.
"""

import dataclasses
from pathlib import Path
from typing import Any, TextIO

import click

from compress import __version__
from compress.cli import inspect_commands, release_commands
from compress.cli.group import FOLDER, Program, StageCommand, starting
from compress.cli.json_output import json_option, print_json
from compress.data.names import DATASETS, short_name
from compress.run.stages import DEFAULT_PIPELINE, RUNS, STAGES, TRACKERS, Stage
from compress.trust import trust_option

DEFAULT_DATA = "fashion-mnist"
data_option = click.option(
    "--data",
    default=DEFAULT_DATA,
    show_default=True,
    help=f"Dataset: {', '.join(DATASETS)}.",
)
run_out_option = click.option("--out", type=FOLDER, help="Run folder.  [default: runs/MODEL-DATA]")
remeasure_option = click.option(
    "--remeasure",
    is_flag=True,
    help="Ignore cached measurements and rerun the stages that depend on latency.",
)
log_option = click.option(
    "--log",
    multiple=True,
    type=click.Choice(TRACKERS),
    help="Also log training here; repeatable.",
)


@click.group(
    cls=Program,
    commands=(*inspect_commands.COMMANDS, *release_commands.COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__)
def main(debug: bool) -> None:
    """Turn an image classifier into a small, fast ONNX file, and measure every stage.

    \b
    All stages, from training the teacher to choosing the file to ship:
        compress run resnet18
    One stage of the newest run:
        compress quantize --calib 512
    """


@main.command()
@click.argument("model")
@click.option("--pipeline", default=DEFAULT_PIPELINE, show_default=True, help="Recipe.")
@data_option
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override a setting of the recipe (`compress pipelines default` lists them); repeatable.",
)
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    metavar="PATH[=WEIGHT]",
    help="Trained teacher to use instead of the card's: a checkpoint folder or, after the first, "
    "an ONNX file; repeatable.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Random seed.")
@click.option("--from", "first", metavar="STAGE", help="Rerun this stage and all later ones.")
@click.option("--until", "last", metavar="STAGE", help="Stop after this stage.")
@run_out_option
@remeasure_option
@log_option
@json_option
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
    log: tuple[str, ...],
    json_out: TextIO | None,
) -> None:
    """Run all stages of a recipe for MODEL (the name or file of a model card).

    Finished stages are skipped; an interrupted one is resumed.

    \b
    compress run resnet18 --data digits
    compress run resnet18 --set prune.latency_ratio=0.5 --from prune
    """
    from compress.run.recipe import check_stages, load_card, load_recipe

    card = load_card(model)
    recipe = load_recipe(pipeline, overrides, seed=seed, card=card)
    check_stages(recipe, first, last)
    with starting():
        from compress.cli.terminal import print_report
        from compress.run.runner import run_card

    folder = out or RUNS / run_name(model, data, pipeline)
    report = run_card(
        card,
        recipe,
        data,
        folder,
        names=(model, pipeline),
        teachers=teachers,
        first=first,
        last=last,
        remeasure=remeasure,
        log=log,
    )
    if json_out is not None:
        print_json(report, json_out)
    else:
        print_report(report, folder)


def _first_stage_command(stage: Stage) -> None:
    """Adds the command of the stage that begins a run."""

    @main.command(stage.command, cls=StageCommand, help=stage.help)
    @click.argument("model")
    @data_option
    @run_out_option
    @remeasure_option
    @log_option
    @json_option
    @trust_option
    def command(
        model: str,
        data: str,
        out: Path | None,
        remeasure: bool,
        log: tuple[str, ...],
        json_out: TextIO | None,
        **settings: Any,
    ) -> None:
        from compress.run.recipe import load_card, load_recipe
        from compress.settings import with_options

        card = load_card(model)
        recipe = load_recipe(DEFAULT_PIPELINE, card=card)
        config = with_options(recipe.settings[stage.name], settings, section=stage.name)
        recipe = dataclasses.replace(recipe, stages=(stage.name,), settings={stage.name: config})
        with starting():
            from compress.run.runner import run_card
            from compress.run.stages import stage_folder

        folder = out or RUNS / run_name(model, data, DEFAULT_PIPELINE)
        first = stage.name if remeasure else None
        names = (model, DEFAULT_PIPELINE)
        run_card(card, recipe, data, folder, names=names, first=first, remeasure=remeasure, log=log)
        _print_stage(stage_folder(folder, stage.name), json_out)


def _stage_command(stage: Stage) -> None:
    """Adds the command of a stage that starts from a checkpoint."""

    @main.command(stage.command, cls=StageCommand, help=stage.help)
    @click.option(
        "--in",
        "source",
        type=FOLDER,
        metavar="CHECKPOINT",
        help="Checkpoint to start from.  [default: the previous stage of the newest run]",
    )
    @click.option(
        "--out", type=FOLDER, help="Folder for the new checkpoint.  [default: next to the old one]"
    )
    @click.option(
        "--teacher",
        "teachers",
        multiple=True,
        metavar="PATH[=WEIGHT]",
        help="Teacher checkpoint, also the baseline of the report; repeatable (further ones may be "
        "ONNX files).  [default: the teacher of the same run]",
    )
    @remeasure_option
    @log_option
    @json_option
    @trust_option
    def command(
        source: Path | None,
        out: Path | None,
        teachers: tuple[str, ...],
        remeasure: bool,
        log: tuple[str, ...],
        json_out: TextIO | None,
        **settings: Any,
    ) -> None:
        from compress.settings import with_options

        config = with_options(stage.config, settings, section=stage.name)
        with starting():
            from compress.run.single_stage import run_single_stage

        checkpoint = run_single_stage(
            stage.name,
            config,
            source=source,
            out=out,
            teachers=teachers,
            remeasure=remeasure,
            log=log,
        )
        _print_stage(checkpoint.folder, json_out)


def _print_stage(folder: Path, json_out: TextIO | None) -> None:
    """Prints the folder of a finished stage or, with --json, its report."""
    from compress.run.lookup import read_stage_report

    if json_out is not None:
        print_json(read_stage_report(folder), json_out)
    else:
        click.echo(folder)


for _stage in STAGES.values():
    (_stage_command if _stage.follows else _first_stage_command)(_stage)


def run_name(model: str, data: str, pipeline: str) -> str:
    """Returns the name of a run's folder: model, data and, unless default, the recipe."""
    parts = [Path(model).stem, short_name(data)]
    if pipeline != DEFAULT_PIPELINE:
        parts.append(Path(pipeline).stem)
    return "-".join(parts)
