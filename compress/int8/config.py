"""Names of the calibration methods, in a module that settings can import without torch."""

from typing import Literal, get_args

Observer = Literal["minmax", "average", "percentile", "entropy", "mse"]
"""How the range of an activation is chosen."""
OBSERVERS: tuple[Observer, ...] = get_args(Observer)
WeightScale = Literal["max", "mse"]
"""How weight scales are chosen: by the largest magnitude or by the smallest squared error."""
