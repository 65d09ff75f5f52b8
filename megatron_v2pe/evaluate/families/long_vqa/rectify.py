"""What is left of an answer of Long-VQA before it is scored: the published "rectification", per task.

Source: V2PE's Long-VQA scorer. Outer spaces, then outer dots go. svqa: a first letter A to D is the answer. tabfact: an
answer that begins with yes or no is that. Eleven other tasks, in this order: that yes or no; number words zero to
twenty to digits; commas between digits go; of a number and a unit the number stays; one trailing % goes; outer brackets
go; words lose their `ing` (see `lexicon`); words become singular and lose their capitals; `a/b` and `a:b` become
decimals. The remaining tasks keep their answers.

Defects of the reference: "North", "November" and "Nothing" become "No", "Apple" becomes choice A, "riding" becomes
"rid", "was" becomes "wa"; letters, yes and no are read out of the truth as well, so that "D. Vitamin" and "Dog", or "No
entry" and "No parking", are one. The corrected form takes yes, no and letters only where they stand as words, keeps
`ing`, makes only words of more than three letters singular, and lets the truth say what is asked for: a letter, a yes
or no, or a text; of the answer it takes what it states (`stated_answer`, `stated_option`, `yes_no`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from megatron_v2pe.evaluate.families.long_vqa.lexicon import singular, without_ing
from megatron_v2pe.evaluate.scorers.answer_words import NUMBERS_TO_TWENTY
from megatron_v2pe.evaluate.scorers.clean_answer import plain, trimmed
from megatron_v2pe.evaluate.scorers.stated_answer import read_long, read_short
from megatron_v2pe.evaluate.scorers.stated_option import named_letter
from megatron_v2pe.evaluate.scorers.yes_no import yes_or_no

CHOICE_TASKS = frozenset({"svqa"})
YES_NO_TASKS = frozenset({"tabfact"})
WORD_TASKS = frozenset(
    "chartqa clevr deepform okvqa dvqa gqa infovqa ocrvqa visualmrc vizwiz wikitablequestions".split()
)
LONG_TASKS = frozenset({"textcaps", "visualmrc"})
"""Their answers are sentences: no part of them is the answer."""
_LETTERS = "ABCD"
_LETTERED = re.compile(r"\s*[(\[]?([A-Da-d])(?:[)\].:]+\s*(.*))?", re.DOTALL)
_UNIT = re.compile(r"([0-9]+(?:\.[0-9]*)?)\s[A-Za-z\s]+")
_COMMA = re.compile(r"(?<=\d),(?=\d)")
_YES_NO = re.compile(r"(yes|no)(?![\w'’-])", re.IGNORECASE)
_SHORT = 3


def rectify(task: str, answer: str) -> str:
    """Return an answer as the reference scores it."""
    answer = answer.strip().strip(".")
    if task in CHOICE_TASKS:
        answer = answer[0] if answer[:1] in tuple(_LETTERS) else answer
    elif task in YES_NO_TASKS:
        answer = _yes_no_prefix(answer)
    elif task in WORD_TASKS:
        answer = _without_signs(_digits(_yes_no_prefix(answer)))
        answer = _each_word(answer, without_ing)
        answer = _decimal(_each_word(answer, lambda word: singular(word.lower())))
    return answer.strip()


def rectify_corrected(task: str, answer: str) -> str:
    """Return an answer in lower case as the corrected form reads it where the truth is not known."""
    answer = unicodedata.normalize("NFKC", answer).strip().strip(".")
    if task in CHOICE_TASKS:
        return (named_letter(answer, {}, _LETTERS) or answer).lower()
    if task in YES_NO_TASKS:
        return yes_or_no(answer) or _text(task, answer)
    yes_no = _YES_NO.match(answer) if task in WORD_TASKS else None
    return _text(task, yes_no[0] if yes_no else answer)


def rectified_pair(task: str, prediction: str, truths: Sequence[str]) -> tuple[str, list[str]]:
    """Return a prediction and the true answers in lower case as the corrected form compares them.

    Args:
        task: of Long-VQA.
        prediction: of a model.
        truths: the true answers, which say what is asked for.
    """
    if task in CHOICE_TASKS:
        return _choice(prediction, truths)
    meant = [_text(task, trimmed(truth)) for truth in truths]
    if task in LONG_TASKS:
        return _text(task, read_long(prediction)), meant
    if (task in YES_NO_TASKS or task in WORD_TASKS) and {"yes", "no"} & set(meant):
        if said := yes_or_no(prediction):
            return said, meant
    return _text(task, read_short(prediction, truths, lambda text: _text(task, text))), meant


def _choice(prediction: str, truths: Sequence[str]) -> tuple[str, list[str]]:
    """Return a prediction and true answers, as letters where a true answer is one, else as texts."""
    found = {truth: match for truth in truths if (match := _LETTERED.fullmatch(truth))}
    options = {match[1].upper(): match[2] for match in found.values() if match[2]}
    letter = named_letter(prediction, options, _LETTERS) if found else None
    said = (letter or plain(read_short(prediction, truths, plain))).lower()
    return said, [found[truth][1].lower() if truth in found else plain(truth) for truth in truths]


def _text(task: str, answer: str) -> str:
    """Return a text in lower case as the corrected form compares it."""
    if task in WORD_TASKS:
        answer = _without_signs(_digits(answer)).lower()
        answer = _decimal(_each_word(answer, lambda word: singular(word) if len(word) > _SHORT else word))
    return " ".join(answer.lower().split())


def _yes_no_prefix(answer: str) -> str:
    if answer.startswith(("Yes", "yes")):
        return "Yes"
    return "No" if answer.startswith(("No", "no")) else answer


def _digits(answer: str) -> str:
    return _each_word(answer, lambda word: NUMBERS_TO_TWENTY.get(word.lower(), word))


def _each_word(answer: str, change: Callable[[str], str]) -> str:
    return " ".join(change(word) for word in answer.split(" "))


def _without_signs(answer: str) -> str:
    """Return an answer without thousands commas, the unit after a number, a trailing % and outer brackets."""
    answer = _COMMA.sub("", answer)
    unit = _UNIT.fullmatch(answer)
    answer = (unit[1] if unit else answer).removesuffix("%")
    for bracket in "[](){}":
        answer = answer.strip(bracket)
    return answer


def _decimal(answer: str) -> str:
    """Return `a:b` or `a/b` as a decimal number; anything else as it is."""
    for sign in ":/":
        parts = answer.split(sign)
        if len(parts) == 2:
            try:
                return str(float(parts[0]) / float(parts[1]))
            except (ValueError, ZeroDivisionError):
                continue
    return answer
