"""The user's own questions in a report: a line for each file and run, the worst answers, and all for a CSV file.

Their number is that of mode `corrected`, as on the console: there is no published number it could be compared with.
That of mode `reference` stands beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_v2pe.base.pages.blocks import Entry, Line, ReportBlock, Section, Table, text_line
from megatron_v2pe.evaluate.report.rounding import rounded
from megatron_v2pe.evaluate.report.runs import EvaluationRun
from megatron_v2pe.evaluate.report.scoring import Judged, Score, Scores
from megatron_v2pe.evaluate.report.tables import MARKS, score_marks
from megatron_v2pe.evaluate.scorers import Mode

MODE: Mode = "corrected"
OTHER: Mode = "reference"
WORST = 5
"""Answers shown of a file and run: failed ones first, then the wrong ones."""
_SHOWN = 200
"""Characters shown of a text."""
_LESS_THAN_RIGHT = 1.0


def own_section(runs: Sequence[EvaluationRun], scores: Scores) -> Section | None:
    """Return what became of the user's own questions; None where no run has any."""
    names = list(dict.fromkeys(one.name for run in runs for one in run.own))
    if not names:
        return None
    places = [(name, run, one) for name in names for run in runs for one in run.own if one.name == name]
    lines, used = list[Line](), set[str]()
    for name, run, one in places:
        score, second = scores[MODE][run.name][name], scores[OTHER][run.name][name]
        marks, others = (score_marks(one) if one.value is not None else "" for one in (score, second))
        used |= {*marks, *others}
        lines.append(
            Line(
                (
                    *(Entry(name), Entry(run.name), Entry(run.stride), Entry(one.file)),
                    Entry("-" if score.value is None else rounded(score.value, 2), marks, strong=True),
                    Entry("-" if second.value is None else rounded(second.value, 2), others),
                    *(Entry(str(count)) for count in (score.questions, _right(score), score.failed, score.missing)),
                ),
                "run",
            )
        )
    header = ("questions", "run", "stride", "file", MODE, OTHER, "asked", "right", "failed", "not answered")
    blocks: list[ReportBlock] = [
        Table(header, tuple(lines), left=4),
        "Percent. They are no published benchmark: nothing is compared or averaged with them. Every answer is in "
        "own_questions.csv.",
    ]
    if used:
        blocks.append(" ".join(f"{mark}: {MARKS[mark]}." for mark in MARKS if mark in used))
    for name, run, _ in places:
        score = scores[MODE][run.name][name]
        if score.problem:
            blocks.append(f"{name}, {run.name}: {score.problem}.")
        if worst := _worst(score):
            said = f"{name}, {run.name}: {len(worst)} of {_wrong(score)} that are not right:"
            blocks += [said, _examples(worst)]
    return Section("Own questions", blocks)


def own_answers(runs: Sequence[EvaluationRun], scores: Scores) -> Iterator[tuple[EvaluationRun, str, Judged]]:
    """Yield every judged answer to own questions, with its run and the name of its file."""
    for run in runs:
        for one in run.own:
            for judged in scores[MODE][run.name][one.name].judged:
                yield run, one.name, judged


def _right(score: Score) -> int | str:
    return len(score.judged) - _wrong(score) if score.judged else "-"


def _wrong(score: Score) -> int:
    return sum(judged.score < _LESS_THAN_RIGHT for judged in score.judged)


def _worst(score: Score) -> list[Judged]:
    wrong = [judged for judged in score.judged if judged.score < _LESS_THAN_RIGHT]
    return sorted(wrong, key=lambda one: (one.error is None, one.score))[:WORST]


def _examples(worst: Sequence[Judged]) -> Table:
    header = ("id", "question", "expected", "answered", "score")
    lines = [
        text_line(
            *(_short(judged.id), _short(judged.question), _short(judged.expected)),
            _short(f"failed: {judged.error}" if judged.error is not None else judged.answer or "(nothing)"),
            rounded(100 * judged.score),
        )
        for judged in worst
    ]
    return Table(header, tuple(lines), left=4)


def _short(text: str) -> str:
    """Return a text short enough for a cell: its end where it is long, for a question stands behind its context."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN else f"...{line[-_SHOWN:]}"
