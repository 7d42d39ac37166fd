"""Runs: the runner, keys, and folders of stages, single stages."""

from compress import make_callable

make_callable(__name__)
