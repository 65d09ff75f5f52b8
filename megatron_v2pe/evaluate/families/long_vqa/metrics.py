"""The metrics of Long-VQA's scorer, each over a set of answers, in percent.

Source: V2PE's Long-VQA scorer, which joins three others. What they do to texts first differs:

- the captioning one (EACC, RACC, CACC, ANLS, BLEU1 to 4, CIDER, ROUGE, METEOR) and the VQA one (TEXTVQA) delete line
  breaks, strip, and drop one dot at the end;
- the document one (ACC, F1, WTQ, ANLS_DUE) takes lower case, strips, and drops all dots at the end.

| metric | formula, the best of several true answers counting |
|---|---|
| EACC | equal texts |
| RACC | `relaxed_accuracy` relative to the truth; zero is never a number |
| CACC | the truth as whole words of the prediction, both reduced to ASCII letters, digits and spaces in lower case |
| ANLS | 1 - d / longer if d / longer is below one half, else 0; lower case |
| ACC | equal texts |
| ANLS_DUE | 1 - d / longer if that is above one half, else 0 |
| F1 | over pairs of question id and answers; a predicted pair is right if a true one has its id and shares an answer |
| WTQ | `wtq` |
| TEXTVQA | `soft_accuracy`, ten true answers or one; all equal: exact match |
| BLEU1 ... 4, CIDER, ROUGE, METEOR | `captions`, `meteor` over words of `ptb_words` |

Defects of the reference: two empty texts stop ANLS; zero never matches 0.0; one sentence judged alone has CIDEr 0; a
number of true answers other than one and ten stops TEXTVQA. The corrected metrics ignore case everywhere, take zero for
a number, call two empty texts equal, compare form entries (F1) without $ and commas, and leave one of however many
people out. IOU and SPICE of the reference are not offered: it reads boxes as text, and SPICE is a parser in Java.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein

from megatron_v2pe.errors import DataError
from megatron_v2pe.evaluate.families.long_vqa.captions import bleu, cider, rouge
from megatron_v2pe.evaluate.families.long_vqa.meteor import meteor
from megatron_v2pe.evaluate.families.long_vqa.ptb_words import ptb_words
from megatron_v2pe.evaluate.families.long_vqa.wtq import same_denotation
from megatron_v2pe.evaluate.scorers.anls import similarity
from megatron_v2pe.evaluate.scorers.answer_words import CORRECTED_VQA_WORDS, VQA_WORDS, AnswerWords, holds_words
from megatron_v2pe.evaluate.scorers.base import Mode, mean
from megatron_v2pe.evaluate.scorers.relaxed_accuracy import TOLERANCE, as_number, relaxed_match
from megatron_v2pe.evaluate.scorers.soft_accuracy import PEOPLE, soft_accuracy
from megatron_v2pe.evaluate.scorers.stated_answer import stands_in

_NOT_PLAIN = re.compile(r"[^a-zA-Z0-9\s]")


@dataclass(frozen=True)
class Answered:
    """A question of Long-VQA with its true answers and what the model answered."""

    key: object
    """Its id."""
    prediction: str
    truths: list[str]


Metric = Callable[[Sequence[Answered]], float]


def metric(name: str, mode: Mode) -> Metric:
    """Return a metric by its name.

    Raises:
        DataError: there is none of that name.
    """
    metrics = REFERENCE if mode == "reference" else CORRECTED
    if name not in metrics:
        raise DataError(f"Long-VQA metric {name!r}: it is one of {', '.join(metrics)}")
    return metrics[name]


def tidy(text: str) -> str:
    """Return a text without line breaks, outer spaces and one dot at its end."""
    return text.replace("\n", "").strip().removesuffix(".")


def tidy_lower(text: str) -> str:
    """Return a text in lower case without outer spaces and dots at its end."""
    return text.lower().strip().rstrip(".")


def _best(match: Callable[[str, str], float], prepare: Callable[[str], str]) -> Metric:
    """Return the mean, over answers, of the best match of (prediction, truth)."""

    def percent(answers: Sequence[Answered]) -> float:
        scores = []
        for answer in answers:
            prediction = prepare(answer.prediction)
            scores.append(max(float(match(prediction, prepare(truth))) for truth in answer.truths))
        return 100.0 * sum(scores) / len(scores)

    return percent


def _relaxed_reference(prediction: str, truth: str) -> bool:
    predicted, true = as_number(prediction), as_number(truth)
    if predicted and true:
        return abs(predicted - true) / abs(true) <= TOLERANCE
    return prediction.lower() == truth.lower()


def _anls_reference(prediction: str, truth: str) -> float:
    part = Levenshtein.distance(truth, prediction) / max(len(truth), len(prediction))
    return 1.0 - part if part < 0.5 else 0.0


def _above_half(prediction: str, truth: str) -> float:
    score = similarity(prediction, truth)
    return score if score > 0.5 else 0.0


def _plain(text: str) -> str:
    return _NOT_PLAIN.sub("", tidy(text)).lower()


def _f1(prepare: Callable[[str], str]) -> Metric:
    def percent(answers: Sequence[Answered]) -> float:
        said = [(answer.key, {prepare(answer.prediction)}) for answer in answers]
        true = [(answer.key, set(map(prepare, answer.truths))) for answer in answers]
        precision, recall = _share_found(said, true), _share_found(true, said)
        return 100.0 * 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    return percent


def _share_found(wanted: Sequence[tuple[object, set[str]]], among: Sequence[tuple[object, set[str]]]) -> float:
    """Return which share of pairs finds a partner with its key and a common answer; a partner serves once."""
    free = list(among)
    found = 0
    for key, answers in wanted:
        partner = next((pair for pair in free if pair[0] == key and pair[1] & answers), None)
        if partner is not None:
            free.remove(partner)
            found += 1
    return found / len(wanted) if wanted else 0.0


def _wtq(answers: Sequence[Answered]) -> float:
    right = [
        same_denotation([tidy_lower(answer.prediction)], [tidy_lower(truth) for truth in answer.truths])
        for answer in answers
    ]
    return 100.0 * mean([float(match) for match in right])


def _textvqa(words: AnswerWords, any_number: bool) -> Metric:
    def score(answer: Answered) -> float:
        truths = [words(tidy(truth)) for truth in answer.truths]
        assert any_number or len(truths) in (1, PEOPLE)
        prediction = words(tidy(answer.prediction))
        return float(prediction == truths[0]) if len(set(truths)) == 1 else soft_accuracy(prediction, truths)

    return lambda answers: 100.0 * mean([score(answer) for answer in answers])


def _captions(score: Callable[[list[list[str]], list[list[list[str]]]], float]) -> Metric:
    def percent(answers: Sequence[Answered]) -> float:
        captions = [ptb_words(tidy(answer.prediction)) for answer in answers]
        return 100.0 * score(captions, [[ptb_words(tidy(truth)) for truth in answer.truths] for answer in answers])

    return percent


def _bleu(order: int) -> Metric:
    return _captions(lambda captions, truths: bleu(captions, truths)[order - 1])


CAPTIONS: Mapping[str, Metric] = {
    **{f"BLEU{order}": _bleu(order) for order in (1, 2, 3, 4)},
    "CIDER": _captions(cider),
    "ROUGE": _captions(rouge),
    "METEOR": _captions(meteor),
}
"""Metrics of sentences."""
HELD = ("CACC",)
"""Metrics that look for the truth inside of an answer."""
REFERENCE: Mapping[str, Metric] = {
    "ACC": _best(lambda prediction, truth: prediction == truth, tidy_lower),
    "F1": _f1(tidy_lower),
    "WTQ": _wtq,
    "ANLS_DUE": _best(_above_half, tidy_lower),
    "EACC": _best(lambda prediction, truth: prediction == truth, tidy),
    "RACC": _best(_relaxed_reference, tidy),
    "CACC": _best(lambda prediction, truth: holds_words(prediction, truth), _plain),
    "ANLS": _best(_anls_reference, lambda text: tidy(text).lower()),
    "TEXTVQA": _textvqa(VQA_WORDS, any_number=False),
    **CAPTIONS,
}


def _form_entry(text: str) -> str:
    return " ".join(tidy_lower(text).lstrip("$ ").replace(",", "").split())


def _contains(prediction: str, truth: str) -> bool:
    return bool(truth.strip()) and stands_in(prediction, truth)


CORRECTED: Mapping[str, Metric] = {
    **REFERENCE,
    "F1": _f1(_form_entry),
    "EACC": _best(lambda prediction, truth: prediction == truth, tidy_lower),
    "RACC": _best(relaxed_match, tidy_lower),
    "CACC": _best(_contains, lambda text: " ".join(re.findall(r"\w+", text.lower()))),
    "ANLS": _best(_above_half, tidy_lower),
    "TEXTVQA": _textvqa(CORRECTED_VQA_WORDS, any_number=True),
}
