"""Text, JSON, JSON lines and YAML from outside: one reader each, with limits, and messages that name file and line.

The limits: a file of 256 MiB, a nesting of 64, numbers of 400 digits, UTF-8 (a byte order mark is skipped), no NaN or
infinity. What is read is checked against the type that receives it by `foreign.schema`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.composer import ComposerError

from megatron_v2pe.foreign.files import LARGEST_TEXT, Kind, Path_, check_regular, read_bytes
from megatron_v2pe.foreign.printable import printable

DEEPEST = 64
"""Lists and objects inside one another, at most."""
MOST_DIGITS = 400
"""Digits of a number, at most. A float has at most 309 digits before its point."""
LARGEST_LINE = 1 << 26
"""Bytes of a line, at most: 64 MiB."""
MOST_VALUES = 100_000
"""Values of a YAML file, at most, with aliases written out."""
_DIGIT, _LONG_NUMBER = re.compile(rb"[0-9]"), re.compile(rb"[0-9]{%d}" % (MOST_DIGITS + 1))
_FEW_BYTES = 1 << 16
"""Bytes of a text that are looked at to find its encoding."""
_BOM = "\ufeff"
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_MARKS = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
    (b"{\0\0\0", "UTF-32"),
    (b"\0\0\0{", "UTF-32"),
    (b"{\0", "UTF-16LE"),
    (b"\0{", "UTF-16BE"),
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"(\xb5/\xfd", "zstd"),
)
"""First bytes of a file and what it is then."""
_CONVERT = "; convert it: iconv -f {} -t UTF-8 OLD > NEW"


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        again = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{again[:60]!r} stands twice in one object")
    return result


# Made once: a decoder costs more than a short line. By `unique` and `constants` of `parse_json`.
_DECODERS = {
    (unique, constants): json.JSONDecoder(
        parse_constant=None if constants else _refuse_constant, object_pairs_hook=_unique if unique else None
    )
    for unique in (False, True)
    for constants in (False, True)
}


def read_text(path: Path_, error: Kind, limit: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file; line ends as they are.

    Args:
        path: of the file.
        error: class of the error to raise, as in all functions of this file.
        limit: bytes, at most.

    Raises:
        V2PEError: of class `error`: no regular file, too large, or not UTF-8 (names the byte).
    """
    return decode(read_bytes(path, error, limit), printable(path), error)


def decode(content: bytes, source: str, error: Kind) -> str:
    """Return UTF-8 as text, without a byte order mark.

    Raises:
        V2PEError: of class `error`: not UTF-8; names the byte.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as problem:
        bad = f"byte {problem.start} is 0x{content[problem.start]:02x} ({problem.reason})"
        what = marked(content) or _without_mark(content) or f"not UTF-8: {bad}{_CONVERT.format('ENCODING')}"
        raise error(f"{source}: {what}") from problem
    if "\0" in text and (what := marked(content) or _without_mark(content)):
        raise error(f"{source}: {what}")
    return text.removeprefix(_BOM)


def marked(content: bytes) -> str | None:
    """Return what the first bytes of a text file say that it is, and what to do, if that is not UTF-8; else None."""
    kind = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if kind is None or kind.startswith("UTF"):
        return kind and f"not UTF-8 but {kind}{_CONVERT.format(kind)}"
    return f"not text: compressed by {kind}; unpack it first"


def _without_mark(content: bytes) -> str | None:
    """Return the same of a part of such a file: of the letters of English, every other byte is 0, or three of four."""
    zeros, some = content[:_FEW_BYTES].count(0), len(content[:_FEW_BYTES])
    if not content.strip(b"\0\r\n"):
        return f"{len(content)} NUL bytes and nothing else: damaged, as a full disk or a crash leaves it"
    kind = "UTF-32" if 5 * zeros > 3 * some else "UTF-16" if 3 * zeros > some else None
    return kind and f"not UTF-8 but {kind}{_CONVERT.format(kind)}"


def parse_json(content: bytes | str, source: str, error: Kind, *, unique: bool = False, constants: bool = False) -> Any:
    """Return the value of a JSON text.

    Args:
        content: UTF-8 or text.
        source: file, or file and line, for the error.
        error: class of the error to raise.
        unique: refuse an object that holds a name twice; by default the last counts, as JSON readers have it.
        constants: take NaN and infinity, as Python writes them, for a file that is only checked.

    Raises:
        V2PEError: of class `error`: not JSON (names line and column), nested too deeply, a number that is too long, or
            NaN or infinity.
    """
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    text = decode(content, source, error) if isinstance(content, bytes) else content
    if _may_hold_long_number(raw):
        _check_numbers(text, source, error)
    try:
        value = _DECODERS[unique, constants].decode(text)
    except json.JSONDecodeError as problem:
        place = f"line {problem.lineno}, column {problem.colno}" if problem.lineno > 1 else f"column {problem.colno}"
        raise error(f"{source}: not valid JSON: {problem.msg} at {place}{_advice(text, problem)}") from problem
    except RecursionError as problem:
        raise error(f"{source}: not read: lists and objects are nested deeper than {DEEPEST}") from problem
    except ValueError as problem:
        raise error(f"{source}: not valid JSON: {printable(problem)[:200]}") from problem
    if raw.count(b"[") + raw.count(b"{") > DEEPEST and (_depth(value) or 0) > DEEPEST:
        raise error(f"{source}: not read: lists and objects are nested deeper than {DEEPEST}")
    return value


def read_json(
    path: Path_, error: Kind, limit: int = LARGEST_TEXT, *, unique: bool = False, constants: bool = False
) -> Any:
    """Return the value of a JSON file; for options see `parse_json`, for errors also `read_bytes`."""
    content = read_bytes(path, error, limit)
    return parse_json(content, printable(path), error, unique=unique, constants=constants)


def read_json_object(path: Path_, error: Kind, limit: int = LARGEST_TEXT, *, unique: bool = False) -> dict[str, Any]:
    """Return the object a JSON file holds; errors are those of `read_json`, and one if it holds something else."""
    content = read_json(path, error, limit, unique=unique)
    if not isinstance(content, dict):
        raise error(f"{printable(path)}: holds {kind_of(content)}, expected an object")
    return content


def json_lines(path: Path_, error: Kind, torn: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield the number, from 1, and the value of each line of a JSONL file that is not empty.

    Args:
        path: of the file.
        error: class of the error to raise.
        torn: stop without an error at a last line that has no end: a kill cut it off.

    Raises:
        V2PEError: of class `error`: no regular file, a line that is too long or not JSON; names file and line.
    """
    for number, line in lines(path, error):
        if torn and not line.endswith(b"\n"):
            return
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, parse_json(line, f"{printable(path)}:{number}", error)


def json_line(row: Any) -> str:
    """Return a plain JSON value as a line of a JSONL file, its end included.

    Letters stand as they are, but what some readers take for the end of a line (U+2028, U+2029, NEL) is spelt out.
    """
    return json.dumps(row, ensure_ascii=False).translate(_LINE_ENDS) + "\n"


def lines(path: Path_, error: Kind, limit: int = LARGEST_LINE) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the bytes of each line of a regular file, its end included.

    Raises:
        V2PEError: of class `error`: no regular file, it cannot be read, or a line of more than `limit` bytes.
    """
    check_regular(path, error)
    try:
        with open(path, "rb") as stream:
            number = 0
            while line := stream.readline(limit + 1):
                number += 1
                if len(line) > limit:
                    raise error(f"{printable(path)}:{number}: a line of more than {limit} bytes, the most that is read")
                yield number, line
    except OSError as problem:
        raise error(f"{printable(path)}: cannot be read: {problem.strerror}") from problem


class _YamlLoader(yaml.SafeLoader):
    """PyYAML's safe loader without tags, some of which it trips over, and with an eye on names that stand twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose a value; one with a tag is an error."""
        event = self.peek_event()
        if getattr(event, "tag", None) not in (None, "!"):
            tag = str(event.tag).replace("tag:yaml.org,2002:", "!!")[:60]
            raise ComposerError(None, None, f"a tag, {tag!r}: plain values are read", event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping; a name that stands twice is an error."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise ComposerError(None, None, f"{key.value[:60]!r} stands twice in one mapping", key.start_mark)
                seen.add(key.value)
        return node


def read_yaml(path: Path_, error: Kind, limit: int = 1 << 24) -> Any:
    """Return the value of a YAML file: plain values only, no tags, no name twice in a mapping.

    Raises:
        V2PEError: of class `error`: no regular file, not YAML (names the line), a tag, nested too deeply, or more than
            100,000 values once its aliases are written out: a few lines of aliases can stand for gigabytes.
    """
    text = read_text(path, error, limit)
    try:
        value = yaml.load(text, _YamlLoader)
    except yaml.YAMLError as problem:
        raise error(f"{printable(path)}: not valid YAML: {printable(problem, lines=True)}") from problem
    except RecursionError as problem:
        raise error(f"{printable(path)}: not read: nested deeper than {DEEPEST}") from problem
    except Exception as problem:  # third-party: a date of month 13, a number of 5,000 digits
        raise error(f"{printable(path)}: not valid YAML: {printable(problem)[:200]}") from problem
    if (depth := _depth(value, most=MOST_VALUES)) is None or depth > DEEPEST:
        excess = f"more than {MOST_VALUES} values" if depth is None else f"nested deeper than {DEEPEST}"
        raise error(f"{printable(path)}: not read: {excess}")
    return value


def kind_of(value: Any) -> str:
    """Return what JSON calls a value, with its article: `a number`, `an object`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {int: "a whole number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"a {type(value).__name__}")


def _advice(text: str, problem: json.JSONDecodeError) -> str:
    """Return what to do about some texts that are not one JSON value, to be put behind the message."""
    if problem.msg == "Extra data":
        before = text[: problem.pos].rstrip(" \t")
        if before.endswith("\r"):
            return "; its lines end in CR alone: tr '\\r' '\\n' < OLD > NEW"
        if problem.lineno == 1 and text[problem.pos :].strip() in (",", "]", "],"):
            return "; the line is one of a JSON list's: jq -c '.[]' OLD > NEW puts one value in each"
        if problem.lineno > 1:
            return "; more follows behind the first value: JSON lines, where one JSON text belongs?"
        return "; a line holds one value: is this two in a row?"
    if text.strip() in ("[", "{"):
        return "; the value goes on in the next lines: jq -c . OLD > NEW (of a list: jq -c '.[]') puts one in each"
    if text.strip() == "\x1a":
        return "; the end of a file as DOS marks it (Ctrl-Z): tr -d '\\032' < OLD > NEW"
    if text.lstrip().startswith(("{'", "[{'")):
        return "; single quotes: written by Python's print or str? json.dumps writes JSON"
    return ""


def is_unicode(text: str) -> bool:
    """Return False for half a surrogate pair, which JSON can name (`\\ud83d`) and UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _may_hold_long_number(raw: bytes) -> bool:
    """Tell whether there is a run of more digits than a number may have, inside of a string perhaps.

    Of so many bytes in a row, every 401st is one: it is a hundred times as fast to look at these alone as to search.
    """
    for match in _DIGIT.finditer(raw[MOST_DIGITS :: MOST_DIGITS + 1]):
        place = MOST_DIGITS + match.start() * (MOST_DIGITS + 1)
        if _LONG_NUMBER.search(raw, max(place - MOST_DIGITS, 0), place + MOST_DIGITS + 1):
            return True
    return False


def _check_numbers(text: str, source: str, error: Kind) -> None:
    """Refuse long numbers; long runs of digits inside of strings are text."""

    def check(digits: str) -> float:
        if len(digits) > MOST_DIGITS:
            raise error(f"{source}: a number of {len(digits)} digits, at most {MOST_DIGITS} are read")
        return 0.0

    try:
        json.loads(text, parse_int=check, parse_float=check)  # type: ignore[arg-type]
    except (json.JSONDecodeError, RecursionError):
        return  # named by whoever reads it next


def _depth(value: Any, most: int | None = None) -> int | None:
    """Return how deeply lists and objects are nested, without recursion; stops above `DEEPEST`.

    None where there are more than `most` values: aliases of YAML can stand for more than any memory holds.
    """
    level, depth, count = [value], 0, 0
    while level := [item for item in level if isinstance(item, (dict, list))]:
        depth += 1
        count += sum(map(len, level))
        if depth > DEEPEST or (most is not None and count > most):
            return depth if depth > DEEPEST else None
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
