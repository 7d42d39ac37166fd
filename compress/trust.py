"""Permission to import code that the user, a card, or a checkpoint names (`--trust`)."""

import importlib
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import click

from compress.errors import CompressError

_TRUSTED: ContextVar[bool] = ContextVar("_TRUSTED", default=False)


def is_trusted() -> bool:
    """Returns whether the user gave permission."""
    return _TRUSTED.get()


def set_trusted(trusted: bool) -> None:
    """Grants or revokes permission."""
    _TRUSTED.set(trusted)


def import_trusted(reference: str, what: str) -> Any:
    """Imports `package.module:attribute`, including from the working folder.

    Args:
        reference: what to import.
        what: what it is, for messages: `network`.

    Raises:
        CompressError: code is not trusted, or cannot be imported.
    """
    if not is_trusted():
        raise CompressError(
            f"the {what} {reference!r} is external code, which is imported only with --trust; add "
            "it if you trust that code"
        )
    module, _, attribute = reference.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CompressError(
            f"cannot import the {what} {reference!r}: {error}; use package.module:function, "
            "importable from the working folder"
        ) from None
    except Exception as error:
        raise failed(reference, what, error) from error


def failed(reference: str, what: str, error: Exception) -> CompressError:
    """Returns the message for an error in the user's code."""
    return CompressError(
        f"the {what} {reference!r} cannot be built, {type(error).__name__}: {error}; `compress "
        "--debug ...` shows the traceback"
    )


trust_option = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda _context, _option, value: set_trusted(value),
    help="Allow importing code named as package.module:function by a card or by --data.",
)
"""Option of every command that builds networks."""
