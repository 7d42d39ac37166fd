"""Permission to import code that a card or checkpoint names (`--trust`)."""

from contextvars import ContextVar

import click

_TRUSTED: ContextVar[bool] = ContextVar("_TRUSTED", default=False)


def is_trusted() -> bool:
    """Returns whether the user gave permission."""
    return _TRUSTED.get()


def set_trusted(trusted: bool) -> None:
    """Grants or revokes permission."""
    _TRUSTED.set(trusted)


trust_option = click.option(
    "--trust",
    is_flag=True,
    expose_value=False,
    callback=lambda _context, _option, value: set_trusted(value),
    help="Allow importing code that a card names as package.module:factory.",
)
"""Option of every command that builds networks."""
