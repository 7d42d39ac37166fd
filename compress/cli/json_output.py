"""`--json`: standard output holds the result as JSON, and nothing else."""

import contextlib
import sys
from typing import TextIO

import click


def _reserve_stdout(
    context: click.Context, _option: click.Parameter, wanted: bool
) -> TextIO | None:
    """Returns standard output, and sends what others print, such as the user's code, to stderr."""
    if not wanted:
        return None
    stdout = sys.stdout
    context.with_resource(contextlib.redirect_stdout(sys.stderr))
    return stdout


json_option = click.option(
    "--json",
    "json_out",
    is_flag=True,
    callback=_reserve_stdout,
    help="Print the result as JSON; `compress schema` describes it.",
)
"""Gives the command `json_out`: where `print_json` prints; None without --json."""


def print_json(result: object, file: TextIO) -> None:
    """Prints a result: a dataclass, several, or plain data."""
    from compress.files import to_json

    click.echo(to_json(result), file=file, nl=False)
