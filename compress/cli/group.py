"""Shared by all commands: one-line errors, settings as options, a spinner during imports."""

import errno
import io
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click

from compress.cli.process import prepare_process
from compress.errors import CompressError
from compress.files import cache_folder, printable

OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory", re.IGNORECASE)
"""Torch's messages on CPU and GPU."""
INSIST_AFTER_S = 2.0
"""Seconds after which an interrupt is raised again."""
FOLDER = click.Path(path_type=Path, file_okay=False, resolve_path=True)
"""Resolved to an absolute path, because `.` has neither a name nor siblings."""


class UserFault(click.ClickException):
    """A user error: one line, exit code 2."""

    exit_code = 2


class Bug(click.ClickException):
    """A bug: one line, exit code 1, and the traceback in a file."""

    exit_code = 1


class Interrupted(click.ClickException):
    """Ctrl-C: one line, and the shells' exit code for it."""

    exit_code = 130


class Program(click.Group):
    """Reports each error on one line."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; with --debug, errors keep their tracebacks."""
        prepare_process()
        _print_any_name()
        try:
            with _insistent_interrupts():
                if not _has_companions():
                    return super().invoke(ctx)
                return self._invoke_together(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            message = "interrupted; run the same command again to resume"
            raise Interrupted(message) from None
        except Exception as error:
            if ctx.params["debug"]:
                raise
            raise _as_click(error) from None

    def _invoke_together(self, ctx: click.Context) -> Any:
        """Runs the command in torchrun's first process; the others join in where it trains."""
        from compress import distributed

        with distributed.joined():
            if distributed.is_first():
                signal.signal(signal.SIGTERM, _ended_by_torchrun)
                return super().invoke(ctx)
            try:
                return distributed.serve()
            except (distributed.LostProcessError, KeyboardInterrupt):
                ctx.exit(1)  # the first process reports why
            except Exception as error:
                shown = _as_click(error)
                raise type(shown)(f"{distributed.process_name()}: {shown.message}") from None


def _ended_by_torchrun(_signal: int, _frame: FrameType | None) -> None:
    """Reports why the process ends: torchrun silently stops all processes when one dies."""
    from compress.distributed import ENDED

    raise CompressError(ENDED)


def _has_companions() -> bool:
    """Returns whether torchrun, or a launcher like it, started more than one process."""
    return "MASTER_ADDR" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _print_any_name() -> None:
    """Allows printing characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def _insistent_interrupts() -> Iterator[None]:
    """Raises KeyboardInterrupt again and again until it gets through.

    Inside callbacks from C code (destructors, autograd hooks) Python only prints the exception and
    carries on.
    """
    if (
        not hasattr(signal, "setitimer")
        or threading.current_thread() is not threading.main_thread()
    ):
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, INSIST_AFTER_S)
        raise KeyboardInterrupt

    before = {
        number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)
    }
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_click(error: Exception) -> click.ClickException:
    """Returns an error as a message for the user."""
    if isinstance(error, CompressError):
        return UserFault(_one_line(str(error)))
    if isinstance(error, OSError):
        return UserFault(_one_line(_system_fault(error)))
    if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
        return UserFault(
            "out of memory; use smaller batches (--set distill.train.batch_size=32) or smaller "
            f"images (--set data.size=128) ({_one_line(str(error))[:200]})"
        )
    return Bug(
        f"this is a bug in compress: {type(error).__name__}: {_one_line(str(error))[:300]}; the "
        f"traceback is in {_write_traceback(error)}"
    )


def _system_fault(error: OSError) -> str:
    """Describes an operating system error and what to do about it."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if name is not None]
    what = f"{', '.join(names)}: {error.strerror or error}" if names else str(error)
    remedies = {
        errno.ENOSPC: "; free some space and run the same command again to resume",
        errno.EDQUOT: "; free some space and run the same command again to resume",
        errno.EACCES: "; choose a writable folder (--out, COMPRESS_CACHE)",
        errno.EROFS: "; choose a writable folder (--out, COMPRESS_CACHE)",
    }
    return what + remedies.get(error.errno or 0, "")


def _write_traceback(error: Exception) -> Path:
    """Writes an error's traceback to a new file and returns its path."""
    text = "".join(traceback.format_exception(error))
    try:
        (cache_folder() / "errors").mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(".txt", "compress-", cache_folder() / "errors")
    except OSError:
        handle, name = tempfile.mkstemp(".txt", "compress-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
    return Path(name)


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


class StageCommand(click.Command):
    """A command whose options include its stage's settings, imported when needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Returns the command's own options and the stage's settings."""
        from compress.cli.options import stage_options

        own = super().get_params(ctx)
        return [*own[:-1], *stage_options(str(self.name)), own[-1]]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the options under headings: the command's own, then each group of settings."""
        from compress.cli.options import heading_of

        rows: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = heading_of(str(self.name), str(parameter.name))
                rows.setdefault(heading, []).append(record)
        for heading, records in rows.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the path of the stage's documentation."""
        from compress.cli.options import stage_of

        formatter.write(f"\nHow it works: docs/{stage_of(str(self.name)).name}.md\n")


def starting() -> AbstractContextManager[object]:
    """Shows a spinner while torch is imported, which takes seconds."""
    from compress.log import waiting

    return waiting("starting")
