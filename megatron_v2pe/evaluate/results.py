"""From raw answers to scores, told with how complete they are; the file that holds them, written and read."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.scorers import Mode, scorer_of
from megatron_v2pe.foreign.printable import printable
from megatron_v2pe.foreign.schema import Range, typed
from megatron_v2pe.foreign.seal import seal, unseal
from megatron_v2pe.foreign.text import read_json_object

RESULTS = "results.json"
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
    if isinstance(results.limit, int) and results.limit != results.questions:
        raise DataError(f"{source}: limit {results.limit}, but {results.questions} questions")
    most = scorer_of(benchmark.scorer).most if benchmark.scorer else 0.0
    if results.score is not None and results.score > most:
        raise DataError(f"{source}: score {results.score:g}, expected between 0 and {most:g}")


def score(
    benchmark: Benchmark,
    questions: Sequence[Question],
    folder: Path,
    root: Path,
    mode: Mode,
    limit: int | None = None,
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
        limit: `questions` are only the first so many of the benchmark's; None: all of them.
    """
    log = AnswerLog(folder)
    answered = [(question, log.answers.get(question.id)) for question in questions]
    missing = [question.id for question, answer in answered if answer is None]
    failed = [question.id for question, answer in answered if answer is not None and answer.error is not None]
    pairs = [(question, _text(answer)) for question, answer in answered]
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
        "mode": mode,
    }
    if benchmark.scorer is not None:
        scorer = scorer_of(benchmark.scorer)
        items = [benchmark.item(question, text) for question, text in pairs]
        result["scorer"] = scorer.name
        try:
            result |= {"score": scorer.headline(items, mode), "summary": scorer.summary(items, mode)}
        except DataError as error:  # the published rules stop where the corrected ones go on
            result["unscored"] = str(error)
    if not missing and (path := benchmark.submission(root, pairs, folder)) is not None:
        result["submission"] = str(path)
    temporary = folder / f"{RESULTS}.new"
    plain = json.loads(json.dumps(result, default=str))
    temporary.write_text(json.dumps(seal(plain), indent=1) + "\n", encoding="utf-8")
    temporary.replace(folder / RESULTS)
    return result


def as_line(result: dict[str, Any]) -> str:
    """Return a result as one line for the console; never a score of a part without saying so."""
    number = f"not scored here ({result.get('submission', '-')})"
    if "score" in result:
        number = f"{result['score']:.2f}"
    elif "unscored" in result:
        number = f"not scored in {result['mode']} mode ({result['unscored']})"
    notes: list[str] = []
    if result["limit"] is not None:
        notes.append(f"LIMITED: only the first {result['questions']} questions")
    elif result["published"] not in (None, result["questions"]):
        notes.append(f"ANOTHER VERSION: {result['questions']} questions, {result['published']} are published")
    if result["missing"] or result["failed"]:
        notes.append(
            f"INCOMPLETE: {len(result['missing'])} of {result['questions']} without an answer, "
            f"{len(result['failed'])} failed; they count as {_OF_NOTHING[result['mode']]}"
        )
    return "  ".join([f"{result['title']:<28} {number}", *notes])


def _text(answer: Answer | None) -> str:
    return "" if answer is None or answer.answer is None else answer.answer
