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
    return record
