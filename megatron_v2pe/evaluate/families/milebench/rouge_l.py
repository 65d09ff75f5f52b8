"""How much of a text's words another has, in order: ROUGE-L, as MileBench's open questions are scored.

Source: Lin, 2004. F = 2 p r / (p + r) with p and r the longest common subsequence of words over the words of
prediction and truth. The reference takes the `rouge` package: texts are split into sentences at dots, words are
counted as sets, the common subsequences of all pairs of sentences are united, and the denominator has 1e-8 added.

Defects of the reference: repeated words count once ("the the cat" equals "the cat"), `3.5` is two sentences, two equal
texts score 0.999999995. The corrected form counts words as they stand, of the whole text; no package has that form
(`pycocoevalcap`'s has another beta), and it is three lines.
"""

from __future__ import annotations

from typing import Any

from rapidfuzz.distance import LCSseq

from megatron_v2pe.errors import DataError, how_to_install


def rouge_l_reference(prediction: str, truth: str) -> float:
    """Return the `rouge` package's F.

    Raises:
        DataError: the package is not installed.
        ValueError: a text has no words, as in the reference.
        RecursionError: a text is too long for the package.
    """
    try:
        from rouge import Rouge
    except ImportError as error:
        raise DataError(f"ROUGE-L as in the reference needs the package rouge: {how_to_install('eval')}") from error
    scores: Any = Rouge(metrics=["rouge-l"]).get_scores(prediction, truth)
    return float(scores[0]["rouge-l"]["f"])


def rouge_l(prediction: str, truth: str) -> float:
    """Return F of two texts whose words stand between spaces; 0 if either has none."""
    said, true = prediction.split(), truth.split()
    common = LCSseq.similarity(said, true)
    return 2.0 * common / (len(said) + len(true)) if common else 0.0
