import pytest

from compress.checkpoint import FLOAT_FILE, INT8_FILE
from compress.export.stage import judge


@pytest.mark.parametrize(
    ("drop", "speedup_ci95", "ship", "reason"),
    [
        (0.2, (2.9, 3.1), INT8_FILE, "int8 pays"),
        (0.2, (0.97, 1.03), INT8_FILE, "though no faster"),
        (0.2, (0.90, 0.98), FLOAT_FILE, "slower"),
        (1.5, (2.9, 3.1), FLOAT_FILE, "loses 1.50 points, more than max_drop = 1"),
        (1.0, (2.9, 3.1), INT8_FILE, "int8 pays"),
    ],
)
def test_int8_ships_unless_it_loses_too_much_or_is_slower(
    drop: float, speedup_ci95: tuple[float, float], ship: str, reason: str
) -> None:
    verdict = judge(drop, 1.0, speedup_ci95)
    assert verdict.ship == ship
    assert reason in verdict.reason
