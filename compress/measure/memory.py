"""What was measured on this host before, so that it need not be measured again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from compress.checkpoint import write_json
from compress.measure.host import describe_host
from compress.paths import cache_folder
from compress.progress import say

T = TypeVar("T")


def remembered(
    kind: type[T], topic: str, structure: Mapping[str, object], measure: Callable[[], T]
) -> T:
    """Returns what was measured before on this host for this structure, or measures.

    Args:
        kind: a dataclass.
        topic: what is measured; a folder in the cache.
        structure: all that decides the result but the machine; JSON.
        measure: called if nothing is remembered.
    """
    host = describe_host()
    facts = {
        **structure,
        "fields": sorted(kind.__dataclass_fields__),  # type: ignore[attr-defined]
        "cpu": host.cpu,
        "isa": host.isa,
        "versions": host.versions,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / topic / f"{key}.json"
    if path.is_file():
        try:
            return TypeAdapter(kind).validate_json(path.read_bytes())
        except ValidationError:
            say(f"  {path} is damaged: measuring again")
    measured = measure()
    write_json(path, measured)
    return measured
