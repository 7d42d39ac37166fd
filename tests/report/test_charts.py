import pytest

from compress.report.charts import Axis, Series, axis_of, chart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 10, [0, 5, 10]),
        (92.97, 94.57, [93, 93.5, 94, 94.5]),
        (1, 12, [2, 4, 6, 8, 10, 12]),
        (-0.02, 0.01, [-0.02, -0.01, 0, 0.01]),
    ],
)
def test_ticks_are_round_numbers_within_the_axis(
    low: float, high: float, ticks: list[float]
) -> None:
    assert Axis(low=low, high=high).ticks() == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.07, 5, [0.1, 0.3, 1, 3]),
        (0.5, 2000, [1, 10, 100, 1000]),
        (1.1, 12, [2, 5, 10]),
        (3.2, 3.9, [3.2, 3.4, 3.6, 3.8]),
    ],
)
def test_ticks_of_a_logarithmic_axis(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low=low, high=high, log=True).ticks() == pytest.approx(ticks)


def test_places_are_percent_of_the_axis() -> None:
    assert [Axis(low=0, high=4).place(value) for value in (-1, 0, 1, 4, 9)] == [0, 0, 25, 100, 100]
    assert Axis(low=1, high=100, log=True).place(10) == pytest.approx(50)


@pytest.mark.parametrize("log", [False, True])
def test_equal_values_are_drawn_too(log: bool) -> None:
    axis = axis_of([3.0, 3.0], log=log)
    assert 0 < axis.place(3.0) < 100
    assert axis.ticks()
    drawn = chart([Series(name="<one>", color=1, points=[(3, 3)])], axis, axis, summary="a'b")
    assert "aria-label='a&#x27;b'" in drawn
