"""`run_record.json`: what a run has written down of itself (`train/run_record.py`), as it is read."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import typed
from megatron_v2pe.foreign.text import read_json_object

RECORD = "run_record.json"
PAGE, PICTURE = "run.html", "run.png"
PACKS = "packs"
"""Folder of the pictures of packs, beside the record."""
_FORM = 1
_MOST_BINS = 256


@dataclass
class _Part:
    """A run of text of a document."""

    text: str
    learned: bool = False
    note: bool = False


@dataclass
class _Document:
    """A document of a pack, see `train.pack_samples`."""

    dataset: str
    line: int
    tokens: int
    learned: int
    tiles: int
    parts: list[_Part]
    picture: str | None = None


@dataclass
class _Pack:
    """A pack that is shown."""

    step: int
    documents: list[_Document]
    all_documents: int
    tokens: int
    tiles: int


@dataclass
class _Drawn:
    """What was drawn, see `train.data_counts.DataCounts.to_json`."""

    sets: dict[str, dict[str, float]] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)


@dataclass
class _Session:
    """What of a process is more than words."""

    begin: int = 0
    to: int = 0
    versions: dict[str, str] = field(default_factory=dict)


@dataclass
class _Example:
    """A sample that was left out."""

    sample: str
    error: str


@dataclass
class _Inside:
    """Types of what a page reads of a record's lists and objects."""

    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    drawn: _Drawn = field(default_factory=_Drawn)
    examples: list[_Example] = field(default_factory=list)
    packs: list[_Pack] = field(default_factory=list)
    sessions: list[_Session] = field(default_factory=list)


@dataclass
class WrittenRecord:
    """The record of a run, plain JSON throughout."""

    form: int = _FORM
    """Version of this form."""
    steps: int = 0
    """Steps done."""
    train_steps: int = 0
    """Steps of the whole run."""
    model: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    """Samples of an epoch that the settings ask for, by data set."""
    drawn: dict[str, Any] = field(default_factory=dict)
    """What was drawn, see `train.data_counts.DataCounts.to_json`."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Samples left out, by cause."""
    examples: list[dict[str, Any]] = field(default_factory=list)
    """Some of them: `sample` and `error`."""
    packs: list[dict[str, Any]] = field(default_factory=list)
    """Some packs, see `train.pack_samples`."""
    sessions: list[dict[str, Any]] = field(default_factory=list)
    """One for each process that has trained: steps, times, machine, versions."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON."""
        return asdict(self)

    def until(self, step: int) -> WrittenRecord:
        """Return the record as a run that goes on after a step takes it over: without packs of later steps."""
        self.packs = [pack for pack in self.packs if pack["step"] <= step]
        return self


def read_record(path: Path) -> WrittenRecord:
    """Read a record.

    Raises:
        DataError: it is damaged, or of another version; names the file.
    """
    record = typed(WrittenRecord, read_json_object(path, DataError), printable(path), DataError, unknown=True)
    if record.form != _FORM:
        raise DataError(f"{printable(path)}: form {record.form}, this version reads form {_FORM}")
    renamed = [{"begin": one.get("from", 0), **one} for one in record.sessions]
    inside = typed(_Inside, record.to_json() | {"sessions": renamed}, printable(path), DataError, unknown=True)
    if max(len(inside.drawn.lengths), len(inside.drawn.tiles)) > _MOST_BINS:
        raise DataError(f"{printable(path)}: drawn: more than {_MOST_BINS} bins of lengths or tiles")
    return record
