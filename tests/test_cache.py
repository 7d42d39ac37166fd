"""What was measured is cached if its repeats agree, with its date; the stage says from when."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.cache import (
    STEADY,
    Measurement,
    cached,
    cached_measurement,
    cached_measurements,
    measuring_for,
    now,
    spread_of,
)
from compress.train.precision import StepSeconds

STEADY_REPEATS = [1.00, 1.01, 1.02, 1.03, 1.60]
"""One outlier does not matter."""
NOISY_REPEATS = [1.0, 1.1, 1.4, 1.8, 2.5]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "measured"


class Clock:
    """Hand-made measurements, one after the other."""

    def __init__(self, *repeats: list[float]) -> None:
        self.left = list(repeats)

    def __call__(self) -> Measurement[StepSeconds]:
        repeats = self.left.pop(0)
        seconds = StepSeconds(fp32=min(repeats), bf16=1)
        return Measurement(value=seconds, spread=spread_of(repeats))

    def ask(self) -> float:
        return cached_measurement(StepSeconds, "steps", {"a": 1}, self).fp32


def test_the_spread_is_the_interquartile_range_over_the_median() -> None:
    assert spread_of([3, 1, 2, 5, 4]) == pytest.approx(2 / 3)
    assert spread_of([2.0, 2.0]) == 0
    assert spread_of(STEADY_REPEATS) < STEADY < spread_of(NOISY_REPEATS)


def test_a_steady_measurement_is_kept_with_spread_and_date(cache: Path) -> None:
    before = now()
    clock = Clock(STEADY_REPEATS)
    assert clock.ask() == clock.ask() == 1.0
    (file,) = cache.glob("*.json")
    (kept,) = json.loads(file.read_text()).values()
    assert kept["spread"] == pytest.approx(spread_of(STEADY_REPEATS))
    assert before <= kept["measured"] <= now()


def test_a_measurement_whose_repeats_disagree_is_used_and_not_kept(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever a noisy minute gave was believed for ever."""
    clock = Clock(NOISY_REPEATS, [0.5] * 5)
    assert clock.ask() == 1.0
    assert "1 of 1 (steps); their repeats differ by up to 50 %" in capsys.readouterr().err
    assert clock.ask() == 0.5


def test_a_stage_that_was_cut_off_goes_on_with_what_it_measured(tmp_path: Path) -> None:
    """Else it would meet its own half-trained network with other widths."""
    clock = Clock(NOISY_REPEATS, [0.5] * 5)
    for _ in range(2):
        with measuring_for(tmp_path / "stage.partial"):
            assert clock.ask() == 1.0
    with measuring_for(tmp_path / "another.partial"):
        assert clock.ask() == 0.5


def test_what_is_older_than_asked_is_measured_again(tmp_path: Path) -> None:
    clock = Clock([1.0] * 5, NOISY_REPEATS, [0.5] * 5)
    clock.ask()
    since = now()
    with measuring_for(tmp_path / "first", since=since) as used:
        assert clock.ask() == 1.0
    assert (used()[0].cached, used()[0].not_cached) == (False, 1)
    assert clock.ask() == 0.5  # the old one is dropped, the noisy one was not kept
    with measuring_for(tmp_path / "second", since=since) as used:
        assert clock.ask() == 0.5
    assert used()[0].cached


def test_the_report_tells_how_many_from_when_and_how_sure(tmp_path: Path) -> None:
    def measure(names: list[str]) -> dict[str, Measurement[float]]:
        return {name: Measurement(value=1.0, spread=spreads[name]) for name in names}

    spreads = {"a": 0.01, "b": 0.04, "c": 0.5}
    start = now()
    cached_measurements(float, "layers", {}, "ab", measure)
    with measuring_for(tmp_path) as used:
        for names in ("abc", "c"):  # what it asks for twice counts once
            cached_measurements(float, "layers", {}, names, measure)
    old, new = used()
    assert (old.what, old.count, old.cached, old.not_cached) == ("layers", 2, True, 0)
    assert (new.what, new.count, new.cached, new.not_cached) == ("layers", 1, False, 1)
    assert (old.spread_percent, new.spread_percent) == (4, 50)
    assert start <= old.measured <= new.measured <= now()


def test_a_stage_warns_once_of_all_noisy_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(names: list[str]) -> dict[str, Measurement[float]]:
        return {name: Measurement(value=1.0, spread=0.3 if name in "bc" else 0.0) for name in names}

    with measuring_for(tmp_path):
        for names in ("ab", "cd", "bc"):
            cached_measurements(float, "layers", {}, names, measure)
        cached_measurements(float, "steps", {}, "b", measure)
        cached_measurements(float, "quiet", {}, "a", measure)
        assert capsys.readouterr().err == ""
    (line,) = capsys.readouterr().err.splitlines()
    assert "used but not cached: 2 of 4 (layers), 1 of 1 (steps); their repeats" in line
    assert line.endswith("differ by up to 30 %")


def test_a_value_is_computed_once_per_key(tmp_path: Path) -> None:
    computed: list[int] = []

    def compute() -> list[int]:
        computed.append(len(computed))
        return [*computed]

    assert cached(list[int], "numbers", "a", compute) == [0]
    assert cached(list[int], "numbers", "a", compute) == [0]
    assert cached(list[int], "numbers", "b", compute) == [0, 1]
    (tmp_path / "cache" / "numbers" / "a.json").write_text('["x"]')
    assert cached(list[int], "numbers", "a", compute) == [0, 1, 2]
    assert cached(list[int], "numbers", "a", compute) == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"\xff", b'{"steps": 1}', b'{"steps": {"value": 1}}']
)
def test_a_damaged_measurement_is_made_again(
    damage: bytes, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It made every later run fail with a message that named no file."""
    clock = Clock([1.0] * 5, [2.0] * 5)
    assert clock.ask() == clock.ask() == 1.0
    (file,) = cache.glob("*.json")
    file.write_bytes(damage)
    assert clock.ask() == clock.ask() == 2.0
    assert f"{file.name} is damaged" in capsys.readouterr().err


ADD = """
import sys
from compress.cache import Measurement, cached_measurements
one = Measurement(value=1.0, spread=0.0)
for number in range(40):
    name = f"{sys.argv[1]} {number}"
    cached_measurements(float, "layers", {}, [name], lambda names: dict.fromkeys(names, one))
"""


def test_processes_that_add_to_one_file_at_once_keep_what_all_measured(cache: Path) -> None:
    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", ADD, name])

    assert [process.wait() for process in [start("a"), start("b"), start("c")]] == [0, 0, 0]
    (file,) = cache.glob("*.json")
    assert len(json.loads(file.read_text())) == 120
