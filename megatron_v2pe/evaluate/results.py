"""From raw answers to scores, told with how complete they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.answers import Answer, AnswerLog
from megatron_v2pe.evaluate.benchmark import Benchmark, Question
from megatron_v2pe.evaluate.scorers import Mode, scorer_of

RESULTS = "results.json"
_OF_NOTHING = {"corrected": "wrong", "reference": "empty answers, which published rules may call right"}
"""What a question without an answer is worth, by mode."""


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
    temporary.write_text(json.dumps(result, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
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
