"""Which option or free answer a response to an MMMU question gives, question by question.

Source: the MMMU evaluation (Yue et al., 2024) and V2PE's evaluator, side by side in a judgement:

- `parsed`, `correct`: MMMU's own reading. Of the letters in brackets, else those standing between spaces, else (in
  responses of more than five words) those whose option's text occurs, the last in the response counts. Without any, a
  letter is drawn. Free answers: `mmmu_open`.
- `pipeline_pred`, `pipeline_correct`: what V2PE's evaluator does: the first-letter rule of `option_letter`, then
  equality; free answers as above. `pipeline_error` where it stops.

Defects of the reference: unread responses are answered by a draw (here, as there at the start of a run, the first draw
after seed 42); those of the first-letter rule, which V2PE uses although the reading above is there. The corrected form
reads letters carefully, draws nothing, splits free answers into sentences, and leaves out what an answer rejects or
says beside what it states (`stated_answer`); where a free answer is a yes or no, what is read is which of the two is
said (`yes_no`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Scorer,
    as_list,
    as_text,
    describe,
    field,
    mean_summary,
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.mmmu_open import is_right, parse_open
from megatron_v2pe.evaluate.scorers.multiple_choice import options_of
from megatron_v2pe.evaluate.scorers.option_letter import first_letter, named_letter
from megatron_v2pe.evaluate.scorers.stated_answer import unrejected
from megatron_v2pe.evaluate.scorers.undressed import plain, trimmed, undressed
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


def _reference(item: Item) -> Judgement:
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


def _corrected(item: Item) -> Judgement:
    prediction, truths = as_text(field(item, "prediction")), true_texts(item, "answer")
    if field(item, "question_type") == CHOICE:
        letter = named_letter(prediction, options_of(item)) or ""
        return {"parsed": letter, "correct": letter in truths, "score": float(letter in truths)}
    if {*map(plain, truths)} <= YES_OR_NO:
        said = yes_or_no(prediction)
        correct = said in map(plain, truths)
        return {"parsed": [said], "correct": correct, "score": float(correct)}
    parsed = parse_open(_BARE_POINT.sub("0.", unrejected(prediction, truths)), corrected=True)
    correct = plain(undressed(prediction)) in map(plain, truths) or is_right(list(map(trimmed, truths)), parsed)
    return {"parsed": parsed, "correct": correct, "score": float(correct)}


MMMU = Scorer("mmmu", _reference, _corrected, mean_summary("acc"), percent_of("acc"))
"""Items: `prediction`, `question_type` (`multiple-choice` or `open`), `answer`, and `options` for choices."""
