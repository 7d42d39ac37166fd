"""int8 networks: lowering, quantizers, calibration, conversion, restoring."""
