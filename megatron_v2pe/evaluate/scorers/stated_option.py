"""Which option an answer states, however much it says about the others.

The idea of MMBench's matching without a language model (Liu et al., 2023): a letter must stand alone, a text as whole
words, and whatever stays open is no answer. Of a cleaned answer (`clean_answer`), in this order:

1. it is a letter, in any case, with or without brackets and marks; or the text of an option; where the options are yes
   and no, or true and false, it says so (`yes_no`);
2. where it corrects itself (`Wait, no, B`), the last part that states an option, unless a later part rejects that one.

Of a part: letters are found where they stand as letters: `A` and `I` are words unless a mark, a verdict or another
letter beside them says otherwise, small letters count in brackets, at the beginning and behind a cue, and no letter
counts that belongs to a noun (`vitamin C`, `20 C`). Letters joined by commas, `and`, `or` are one group and share its
fate. Groups that are rejected (`not`, `unlike`, `... is incorrect`) are out, as are options that are only listed again,
one a line. Of the rest, the first that there is:

a. the last group that is declared: behind a cue (`answer is`, `choose`, `答案`), or called correct;
b. the option whose text alone stands in what is stated (`stated_answer`);
c. a letter on a last line of its own; a letter at the beginning with a mark or a reason behind it;
d. the only letter left; the only option left whose text stands there, not as part of a longer one.

A group of several letters where a single one is called for is no answer, and ends the search.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from megatron_v2pe.evaluate.scorers.clean_answer import clean_answer, plain, plain_width
from megatron_v2pe.evaluate.scorers.option_patterns import (
    AFTER_A,
    AFTER_WORDS,
    BEFORE_WORDS,
    CLOSING,
    COMMA_LIST_ENDS,
    CORRECT,
    CUED,
    DECLARED,
    ITEM,
    JOINT,
    LEADING,
    NO_LIST,
    ONE_REJECTED,
    OPENING,
    REJECTED,
    REJECTING,
    SUPPOSED,
    TEXT_JOINT,
    VERDICT_RIGHT,
    VERDICT_WRONG,
    WORD_LETTERS,
)
from megatron_v2pe.evaluate.scorers.stated_answer import after_cues, first_sentence, split_at_corrections
from megatron_v2pe.evaluate.scorers.yes_no import yes_or_no

OPEN = ""
"""Several options are stated: no answer, and no more to be looked for."""
_AFFIRMING, _DENYING = frozenset(("yes", "true")), frozenset(("no", "false"))
_WRAPPERS = " \t\n\r()[]{}<>*_`\"'“”‘’「」『』【】$.:,;!?。、-–—→=>#"
_IN_BRACKETS = re.compile(r"^\s*\([^()\n]{1,80}\)")
_YES_AND_NO = 2
"""So many options are a yes and a no; where there are more, a yes behind one says that it is right."""
_ITEM_WIDTH = 20
"""Characters at most before an item's letter in its line."""
_AROUND = 100
"""Characters before and behind a letter that say what is said of it."""


@dataclass
class _Group:
    """Letters that stand together."""

    letters: list[str]
    start: int
    end: int
    declared: bool = False
    rejected: bool = False
    listed: bool = False
    """Whether it begins a line in a list of options."""
    asked: bool = False
    """Whether a question mark stands behind it."""


def named_letter(prediction: str, options: Mapping[str, str], letters: Iterable[str] = ()) -> str | None:
    """Return the letter of the option an answer states; None if it states none, or several.

    Args:
        prediction: of a model.
        options: letter -> text.
        letters: possible letters where not every option's text is known.
    """
    known = list(dict.fromkeys([*options, *letters]))
    said = clean_answer(prediction).replace("\u2019", "'")
    texts = {letter: text for letter, option in options.items() if (text := _text(option))}
    bare = said.strip(_WRAPPERS).upper()
    if bare in known:
        return bare
    same = [letter for letter, text in texts.items() if text == _text(said)]
    if len(same) == 1:
        return same[0]
    if (letter := _by_yes_or_no(said, texts)) is not None:
        return letter
    denied: set[str] = set()
    for part in reversed(split_at_corrections(said, no_corrects=True)):
        stated = _in_part(part.strip(), known, texts, denied)
        if stated is not None:
            return stated if stated != OPEN and stated not in denied else None
    return None


def _text(option: object) -> str:
    """Return an option's text as it is compared: without an article at its beginning."""
    text = plain(str(option))
    for article in ("a ", "an ", "the "):
        text = text.removeprefix(article)
    return text


def _by_yes_or_no(said: str, texts: Mapping[str, str]) -> str | None:
    """Return the letter that a yes or no stands for, where the options are a yes, a no and none that holds either."""
    yes = [letter for letter, text in texts.items() if text in _AFFIRMING]
    no = [letter for letter, text in texts.items() if text in _DENYING]
    if len(yes) != 1 or len(no) != 1 or not re.match(r"\W*(?:yes|no|true|false)\b", said, re.IGNORECASE):
        return None
    return {"yes": yes[0], "no": no[0]}.get(yes_or_no(said))


def _in_part(text: str, known: Sequence[str], texts: Mapping[str, str], denied: set[str]) -> str | None:
    """Return the letter a part states, `OPEN` if several, None if none; adds what it rejects to `denied`."""
    groups = _groups(text, known, texts)
    declared = [group for group in groups if group.declared and not group.rejected]
    rejected = {letter for group in groups if group.rejected for letter in group.letters}
    denied |= rejected
    if declared:
        return _one(declared[-1].letters)
    found = after_cues(text)
    if found and (letter := _one_text(first_sentence(found[-1][1]), texts, rejected)):
        return letter
    free = [group for group in groups if not group.rejected and not group.listed]
    free = [group for group in free if not group.asked] or free
    last_line = text.rpartition("\n")[2].strip(_WRAPPERS)
    if "\n" in text and last_line in known:
        first_line = text.partition("\n")[0].strip(_WRAPPERS)
        return OPEN if first_line in known and first_line != last_line else last_line
    if free and not text[: free[0].start].strip(_WRAPPERS) and _leads(text, free[0], texts):
        return _one(free[0].letters)
    left = [letter for group in free for letter in group.letters if letter not in rejected]
    if not left and rejected:
        left = [letter for group in groups if group.listed for letter in group.letters if letter not in rejected]
    if left:
        return _one(left)
    return _one_text(text, texts, rejected)


def _one(letters: Sequence[str]) -> str:
    return letters[0] if len(set(letters)) == 1 else OPEN


def _leads(text: str, group: _Group, texts: Mapping[str, str]) -> bool:
    """Whether a group at the beginning is what is answered: a mark, a reason or its own text follows."""
    if len(set(group.letters)) > 1:
        return True
    rest = text[group.end :]
    own = texts.get(group.letters[0], "")
    return LEADING.match(rest) is not None or bool(own) and _text(rest[: len(own) + 20]).startswith(own)


def _groups(text: str, known: Sequence[str], texts: Mapping[str, str]) -> list[_Group]:
    """Return the letters of a part in groups, with what is said of each."""
    found = _joined(text, _letters(text, known, texts))
    items = [group for group in found if _is_item(text, group)]
    for group in found:
        before = text[max(0, group.start - _AROUND) : group.start]
        after = _behind_own_text(text[group.end : group.end + _AROUND], texts.get(group.letters[-1], ""))
        group.asked = re.match(r"[\"')\]]*\s*\?", after) is not None
        negated = REJECTING.search(before.rpartition("\n")[2]) is not None
        group.rejected = negated or REJECTED.match(after) is not None
        group.declared = bool(DECLARED.search(before) or CORRECT.match(after)) and not SUPPOSED.search(before)
        if CORRECT.match(after) and len(group.letters) == 1 and not negated:
            group.rejected = False
        if group in items and len({item.letters[0] for item in items}) > 1:
            line, _, below = text[group.end :].partition("\n")
            own = _behind_own_text(line, texts.get(group.letters[0], ""))
            if "\n" in before and below and not before.rpartition("\n")[2].strip(_WRAPPERS + "•"):
                group.declared &= bool(CORRECT.match(after)) or not _next_is_item(text, group, items)
            wrong, right = VERDICT_WRONG.search(line), VERDICT_RIGHT.search(line)
            if len(items) > _YES_AND_NO and (said := re.match(r"\W*(yes|no)\b", own, re.IGNORECASE)):
                wrong, right = (None, said) if said[1].lower() == "yes" else (said, None)
            if _text(line.lstrip(_WRAPPERS)) == texts.get(group.letters[0]):
                wrong = right = None
            group.listed = True
            group.rejected |= wrong is not None
            group.declared |= right is not None and wrong is None
    if sum(group.listed and group.declared for group in found) > 1:
        for group in found:
            group.declared &= not group.listed
    return found


def _next_is_item(text: str, group: _Group, items: Sequence[_Group]) -> bool:
    """Whether the next line is an item too, so that a cue above the two speaks of a list."""
    below = text.find("\n", group.end) + 1
    return below > 0 and any(below <= item.start < below + _ITEM_WIDTH for item in items)


def _behind_own_text(after: str, own: str) -> str:
    """Return what follows a letter, without its option's text and without brackets: `. a circle (red) is wrong`."""
    if own:
        begins = rf"\s*[)(\].:-]*\s*(?:an?\s+|the\s+)?{re.escape(own)}(?![A-Za-z0-9])\)?"
        if match := re.match(begins, after, re.IGNORECASE):
            return after[match.end() :]
    return _IN_BRACKETS.sub("", after)


def _is_item(text: str, group: _Group) -> bool:
    """Whether a group is a letter that begins a line as an option of a list does."""
    line = text[text.rfind("\n", 0, group.start) + 1 : group.start]
    return (
        len(group.letters) == 1
        and re.fullmatch(ITEM, line, re.IGNORECASE) is not None
        and re.match(r"[)\]】]*\s*[.):、\]-]|\)", text[group.end :]) is not None
    )


def _joined(text: str, found: Sequence[tuple[int, int, str]]) -> list[_Group]:
    """Put letters with nothing but commas, `and`, `or` between them into groups."""
    groups: list[_Group] = []
    run: list[tuple[int, int, str]] = []
    joints: list[str] = []
    for place in found:
        joint = JOINT.fullmatch(text[run[-1][1] : place[0]]) if run else None
        if joint is None or place[2] in (letter for _, _, letter in run):
            groups += _as_groups(text, run, joints)
            run, joints = [place], []
        else:
            run.append(place)
            joints.append(joint["word"].strip())
    return groups + _as_groups(text, run, joints)


def _as_groups(text: str, run: Sequence[tuple[int, int, str]], joints: Sequence[str]) -> list[_Group]:
    """Return a run as one group; as one each where commas alone part them and do not end a list."""
    if not run:
        return []
    whole = [_Group([letter for _, _, letter in run], run[0][0], run[-1][1])]
    before = text[max(0, run[0][0] - _AROUND) : run[0][0]]
    negates = any(joint.lower().endswith("not") for joint in joints)
    only_commas = all(joint == "," for joint in joints)
    slashed = all(joint == "/" for joint in joints) and ONE_REJECTED.match(text[run[-1][1] :]) is not None
    if negates or slashed or only_commas and (NO_LIST.search(before) or not COMMA_LIST_ENDS.match(text[run[-1][1] :])):
        return [_Group([letter], start, end) for start, end, letter in run]
    return whole


def _letters(text: str, known: Sequence[str], texts: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Return where letters stand as letters: first, last place and the letter."""
    tokens = "|".join(sorted(map(re.escape, {*known, *(letter.lower() for letter in known)}), key=len, reverse=True))
    if not tokens:
        return []
    alone = re.compile(rf"(?<![A-Za-z0-9&+°$-])(?<![A-Za-z]')(?<!\w\.)(?:{tokens})(?![A-Za-z0-9&+-])(?!['.][A-Za-z])")
    places = [(match.start(), match.end(), match[0]) for match in alone.finditer(text)]
    return [
        (start, end, token.upper())
        for start, end, token in places
        if token.upper() in known and _stands(text, start, end, token, texts)
    ]


def _stands(text: str, start: int, end: int, token: str, texts: Mapping[str, str]) -> bool:
    """Whether a letter that stands alone is an option's and no word, unit or part of a name."""
    before, after = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
    stripped = before.rstrip()
    if stripped.endswith(tuple(OPENING)) and after.lstrip().startswith(tuple(CLOSING)):
        return True
    word = re.match(r"\s+([A-Za-z][a-z']*|[A-Z](?![A-Za-z]))", after)
    next_word = word[1] if word else ""
    cued = CUED.search(before) or DECLARED.search(before)
    at_line_start = not before.rpartition("\n")[2].strip(" \t-*•#(\"'“") and (not stripped or "\n" in before)
    marked = re.match(r"[)\]】]?\s*[.):、]|[)\]】]|\s+[-–—]\s", after) is not None
    if cued:
        is_word = token.islower() or token in WORD_LETTERS
        return not (is_word and next_word and next_word.islower() and next_word not in AFTER_A)
    if token.islower():
        return not stripped and marked
    if at_line_start and marked:
        return True
    partner = re.match(r"\s*(?:,\s*)?(?:and|or|nor|&|/|vs\.?|,)\s*[(\[\"']?[A-Z](?![A-Za-z0-9'])", after, re.IGNORECASE)
    partner_before = re.search(r"(?<![A-Za-z0-9])[A-Z][)\]\"']?\s*(?:,\s*)?(?:and|or|nor|&|/|,)\s*[(\[\"']?$", before)
    foreign = re.match(r"\s*[\u3400-\u9fff]|\s*、", after) or re.search(r"[\u3400-\u9fff、]\s*$", before)
    previous = re.search(r"([A-Za-z0-9'%°]+)[ \t]+$", before)
    lower = previous[1].lower() if previous else ""
    behind_noun = previous is not None and lower not in BEFORE_WORDS and not (lower.endswith("ly") and len(lower) > 3)
    if token in WORD_LETTERS:
        if token == "I":
            return bool(partner_before)
        if behind_noun and not partner and not partner_before:
            return False
        ends = re.match(r"\s*(?:[.,;:!?)…\n]|$)", after)
        return bool(ends or partner or partner_before or foreign or next_word in AFTER_A)
    if partner or partner_before or foreign:
        return True
    if _text(texts.get(token, "")) and _text(after).startswith(_text(texts[token])):
        return True
    if previous:
        return not behind_noun
    return not (next_word and next_word.islower() and next_word not in AFTER_WORDS)


def _one_text(text: str, texts: Mapping[str, str], rejected: set[str]) -> str | None:
    """Return the letter of the only option whose text stands in a text and is not rejected; `OPEN` if several."""
    plain_text = " ".join(plain_width(text).casefold().split())
    places = {letter: _places(plain_text, option) for letter, option in texts.items()}
    standing = {letter: texts[letter] for letter, found in places.items() if found}
    own: list[tuple[int, int, str]] = []
    for letter, option in standing.items():
        longer = [other for other in standing.values() if other != option and _places(other, option)]
        covered = [place for other in longer for place in _places(plain_text, other)]
        own += [
            (start, end, letter)
            for start, end in places[letter]
            if not any(first <= start and end <= last for first, last in covered)
        ]
    free: set[str] = set()
    behind, out = 0, False
    for start, end, letter in sorted(own):
        joined = behind > 0 and TEXT_JOINT.fullmatch(plain_text[behind:start]) is not None
        out = out and joined or _text_rejected(plain_text, start, end)
        behind = end
        if not out and letter not in rejected:
            free.add(letter)
    return None if not free else _one(sorted(free))


def _text_rejected(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - _AROUND) : start], text[end : end + _AROUND]
    return REJECTING.search(before) is not None or REJECTED.match(after) is not None


def _places(text: str, part: str) -> list[tuple[int, int]]:
    pattern = rf"(?<![A-Za-z0-9])(?<!\d[.,]){re.escape(part)}(?![A-Za-z0-9%]|[.,]\d)"
    return [(match.start(), match.end()) for match in re.finditer(pattern, text)]
