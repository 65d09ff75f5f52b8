"""How many of ten people gave the predicted answer: VQA soft accuracy (TextVQA, VQAv2, OK-VQA, VizWiz), and ST-VQA's.

Source: Antol et al., 2015. Over the ten people in turn, the answer is worth min(1, matches among the other nine / 3);
the score is the mean of the ten. Answers are compared after `answer_words`. ST-VQA's accuracy: 1 if the prediction is
one of the answers, compared in the same way.

Defects of the reference: any number of answers but ten stops it, and those of its normaliser. The corrected form takes
what an answer states (`stated_answer`) and leaves one of however many people out; a single answer is matched exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

from megatron_v2pe.evaluate.scorers.answer_words import CORRECTED_VQA_WORDS, VQA_WORDS
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Scorer,
    as_text,
    field,
    mean_summary,
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.undressed import trimmed
from megatron_v2pe.evaluate.scorers.yes_no import read_short_or_yes_no

PEOPLE = 10


def soft_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the score of a prediction, all texts being normalised.

    A person who gave the predicted answer sees one match less than the others do.
    """
    matches = answers.count(prediction)
    if len(answers) == 1 or matches == 0:
        return float(matches)
    agree = min(1.0, (matches - 1) / 3)
    differ = min(1.0, matches / 3)
    return sum(agree if answer == prediction else differ for answer in answers) / len(answers)


def _textvqa_reference(item: Item) -> Judgement:
    prediction = VQA_WORDS(field(item, "prediction"))
    answers = [VQA_WORDS(answer) for answer in field(item, "answers")]
    assert len(answers) == PEOPLE
    return {"score": soft_accuracy(prediction, answers)}


def _textvqa_corrected(item: Item) -> Judgement:
    prediction, answers = _words(item)
    return {"score": soft_accuracy(prediction, answers)}


def _stvqa_reference(item: Item) -> Judgement:
    prediction = VQA_WORDS(field(item, "prediction"))
    return {"score": float(prediction in [VQA_WORDS(answer) for answer in field(item, "answers")])}


def _stvqa_corrected(item: Item) -> Judgement:
    prediction, answers = _words(item)
    return {"score": float(prediction in answers)}


def _words(item: Item) -> tuple[str, list[str]]:
    """Return the words of what an answer states, and of each true one."""
    truths = true_texts(item, "answers")
    said = read_short_or_yes_no(as_text(field(item, "prediction")), truths, CORRECTED_VQA_WORDS)
    return CORRECTED_VQA_WORDS(said), [CORRECTED_VQA_WORDS(trimmed(truth)) for truth in truths]


TEXTVQA = Scorer("textvqa", _textvqa_reference, _textvqa_corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers` (ten)."""
STVQA_ACCURACY = Scorer(
    "stvqa_acc", _stvqa_reference, _stvqa_corrected, mean_summary("accuracy"), percent_of("accuracy")
)
"""Items: `prediction`, `answers`."""
