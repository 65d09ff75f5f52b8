"""Reading published question files: JSON lines, JSON, TSV and Parquet, every complaint naming file and line.

Bytes and text come in through `foreign`, with its limits; here are the forms benchmarks are published in, and the types
their fields must have.
"""

from __future__ import annotations

import ast
import csv
import math
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from megatron_v2pe.errors import DataError, how_to_install
from megatron_v2pe.foreign import text as foreign_text
from megatron_v2pe.foreign.files import check_regular
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import LARGEST_LINE, decode, kind_of, lines

Row = dict[str, Any]
"""One record of a file, by field."""
Rows = Iterator[tuple[str, Row]]
"""Records, each with where it stands: `file:line`, or `file, row n`."""
Fields = Mapping[str, Any]
"""What a record must have, and of which types: one or a tuple of them, `list[X]` for the elements of a list; `object`
stands for any."""

ID = (str, int)
"""Types of an id."""
NUMBER = (int, float)
TEXTS = list[str]
VALUES = list[Union[str, int, float]]  # noqa: UP007  a list's argument, taken apart by `_fits`
"""A list of texts or numbers."""
_NAMES = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number", type(None): "nothing"}
_LARGEST = 1 << 30
"""Bytes of a file that is read as a whole, at most."""
_LONGEST_LIST = 100_000
_MOST_SIGNS = 100
_STRINGS = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*\"""", re.DOTALL)


def json_lines(path: Path, fields: Fields) -> Rows:
    """Yield the objects of a JSON lines file; empty lines are passed over.

    Args:
        path: of the file.
        fields: what every object must have, of which types.

    Raises:
        DataError: the file is missing, or a line is damaged or lacks a field.
    """
    _check_there(path)
    for number, value in foreign_text.json_lines(path, DataError):
        where = f"{printable(path)}:{number}"
        yield where, demand(where, value, fields)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it is missing or damaged.
    """
    _check_there(path)
    return foreign_text.read_json(path, DataError, _LARGEST)


def json_records(path: Path, records: Any, fields: Fields) -> Rows:
    """Yield the objects of a list that was read from a JSON file.

    Raises:
        DataError: it is no list, or one of it is no object or lacks a field.
    """
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records, found {kind_of(records)}")
    for number, record in enumerate(records):
        where = f"{printable(path)}, record {number}"
        yield where, demand(where, record, fields)


def tsv_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a tab-separated file with a header; quoted cells may run over several lines.

    Raises:
        DataError: the file is missing, a row has another number of cells than the header, or a column is missing.
    """
    _check_there(path)
    csv.field_size_limit(LARGEST_LINE)  # images stand in cells
    file = printable(path)
    texts = (decode(line, f"{file}:{number}", DataError) for number, line in lines(path, DataError))
    reader, start = csv.reader(texts, delimiter="\t"), 1
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            only_cr = "; its lines end in CR alone: tr '\\r' '\\n' < OLD > NEW" if "new-line" in str(error) else ""
            raise DataError(f"{file}:{start}: damaged row: {error}{only_cr}") from error
        where, start = f"{file}:{start}", reader.line_num + 1
        if header is None:
            demand_names(where, cells, columns)
            header = cells
        elif len(cells) != len(header):
            raise DataError(f"{where}: {len(cells)} cells, but the header has {len(header)}")
        else:
            yield where, dict(zip(header, cells, strict=True))


def parquet_rows(path: Path, fields: Fields) -> Rows:
    """Yield the rows of a Parquet file, a batch of them in memory at a time.

    Raises:
        DataError: PyArrow is not installed, the file is damaged, or a column is missing.
    """
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need PyArrow: {how_to_install('eval')}") from None
    _check_there(path)
    check_regular(path, DataError)
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)
        demand_names(printable(path), file.schema_arrow.names, fields)
        number = 0
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                where = f"{printable(path)}, row {number}"
                yield where, demand(where, row, fields)
                number += 1
    except DataError:
        raise
    except Exception as error:  # on damaged bytes PyArrow raises nearly anything
        reason = printable(error)[:300] or type(error).__name__
        raise DataError(f"{printable(path)}: damaged Parquet file: {reason}") from error


def demand(where: str, row: Any, fields: Fields) -> Row:
    """Return a record if it is one and has the fields, of their types.

    Raises:
        DataError: it has not; names what is missing and what is there.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {kind_of(row)}")
    demand_names(where, row, fields)
    for name, kind in fields.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not any(_fits(row[name], kind) for kind in kinds):
            expected = " or ".join(dict.fromkeys(map(_named, kinds)))
            raise DataError(f"{where}: {name!r} is {printable(row[name])[:60]!r}, expected {expected}")
    return row


def optional(where: str, row: Row, fields: Fields) -> Row:
    """Return a record if those of the fields it has, null aside, are of their types.

    Raises:
        DataError: one is not; names it.
    """
    return demand(where, row, {name: kind for name, kind in fields.items() if row.get(name) is not None})


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: true and false are no numbers, numbers are finite."""
    origin = get_origin(kind)
    if kind is object:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(item, get_args(kind)[0]) for item in value)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, NUMBER if kind is float else int):
            return False
        return abs(value) < 2**63 and math.isfinite(value)
    return isinstance(value, kind)


def _named(kind: Any) -> str:
    if get_origin(kind) is list:
        inner = {TEXTS: "texts", VALUES: "texts or numbers"}.get(kind, "numbers")
        return f"a list of {inner}"
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def demand_names(where: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Check that fields or columns are there.

    Raises:
        DataError: one is not; names what is missing and what is there.
    """
    there = list(names)
    if missing := [name for name in wanted if name not in there]:
        found = printable(", ".join(map(repr, there)))[:500]
        raise DataError(
            f"{where}: no {', '.join(map(repr, missing))}, only {found}: another version of the file than the "
            "published evaluation reads?"
        )


def literal_list(where: str, text: str) -> list[Any]:
    """Return the list of texts and numbers a text holds in Python's notation, read without running it.

    Raises:
        DataError: it holds something else.
    """
    shown = printable(text[:80])
    # Deep nesting and long chains of signs can end the interpreter's own parser, and the process with it.
    bare = _STRINGS.sub("", text[: _LONGEST_LIST + 1])
    if len(text) > _LONGEST_LIST or sum(map(bare.count, "[({+-~")) > _MOST_SIGNS:
        raise DataError(f"{where}: {shown!r} is not a list: it is too long, or nested")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        raise DataError(f"{where}: {shown!r} is not a list: {printable(error)[:100]}") from error
    if not _fits(value, VALUES):
        raise DataError(f"{where}: {shown!r} is not a list of texts or numbers")
    return value


def _check_there(path: Path) -> None:
    if not os.path.lexists(path):
        raise DataError(f"{printable(path)}: no such file")
