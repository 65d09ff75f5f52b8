"""How raw answers become scores that say how complete they are, and how the file of them is written and read.

Every number stands with its mode, and beside the other mode's where that differs: `tools/evaluate.py` scores in mode
`corrected` by default, what a model can do, `tools/report.py` in `reference`, for it stands beside published numbers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_v2pe.base.whole_files import write_text
from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import AnswerLog
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.judging import JudgedAnswers
from megatron_v2pe.evaluate.scorer_names import scorer_of
from megatron_v2pe.evaluate.scorers import Mode
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import seal, unseal
from megatron_v2pe.foreign.text import read_json_object

RESULTS = "results.json"
_OTHER: dict[Mode, Mode] = {"corrected": "reference", "reference": "corrected"}
_LONGEST_ERROR = 300
_CLASS = re.compile(r"^[A-Z]\w*Error: ")
_OF_NOTHING = {"corrected": "wrong", "reference": "empty answers, which published rules may call right"}
"""What a question without an answer is worth, by mode."""

_Count = Annotated[int, Range(0)]


@dataclass(frozen=True)
class Results:
    """What a report takes of a `results.json`; it has a checksum beside it."""

    questions: _Count
    missing: tuple[str, ...]
    """Ids of those without an answer."""
    failed: tuple[str, ...]
    """Ids of those that ended in an error."""
    score: Annotated[float, Range(0)] | None = None
    """Percent; None where there is no number."""
    mode: Mode | None = None
    limit: _Count | None | Literal["unstated"] = "unstated"
    """Only the first so many were asked; older files tell it by the number of questions alone."""
    published: _Count | None = None
    answered: _Count | None = None
    duplicates: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()
    """Ids of those whose answer was changed after it was written."""
    other_score: Annotated[float, Range(0)] | None = None
    """Percent in the other mode; None where there is none, and in older files."""
    sample: tuple[str, ...] = ()
    """Ids of the questions that were asked, where they were drawn of all; empty: none were drawn."""
    own: bool = False
    """Whether the questions are the user's own."""
    file: str | None = None
    """The file of the user's own questions, where it was when they were asked."""


def read_results(path: Path, benchmark: Benchmark) -> Results | None:
    """Return what an evaluation has written about a benchmark; None where there is nothing.

    Raises:
        DataError: the file is damaged, or its numbers cannot be; names it.
    """
    if not os.path.lexists(path):
        return None
    source = printable(path)
    try:
        content = unseal(read_json_object(path, DataError, unique=True), source, DataError)
        results = typed(Results, content, source, DataError, unknown=True)
        _check(results, benchmark, source)
    except DataError as problem:
        raise DataError(
            f"{problem}. Not what an evaluation writes: remove the file, and give the evaluation's command again"
        ) from problem
    return results


def _check(results: Results, benchmark: Benchmark, source: str) -> None:
    """Refuse numbers that cannot be."""
    unanswered = len(results.missing) + len(results.failed)
    if unanswered > results.questions:
        raise DataError(f"{source}: {unanswered} questions are missing or failed, of {results.questions}")
    if results.answered is not None and results.answered + unanswered != results.questions:
        raise DataError(
            f"{source}: {results.answered} answered and {unanswered} missing or failed are not {results.questions}"
        )
    if results.sample and len(results.sample) != results.questions:
        raise DataError(f"{source}: a sample of {len(results.sample)}, but {results.questions} questions")
    if isinstance(results.limit, int) and results.limit != results.questions:
        raise DataError(f"{source}: limit {results.limit}, but {results.questions} questions")
    most = scorer_of(benchmark.scorer).most if benchmark.scorer else 0.0
    for number in (results.score, results.other_score):
        if number is not None and number > most:
            raise DataError(f"{source}: score {number:g}, expected between 0 and {most:g}")


def score(
    benchmark: Benchmark,
    questions: Sequence[Question],
    folder: Path,
    root: Path,
    mode: Mode,
    limit: int | None = None,
    sampled: bool = False,
) -> dict[str, Any]:
    """Score the answers of a benchmark's folder; write and return the result.

    Questions without an answer and those that ended in an error are scored as answered by nothing, and counted; the
    result says how many there are.

    Args:
        benchmark: whose answers they are.
        questions: all that belong to the run.
        folder: of the answers.
        root: of the benchmark's data.
        mode: `reference` as published, or `corrected`.
        limit: `questions` are only so many of the benchmark's; None: all of them.
        sampled: they are not the first ones, but a drawn sample.
    """
    log = AnswerLog(folder)
    judged = JudgedAnswers(benchmark, questions, [log.answers.get(question.id) for question in questions])
    missing, failed = judged.missing, judged.failed
    result: dict[str, Any] = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "limit": limit,
        "questions": len(questions),
        "published": benchmark.published,
        "answered": len(questions) - len(missing) - len(failed),
        "missing": missing,
        "failed": failed,
        "duplicates": log.duplicates,
        "edited": log.edited,
        "mode": mode,
        "own": benchmark.own,
    }
    if sampled:
        result["sample"] = [question.id for question in questions]
    if failed:
        result["first_failure"] = {"id": failed[0], "error": log.answers[failed[0]].error}
    if benchmark.own:
        result["file"] = os.path.abspath(root / benchmark.needed[0].path)
    if benchmark.scorer is not None:
        result["scorer"] = judged.scorer.name
        result |= _scores(judged, mode)
    pairs = list(zip(questions, judged.texts, strict=True))
    if not missing and (path := benchmark.submission(root, pairs, folder)) is not None:
        result["submission"] = str(path)
    plain = json.loads(json.dumps(result, default=str))
    write_text(folder / RESULTS, json.dumps(seal(plain), indent=1) + "\n")
    return result


def _scores(judged: JudgedAnswers, mode: Mode) -> dict[str, Any]:
    """Return the number and the summary of a mode, or why there are none, and the number of the other mode."""
    found: dict[str, Any] = {}
    _ = judged.items  # what is wrong with a question is no reason to go on without its score
    try:
        found = {"score": judged.published_percent(mode), "summary": judged.summary(mode)}
    except DataError as error:  # the published rules stop where the corrected ones go on
        found["unscored"] = str(error)
    with suppress(DataError):
        found["other_score"] = judged.published_percent(_OTHER[mode])
    return found


def as_line(result: dict[str, Any]) -> str:
    """Return a result as one line for the console; never a score of a part without saying so, nor without its mode."""
    mode, questions = result["mode"], result["questions"]
    number = f"not scored here ({result.get('submission', '-')})"
    if "score" in result:
        other = result.get("other_score")
        more = "" if other is None or f"{other:.2f}" == f"{result['score']:.2f}" else f" ({_OTHER[mode]}: {other:.2f})"
        number = f"{result['score']:.2f}  mode {mode}{more}"
    elif "unscored" in result:
        number = f"not scored in {mode} mode ({result['unscored']})"
    notes: list[str] = []
    if result.get("sample"):
        notes.append(f"SAMPLE: {questions} questions, drawn of all")
    elif result["limit"] is not None:
        notes.append(f"LIMITED: only the first {questions} questions")
    elif result["published"] not in (None, questions):
        notes.append(f"ANOTHER VERSION: {questions} questions, {result['published']} are published")
    elif result["published"] is None and not result.get("own"):
        notes.append(f"UNCHECKED: {questions} questions, how many are published is not known here")
    if result["missing"] or result["failed"]:
        note = (
            f"INCOMPLETE: {len(result['missing'])} of {questions} without an answer, {len(result['failed'])} failed; "
            f"they count as {_OF_NOTHING[mode]}"
        )
        if first := result.get("first_failure"):
            note += f"; the first that failed, {first['id']}: {_shortened(first['error'])}"
        notes.append(note)
    if result.get("edited"):
        notes.append(f"EDITED: {len(result['edited'])} answers were changed after they were written")
    return "  ".join([f"{result['title']:<28} {number}", *notes])


def _shortened(error: str) -> str:
    """Return an error without its class, on one line."""
    text = " ".join(_CLASS.sub("", error).split())
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
