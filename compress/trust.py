"""Whether this command may import code that a card or a checkpoint names (`--trust`)."""

from __future__ import annotations

from contextvars import ContextVar

import click

_TRUSTED: ContextVar[bool] = ContextVar("_TRUSTED", default=False)


def is_trusted() -> bool:
    """Returns whether the user said so."""
    return _TRUSTED.get()


def set_trusted(trusted: bool) -> None:
    """Notes what the user said."""
    _TRUSTED.set(trusted)


trust_option = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda _context, _option, value: set_trusted(value),
    help="Import the user's code that a card's package.module:factory names.",
)
"""Of every command that builds networks."""
