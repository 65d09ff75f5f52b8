"""`metrics.jsonl`: a row of JSON per logged step, appended to and never rewritten.

A run that goes on from a checkpoint leaves the rows of an interrupted run as they are. Its first row says where it went
on (`resumed_from`, steps done by then); whoever reads passes over rows of later steps that stand before it. A row that
says `added` holds values of work that was done after a step whose row stands before.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Fields
from megatron_v2pe.foreign.text import lines, parse_json

METRICS = "metrics.jsonl"
ADDED = "added"
"""Marks a row that belongs to the one of the same step before it."""
SKIPPED = "health/skipped"
"""Stands in the row of a step that updated nothing, since its loss or gradients were not finite."""
_RESUMED = "resumed_from"
_TAIL = 1 << 16


class MetricsFile:
    """A file that rows are appended to."""

    def __init__(self, path: Path, start: int) -> None:
        """Open the file; a last line that a kill has cut off is removed, nothing else is touched.

        Args:
            path: path of the file, which is made if it is not there.
            start: steps done.
        """
        self._path = path
        there = path.is_file() and path.stat().st_size > 0
        self._resumed_from = start if start or there else None
        self._stream = path.open("r+b" if path.is_file() else "w+b", buffering=0)
        self._stream.seek(0, os.SEEK_END)
        _cut_torn_line(self._stream)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is whole in the file, or not there, once this returns.

        Raises:
            OSError: the disk is full.
        """
        if self._resumed_from is not None:
            row = {**row, _RESUMED: self._resumed_from}
        content, begin = json.dumps(row).encode() + b"\n", self._stream.tell()
        try:
            if self._stream.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        except OSError:
            self._stream.truncate(begin)
            self._stream.seek(begin)
            raise
        self._resumed_from = None

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def read_metrics(path: Path, numbers: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return the rows that count, one a step, in order.

    Args:
        path: path of the file.
        numbers: names that every row has to have, with a finite number; steps that were skipped because theirs are not
            finite are left out.

    Raises:
        DataError: no such file, or a line other than a last one that has no end is no row; names file and line.
    """
    rows: dict[int, dict[str, Any]] = {}
    for number, line in lines(path, DataError):
        if not line.endswith(b"\n"):
            break
        where = f"{printable(path)}:{number}"
        fields = Fields(parse_json(line, where, DataError), f"{where}: not a row of metrics", DataError)
        step, resumed = fields.whole("iteration", least=0), fields.whole(_RESUMED, None, least=0)
        if resumed is not None:
            rows = {earlier: row for earlier, row in rows.items() if earlier <= resumed}
        if fields.flag(ADDED, None):
            found = {name: value for name, value in fields.content.items() if name not in (ADDED, _RESUMED, "time")}
            rows[step] = rows.get(step, {}) | found
            continue
        if numbers and fields.content.get(SKIPPED):
            rows.pop(step, None)
            continue
        rows[step] = dict(fields.content) | {name: fields.number(name) for name in numbers}
    return [rows[step] for step in sorted(rows)]


def _cut_torn_line(stream: Any) -> None:
    """Remove what stands behind the last line end; leave the stream at its end."""
    end = size = stream.tell()
    while end:
        begin = max(end - _TAIL, 0)
        stream.seek(begin)
        if (found := stream.read(end - begin).rfind(b"\n")) >= 0:
            end = begin + found + 1
            break
        end = begin
    if end < size:
        stream.truncate(end)
    stream.seek(end)
