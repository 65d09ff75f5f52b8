"""Values from outside as the types that receive them: dataclasses, numbers in their ranges, text among its choices.

Two forms. `typed` makes a dataclass of a JSON object from its annotations; `Annotated[int, Range(0)]` states a range.
`Fields` reads single fields of an object that holds more than the program wants, such as a published `config.json`.
Neither converts: text is not taken for a number, `true` not for 1, a fraction not for a whole number.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from megatron_v2pe.foreign.files import Kind
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import kind_of

LARGEST = 2**53
"""Whole numbers are at most this unless a range says otherwise: beyond, JSON readers disagree about them."""
T = TypeVar("T")
_REQUIRED = object()
_MOST_STRANGE = 5


@dataclass(frozen=True)
class Range:
    """A range of numbers, its ends included; in `Annotated[int, Range(1, 100)]`."""

    least: float | None = None
    most: float | None = None

    def __str__(self) -> str:
        """Return the range in words.

        Whole numbers are written as such: `typing` takes equal annotations for one, those of 0 and 0.0 too.
        """
        least, most = (
            end if end is None or not float(end).is_integer() else int(end) for end in (self.least, self.most)
        )
        if least is not None and most is not None:
            return f"between {least} and {most}"
        return f"{least} or more" if least is not None else f"{most} or less"

    def holds(self, value: float) -> bool:
        """Tell whether a number lies in the range."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


def typed(kind: type[T], content: Any, source: str, error: Kind, *, unknown: bool = False, every: bool = False) -> T:
    """Return a JSON object as a dataclass, every field of the type it declares.

    Args:
        kind: the dataclass. Its fields may be str, int, float, bool, None, Any, Literal, `Annotated` with a `Range`,
            unions of these, `list[X]`, `tuple[X, ...]`, `dict[str, X]` and further dataclasses.
        content: of a JSON text.
        source: file, or file and line, for the error.
        error: class of the error to raise.
        unknown: pass over fields the dataclass does not have, in place of an error.
        every: name all fields that are wrong, not the first alone.

    Raises:
        V2PEError: of class `error`: a field is missing, unknown or of another type; names it, what was found and what
            was expected.
    """
    assert is_dataclass(kind)
    if not isinstance(content, Mapping):
        raise error(f"{source}: found {kind_of(content)}, expected an object")
    known, hints = {field.name: field for field in fields(kind) if field.init}, _hints(kind)
    faults: list[str] = []
    if not unknown and (strange := [printable(name)[:60] for name in content if name not in known]):
        shown = strange[: _MOST_STRANGE if every else 1]
        names = f"{_plural('unknown field', shown)} {', '.join(map(repr, shown))}"
        faults.append(f"{names}{', ...' if every and len(strange) > len(shown) else ''}; expected {', '.join(known)}")
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, field in known.items():
        if faults and not every:
            break
        if name in content:
            try:
                values[name] = _value(hints[name], content[name], f"{source}: {name}", error, unknown)
            except error as problem:
                if not every:
                    raise
                faults.append(str(problem).removeprefix(f"{source}: "))
        elif field.default is MISSING and field.default_factory is MISSING:
            missing.append(name)
            if not every:
                break
    if missing and (every or not faults):
        are = "are" if len(missing) > 1 else "is"
        faults.append(f"{_plural('field', missing)} {', '.join(map(repr, missing))} {are} missing")
    if faults:
        raise error(f"{source}: {'; '.join(faults)}")
    return cast(T, kind(**values))


def _plural(noun: str, items: Sequence[Any]) -> str:
    return noun + "s" * (len(items) > 1)


def check(kind: Any, value: Any, where: str, error: Kind) -> Any:
    """Return a value if it is of a type as in `typed`, lists made tuples where a tuple is declared.

    Raises:
        V2PEError: of class `error`: it is of another type or outside of its range.
    """
    return _value(kind, value, where, error, False)


class Fields:
    """The fields of a JSON object, read one by one with their types and ranges."""

    def __init__(self, content: Any, source: str, error: Kind) -> None:
        """Take an object.

        Args:
            content: of a JSON text.
            source: file, or file and section, for the error.
            error: class of the error to raise.

        Raises:
            V2PEError: of class `error`: it is no object.
        """
        if not isinstance(content, Mapping):
            raise error(f"{source}: found {kind_of(content)}, expected an object")
        self.content, self.source, self.error = content, source, error

    def get(self, name: str, kind: Any, default: Any = _REQUIRED) -> Any:
        """Return a field of a type as in `typed`; without a default it has to be there, and `null` counts as absent.

        Raises:
            V2PEError: it is missing, of another type or outside of its range.
        """
        value = self.content.get(name)
        if value is None:
            if default is _REQUIRED:
                raise self.error(f"{self.source}: field {name!r} is missing")
            return default
        return _value(kind, value, f"{self.source}: {name}", self.error, False)

    def whole(self, name: str, default: Any = _REQUIRED, least: int | None = None, most: int | None = None) -> int:
        """Return a whole number in a range; for arguments and errors see `get`."""
        return self.get(name, Annotated[int, Range(least, most)], default)

    def number(
        self, name: str, default: Any = _REQUIRED, least: float | None = None, most: float | None = None
    ) -> float:
        """Return a finite number in a range; for arguments and errors see `get`."""
        return self.get(name, Annotated[float, Range(least, most)], default)

    def flag(self, name: str, default: Any = _REQUIRED) -> bool:
        """Return true or false; for arguments and errors see `get`."""
        return self.get(name, bool, default)

    def text(self, name: str, default: Any = _REQUIRED, among: Sequence[str] = ()) -> str:
        """Return text, one of `among` where those are given; for arguments and errors see `get`."""
        return self.get(name, Literal[tuple(among)] if among else str, default)

    def section(self, name: str) -> Fields:
        """Return a field that is an object, as fields.

        Raises:
            V2PEError: it is missing, empty or something else.
        """
        value = self.content.get(name)
        if value is None or value == {}:
            raise self.error(f"{self.source}: section {name!r} is missing")
        return Fields(value, f"{self.source}: {name}", self.error)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _value(kind: Any, value: Any, where: str, error: Kind, unknown: bool) -> Any:
    origin = get_origin(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        kind, *ranges = get_args(kind)
        result = _value(kind, value, where, error, unknown)
        for allowed in ranges:
            if isinstance(allowed, Range) and isinstance(result, (int, float)) and not allowed.holds(result):
                raise error(f"{where}: found {_shown(value)}, expected {allowed}")
        return result
    if origin in (Union, types.UnionType):
        return _one_of(get_args(kind), value, where, error, unknown)
    if origin is Literal:
        choices = get_args(kind)
        if any(value == choice and type(value) is type(choice) for choice in choices):
            return value
        raise error(f"{where}: found {_shown(value)}, expected one of {', '.join(map(str, choices))}")
    if is_dataclass(kind) and isinstance(kind, type):
        return typed(kind, value, where, error, unknown=unknown)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise error(f"{where}: found {_shown(value)}, expected a list")
        element = get_args(kind)[0]
        items = [_value(element, item, f"{where}[{number}]", error, unknown) for number, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if kind is dict or origin is dict:
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise error(f"{where}: found {_shown(value)}, expected an object")
        inner = get_args(kind)[1] if get_args(kind) else Any
        return {
            name: _value(inner, item, f"{where}: {printable(name)}", error, unknown) for name, item in value.items()
        }
    return _plain(kind, value, where, error)


def _plain(kind: Any, value: Any, where: str, error: Kind) -> Any:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
        raise error(f"{where}: found {_shown(value)}, expected a finite number")
    if kind is int and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) <= LARGEST:
            return value
        raise error(f"{where}: found {_shown(value)}, expected a whole number of at most {LARGEST}")
    if kind in (types.NoneType, None):
        if value is None:
            return None
    elif kind in (bool, str, list) and isinstance(value, kind):
        return value
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    raise error(f"{where}: found {_shown(value)}, expected {names.get(kind, 'null')}")


def _one_of(kinds: tuple[Any, ...], value: Any, where: str, error: Kind, unknown: bool) -> Any:
    problem: Exception | None = None
    if value is None and types.NoneType in kinds:
        return None
    for kind in kinds:
        if kind is not types.NoneType:
            try:
                return _value(kind, value, where, error, unknown)
            except error as found:
                problem = problem or found
    assert problem is not None
    raise problem


def _shown(value: Any) -> str:
    """Return a value as a message shows it: short, without control characters."""
    if isinstance(value, bool) or value is None:
        return kind_of(value)
    if isinstance(value, int) and abs(value) > LARGEST:
        return "a number beyond 2^53"
    if isinstance(value, str):
        return f"the text {printable(value[:60])!r}"
    return kind_of(value) if isinstance(value, (dict, list)) else printable(repr(value)[:60])
