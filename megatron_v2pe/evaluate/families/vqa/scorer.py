"""How answers of VQAv2, OK-VQA, TextVQA and VizWiz (soft accuracy), of GQA and of OCR-VQA (exact match) are scored.

VQA soft accuracy. Source: Antol et al., 2015; `soft_accuracy` says how ten people's answers count. Answers are compared
after `answer_words`. ST-VQA's accuracy, in the same code: 1 if the prediction is one of the answers, compared in the
same way; its ANLS compares in lower case, stripped, and stops at two empty texts. Defects of the reference: any number
of answers but ten stops it, and those of its normaliser. The corrected form takes what an answer states
(`stated_answer`) and leaves one of however many people out; a single answer is matched exactly.

GQA. Source: V2PE's evaluator and the official script. The prediction loses its trailing dots, then its capitals, and
must equal the truth. Defects of the reference: spaces make an answer wrong. The corrected form compares what an answer
states with marks and quotes around it dropped, on both sides. OCR-VQA: `exact_match`.

`vqa_post_process` reads a short answer out of a sentence; V2PE's evaluator defines it beside the scorers. The text up
to the first dot, comma or exclamation mark, in lower case; then for `is `, `are `, `a `, `an `, `the ` in turn, where
present, what stands between its first and its second occurrence; then what stands before the first ` of`; stripped.
Defects of the reference: those are letters, not words: `this ` holds `is `, `panda ` holds `a `, and everything after a
second occurrence is lost. The corrected form looks for whole words, keeps all that follows, and cuts at a whole `of`;
marks and quotes around the text go first (`clean_answer`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

from megatron_v2pe.evaluate.scorers.anls import THRESHOLD, anls_of_stated
from megatron_v2pe.evaluate.scorers.answer_words import CORRECTED_VQA_WORDS, VQA_WORDS
from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_text,
    field,
    first_error,
    judged,
    mean,
    mean_summary,
    no_number,
    percent_of,
    true_texts,
)
from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain, trimmed
from megatron_v2pe.evaluate.scorers.exact_match import EXACT
from megatron_v2pe.evaluate.scorers.soft_accuracy import PEOPLE, soft_accuracy
from megatron_v2pe.evaluate.scorers.yes_no import read_short_or_yes_no

_LEADS = ("is ", "are ", "a ", "an ", "the ")
_VERB = re.compile(r"^.*?\b(?:is|are)\s+")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
_OF = re.compile(r"\s+of\b.*$", re.DOTALL)


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


def _stvqa_anls_reference(item: Item) -> Judgement:
    scores = []
    for answer in field(item, "answers"):
        prediction, truth = field(item, "prediction").lower().strip(), answer.lower().strip()
        score = 1 - Levenshtein.distance(prediction, truth) / max(len(prediction), len(truth))
        scores.append(score if score >= THRESHOLD else 0.0)
    return {"score": max(scores)}


def _gqa_reference(item: Item) -> Judgement:
    converted = field(item, "prediction").rstrip(".").lower()
    return _gqa_judgement({"converted": converted}, item, converted == item.get("answer"))


def _gqa_corrected(item: Item) -> Judgement:
    truths = true_texts(item, "answer") if "answer" in item else []
    converted = plain(read_short_or_yes_no(as_text(field(item, "prediction")), truths, plain))
    return _gqa_judgement({"converted": converted}, item, any(converted == plain(truth) for truth in truths))


def _gqa_judgement(judgement: Judgement, item: Item, right: bool) -> Judgement:
    """Add the score if the item has a truth."""
    return judgement | ({"score": float(right)} if "answer" in item else {})


def _gqa_summary(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return `accuracy` of the items that have a truth; nothing if none has."""
    scores = judged(judgements)
    return ({"accuracy": mean(scores)} if scores else {}) | first_error(judgements)


def short_answer(text: str) -> str:
    """Return the short answer in a text, as the reference does."""
    text = text.strip().split(".")[0].split(",")[0].split("!")[0].lower()
    for lead in _LEADS:
        if lead in text:
            text = text.split(lead)[1]
    return text.split(" of")[0].strip()


def corrected_short_answer(text: str) -> str:
    """Return the short answer in a text, word by word."""
    text = re.split(r"[.,!]", trimmed(clean_answer(text)))[0].lower()
    return _OF.sub("", _ARTICLE.sub("", _VERB.sub("", text))).strip()


def _short_reference(item: Item) -> Judgement:
    return _short_judgement(short_answer(field(item, "prediction")), item)


def _short_corrected(item: Item) -> Judgement:
    return _short_judgement(corrected_short_answer(as_text(field(item, "prediction"))), item)


def _short_judgement(processed: str, item: Item) -> Judgement:
    score = {"score": float(processed == item["answer"])} if "answer" in item else {}
    return {"processed": processed, **score}


def _summarise_short(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return nothing: this kind reads answers and scores none of a benchmark's."""
    return first_error(judgements)


TEXTVQA = Scorer("textvqa", _textvqa_reference, _textvqa_corrected, mean_summary("accuracy"), percent_of("accuracy"))
"""Items: `prediction`, `answers` (ten)."""
STVQA_ACCURACY = Scorer(
    "stvqa_acc", _stvqa_reference, _stvqa_corrected, mean_summary("accuracy"), percent_of("accuracy")
)
"""Items: `prediction`, `answers`."""
STVQA_ANLS = Scorer(
    "stvqa_anls", _stvqa_anls_reference, anls_of_stated, mean_summary("accuracy"), percent_of("accuracy")
)
"""Items: `prediction`, `answers`."""
GQA = Scorer("gqa_convert", _gqa_reference, _gqa_corrected, _gqa_summary, percent_of("accuracy"))
"""Items: `prediction`, and `answer` where there is one. The judgement's `converted` goes to GQA's own script."""
SHORT_ANSWER = Scorer("vqa_post_process", _short_reference, _short_corrected, _summarise_short, no_number)
"""Items: `prediction`, and `answer` if equality is to be scored."""
SCORERS = (TEXTVQA, STVQA_ACCURACY, STVQA_ANLS, EXACT, GQA, SHORT_ANSWER)
SAME_AS = {
    **dict.fromkeys(("vqav2", "okvqa", "vizwiz"), "textvqa"),
    **dict.fromkeys(("ai2d", "exact"), "ocrvqa"),
    "gqa": "gqa_convert",
}
