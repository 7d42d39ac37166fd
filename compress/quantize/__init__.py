"""Stage quantize: decides how a network becomes int8, and whether that is good enough."""
