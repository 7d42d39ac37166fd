"""Structured pruning: removes whole channels, heads, and residual blocks."""

from compress import make_callable

make_callable(__name__)
