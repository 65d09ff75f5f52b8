"""Which short answer a sentence holds: the post-processing of V2PE's VQA evaluator.

Source: V2PE's evaluator, where it is defined beside the scorers. The text up to the first dot, comma or exclamation
mark, in lower case; then for `is `, `are `, `a `, `an `, `the ` in turn, where present, what stands between its first
and its second occurrence; then what stands before the first ` of`; stripped.

Defects of the reference: those are letters, not words: `this ` holds `is `, `panda ` holds `a `, and everything after a
second occurrence is lost. The corrected form looks for whole words, keeps all that follows, and cuts at a whole `of`;
marks and quotes around the text go first (`undressed`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_v2pe.evaluate.scorers.base import (
    Item,
    Judgement,
    Mode,
    Scorer,
    Summary,
    as_text,
    field,
    first_error,
    no_number,
)
from megatron_v2pe.evaluate.scorers.undressed import trimmed, undressed

_LEADS = ("is ", "are ", "a ", "an ", "the ")
_VERB = re.compile(r"^.*?\b(?:is|are)\s+")
_ARTICLE = re.compile(r"^(?:a|an|the)\s+")
_OF = re.compile(r"\s+of\b.*$", re.DOTALL)


def short_answer(text: str) -> str:
    """Return the short answer in a text, as the reference does."""
    text = text.strip().split(".")[0].split(",")[0].split("!")[0].lower()
    for lead in _LEADS:
        if lead in text:
            text = text.split(lead)[1]
    return text.split(" of")[0].strip()


def corrected_short_answer(text: str) -> str:
    """Return the short answer in a text, word by word."""
    text = re.split(r"[.,!]", trimmed(undressed(text)))[0].lower()
    return _OF.sub("", _ARTICLE.sub("", _VERB.sub("", text))).strip()


def _reference(item: Item) -> Judgement:
    return _judgement(short_answer(field(item, "prediction")), item)


def _corrected(item: Item) -> Judgement:
    return _judgement(corrected_short_answer(as_text(field(item, "prediction"))), item)


def _judgement(processed: str, item: Item) -> Judgement:
    score = {"score": float(processed == item["answer"])} if "answer" in item else {}
    return {"processed": processed, **score}


def _summarise(items: Sequence[Item], judgements: Sequence[Judgement], mode: Mode) -> Summary:
    """Return nothing: this kind reads answers and scores none of a benchmark's."""
    return first_error(judgements)


SHORT_ANSWER = Scorer("vqa_post_process", _reference, _corrected, _summarise, no_number)
"""Items: `prediction`, and `answer` if equality is to be scored."""
