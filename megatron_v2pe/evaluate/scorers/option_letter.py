"""Which option a prediction names: the first-letter rule of V2PE's evaluators, and a careful reading.

Source of the first-letter rule (ScienceQA, MMBench, MMMU): the text is stripped; one character is the answer; else a
first character that is an option's letter is; else the first option whose text stands in the prediction; else the whole
prediction.

Defects of the rule: an empty prediction and an option that is no text stop it; any prediction that begins with an
option's letter counts as that letter (`A dog`, `Both`); `cat` is found in `catalogue`.

The careful reading follows the idea of MMBench's matching without a language model (Liu et al., 2023): a letter must
stand alone, a text as whole words, and whatever stays ambiguous is no answer. In this order:

1. the prediction is a letter in any case, with or without brackets, dots or stars around it;
2. it begins with a letter and a bracket, dot or colon, a capital one also with a comma or a line break;
3. it names one letter as its answer (`answer is B`, `Option: (B)`, `答案是B`, `选B`), the last such place counting;
4. it is the text of an option;
5. exactly one letter stands alone somewhere in it, `A` and `I` only in brackets: they are words;
6. exactly one option's text stands in it, one that is part of a longer one that stands there not counting.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

WORDS = frozenset("AI")
"""Letters that are English words."""
_WRAPPERS = " \t\n\r()[]{}<>*_`\"'.:,;!?"
_LEADING = re.compile(r"[(\[*]*([A-Z](?=\*{0,2}(?:[,、。]|\s*\n))|[A-Za-z](?=\*{0,2}(?:[)\]:]|\.(?![A-Za-z]))))")
_DECLARED = re.compile(
    r"(?:\b(?:answer|option|choice)\b(?:\s+(?:is|would\s+be|should\s+be))?|答案(?:是|为|选)?|选项?|应选)"
    r"\s*[:：]?\s*[(\[*\"']*([A-Z])(?![A-Za-z0-9'])",
    re.IGNORECASE,
)
_DECLARATION_FOLLOWED_BY_WORD = re.compile(r"\s+[a-z]")


def first_letter(prediction: str, options: Mapping[str, str]) -> str:
    """Return what the first-letter rule reads; raises what the published code raises."""
    text = prediction.strip()
    if len(text) == 1 or text[0] in options:
        return text[0]
    for letter, option in options.items():
        if option in text:
            return letter
    return text


def named_letter(prediction: str, options: Mapping[str, str], letters: Iterable[str] = ()) -> str | None:
    """Return the letter of the option a prediction names; None if it names none, or several.

    Args:
        prediction: of a model.
        options: letter -> text.
        letters: possible letters where not every option's text is known.
    """
    known = list(dict.fromkeys([*options, *letters]))
    text = unicodedata.normalize("NFKC", prediction).strip()
    texts = {letter: _plain(option) for letter, option in options.items() if _plain(option)}
    return (
        _bare(text, known)
        or _leading(text, known)
        or _declared(text, known)
        or _only(letter for letter, option in texts.items() if option == _plain(text))
        or _only(_standing_alone(text, known))
        or _only(_standing_texts(_plain(text), texts))
    )


def _bare(text: str, letters: Sequence[str]) -> str | None:
    inner = text.strip(_WRAPPERS).upper()
    return inner if inner in letters else None


def _leading(text: str, letters: Sequence[str]) -> str | None:
    match = _LEADING.match(text)
    letter = match[1].upper() if match else ""
    return letter if letter in letters else None


def _declared(text: str, letters: Sequence[str]) -> str | None:
    found = [
        match[1].upper()
        for match in _DECLARED.finditer(text)
        if match[1].upper() in letters and not (_is_word(match[1]) and _goes_on(text, match.end()))
    ]
    return found[-1] if found else None


def _is_word(letter: str) -> bool:
    return letter.islower() or letter in WORDS


def _goes_on(text: str, position: int) -> bool:
    """Whether a word in lower case follows, as after the article in `the answer is a dog`."""
    return _DECLARATION_FOLLOWED_BY_WORD.match(text, position) is not None


def _standing_alone(text: str, letters: Sequence[str]) -> list[str]:
    def stands(letter: str) -> bool:
        if re.search(rf"[(\[]{re.escape(letter)}[)\]]", text):
            return True
        alone = rf"(?<![A-Za-z0-9'&-])(?<!not ){re.escape(letter)}(?![A-Za-z0-9'&-])"
        return letter not in WORDS and re.search(alone, text) is not None

    return [letter for letter in letters if stands(letter)]


def _standing_texts(text: str, texts: Mapping[str, str]) -> list[str]:
    found = {letter: option for letter, option in texts.items() if _holds(text, option)}
    return [
        letter
        for letter, option in found.items()
        if not any(option != longer and _holds(longer, option) for longer in found.values())
    ]


def _holds(text: str, part: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(part)}(?![A-Za-z0-9])", text) is not None


def _plain(text: object) -> str:
    """Return an option's text in lower case with single spaces and no dot at its end."""
    return " ".join(unicodedata.normalize("NFKC", str(text)).casefold().split()).strip(" .")


def _only(letters: Iterable[str]) -> str | None:
    found = list(letters)
    return found[0] if len(found) == 1 else None
