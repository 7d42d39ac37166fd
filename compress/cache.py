"""The cache: results that need not be computed or measured again.

Measurements are cached per machine, with their date and the spread of their repeats. A measurement
whose repeats differ too much is used by the current stage only. A stage also keeps what it used in
its working folder: after an interruption, it continues with the same values to the same result.
"""

import dataclasses
import hashlib
import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock
from pydantic import ConfigDict, TypeAdapter

from compress.files import cache_folder, parse_json, read_text, write_json
from compress.host import describe_host
from compress.log import say, warn

T = TypeVar("T")

STEADY = 0.2
"""Largest spread at which a measurement is cached. On two cores, training steps spread by 0.03 to
0.1 if the machine is idle and by 0.26 to 2 if it is busy; layers in one thread spread by 0.03."""
MEASURED = "measured"
"""Folder of measurements, in the cache and in a stage's working folder."""


def now() -> str:
    """Returns the current time, UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def spread_of(repeats: Sequence[float]) -> float:
    """Returns the interquartile range divided by the median."""
    low, middle, high = statistics.quantiles(repeats, method="inclusive")
    return (high - low) / middle


@dataclass(frozen=True, kw_only=True)
class Measurement(Generic[T]):
    """A measured value, with its spread and date."""

    value: T
    spread: float
    """Spread of the repeats, relative to the value."""
    measured: str = field(default_factory=now)

    @property
    def is_steady(self) -> bool:
        """Whether the repeats agree well enough to cache the value."""
        return self.spread <= STEADY


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The measurements of one kind that a stage used: a row of its report."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    what: str
    measured: str
    """Date of the oldest one, UTC, ISO 8601."""
    spread_percent: float
    """The largest spread, percent."""
    count: int
    cached: bool
    """Whether they were measured before the stage started; others have their own row."""
    not_cached: int
    """How many were too noisy to cache."""


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The current stage."""

    folder: Path
    since: str
    used: dict[tuple[str, str, str], tuple[Measurement[Any], bool]] = field(default_factory=dict)
    """Each measurement and whether it was cached, by topic, file, and name."""


_STAGE: ContextVar[_Stage | None] = ContextVar("_STAGE", default=None)


@contextmanager
def measuring_for(folder: Path, *, since: str = "") -> Iterator[Callable[[], list[Measurements]]]:
    """Records the measurements used while the context is open, for a stage's report.

    At the end it warns, once, of measurements that were too noisy to cache.

    Args:
        folder: the stage's working folder.
        since: ignore cached measurements older than this; UTC, ISO 8601.

    Yields:
        A function that returns the measurements used so far.
    """
    stage = _Stage(folder=folder, since=since)
    token = _STAGE.set(stage)
    try:
        yield lambda: _rows(stage)
        _warn_noisy({(topic, name): used for (topic, _, name), (used, _) in stage.used.items()})
    finally:
        _STAGE.reset(token)


def cached_measurement(
    kind: type[T],
    topic: str,
    structure: Mapping[str, object],
    measure: Callable[[], Measurement[T]],
) -> T:
    """Returns one measurement, from the cache or measured now; see `cached_measurements`."""
    values = cached_measurements(kind, topic, structure, [topic], lambda _: {topic: measure()})
    return values[topic]


def cached_measurements(
    kind: type[T],
    topic: str,
    structure: Mapping[str, object],
    names: Iterable[str],
    measure: Callable[[list[str]], Mapping[str, Measurement[T]]],
) -> dict[str, T]:
    """Returns measurements by name, from the cache or measured now.

    Args:
        kind: type of a value.
        topic: what is measured, for messages and reports.
        structure: everything but the machine that affects all of the values; JSON.
        names: names of the values.
        measure: called with the names that are not cached, if there are any.
    """
    stage, file = _STAGE.get(), _file_name(kind, topic, structure)
    adapter = TypeAdapter(dict[str, Measurement[kind]])  # type: ignore[valid-type]
    cache = cache_folder() / MEASURED / file
    known: dict[str, Measurement[T]] = _read(adapter, cache) or {}
    if stage is not None:
        known = {name: item for name, item in known.items() if item.measured >= stage.since}
        in_stage: dict[str, Measurement[T]] = _read(adapter, stage.folder / MEASURED / file) or {}
        known |= in_stage
    names = list(names)
    old = {name: known[name] for name in names if name in known}
    missing = [name for name in names if name not in known]
    new = dict(measure(missing)) if missing else {}
    used = old | new
    if new:
        steady = {name: item for name, item in new.items() if item.is_steady}
        _update(adapter, cache, drop=new, add=steady)
    if stage is not None:
        _update(adapter, stage.folder / MEASURED / file, drop=(), add=used)
        for name, item in used.items():
            stage.used.setdefault((topic, file, name), (item, name in old))
    else:
        _warn_noisy({(topic, name): item for name, item in new.items()})
    return {name: used[name].value for name in names}


def cached(kind: type[T], topic: str, key: str, compute: Callable[[], T]) -> T:
    """Returns a value from the cache, or computes it.

    Args:
        kind: type of the value, which JSON can represent.
        topic: folder of the cache.
        key: digest of everything that affects the value.
        compute: called if the value is not cached.
    """
    adapter, path = TypeAdapter(kind), cache_folder() / topic / f"{key}.json"
    value = _read(adapter, path)
    if value is None:
        value = compute()
        write_json(path, adapter.dump_python(value, mode="json"))
    return value


def _file_name(kind: type, topic: str, structure: Mapping[str, object]) -> str:
    fields = sorted(getattr(kind, "__dataclass_fields__", ()))
    return f"{topic.replace(' ', '-')}-{key_on_host({**structure, 'fields': fields})}.json"


def key_on_host(facts: Mapping[str, object]) -> str:
    """Returns a digest of facts (JSON) and of the CPU and library versions."""
    host = describe_host()
    known = {**facts, "cpu": host.cpu, "isa": host.isa, "versions": host.versions}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:24]


def _read(adapter: TypeAdapter[T], path: Path) -> T | None:
    """Returns a cached value; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        return adapter.validate_python(parse_json(read_text(path)))
    except (OSError, ValueError):
        say(f"  {path} is damaged and will be replaced")
        return None


def _update(
    adapter: TypeAdapter[dict[str, Measurement[T]]],
    path: Path,
    *,
    drop: Iterable[str],
    add: Mapping[str, Measurement[T]],
) -> None:
    """Changes a file of measurements, which other processes may be changing too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        dropped = set(drop)
        old = _read(adapter, path) or {}
        merged = {name: item for name, item in old.items() if name not in dropped} | dict(add)
        write_json(path, {name: dataclasses.asdict(item) for name, item in merged.items()})


def _warn_noisy(used: Mapping[tuple[str, str], Measurement[Any]]) -> None:
    """Warns of measurements that are too noisy to cache, by topic."""
    noisy = {key: item.spread for key, item in used.items() if not item.is_steady}
    if not noisy:
        return
    total, many = Counter(topic for topic, _ in used), Counter(topic for topic, _ in noisy)
    topics = ", ".join(f"{count} of {total[topic]} ({topic})" for topic, count in many.items())
    warn(
        f"  noisy measurements, used but not cached: {topics}; their repeats differ by up to "
        f"{100 * max(noisy.values()):.0f} %"
    )


def _rows(stage: _Stage) -> list[Measurements]:
    rows: dict[tuple[str, bool], list[Measurement[Any]]] = defaultdict(list)
    for (topic, _, _), (item, cached) in stage.used.items():
        rows[topic, cached].append(item)
    return [
        Measurements(
            what=topic,
            measured=min(item.measured for item in items),
            spread_percent=100 * max(item.spread for item in items),
            count=len(items),
            cached=cached,
            not_cached=sum(not item.is_steady for item in items),
        )
        for (topic, cached), items in rows.items()
    ]
