"""Nested dataclasses to and from plain dictionaries and YAML, with checked types and hints for misspelt keys.

Knows the field types used here: str, int, float, bool, None, Literal, optional values, tuples of one element
type, and further dataclasses; `Annotated` with a `Range` for numbers, with `NUMBER_OR_TEXT` for text that may be
written as a number, with `OneOf` for names that plug-ins may add to. Leaves out interpolation, includes and every
other YAML dialect.
"""

from __future__ import annotations

import math
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from megatron_v2pe.base.suggest import did_you_mean
from megatron_v2pe.errors import ConfigError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range
from megatron_v2pe.foreign.text import kind_of
from megatron_v2pe.foreign.text import read_yaml as _read_yaml

Config = TypeVar("Config")
NUMBER_OR_TEXT = "number or text"
"""Mark of text settings whose values are numbers as often as not, such as strides: `64` is taken for `"64"`."""
LARGEST_INTEGER = 2**63 - 1
_LONGEST_TEXT = 4096
_LONGEST_LIST = 1000
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?")


@dataclass(frozen=True)
class OneOf:
    """The names a text setting may have, in `Annotated[str, OneOf(REGISTRY.names)]`; asked when a value is checked."""

    names: Callable[[], Sequence[str]]


class Variant(ABC):
    """A section of settings of several kinds, of which its field `name` chooses one; dataclasses derive from it."""

    name: str

    @classmethod
    @abstractmethod
    def variants(cls) -> Mapping[str, type]:
        """Return the dataclass of every kind by its name."""

    def as_named(self, name: str) -> Any:
        """Return the settings of another kind, with what is set here and is not at its default, if that kind has it."""
        kind, own = self.variants()[name], cast(Any, self)
        defaults, known = {field.name: field.default for field in fields(own)}, {field.name for field in fields(kind)}
        kept = {key: getattr(self, key) for key in defaults if key in known and getattr(self, key) != defaults[key]}
        return kind(**{**kept, "name": name})


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as nested dictionaries of plain values, in the order of its fields."""
    return {
        field.name: to_dict(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for field in fields(config)
        for value in [getattr(config, field.name)]
    }


def to_yaml(config: Any) -> str:
    """Return a dataclass as YAML, every field written out."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True, width=110)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping.

    Raises:
        ConfigError: no such file, not YAML (with the line), or something other than a mapping.
    """
    content = _read_yaml(path, ConfigError)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{printable(path)}: holds {kind_of(content)}, expected a mapping of sections")
    return content


def merge(config: Config, values: Mapping[str, Any], source: str, prefix: str = "") -> Config:
    """Return a copy of `config` with the given nested values; fields not named keep theirs.

    Args:
        config: a dataclass instance.
        values: nested mapping with the same names.
        source: file or argument the values come from, for the error.
        prefix: dotted path of `config` in the whole, for the error.

    Raises:
        ConfigError: an unknown key (with the nearest known ones) or a value of another type.
    """
    known = field_types(type(config))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in known:
            shown = printable(path)[:100]
            raise ConfigError(f"{source}: unknown key {shown!r}{did_you_mean(str(key), known, prefix)}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {path} is a section of settings, got {_shown(value)}")
            if isinstance(current, Variant) and "name" in value:
                name = coerce(value["name"], field_types(type(current))["name"], f"{source}: {path}.name")
                current = current.as_named(name) if name != current.name else current
            changes[key] = merge(current, value, source, f"{path}.")
        else:
            changes[key] = coerce(value, known[key], f"{source}: {path}")
    return replace(config, **changes)  # type: ignore[type-var]


def set_path(config: Config, path: str, value: Any, source: str) -> Config:
    """Return a copy of `config` with the field at a dotted path set; errors as in `merge`."""
    known = tuple(leaf_paths(config))
    if path not in known:
        shown = printable(path)[:100]
        raise ConfigError(f"{source}: unknown setting {shown!r}{did_you_mean(path, known)}")
    nested: Any = value
    for part in reversed(path.split(".")):
        nested = {part: nested}
    return merge(config, nested, source)


def get_path(config: Any, path: str) -> Any:
    """Return the value of the field at a dotted path that exists."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def leaf_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that is not itself a section."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaf_paths(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def leaf_type(config: Any, path: str) -> Any:
    """Return the declared type of the field at a dotted path that exists, without its range."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    kind = field_types(type(config))[name]
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def leaf_types(config: Any) -> dict[str, Any]:
    """Return the declared type, without its range, of every field that is not itself a section, by dotted path.

    A section of several kinds has the fields of all of them.
    """
    found = {path: leaf_type(config, path) for path in leaf_paths(config)}
    for field in fields(config):
        section = getattr(config, field.name)
        if isinstance(section, Variant):
            for kind in section.variants().values():
                found |= {f"{field.name}.{path}": leaf_type(kind(), path) for path in leaf_paths(kind())}
    return found


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the declared type of every field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as the declared type; text is read as YAML would where the type is not text.

    Raises:
        ConfigError: the value cannot be of that type, or is out of its range.
    """
    origin = get_origin(kind)
    if origin is Annotated:
        return _coerce_annotated(value, kind, where)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(kind), where)
    if origin is Literal:
        return _one_of(value, get_args(kind), where)
    if origin is tuple:
        element = get_args(kind)[0]
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)) or len(items) > _LONGEST_LIST:
            raise ConfigError(f"{where} is {_shown(value)}, expected a list of up to {_LONGEST_LIST} values")
        return tuple(coerce(item.strip() if isinstance(item, str) else item, element, where) for item in items)
    return _coerce_scalar(value, kind, where)


def check_values(config: Any, name: str) -> None:
    """Check the values of one section, which a program may have made: types, ranges, text without control characters.

    Args:
        config: a dataclass without sections of its own.
        name: of the section, for the error.

    Raises:
        ConfigError: a value is of another type than declared, or out of its range; names the setting.
    """
    for field_name, kind in field_types(type(config)).items():
        value, where = getattr(config, field_name), f"{name}.{field_name}"
        if coerce(value, kind, where) != value or isinstance(value, bool) != (_bare(kind) is bool):
            raise ConfigError(f"{where} is {_shown(value)}, expected a value of its type, as the command line gives it")


def _bare(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def _coerce_annotated(value: Any, kind: Any, where: str) -> Any:
    kind, *marks = get_args(kind)
    for mark in marks:
        if isinstance(mark, OneOf):
            return _one_of(value, mark.names(), where)
    if NUMBER_OR_TEXT in marks and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _shown(value)
    result = coerce(value, kind, where)
    for allowed in marks:
        if isinstance(allowed, Range) and not allowed.holds(result):
            raise ConfigError(f"{where} is {_shown(result)}, expected {allowed}")
    return result


def _one_of(value: Any, names: Sequence[str], where: str) -> str:
    if isinstance(value, str) and value in names:
        return value
    raise ConfigError(f"{where} is {_shown(value)}, expected one of {', '.join(map(str, names))}")


def _coerce_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if types.NoneType in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    problem: ConfigError | None = None
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return coerce(value, kind, where)
            except ConfigError as error:
                problem = error
    assert problem is not None
    raise problem


def _coerce_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where} is {_shown(value)}, expected true or false")
    if kind in (int, float):
        number = _number(value, kind)
        if number is None:
            raise ConfigError(f"{where} is {_shown(value)}, expected a {'whole ' if kind is int else ''}number")
        return number
    if kind is str and isinstance(value, str):
        if len(value) > _LONGEST_TEXT or printable(value) != value:
            raise ConfigError(
                f"{where} is {_shown(value)}, expected at most {_LONGEST_TEXT} characters, none a control character"
            )
        return value
    raise ConfigError(
        f"{where} is {_shown(value)}, expected {'text' if kind is str else getattr(kind, '__name__', kind)}"
    )


def _number(value: Any, kind: type) -> int | float | None:
    """Return a value as a finite number, a whole one of 64 bits for `int`; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 400 or not _NUMBER.fullmatch(text):
            return None
        value = int(text) if text.lstrip("+-").isdecimal() else float(text)
    try:
        number = float(value)
        if not math.isfinite(number):
            return None
        if kind is float:
            return number
        return int(value) if value == int(value) and abs(value) <= LARGEST_INTEGER else None
    except OverflowError:
        return None


def _shown(value: Any) -> str:
    """Return a value as a message shows it: short, without control characters."""
    if isinstance(value, int) and abs(value) > 1 << 128:
        return "a number of many digits"
    if isinstance(value, (list, tuple, dict, set, bytes)) and len(value) > 20:
        return kind_of(value)
    text = repr(value)
    return printable(text if len(text) <= 100 else f"{text[:100]}...")
