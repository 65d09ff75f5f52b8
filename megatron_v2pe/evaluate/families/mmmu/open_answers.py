"""What numbers and phrases a free answer holds, and whether one is the true answer: MMMU's open questions.

Source: the MMMU evaluation (Yue et al., 2024). The response, in lower case without spaces and dots at its ends, is
split into lines. Of each line the shortest text after the last occurrence of an indicator it holds (`is `, `answer `,
..., in the last line also `=`) is kept; if no line has any, the whole response is. Numbers in those texts (with
thousands commas, scientific, plain) are added. Everything that reads as a number becomes one with two decimals; a
single character becomes two texts, with a space on either side, so that it is not found everywhere. The answer is right
if a true text stands in a predicted text, or a predicted number is a true number.

Defects of the reference: sentences are to be split at a dot before a capital letter, but the text is in lower case by
then, so only lines are; an indicator is found inside of words (`is ` in `Paris `). `corrected=True` splits before, and
looks for whole words. Its matching of text inside text is kept in both forms.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Parsed = list[float | str]

_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_EQUATION = "="
_TRIVIAL = frozenset(":,.!?;'")
_WITH_COMMAS = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])")


def parse_open(response: str, corrected: bool = False) -> Parsed:
    """Return the texts and numbers an answer holds, without repetition, in alphabetical order."""
    tails = _tails(response, corrected)
    numbers = [number for tail in tails for number in _numbers(tail)]
    parsed = {value for text in [*tails, *numbers] for value in normalise(text)}
    return sorted(parsed, key=str)


def is_right(truth: str | Sequence[str], parsed: Parsed) -> bool:
    """Whether one of the predicted texts or numbers is the truth."""
    truths = [value for text in ([truth] if isinstance(truth, str) else truth) for value in normalise(text)]
    true_texts = [value for value in truths if isinstance(value, str)]
    return any(
        any(text in value for text in true_texts) if isinstance(value, str) else value in truths for value in parsed
    )


def normalise(text: str) -> Parsed:
    """Return a text as what it is compared as: a number, a text, or two texts for a single character."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [" " + lower, lower + " "] if len(lower) == 1 else [lower]


def _tails(response: str, corrected: bool) -> list[str]:
    """Return the ends of lines that may be the answer; the whole response if there are none."""
    whole = response.strip().strip(".")
    if corrected:
        whole = _SENTENCE_END.sub("\n", whole)
    whole = whole.lower()
    lines = whole.split("\n")
    tails = [_shortest_tail(line, number == len(lines), corrected) for number, line in enumerate(lines, 1)]
    return [tail for tail in tails if tail and tail not in _TRIVIAL] or [whole]


def _shortest_tail(line: str, last: bool, corrected: bool) -> str:
    """Return the shortest text after an indicator; an empty one gives way to any that follows it."""
    shortest = ""
    for indicator in (*_INDICATORS, _EQUATION) if last else _INDICATORS:
        parts = re.split(rf"(?<![^\W\d_]){indicator}", line) if corrected else line.split(indicator)
        if len(parts) > 1:
            tail = parts[-1].strip()
            if not shortest or len(tail) < len(shortest):
                shortest = tail
    return shortest


def _numbers(text: str) -> list[str]:
    return [*_WITH_COMMAS.findall(text), *_SCIENTIFIC.findall(text), *_PLAIN.findall(text)]
