"""Reading published question files: JSON lines, JSON, TSV and Parquet, every complaint naming file and line."""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError

Row = dict[str, Any]
"""One record of a file, by field."""
Rows = Iterator[tuple[str, Row]]
"""Records, each with where it stands: `file:line`, or `file, row n`."""
Fields = Mapping[str, type | tuple[type, ...]]
"""What a record must have, and of which types; `object` stands for any."""

ID = (str, int)
"""Types of an id."""
NUMBER = (int, float)
_NAMES = {str: "text", dict: "an object", list: "a list", int: "a number", float: "a number", type(None): "nothing"}


def json_lines(path: Path, fields: Fields) -> Rows:
    """Yield the objects of a JSON lines file; empty lines are passed over.

    Args:
        path: of the file.
        fields: what every object must have, of which types.

    Raises:
        DataError: the file is missing, or a line is damaged or lacks a field.
    """
    with _opened(path) as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield where, demand(where, _parsed(where, line), fields)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        DataError: it is missing or damaged.
    """
    with _opened(path) as stream:
        return _parsed(str(path), stream.read())


def json_records(path: Path, records: Any, fields: Fields) -> Rows:
    """Yield the objects of a list that was read from a JSON file.

    Raises:
        DataError: it is no list, or one of it is no object or lacks a field.
    """
    if not isinstance(records, list):
        raise DataError(f"{path}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        where = f"{path}, record {number}"
        yield where, demand(where, record, fields)


def tsv_rows(path: Path, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a tab-separated file with a header; quoted cells may run over several lines.

    Raises:
        DataError: the file is missing, a row has another number of cells than the header, or a column is missing.
    """
    csv.field_size_limit(2**31 - 1)  # images stand in cells
    with _opened(path) as stream:
        lines = (_decoded(f"{path}:{number}", line) for number, line in enumerate(stream, 1))
        reader, start = csv.reader(lines, delimiter="\t"), 1
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{path}:{start}: damaged row: {error}") from error
            where, start = f"{path}:{start}", reader.line_num + 1
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
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise DataError(f"{path}: Parquet files need PyArrow: pip install 'megatron-v2pe[eval]'") from None
    try:
        file = parquet.ParquetFile(path)
        demand_names(str(path), file.schema_arrow.names, fields)
        number = 0
        for batch in file.iter_batches(batch_size=16):
            for row in batch.to_pylist():
                where = f"{path}, row {number}"
                yield where, demand(where, row, fields)
                number += 1
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged Parquet file: {error}") from error


def demand(where: str, row: Any, fields: Fields) -> Row:
    """Return a record if it is one and has the fields, of their types.

    Raises:
        DataError: it has not; names what is missing and what is there.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object, found {type(row).__name__}")
    demand_names(where, row, fields)
    for name, kind in fields.items():
        if not isinstance(row[name], kind):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise DataError(f"{where}: {name!r} is {str(row[name])[:60]!r}, expected {expected}")
    return row


def demand_names(where: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    """Check that fields or columns are there.

    Raises:
        DataError: one is not; names what is missing and what is there.
    """
    there = list(names)
    if missing := [name for name in wanted if name not in there]:
        raise DataError(
            f"{where}: no {', '.join(map(repr, missing))}, only {', '.join(map(repr, there))}: another version of the "
            "file than the published evaluation reads?"
        )


def literal_list(where: str, text: str) -> list[Any]:
    """Return the list a text holds in Python's notation, read without running it.

    Raises:
        DataError: it holds something else.
    """
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise DataError(f"{where}: {text[:80]!r} is not a list: {error}") from error
    if not isinstance(value, list):
        raise DataError(f"{where}: {text[:80]!r} is not a list")
    return value


def _opened(path: Path) -> Any:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def _decoded(where: str, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error}") from error


def _parsed(where: str, content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:  # of JSON, or of its UTF-8
        raise DataError(f"{where}: not JSON: {error}") from error
