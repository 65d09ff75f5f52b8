"""Nested dataclasses to and from plain dictionaries and YAML, with checked types and hints for misspelt keys.

Knows the field types used here: str, int, float, bool, None, Literal, optional values, tuples of one element
type, and further dataclasses. Leaves out interpolation, includes and every other YAML dialect.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from megatron_v2pe.errors import ConfigError

Config = TypeVar("Config")


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
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, expected a mapping of sections")
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
            raise ConfigError(f"{source}: unknown key {path!r}{did_you_mean(str(key), known, prefix)}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{source}: {path} is a section of settings, got {value!r}")
            changes[key] = merge(current, value, source, f"{path}.")
        else:
            changes[key] = coerce(value, known[key], f"{source}: {path}")
    return replace(config, **changes)  # type: ignore[type-var]


def set_path(config: Config, path: str, value: Any, source: str) -> Config:
    """Return a copy of `config` with the field at a dotted path set; errors as in `merge`."""
    known = tuple(leaf_paths(config))
    if path not in known:
        raise ConfigError(f"{source}: unknown setting {path!r}{did_you_mean(path, known)}")
    nested: Any = value
    for part in reversed(path.split(".")):
        nested = {part: nested}
    return merge(config, nested, source)


def leaf_paths(config: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every field that is not itself a section."""
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from leaf_paths(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


def leaf_type(config: Any, path: str) -> Any:
    """Return the declared type of the field at a dotted path that exists."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    return field_types(type(config))[name]


@cache
def field_types(kind: type) -> dict[str, Any]:
    """Return the declared type of every field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def did_you_mean(word: str, known: Sequence[str] | Mapping[str, Any], prefix: str = "") -> str:
    """Return `; did you mean ...?` naming the nearest known words, else the list of all where it is short."""
    last = word.rpartition(".")[2]
    near = [name for name in known if "." in word and name.rpartition(".")[2] == last]  # the wrong section
    near = near[:3] or difflib.get_close_matches(word, list(known), n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(prefix + name for name in near)}?"
    return f"; known here: {', '.join(known)}" if len(known) <= 40 else ""


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as the declared type; text is read as YAML would where the type is not text.

    Raises:
        ConfigError: the value cannot be of that type.
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, get_args(kind), where)
    if origin is Literal:
        if value in get_args(kind):
            return value
        raise ConfigError(f"{where} is {value!r}, expected one of {', '.join(map(str, get_args(kind)))}")
    if origin is tuple:
        element = get_args(kind)[0]
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, Sequence):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        return tuple(coerce(item.strip() if isinstance(item, str) else item, element, where) for item in items)
    return _coerce_scalar(value, kind, where)


def _coerce_union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if types.NoneType in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    message = ""
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return coerce(value, kind, where)
            except ConfigError as error:
                message = str(error)
    raise ConfigError(message)


def _coerce_scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if isinstance(value, bool):
            return value
        raise ConfigError(f"{where} is {value!r}, expected true or false")
    if kind in (int, float) and isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
            if kind is float:
                return number
            if number == int(number):
                return int(value) if not isinstance(value, str) or value.lstrip("+-").isdigit() else int(number)
        except (ValueError, OverflowError):
            pass
        raise ConfigError(f"{where} is {value!r}, expected a {'whole ' if kind is int else ''}number")
    if kind is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where} is {value!r}, expected {getattr(kind, '__name__', kind)}")
