"""The quantize stage: decides how to quantize a network and whether that is good enough."""

from compress import make_callable

make_callable(__name__)
