"""How near a prediction is to one of the true answers, letter by letter: ANLS (DocVQA, InfoVQA, ST-VQA, Long-VQA).

Source: Biten et al., 2019. With d the Levenshtein distance and l the length of the longer text, the similarity is
1 - d / l; of several answers the best counts, below 0.5 it is 0.
"""

from __future__ import annotations

from rapidfuzz.distance import Levenshtein

from megatron_v2pe.evaluate.scorers.base import Item, Judgement, as_text, field, true_texts
from megatron_v2pe.evaluate.scorers.clean_answer import plain
from megatron_v2pe.evaluate.scorers.stated_answer import read_short

THRESHOLD = 0.5


def similarity(prediction: str, truth: str) -> float:
    """Return 1 - d / l of two texts, 1 of two empty ones."""
    longer = max(len(prediction), len(truth))
    return 1.0 - Levenshtein.distance(prediction, truth) / longer if longer else 1.0


def single_spaced(text: str) -> str:
    """Return a text in lower case with single spaces."""
    return " ".join(text.strip().lower().split())


def anls_of_stated(item: Item) -> Judgement:
    """Judge what an answer states: the corrected form of DocVQA's and of ST-VQA's ANLS.

    Args:
        item: `prediction`, `answers`.
    """
    truths = true_texts(item, "answers")
    prediction = plain(read_short(as_text(field(item, "prediction")), truths, plain))
    score = max(similarity(prediction, plain(answer)) for answer in truths)
    return {"score": score if score >= THRESHOLD else 0.0}
