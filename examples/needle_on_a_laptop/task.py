"""The task: read handwritten digits beside names in a long document of photographs, and say which digit a name has.

A document is lines of text, in random order:

    Anna<image>                 a needle: a name and a handwritten digit, one tile
    <image>                     a page of the haystack: 1 to 12 tiles of a photograph
    river stone window cloud    words of the haystack

and ends with a name. The answer is that name and the digit beside it (`Anna seven`): said again, the name stands right
before what has to be found. Questions are asked about four needles, so that without binding
names to pictures no more than 38% can be right (which digits are there, not whose). Lengths are exact.
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
"""Of ten digits."""
UNBOUND = 0.38
"""Of the digits in the document the most frequent one, the smallest of equals: what can be right without binding."""
PAGE_FRAME = 3
"""Tokens of a page beside its tiles: begin and end of an image, line break."""
NEEDLE_TOKENS = 1 + PAGE_FRAME + TOKENS_PER_TILE
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

    def shortest(self, questions: int, needles: int = NEEDLES) -> int:
        """Tokens of a document without a haystack."""
        return self.frame + (questions - 1) * self.turn + needles * NEEDLE_TOKENS


@dataclass(frozen=True)
class Line:
    """A line of a document: text, and which picture stands in it."""

    text: str
    picture: str | None = None
    needle: int | None = None
    """Which of the needles it is."""


@dataclass(frozen=True)
class Document:
    """A haystack with its needles."""

    text: str
    """All lines, `<image>` where a picture stands; a line break at the end."""
    pictures: tuple[str, ...]
    names: tuple[str, ...]
    """Of the needles."""
    digits: tuple[int, ...]
    """Beside the names."""
    depths: tuple[float, ...]
    """Where each needle begins, as a share of the document's tokens."""

    def answer(self, needle: int) -> str:
        """Return what is right to say of a needle."""
        return f"{self.names[needle]} {DIGITS[self.digits[needle]]}"


@dataclass(frozen=True)
class Pictures:
    """Paths of the pictures of a split."""

    digits: Sequence[tuple[str, int]]
    """Path and digit."""
    pages: Sequence[Sequence[str]]
    """`pages[t]`: those of t tiles, t = 1 .. `LONGEST_PAGE`; `pages[0]` is empty."""


def document(draw: random.Random, pictures: Pictures, room: int, page_share: float, needles: int = NEEDLES) -> Document:
    """Draw a document.

    Args:
        draw: where randomness comes from.
        pictures: to draw from.
        room: tokens of the haystack, line breaks included; 0: needles only.
        page_share: chance that a line of the haystack is a page of pictures.
        needles: how many.
    """
    names = draw.sample(NAMES, needles)
    digits = [draw.choice(pictures.digits) for _ in names]
    lines = [Line(f"{name}<image>", path, i) for i, (name, (path, _)) in enumerate(zip(names, digits, strict=True))]
    costs = [NEEDLE_TOKENS] * needles
    while room:
        line, cost = _hay(draw, pictures, room, page_share)
        lines.append(line)
        costs.append(cost)
        room -= cost
    order = draw.sample(range(len(lines)), len(lines))
    depths, seen = [0.0] * needles, 0
    for number in order:
        if (needle := lines[number].needle) is not None:
            depths[needle] = seen / sum(costs)
        seen += costs[number]
    shown = [lines[number] for number in order]
    return Document(
        text="".join(f"{line.text}\n" for line in shown),
        pictures=tuple(line.picture for line in shown if line.picture is not None),
        names=tuple(names),
        digits=tuple(digit for _, digit in digits),
        depths=tuple(depths),
    )


def _hay(draw: random.Random, pictures: Pictures, room: int, page_share: float) -> tuple[Line, int]:
    """Draw a line of the haystack and its cost; the room left is none, or enough for a line of two tokens."""
    most = min(LONGEST_PAGE, (room - PAGE_FRAME) // TOKENS_PER_TILE)
    if most > 0 and draw.random() < page_share:
        tiles = draw.randint(1, most)
        cost = PAGE_FRAME + TOKENS_PER_TILE * tiles
        if room - cost != 1:
            return Line("<image>", draw.choice(pictures.pages[tiles])), cost
    words = min(draw.randint(8, LONGEST_WORDS), room - 1)
    if room - words - 1 == 1:
        words -= 1
    return Line(" ".join(draw.choices(WORDS, k=words))), words + 1


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
