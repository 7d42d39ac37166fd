"""The training loop shared by all stages."""

from compress import make_callable

make_callable(__name__)
