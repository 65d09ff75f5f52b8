"""The files of a run that its page is made of: rows of metrics, the record, answers of its evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_v2pe.checkpoint.folder import iteration_of
from megatron_v2pe.errors import ConfigError, DataError
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.text import json_lines, read_json_object
from megatron_v2pe.train.metrics_file import METRICS, read_metrics
from megatron_v2pe.train.page.record_file import RECORD, WrittenRecord, read_record

Points = tuple[tuple[float, float], ...]
_LARGEST = 1e300
"""Numbers beyond are passed over: no figure has room for them."""
_QUESTIONS = 12
"""Answers of a benchmark that a page shows."""


@dataclass(frozen=True)
class AskedBenchmark:
    """A benchmark as an evaluation of the run has asked it."""

    name: str
    score: float | None
    questions: int
    answers: tuple[tuple[str, str], ...]
    """The first prompts and answers."""


@dataclass(frozen=True)
class RunFiles:
    """A run as its files tell of it."""

    name: str
    logs: Path
    rows: Sequence[dict[str, Any]]
    """One a logged step, in order."""
    record: WrittenRecord = field(default_factory=WrittenRecord)
    """Empty where the run has none."""
    evaluated: int | None = None
    """Step of the last evaluation."""
    asked: tuple[AskedBenchmark, ...] = ()
    """What was asked then."""
    problems: tuple[str, ...] = ()
    """Files that could not be read."""

    def points(self, name: str, warm: bool = False) -> Points:
        """Return step and value of every row that has a finite number of this name.

        Args:
            name: of the value.
            warm: leave out rows of steps that warm up, whose rates say nothing of a run.
        """
        found = []
        for row in self.rows:
            value = row.get(name)
            if isinstance(value, int | float) and abs(value) <= _LARGEST and not (warm and row.get("warm_up")):
                found.append((float(row["iteration"]), float(value)))
        return tuple(found)

    def names(self, prefix: str) -> list[str]:
        """Return the names of values that begin so, in the order in which they come up."""
        found: dict[str, None] = {}
        for row in self.rows:
            found |= {name: None for name in row if name.startswith(prefix)}
        return list(found)

    def setting(self, section: str, name: str) -> float | None:
        """Return a setting that is a number, as the run's record has it; None where it has none."""
        value = self.record.settings.get(section, {}).get(name)
        return float(value) if isinstance(value, int | float) and abs(value) <= _LARGEST else None

    @property
    def resumptions(self) -> list[int]:
        """Return the steps after which a further process went on, as far as they count."""
        last = self.rows[-1]["iteration"] if self.rows else 0
        found = {row["resumed_from"] for row in self.rows if row.get("resumed_from")}
        return sorted(step for step in found if 0 < step < last)


def open_run(path: Path) -> RunFiles:
    """Read the files of a run.

    Args:
        path: the folder of a run (`checkpoint.save`), or of its logs.

    Raises:
        ConfigError: there are no metrics.
        DataError: they are damaged.
    """
    logs = next((folder for folder in (path, path / "logs") if (folder / METRICS).is_file()), None)
    if logs is None:
        raise ConfigError(
            f"{printable(path)}: neither it nor its folder logs holds {METRICS}; name the folder of a run "
            "(checkpoint.save), or that of its logs (logging.dir)"
        )
    problems: list[str] = []
    record = WrittenRecord()
    try:
        record = read_record(logs / RECORD) if (logs / RECORD).is_file() else record
    except DataError as error:
        problems.append(str(error))
    folder = logs.resolve().parent if logs.name == "logs" else logs.resolve()
    saved = record.settings.get("checkpoint", {}).get("save")
    evaluated, asked = _last_evaluation(folder if folder.is_dir() else Path(str(saved or ".")), problems)
    name = "/".join(folder.parts[-2:]).lstrip("/")
    return RunFiles(name, logs, read_metrics(logs / METRICS), record, evaluated, asked, tuple(problems))


def _last_evaluation(folder: Path, problems: list[str]) -> tuple[int | None, tuple[AskedBenchmark, ...]]:
    """Return step and benchmarks of the last evaluation; what cannot be read is named among the problems."""
    there = {step: path for path in (folder / "evaluation").glob("iter_*") if (step := iteration_of(path)) is not None}
    if not there:
        return None, ()
    last = max(there)
    found: list[AskedBenchmark] = []
    for results in sorted(there[last].rglob("results.json")):
        try:
            found.append(_benchmark(results))
        except DataError as error:
            problems.append(str(error))
    return last, tuple(found)


def _benchmark(results: Path) -> AskedBenchmark:
    content = read_json_object(results, DataError)
    answers: dict[str, tuple[str, str]] = {}
    for path in sorted(results.parent.glob("answers*.jsonl")):
        for _, row in json_lines(path, DataError, torn=True):
            if not isinstance(row, dict) or "id" not in row:
                continue
            said = row.get("answer") if row.get("answer") is not None else f"no answer: {row.get('error')}"
            answers[str(row["id"])] = str(row.get("prompt", "")), str(said)
            if len(answers) >= _QUESTIONS:
                break
    score, count = content.get("score"), content.get("questions")
    return AskedBenchmark(
        str(content.get("title") or content.get("benchmark") or results.parent.name),
        float(score) if isinstance(score, int | float) else None,
        count if isinstance(count, int) else len(answers),
        tuple(list(answers.values())[:_QUESTIONS]),
    )
