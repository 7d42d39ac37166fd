from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from compress.settings import parse, settings_of


@dataclass(frozen=True, kw_only=True)
class Inner:
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """A share; its help
    has two lines."""
    count: Annotated[int, Field(ge=1)] = 3
    """A count."""


@dataclass(frozen=True, kw_only=True)
class Outer:
    mode: Literal["a", "b"] = "a"
    """A mode."""
    inner: Inner = field(default=Inner(count=7))


def test_what_is_not_given_keeps_the_default_of_the_instance() -> None:
    parsed = parse(Outer(), {"inner": {"share": 0.25}}, section="outer")
    assert parsed == Outer(inner=Inner(share=0.25, count=7))


def test_text_from_the_command_line_is_converted() -> None:
    assert parse(Inner(), {"share": "0.1", "count": "9"}, section="x") == Inner(share=0.1, count=9)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"inner": {"share": 1.5}}, "outer.inner.share must be a number in (0, 1), got 1.5"),
        ({"inner": {"count": 0}}, "outer.inner.count must be an integer >= 1, got 0"),
        ({"inner": {"count": "x"}}, "outer.inner.count must be an integer >= 1, got 'x'"),
        ({"mode": "c"}, "outer.mode must be one of a, b, got 'c'"),
        ({"inner": 3}, "outer.inner must be a table of settings, got 3"),
        (
            {"inner": {"shar": 1}},
            "outer has no setting 'inner.shar'; did you mean inner.share?",
        ),
        ({"count": 1}, "outer has no setting 'count'; did you mean inner.count?"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=".") as caught:
        parse(Outer(), given, section="outer")
    assert str(caught.value) == message


def test_settings_are_listed_with_their_facts() -> None:
    listed = {setting.name: setting for setting in settings_of(Outer())}
    assert list(listed) == ["mode", "inner.share", "inner.count"]
    assert listed["inner.count"].default == 7
    assert listed["inner.share"].help == "A share; its help has two lines."
    assert listed["mode"].help == "A mode."
    assert listed["mode"].choices == ("a", "b")
