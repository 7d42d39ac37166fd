"""The distill stage."""

from compress import make_callable

make_callable(__name__)
