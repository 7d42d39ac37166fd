"""Settings: frozen dataclasses whose fields carry their range; the docstring below is their help.

A stage's settings are one dataclass, from which TOML validation and command-line options are
derived. Neither this module nor the config dataclasses import torch, so `--help` is fast.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import textwrap
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, PlainValidator, TypeAdapter, ValidationError

from compress.errors import CompressError
from compress.files import check_plain

T = TypeVar("T")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


FileName = Annotated[str, PlainValidator(_text)]
"""May contain bytes that are not UTF-8, as Python's file names do; pydantic's own str may not."""
SHOWN = 80
"""Maximum number of characters of an invalid value in a message."""
SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One field of a config dataclass, possibly nested."""

    path: tuple[str, ...]
    """Field names from the top, such as `("train", "epochs")`."""
    annotation: Any
    """The Python type, without `Annotated`."""
    default: Any
    help: str
    bounds: Mapping[str, float]
    """By `gt` or `ge` and `lt` or `le`, in this order."""

    @property
    def name(self) -> str:
        """The dotted name used in TOML and `--set`."""
        return ".".join(self.path)

    @property
    def choices(self) -> tuple[str, ...]:
        """Allowed values of a `Literal`, else empty."""
        if typing.get_origin(self.annotation) is typing.Literal:
            return typing.get_args(self.annotation)
        return ()

    @property
    def allowed(self) -> str:
        """Description of the allowed values: `a number in (0, 1)`, `one of a, b`."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        words = {int: "an integer", float: "a number", bool: "true or false", str: "a string"}
        kind = words[self.annotation]
        match list(self.bounds.items()):
            case [(low, least), (high, most)]:
                left, right = "(" if low == "gt" else "[", ")" if high == "lt" else "]"
                return f"{kind} in {left}{least:g}, {most:g}{right}"
            case [(bound, value)]:
                return f"{kind} {SIGNS[bound]} {value:g}"
        return kind


def settings_of(config: object, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yields all settings of a config instance, with its values as defaults."""
    kind: type = type(config)
    hints, texts = typing.get_type_hints(kind, include_extras=True), _help_texts(kind)
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        path = (*prefix, field.name)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, path)
            continue
        hint, info = hints[field.name], Field()
        if typing.get_origin(hint) is Annotated:
            hint, info = typing.get_args(hint)
        bounds = {
            key: getattr(item, key) for item in info.metadata for key in SIGNS if hasattr(item, key)
        }
        yield Setting(
            path=path,
            annotation=hint,
            default=value,
            help=texts[field.name],
            bounds=bounds,
        )


@functools.cache
def _help_texts(kind: type) -> dict[str, str]:
    """Returns the docstring below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts = {}
    for above, below in itertools.pairwise(definition.body):
        match above, below:
            case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(ast.Constant(str(text))):
                texts[field] = " ".join(text.split())
    return texts


def with_options(config: T, given: Mapping[str, Any], *, section: str) -> T:
    """Returns a config with settings given by the last part of their names; None leaves them.

    Raises:
        CompressError: there is no such setting, or a value is out of range.
    """
    paths = {setting.path[-1]: setting.path for setting in settings_of(config)}
    if unknown := sorted(set(given) - set(paths)):
        raise CompressError(
            f"{section} has no setting {unknown[0]!r}; {nearest(unknown[0], paths)}"
        )
    nested: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        table = nested
        for part in paths[name][:-1]:
            table = table.setdefault(part, {})
        table[name] = value
    return parse(config, nested, section=section)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Returns a hint for an unknown name: `did you mean a or b?`, or all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"known: {', '.join(known)}"


def shown(value: object) -> str:
    """Returns an invalid value for a message, truncated if long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def parse(default: T, given: Mapping[str, Any], *, section: str) -> T:
    """Returns the config with the given values, validated.

    Args:
        default: a config instance, for all settings that are not given.
        given: nested mapping, as parsed from TOML; values may be text (`--set`).
        section: name of the section, for messages.

    Raises:
        CompressError: a name is unknown or a value is invalid; the message says what is allowed.
    """
    known = {setting.path: setting for setting in settings_of(default)}
    _check_names(given, known, section)
    merged = _merge(dataclasses.asdict(default), given)  # type: ignore[call-overload]
    try:
        config = TypeAdapter(type(default)).validate_python(merged)
        check_plain(dataclasses.asdict(config))  # type: ignore[call-overload]
        return config
    except CompressError as error:
        raise CompressError(f"{section}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        path = tuple(str(part) for part in first["loc"])
        if path in known:
            problem = f"must be {known[path].allowed}, got {shown(first['input'])}"
        else:  # raised by the dataclass itself
            problem = first["msg"].removeprefix("Value error, ")
        name = ".".join((section, *path))
        raise CompressError(f"{name} {problem}") from None


def _check_names(
    given: Mapping[str, Any],
    known: Mapping[tuple[str, ...], Setting],
    section: str,
    prefix: tuple[str, ...] = (),
) -> None:
    for key, value in given.items():
        path = (*prefix, key)
        if path in known:
            continue
        below = [name for name in known if name[: len(path)] == path]
        if below and isinstance(value, Mapping):
            _check_names(value, known, section, path)
        elif below:
            raise CompressError(
                f"{section}.{'.'.join(path)} must be a table of settings, got {shown(value)}"
            )
        else:
            full = ".".join(_whole(path, value))
            leaves = {name[-1]: ".".join(name) for name in known}
            same_end = leaves.get(full.rpartition(".")[2])  # `lr` for `train.lr`
            hint = f"did you mean {same_end}?" if same_end else nearest(full, leaves.values())
            raise CompressError(f"{section} has no setting {full!r}; {hint}")


def _whole(path: tuple[str, ...], value: Any) -> tuple[str, ...]:
    """Returns the path to the first value."""
    while isinstance(value, Mapping) and value:
        key, value = next(iter(value.items()))
        path = (*path, key)
    return path


def _merge(base: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        old = merged.get(key)
        merged[key] = (
            _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
        )
    return merged
