"""The task: read handwritten digits beside names in a long document of photographs, and say which digit a name has.

A document is made of these, in random order:

    Anna<image>                 a needle, a line of its own: a name and a handwritten digit, one tile
    <image>                     a page of the haystack: 1 to 12 tiles of a photograph, no line break behind it
    river stone window cloud    a line of words of the haystack

and ends with a name. The answer is that name and the digit beside it (`Anna seven`): said again, the name stands right
before what has to be found. In the evaluation the answer's beginning, the name, is given, and the digit is asked for.
There are four needles, so that without binding names to pictures no more than 38% can be right (which digits are there,
not whose). Lengths are exact.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

TILE, PATCH = 8, 2
TOKENS_PER_TILE = (TILE // PATCH) ** 2
"""16: a tile of 8 x 8 pixels in patches of 2 x 2, without a pixel shuffle."""
NEEDLES = 4
CHANCE = 0.1
"""Share of right answers of one who guesses among ten digits."""
UNBOUND = 0.38
"""Share of right answers without binding: the answer is always the most frequent digit of the document, and among
equally frequent ones the smallest."""
PAGE_FRAME = 2
"""Tokens of a page beside its tiles: begin and end of an image."""
NEEDLE_TOKENS = 1 + PAGE_FRAME + TOKENS_PER_TILE + 1
"""Tokens of a needle's line: a name, a tile, a line break."""
LONGEST_PAGE = 12
"""Tiles of a page, at most."""
LONGEST_WORDS = 64
"""Words of a line, at most."""
NAMES = (
    *("Anna", "Boris", "Carla", "David", "Elena", "Felix", "Greta", "Henry"),
    *("Irene", "Jonas", "Katja", "Louis", "Maria", "Nadia", "Oscar", "Paula"),
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WORDS = tuple(
    (
        "river stone window cloud garden bridge table paper street candle forest mirror winter summer autumn spring "
        "bread butter sugar cheese apple lemon grape olive tiger horse eagle whale mouse sheep goose snake "
        "green black white brown purple yellow silver golden north south east west early late quick slow "
        "piano violin drum flute guitar dance music song house tower castle field hill valley island ocean"
    ).split()
)


@dataclass(frozen=True)
class Costs:
    """Tokens of what a document is made of, as the tokenizer and the chat template have it."""

    frame: int
    """Everything around the first question and its answer: begin, system turn, turn marks."""
    turn: int
    """A further question and its answer."""

    def shortest(self, questions: int) -> int:
        """Tokens of a document without a haystack."""
        return self.frame + (questions - 1) * self.turn + NEEDLES * NEEDLE_TOKENS


@dataclass(frozen=True)
class Part:
    """A line or a page of a document: text, and which picture stands in it."""

    text: str
    picture: str | None = None
    needle: int | None = None
    """Which of the needles it is."""


@dataclass(frozen=True)
class Document:
    """A haystack with its needles."""

    text: str
    """All parts, `<image>` where a picture stands."""
    pictures: tuple[str, ...]
    names: tuple[str, ...]
    """Names of the needles."""
    digits: tuple[int, ...]
    """Digits that stand beside the names."""
    depths: tuple[float, ...]
    """Where each needle begins, as a share of the document's tokens."""

    def answer(self, needle: int) -> str:
        """Return what a model learns to say of a needle."""
        return f"{self.names[needle]} {self.digit(needle)}"

    def digit(self, needle: int) -> str:
        """Return the word for a needle's digit."""
        return DIGITS[self.digits[needle]]


@dataclass(frozen=True)
class Pictures:
    """Paths of the pictures of a split."""

    digits: Sequence[tuple[str, int]]
    """Path and digit."""
    pages: Sequence[Sequence[str]]
    """`pages[t]`: those of t tiles, t = 1 .. `LONGEST_PAGE`; `pages[0]` is empty."""


def document(draw: random.Random, pictures: Pictures, room: int, page_share: float) -> Document:
    """Draw a document.

    Args:
        draw: where randomness comes from.
        pictures: to draw from.
        room: tokens of the haystack; 0: needles only.
        page_share: chance that a part of the haystack is a page of pictures.
    """
    names = draw.sample(NAMES, NEEDLES)
    digits = [draw.choice(pictures.digits) for _ in names]
    parts = [Part(f"{name}<image>\n", path, i) for i, (name, (path, _)) in enumerate(zip(names, digits, strict=True))]
    costs = [NEEDLE_TOKENS] * NEEDLES
    while room:
        part, cost = _hay(draw, pictures, room, page_share)
        parts.append(part)
        costs.append(cost)
        room -= cost
    order = draw.sample(range(len(parts)), len(parts))
    depths, seen = [0.0] * NEEDLES, 0
    for number in order:
        if (needle := parts[number].needle) is not None:
            depths[needle] = seen / sum(costs)
        seen += costs[number]
    shown = [parts[number] for number in order]
    return Document(
        text="".join(part.text for part in shown),
        pictures=tuple(part.picture for part in shown if part.picture is not None),
        names=tuple(names),
        digits=tuple(digit for _, digit in digits),
        depths=tuple(depths),
    )


def _hay(draw: random.Random, pictures: Pictures, room: int, page_share: float) -> tuple[Part, int]:
    """Draw a part of the haystack and its cost; the room left is none, or enough for a line of two tokens."""
    most = min(LONGEST_PAGE, (room - PAGE_FRAME) // TOKENS_PER_TILE)
    if most > 0 and draw.random() < page_share:
        tiles = draw.randint(1, most)
        cost = PAGE_FRAME + TOKENS_PER_TILE * tiles
        if room - cost != 1:
            return Part("<image>", draw.choice(pictures.pages[tiles])), cost
    words = min(draw.randint(8, LONGEST_WORDS), room - 1)
    if room - words - 1 == 1:
        words -= 1
    return Part(" ".join(draw.choices(WORDS, k=words)) + "\n"), words + 1


def conversation(made: Document, asked: Sequence[int]) -> list[dict[str, str]]:
    """Return the turns of a training sample: the document with the first question, then one question a turn.

    Args:
        made: the document.
        asked: which needles, with repetitions: drawn with replacement, earlier answers exclude nothing.
    """
    turns = []
    for number, needle in enumerate(asked):
        question = made.text + made.names[needle] if number == 0 else made.names[needle]
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": made.answer(needle)})
    return turns
