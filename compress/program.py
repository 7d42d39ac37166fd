"""What the commands share: errors as one line, settings as options, a sign of life."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import click

from compress.allocator import keep_freed_memory

RUNS = Path("runs")
FOLDER = click.Path(path_type=Path, file_okay=False)


class UserFault(click.ClickException):
    """A mistake of the user's: one line, exit code 2."""

    exit_code = 2


class Program(click.Group):
    """Turns the errors meant for users into one line each."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; with --debug its errors keep their tracebacks."""
        keep_freed_memory()
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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options under headings: the command's own, then a group of settings each."""
        from compress.options import heading_of

        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = heading_of(str(self.name), str(parameter.name))
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def starting() -> AbstractContextManager[object]:
    """Shows that the program is alive while it imports torch, which takes seconds."""
    from compress.progress import waiting

    return waiting("starting")
