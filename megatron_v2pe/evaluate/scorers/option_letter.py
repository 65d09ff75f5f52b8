"""Which option a prediction names: the first-letter rule of V2PE's evaluators, beside the careful reading.

Source of the first-letter rule (ScienceQA, MMBench, MMMU): the text is stripped; one character is the answer; else a
first character that is an option's letter is; else the first option whose text stands in the prediction; else the whole
prediction.

Defects of the rule: an empty prediction and an option that is no text stop it; any prediction that begins with an
option's letter counts as that letter (`A dog`, `Both`); `cat` is found in `catalogue`. The careful reading of the
corrected forms is `named_letter` of `stated_option`.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_v2pe.evaluate.scorers.stated_option import named_letter

__all__ = ["first_letter", "named_letter"]


def first_letter(prediction: str, options: Mapping[str, str]) -> str:
    """Return what the first-letter rule reads; raises what the published code raises."""
    text = prediction.strip()
    if len(text) == 1 or text[0] in options:
        return text[0]
    for letter, option in options.items():
        if option in text:
            return letter
    return text
