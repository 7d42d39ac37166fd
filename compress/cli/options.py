"""Command-line options of a stage, derived from its config."""

from functools import cache

import click

from compress.run.stages import STAGES, Stage
from compress.settings import Setting, settings_of

HEADINGS = {
    (): "Stage settings",
    ("kd",): "Distillation",
    ("train",): "Training",
}
"""Headings in help texts, by the settings' position in the stage's config."""
OWN_OPTIONS = "Options"


def stage_of(command: str) -> Stage:
    """Returns the stage of a command."""
    return next(stage for stage in STAGES.values() if stage.command == command)


@cache
def stage_options(command: str) -> tuple[click.Option, ...]:
    """Returns an option for each setting of a command's stage."""
    settings = list(settings_of(stage_of(command).config))
    names = [setting.path[-1] for setting in settings]
    assert len(set(names)) == len(names), f"two settings of {command} share a name: {names}"
    return tuple(_option(setting) for setting in settings)


def heading_of(command: str, option: str) -> str:
    """Returns the heading in help texts of a command's option."""
    for setting in settings_of(stage_of(command).config):
        if setting.path[-1] == option:
            return HEADINGS[setting.path[:-1]]
    return OWN_OPTIONS


def _option(setting: Setting) -> click.Option:
    name = setting.path[-1].replace("_", "-")
    is_switch = setting.annotation is bool
    facts = ["default: none" if setting.default == "" else f"default: {setting.default}"]
    if not (setting.choices or is_switch):
        facts.insert(0, setting.allowed)
    return click.Option(
        [f"--{name}/--no-{name}" if is_switch else f"--{name}"],
        type=click.Choice(setting.choices) if setting.choices else setting.annotation,
        default=None,
        help=f"{setting.help}  [{'; '.join(facts)}]",
    )
