"""How two short answers become comparable: the normaliser of the VQA challenge, in the three forms V2PE's code has.

Source: the VQA evaluation (Antol et al., 2015) as adapted by V2PE for TextVQA, for MM-NIAH and for MileBench. In
order: lower case, `,` and `?` deleted, `'s` parted from its word; line breaks and tabs become spaces; punctuation;
words: numbers to digits, articles dropped, contractions given their apostrophes.

Punctuation: a mark goes without trace if it stands next to a space somewhere in the text, or if a comma stands between
digits there; otherwise it becomes a space. Then dots not followed by a digit go.

Defects of the reference: only the first 32 dots go, because a flag is passed where a count belongs; contractions
written with a capital I can never match, because words are compared in lower case. The corrected form drops all dots
and knows those contractions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

MARKS = ';/[]"{}()=+\\_-><@`,?!'
MOST_DOTS = int(re.UNICODE)
"""How many dots the reference drops: the value of the flag it passes as a count."""
ARTICLES = frozenset({"a", "an", "the"})

_UNITS = "zero one two three four five six seven eight nine ten".split()
_TEENS = "eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()

VQA_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_UNITS)}
"""The VQA challenge's: none, and zero to ten."""
NUMBERS_TO_TWENTY = {word: str(number) for number, word in enumerate([*_UNITS, *_TEENS, "twenty"])}
NEEDLE_NUMBERS = NUMBERS_TO_TWENTY | {word: str(10 * number) for number, word in enumerate(_TENS, 2)}
"""MM-NIAH's: zero to twenty and the tens to ninety."""

# Written as they become; the key is the same without apostrophes.
_REGULAR = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's I'm I've
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
""".split()
# Keys that keep an apostrophe, or are written oddly.
_IRREGULAR = {
    "couldn't've": ("couldn'tve", "couldnt've"),
    "hadn't've": ("hadnt've", "hadn'tve"),
    "he'd've": ("hed've", "he'dve"),
    "I'd've": ("Id've", "I'dve"),
    "it'd've": ("itd've", "it'dve"),
    "let's": ("let's",),
    "mightn't've": ("mightnt've", "mightn'tve"),
    "'ow's'at": ("ow's'at", "'ows'at", "'ow'sat"),
    "she'd've": ("shed've", "she'dve"),
    "she's": ("she's",),
    "shouldn't've": ("shouldnt've", "shouldn'tve"),
    "somebodyd": ("somebody'd",),
    "somebody'd've": ("somebodyd've", "somebody'dve"),
    "someone'd've": ("someoned've", "someone'dve"),
    "something'd've": ("somethingd've", "something'dve"),
    "there'd've": ("thered've", "there'dve"),
    "they'd've": ("theyd've", "they'dve"),
    "we'd've": ("wed've", "we'dve"),
    "who'd've": ("whod've", "who'dve"),
    "wouldn't've": ("wouldnt've", "wouldn'tve"),
    "y'all'll": ("yall'll", "y'allll"),
    "y'all'd've": ("yall'd've", "y'alld've", "y'all'dve"),
    "you'd've": ("youd've", "you'dve"),
}
CONTRACTIONS = {word.replace("'", ""): word for word in _REGULAR} | {
    key: word for word, keys in _IRREGULAR.items() for key in keys
}

_DOT = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")


@dataclass(frozen=True)
class AnswerWords:
    """A normaliser."""

    numbers: Mapping[str, str]
    """Number words and what they become."""
    contractions: Mapping[str, str]
    most_dots: int
    """How many dots are dropped at most; 0: all."""

    def __call__(self, answer: str) -> str:
        """Return an answer's words, joined by single spaces."""
        text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
        text = drop_marks(spaced(text), self.most_dots)
        words = [self.numbers.get(word, word) for word in text.lower().split()]
        return " ".join(self.contractions.get(word, word) for word in words if word not in ARTICLES)


def spaced(text: str) -> str:
    """Return a text with line breaks and tabs as spaces, stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def drop_marks(text: str, most_dots: int = MOST_DOTS) -> str:
    """Return a text without punctuation marks, see the rule above.

    Args:
        text: to be cleaned; only what it holds before any mark is dropped decides how marks are dropped.
        most_dots: how many dots go at most; 0: all.
    """
    in_number = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in MARKS:
        beside_space = mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if beside_space or in_number else " ")
    return _DOT.sub("", cleaned, count=most_dots)


def processed(text: str, most_dots: int = MOST_DOTS) -> str:
    """Return a text as MileBench compares it: without marks and outer quotes, in lower case."""
    return drop_marks(spaced(text), most_dots).strip("'").strip('"').strip().lower()


VQA_WORDS = AnswerWords(VQA_NUMBERS, CONTRACTIONS, MOST_DOTS)
"""TextVQA, VQAv2, OK-VQA, VizWiz, ST-VQA and Long-VQA, as in the reference."""
NEEDLE_WORDS = AnswerWords(NEEDLE_NUMBERS, CONTRACTIONS, MOST_DOTS)
"""MM-NIAH, as in the reference."""

_ANY_CASE = {key.lower(): word.lower() for key, word in CONTRACTIONS.items()}
CORRECTED_VQA_WORDS = AnswerWords(VQA_NUMBERS, _ANY_CASE, 0)
CORRECTED_NEEDLE_WORDS = AnswerWords(NEEDLE_NUMBERS, _ANY_CASE, 0)


def holds_words(text: str, words: str) -> bool:
    """Whether `words` stand in a text with a word's boundary at both ends."""
    return re.search(r"\b" + re.escape(words) + r"\b", text) is not None
