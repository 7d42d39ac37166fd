"""What was measured on this host before, so that it need not be measured again.

Each measurement is kept with the spread of its repeats and its date. One whose repeats disagree is
used by the stage that made it and by nobody else. What a stage uses lies in its working folder too:
a stage that was cut off goes on with the same figures, and so ends as if it had not been.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock
from pydantic import ConfigDict, TypeAdapter, ValidationError

from compress.files import cache_folder, write_json
from compress.host import describe_host
from compress.log import say, warn

T = TypeVar("T")

STEADY = 0.2
"""Largest spread of repeats with which a measurement is kept. Steps of training on two cores
spread by 0.03 to 0.1 in quiet, by 0.26 to 2 beside busy processes; layers in one thread by 0.03."""
MEASURED = "measured"
"""Folder of measurements, in the cache and in a stage's working folder."""


def now() -> str:
    """Returns this moment, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def spread_of(repeats: Sequence[float]) -> float:
    """Returns the interquartile range of repeats over their median."""
    low, middle, high = statistics.quantiles(repeats, method="inclusive")
    return (high - low) / middle


@dataclass(frozen=True, kw_only=True)
class Measurement(Generic[T]):
    """What was measured, how sure it is, and from when it is."""

    value: T
    spread: float
    """Of the repeats, as a share of the value."""
    measured: str = field(default_factory=now)

    @property
    def is_steady(self) -> bool:
        """Whether the repeats agree, so that it is kept."""
        return self.spread <= STEADY


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """What one stage used, in a row of its report."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    what: str
    measured: str
    """The oldest, UTC, ISO 8601."""
    spread_percent: float
    """The largest."""
    count: int
    cached: bool
    """Measured before the stage ran; what is measured in it has a row of its own."""
    not_cached: int
    """Those whose repeats disagreed."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The stage that is running."""

    folder: Path
    since: str
    used: dict[tuple[str, str, str], tuple[Measurement[Any], bool]] = field(default_factory=dict)
    """By topic, file and name; and whether it was remembered."""


_STAGE: ContextVar[_Stage | None] = ContextVar("_STAGE", default=None)


@contextmanager
def measuring_for(folder: Path, *, since: str = "") -> Iterator[Callable[[], list[Measurements]]]:
    """Notes what is measured or remembered within, for a stage's report.

    Args:
        folder: the stage's working folder.
        since: what was measured before is not remembered; UTC, ISO 8601.

    Yields:
        A function that returns what was used.
    """
    stage = _Stage(folder=folder, since=since)
    token = _STAGE.set(stage)
    try:
        yield lambda: _rows(stage)
    finally:
        _STAGE.reset(token)


def cached_measurement(
    kind: type[T],
    topic: str,
    structure: Mapping[str, object],
    measure: Callable[[], Measurement[T]],
) -> T:
    """Returns what was measured before on this host for this structure, or measures.

    Args:
        kind: of the value; a dataclass.
        topic: what is measured, in words.
        structure: all that decides the result but the machine; JSON.
        measure: called if nothing is remembered.
    """
    found = cached_measurements(kind, topic, structure, [topic], lambda _: {topic: measure()})
    return found[topic]


def cached_measurements(
    kind: type[T],
    topic: str,
    structure: Mapping[str, object],
    names: Iterable[str],
    measure: Callable[[list[str]], Mapping[str, Measurement[T]]],
) -> dict[str, T]:
    """Returns values by name: those that were measured before on this host, and the missing ones.

    Args:
        kind: of a value.
        topic: see `remembered`.
        structure: what decides all of the values; JSON.
        names: of the values that are wanted.
        measure: called with the names of which nothing is remembered, if there are any.
    """
    stage, file = _STAGE.get(), _file_name(kind, topic, structure)
    adapter = TypeAdapter(dict[str, Measurement[kind]])  # type: ignore[valid-type]
    cache = cache_folder() / MEASURED / file
    known = _read(adapter, cache)
    if stage is not None:
        known = {name: one for name, one in known.items() if one.measured >= stage.since}
        known |= _read(adapter, stage.folder / MEASURED / file)
    names = list(names)
    old = {name: known[name] for name in names if name in known}
    missing = [name for name in names if name not in known]
    new = dict(measure(missing)) if missing else {}
    used = old | new
    if new:
        steady = {name: one for name, one in new.items() if one.is_steady}
        _write(adapter, cache, drop=new, add=steady)
        _tell_unsteady(topic, new)
    if stage is not None:
        _write(adapter, stage.folder / MEASURED / file, drop=(), add=used)
        for name, one in used.items():
            stage.used.setdefault((topic, file, name), (one, name in old))
    return {name: used[name].value for name in names}


def _file_name(kind: type, topic: str, structure: Mapping[str, object]) -> str:
    host = describe_host()
    facts = {
        **structure,
        "fields": sorted(getattr(kind, "__dataclass_fields__", ())),
        "cpu": host.cpu,
        "isa": host.isa,
        "versions": host.versions,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    return f"{topic.replace(' ', '-')}-{key}.json"


def _read(adapter: TypeAdapter[dict[str, Measurement[T]]], path: Path) -> dict[str, Measurement[T]]:
    if not path.is_file():
        return {}
    try:
        return adapter.validate_json(path.read_bytes())
    except ValidationError:
        say(f"  {path} is damaged: measuring again")
        return {}


def _write(
    adapter: TypeAdapter[dict[str, Measurement[T]]],
    path: Path,
    *,
    drop: Iterable[str],
    add: Mapping[str, Measurement[T]],
) -> None:
    """Changes a file of measurements, to which another process may be adding too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        dropped = set(drop)
        kept = {name: one for name, one in _read(adapter, path).items() if name not in dropped}
        merged = {**kept, **add}
        write_json(path, {name: dataclasses.asdict(one) for name, one in merged.items()})


def _tell_unsteady(topic: str, new: Mapping[str, Measurement[Any]]) -> None:
    unsteady = [one.spread for one in new.values() if not one.is_steady]
    if unsteady:
        many = f"{len(unsteady)} of {len(new)} measurements" if len(new) > 1 else "the repeats"
        warn(
            f"  {topic}: {many} differ by up to {100 * max(unsteady):.0f} %; used now, not "
            "remembered"
        )


def _rows(stage: _Stage) -> list[Measurements]:
    found: dict[tuple[str, bool], list[Measurement[Any]]] = defaultdict(list)
    for (topic, _, _), (one, old) in stage.used.items():
        found[topic, old].append(one)
    return [
        Measurements(
            what=topic,
            measured=min(one.measured for one in ones),
            spread_percent=100 * max(one.spread for one in ones),
            count=len(ones),
            cached=old,
            not_cached=sum(not one.is_steady for one in ones),
        )
        for (topic, old), ones in found.items()
    ]
