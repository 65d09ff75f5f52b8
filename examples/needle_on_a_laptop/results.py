"""From answers to the table: how many needles each row reads at each length, over seeds, and by depth."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settings import DECIDING, ORDINARY, RIGHT, ROWS, V2PE, WRONG, Row, Settings
from start_model import TRAINED_LENGTH
from steps import StepError, losses
from task import CHANCE, UNBOUND

from megatron_v2pe.evaluate.answers import AnswerLog
from megatron_v2pe.evaluate.scorer_names import scorer_of

DEPTHS = 5
"""Bins of the heat maps, from the beginning of a document to its end."""
EARLY = 20
"""Steps over which layouts differ by rounding alone; later it is amplified, most where a model learns all at once."""
ALIKE = 0.01
"""Relative difference up to which two losses are called alike."""


@dataclass(frozen=True)
class Asked:
    """A question and whether its answer was right."""

    depth: float
    right: bool


@dataclass(frozen=True)
class Cell:
    """Shares of right answers, one of each seed."""

    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return their mean."""
        return statistics.fmean(self.shares)

    def __str__(self) -> str:
        """Return it in percent, with its spread where there are several seeds."""
        if len(self.shares) == 1:
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} +- {100 * statistics.stdev(self.shares):.1f}"


@dataclass(frozen=True)
class Line:
    """A line of the table: its heading, and a cell for each length."""

    trained: str
    read_at: str
    haystack: str
    cells: tuple[Cell, ...]


def read(folder: Path, row: Row, haystack: str, length: int) -> list[Asked]:
    """Return what was asked of a row of one seed.

    Args:
        folder: of the seed.
        row: of the table.
        haystack: `pages` or `words`.
        length: tokens of the prompts.

    Raises:
        StepError: questions without an answer.
    """
    name = f"{haystack}_{length}"
    questions = [json.loads(line) for line in (folder / "questions" / f"{name}.jsonl").read_bytes().splitlines()]
    answers = AnswerLog(folder / "answers" / row.answers(length) / name).answers
    scorer, asked = scorer_of("exact"), []
    for question in questions:
        answer = answers.get(str(question["id"]))
        if answer is None or answer.answer is None:
            why = "no answer" if answer is None else answer.error
            raise StepError(f"{row.answers(length)}/{name}: question {question['id']}: {why}")
        item = {"prediction": answer.answer, "answers": question["answer"]}
        asked.append(Asked(question["depth"], scorer.score(item, "corrected") == 1.0))
    return asked


def share(asked: Sequence[Asked]) -> float:
    """Return the share of right answers."""
    return statistics.fmean(one.right for one in asked)


def table(out: Path, settings: Settings) -> list[Line]:
    """Return all lines of the table."""
    lines = [_line(out, settings, row, "pages") for row in ROWS]
    return lines + [_line(out, settings, row, "words") for row in ROWS if row.words]


def _line(out: Path, settings: Settings, row: Row, haystack: str) -> Line:
    folders = [out / f"seed_{seed}" for seed in range(settings.seeds)]
    cells = tuple(
        Cell(tuple(share(read(folder, row, haystack, length)) for folder in folders)) for length in settings.lengths
    )
    return Line(row.label, row.read_at, haystack, cells)


def levels(ceilings: Sequence[float]) -> dict[str, float]:
    """Return what the table is to be read against: name -> share of right answers."""
    return {
        "chance, of ten digits": CHANCE,
        "the most frequent digit of the document, binding unknown": UNBOUND,
        "the vision tower on digits never seen": statistics.fmean(ceilings),
    }


def first_stage(bindings: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence about how long names took to be bound to pictures.

    Args:
        bindings: what the step `train_short` of each seed gave.
    """
    steps = ", ".join(str(one["steps"]) for one in bindings)
    unbound = [str(seed) for seed, one in enumerate(bindings) if not one["bound"]]
    return f"steps of the first stage: {steps}" + (f"; NOT BOUND in seed {', '.join(unbound)}" if unbound else "")


def markdown(lines: Sequence[Line], known: dict[str, float], stage: str, settings: Settings) -> str:
    """Return the table as Markdown, and below it its levels and what `first_stage` says."""
    seeds = f"mean and deviation of {settings.seeds} seeds" if settings.seeds > 1 else "one seed"
    heading = ["trained with", "read at", "haystack", *(_heading(length) for length in settings.lengths)]
    rows = [[line.trained, line.read_at, line.haystack, *map(str, line.cells)] for line in lines]
    text = f"Needles read, in percent, by the tokens of the prompt; trained at {TRAINED_LENGTH} tokens. "
    text += f"{settings.questions} questions a cell, {seeds}. `read at`: positions an image token advances by.\n\n"
    text += "".join(f"| {' | '.join(cells)} |\n" for cells in [heading, ["---"] * len(heading), *rows])
    text += "\n" + "".join(f"- {name}: {100 * value:.1f}\n" for name, value in known.items())
    return f"{text}- {stage}\n"


def _heading(length: int) -> str:
    return f"{length // TRAINED_LENGTH}x {length}"


def write_csv(path: Path, lines: Sequence[Line], settings: Settings) -> None:
    """Write a row for each cell and seed."""
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trained", "read_at", "haystack", "tokens", "seed", "right"])
        for line in lines:
            for length, cell in zip(settings.lengths, line.cells, strict=True):
                for seed, value in enumerate(cell.shares):
                    writer.writerow([line.trained, line.read_at, line.haystack, length, seed, f"{value:.4f}"])


def depth_map(out: Path, settings: Settings, row: Row) -> list[list[float]]:
    """Return shares of right answers over all seeds, [depths][lengths]; nan where no needle was so deep."""
    columns = []
    for length in settings.lengths:
        asked = [one for seed in range(settings.seeds) for one in read(out / f"seed_{seed}", row, "pages", length)]
        bins: list[list[Asked]] = [[] for _ in range(DEPTHS)]
        for one in asked:
            bins[min(int(one.depth * DEPTHS), DEPTHS - 1)].append(one)
        columns.append([share(content) if content else float("nan") for content in bins])
    return [list(row) for row in zip(*columns, strict=True)]


def verdict(out: Path, settings: Settings) -> tuple[bool, str]:
    """Return whether the finding holds in every seed, and a sentence that says so; without the length, True."""
    length = DECIDING * TRAINED_LENGTH
    if length not in settings.lengths:
        return True, f"not judged: that takes prompts of {length} tokens"
    folders = [out / f"seed_{seed}" for seed in range(settings.seeds)]
    worst = min(share(read(folder, V2PE, "pages", length)) for folder in folders)
    best = max(share(read(folder, ORDINARY, "pages", length)) for folder in folders)
    holds = worst > RIGHT and best < WRONG
    said = f"at {length} tokens V2PE read at {V2PE.read_at} reads {worst:.1%} (asked for: more than {RIGHT:.0%}), "
    said += f"ordinary positions {best:.1%} (asked for: less than {WRONG:.0%})"
    return holds, ("the finding holds: " if holds else "the finding does NOT hold: ") + said


def compare_losses(out: Path, other: Path, settings: Settings) -> str:
    """Return sentences about how far the losses of two experiments are apart, run by run.

    Raises:
        StepError: the other experiment has not come so far.
    """
    comparisons = []
    for seed in range(settings.seeds):
        for run in ("short", "default", "v2pe"):
            ours, theirs = (losses(folder / f"seed_{seed}" / run) for folder in (out, other))
            comparisons.append(f"seed {seed}, {run}: {_compared(ours, theirs)}")
    return f"losses beside those of {other}:\n  " + "\n  ".join(comparisons)


def _compared(ours: Sequence[float], theirs: Sequence[float]) -> str:
    apart = [abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=False)]
    early = min(EARLY, len(apart))
    alike = next((step for step, far in enumerate(apart) if far > ALIKE), len(apart))
    said = (
        f"{max(apart[:early]):.1e} apart over the first {early} steps, within {ALIKE:.0%} for {alike} of {len(apart)}"
    )
    ends = (statistics.fmean(run[-early:]) for run in (ours, theirs))
    return f"{said}; mean of the last {early}: {' and '.join(f'{end:.4f}' for end in ends)}"
