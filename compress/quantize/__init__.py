"""The quantize stage: decides how to quantize a network and whether that is good enough."""
