from compress.int8 import ranges
from compress.int8.config import OBSERVERS


def test_every_observer_is_implemented() -> None:
    assert set(ranges._OBSERVERS) == set(OBSERVERS)
