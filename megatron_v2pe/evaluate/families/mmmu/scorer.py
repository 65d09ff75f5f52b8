"""What a response to an MMMU question gives, question by question, and the official report over subjects.

Source: the MMMU evaluation (Yue et al., 2024) and V2PE's evaluator, side by side in a judgement of kind `mmmu`:

- `parsed`, `correct`: MMMU's own reading. Of the letters in brackets, else those standing between spaces, else (in
  responses of more than five words) those whose option's text occurs, the last in the response counts. Without any, a
  letter is drawn. Free answers: `open_answers`.
- `pipeline_pred`, `pipeline_correct`: what V2PE's evaluator does: the first-letter rule of `multiple_choice`, then
  equality; free answers as above. `pipeline_error` where it stops.

Kind `mmmu_full` is the report on the validation set as V2PE runs it. A question's subject is its id without the first
and the last field. Accuracies are over questions, at every level, with three decimals; disciplines and subjects come in
the published order, subjects without questions are left out, disciplines without give 0. Predictions are final answers,
as V2PE's evaluator writes them to its result file; an item that has `options` is read by the first-letter rule first,
as that evaluator does.

Defects of the reference: unread responses are answered by a draw (here, as there at the start of a run, the first draw
after seed 42); those of the first-letter rule, which V2PE uses although the reading above is there; a subject that is
none of the thirty is dropped without a word. The corrected form reads letters carefully, draws nothing, splits free
answers into sentences, and leaves out what an answer rejects or says beside what it states (`stated_answer`); where a
free answer is a yes or no, what is read is which of the two is said (`yes_no`); an unknown subject is refused.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.mmmu.open_answers import is_right, parse_open
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_list,
    as_text,
    describe,
    field,
    first_error,
    judged,
    mean,
    mean_summary,
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain, trimmed
from megatron_v2pe.evaluate.scorers.multiple_choice import first_letter, options_of
from megatron_v2pe.evaluate.scorers.stated_answer import without_rejected
from megatron_v2pe.evaluate.scorers.stated_option import named_letter
from megatron_v2pe.evaluate.scorers.yes_no import YES_OR_NO, yes_or_no

SEED = 42
CHOICE = "multiple-choice"
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_ENDS = ",.!?;:'"
_SHORT = 5
"""Responses of at most so many words are not searched for options' texts."""


def last_letter(response: str, options: Mapping[str, str]) -> str:
    """Return the letter MMMU's own reading finds, or the first draw after the seed."""
    for mark in _ENDS:
        response = response.strip(mark)
    response = f" {response} "
    for pattern in ("({})", " {} "):
        found = {letter: response.rfind(pattern.format(letter)) for letter in options}
        found = {letter: place for letter, place in found.items() if place >= 0}
        if found:
            return max(found, key=lambda letter: found[letter])
    if len(response.split()) > _SHORT:
        lower = response.lower()
        found = {letter: lower.rfind(text.lower()) for letter, text in options.items() if text.lower() in lower}
        if found:
            return max(found, key=lambda letter: found[letter])
    return random.Random(SEED).choice(list(options))


def equals(letter: str, truth: Any) -> bool:
    """Whether a letter is the true one, or one of several."""
    return letter in as_list(truth)


def _question_reference(item: Item) -> Judgement:
    prediction, truth = field(item, "prediction"), field(item, "answer")
    if field(item, "question_type") == CHOICE:
        options = options_of(item)
        parsed = last_letter(prediction, options)
        correct = equals(parsed, truth)
        judgement = {"parsed": parsed, "correct": correct, "score": float(correct)}
        try:
            letter = first_letter(prediction, options)
        except (IndexError, TypeError) as error:
            return {**judgement, "pipeline_error": describe(error)}
        return {**judgement, "pipeline_pred": letter, "pipeline_correct": equals(letter, truth)}
    parsed = parse_open(prediction)
    correct = is_right(truth, parsed)
    judgement = {"parsed": parsed, "correct": correct, "score": float(correct)}
    return {**judgement, "pipeline_pred": prediction, "pipeline_correct": correct}


def _question_corrected(item: Item) -> Judgement:
    prediction, truths = as_text(field(item, "prediction")), true_texts(item, "answer")
    if field(item, "question_type") == CHOICE:
        letter = named_letter(prediction, options_of(item)) or ""
        return {"parsed": letter, "correct": letter in truths, "score": float(letter in truths)}
    if {*map(plain, truths)} <= YES_OR_NO:
        said = yes_or_no(prediction)
        correct = said in map(plain, truths)
        return {"parsed": [said], "correct": correct, "score": float(correct)}
    parsed = parse_open(_BARE_POINT.sub("0.", without_rejected(prediction, truths)), corrected=True)
    correct = plain(clean_answer(prediction)) in map(plain, truths) or is_right(list(map(trimmed, truths)), parsed)
    return {"parsed": parsed, "correct": correct, "score": float(correct)}


MMMU = Scorer("mmmu", _question_reference, _question_corrected, mean_summary("acc"), percent_of("acc"))
"""Items: `prediction`, `question_type` (`multiple-choice` or `open`), `answer`, and `options` for choices."""


DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        "Basic_Medical_Science",
        "Clinical_Medicine",
        "Diagnostics_and_Laboratory_Medicine",
        "Pharmacy",
        "Public_Health",
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        "Agriculture",
        "Architecture_and_Engineering",
        "Computer_Science",
        "Electronics",
        "Energy_and_Power",
        "Materials",
        "Mechanical_Engineering",
    ),
}
SUBJECTS = tuple(subject for subjects in DISCIPLINES.values() for subject in subjects)


def join_answers(items: Sequence[Item], answers: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return items with the truth of the official `answer_dict_val.json` beside each prediction.

    Raises:
        DataError: an item's question has no answer there.
    """
    missing = [field(item, "data_id") for item in items if item["data_id"] not in answers]
    if missing:
        raise DataError(f"MMMU: {len(missing)} of {len(items)} questions have no answer, the first is {missing[0]}")
    return [
        {
            **item,
            "answer": answers[item["data_id"]]["ground_truth"],
            "question_type": answers[item["data_id"]]["question_type"],
        }
        for item in items
    ]


def exact_equality(items: Sequence[Item]) -> float:
    """Return the percentage of final answers that equal the truth character by character, free answers too."""
    return 100.0 * mean([float(equals(field(item, "prediction"), field(item, "answer"))) for item in items])


def _report_reference(item: Item) -> Judgement:
    prediction, truth = field(item, "prediction"), field(item, "answer")
    if field(item, "question_type") != CHOICE:
        return {"score": float(is_right(truth, parse_open(prediction)))}
    letter = first_letter(prediction, options_of(item)) if item.get("options") else prediction
    return {"score": float(equals(letter, truth))}


def _report_corrected(item: Item) -> Judgement:
    if field(item, "question_type") == CHOICE and not item.get("options"):
        item = {**item, "options": dict.fromkeys("ABCDEFGHIJ", "")}
    return MMMU.corrected(item)


def _subject_of(item: Item) -> str:
    return "_".join(str(field(item, "data_id")).split("_")[1:-1])


def _summarise_report(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    scores: dict[str, list[float]] = {}
    for item, judgement in zip(items, judgements, strict=True):
        if "score" in judgement:
            scores.setdefault(_subject_of(item), []).append(judgement["score"])
    unknown = sorted(set(scores) - set(SUBJECTS))
    if unknown and mode == "corrected":
        raise DataError(f"MMMU: {', '.join(unknown)} are none of the thirty subjects")
    summary: Summary = {}
    for discipline, subjects in DISCIPLINES.items():
        present = [scores[subject] for subject in subjects if subject in scores]
        summary["Overall-" + discipline] = _report_line(present)
        summary |= {subject: _report_line([scores[subject]]) for subject in subjects if subject in scores}
    summary["Overall"] = _report_line([scores[subject] for subject in sorted(SUBJECTS) if subject in scores])
    return summary | first_error(judgements)


def _report_line(groups: Sequence[Sequence[float]]) -> Summary:
    """Return number and accuracy of some subjects, added up as the reference does, so that it rounds alike."""
    count = sum(len(group) for group in groups)
    right = sum(mean(group) * len(group) for group in groups)
    return {"num": count, "acc": round(right / count, 3) if count else 0}


def _report_percent(summary: Summary, judgements: Sequence[Judgement]) -> float:
    """Return the accuracy over all questions, not rounded."""
    return 100.0 * mean(judged(judgements))


MMMU_REPORT = Scorer("mmmu_full", _report_reference, _report_corrected, _summarise_report, _report_percent)
"""Items: `data_id`, `prediction`, `question_type`, `answer`, and `options` if predictions are raw responses."""
SCORERS = (MMMU, MMMU_REPORT)
