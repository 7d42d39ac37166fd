import pytest

from compress.errors import CompressError
from compress.int8.config import OBSERVERS
from compress.quantize.config import QuantizeConfig
from compress.settings import parse, settings_of


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = QuantizeConfig()
    assert (config.method, config.calib, config.observer, config.weights) == (
        *("auto", 512, "mse", "mse"),
    )
    assert (config.equalization, config.bias_correction, config.adaround) == (False,) * 3
    assert (config.max_drop, config.reduce_range) == (0.3, False)
    assert (config.train.epochs, config.train.precision) == (2, "fp32")


def test_every_observer_can_be_chosen() -> None:
    choices = {setting.name: setting.choices for setting in settings_of(QuantizeConfig())}
    assert choices["observer"] == (*OBSERVERS, "auto")
    assert choices["weights"] == ("max", "mse")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"calib": 0}, "quantize.calib must be an integer >= 1, got 0"),
        ({"max_drop": -1}, "quantize.max_drop must be a number >= 0, got -1"),
        ({"observer": "median"}, "quantize.observer must be one of minmax, "),
        ({"adround": True}, "quantize has no setting 'adround'; did you mean adaround?"),
    ],
)
def test_wrong_values_are_refused_with_what_is_allowed(
    given: dict[str, object], message: str
) -> None:
    with pytest.raises(CompressError) as refused:
        parse(QuantizeConfig(), given, section="quantize")
    assert str(refused.value).startswith(message)
