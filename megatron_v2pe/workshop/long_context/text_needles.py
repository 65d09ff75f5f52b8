"""Needles in text: sentences about invented people and places, unlike anything else in a document.

Names are made of syllables and numbers have five digits; none is drawn twice in a sample, and a haystack that happens
to hold one of them is refused (`Needles.unique`), so that a question has one answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from megatron_v2pe.workshop.long_context.draws import Draws
from megatron_v2pe.workshop.long_context.needles import Needles

_ONSETS = ("b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "dr", "kr", "st", "tr", "gl")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "eo")
_CODAS = ("", "n", "l", "r", "s", "m", "k")
_COUNTED = (2, 5)
"""Fewest and most needles of a counting sample."""
_RUNNERS = 4


@dataclass
class _Words:
    """Names and numbers, each given out once."""

    draws: Draws
    attempt: int
    used: list[str] = field(default_factory=list)
    drawn: int = 0

    def name(self) -> str:
        """Return a new name; none is a part of another."""
        while True:
            parts = [self._of(_ONSETS) + self._of(_VOWELS) + self._of(_CODAS) for _ in range(3)]
            name = "".join(parts).capitalize()
            if not any(name.lower() in other.lower() or other.lower() in name.lower() for other in self.used):
                self.used.append(name)
                return name

    def number(self) -> str:
        """Return a new number of five digits."""
        while True:
            number = str(10_000 + self._draw(90_000))
            if number not in self.used:
                self.used.append(number)
                return number

    def below(self, choices: int) -> int:
        """Return a number in [0, choices)."""
        return self._draw(choices)

    def shuffled(self, items: Sequence[str]) -> list[str]:
        """Return the items in a drawn order."""
        rest = list(items)
        return [rest.pop(self._draw(len(rest))) for _ in items]

    def _of(self, items: Sequence[str]) -> str:
        return items[self._draw(len(items))]

    def _draw(self, choices: int) -> int:
        self.drawn += 1
        return self.draws.integer(choices, "words", self.attempt, self.drawn)


@dataclass(frozen=True)
class _Fact:
    """One sentence and the question it answers."""

    statement: str
    question: str
    answer: str


def _code(words: _Words) -> _Fact:
    place, number = words.name(), words.number()
    return _Fact(
        f"The vault of {place} opens with the code {number}.", f"Which code opens the vault of {place}?", number
    )


def _village(words: _Words) -> _Fact:
    person, village = words.name(), words.name()
    return _Fact(
        f"The painter {person} was born in the village of {village}.",
        f"In which village was the painter {person} born?",
        village,
    )


def _password(words: _Words) -> _Fact:
    ship, password = words.name(), words.name()
    return _Fact(
        f"Whoever boards the ship {ship} has to say the password {password}.",
        f"Which password does one have to say to board the ship {ship}?",
        password,
    )


_FACTS: tuple[Callable[[_Words], _Fact], ...] = (_code, _village, _password)


def text_needles(task: str, draws: Draws, fakes: int, attempt: int = 0) -> Needles:
    """Return the needles of a text task.

    Args:
        task: one of `TEXT_TASKS`.
        draws: of the sample.
        fakes: sentences of the same form about something else.
        attempt: counts up where the haystack held one of the words.
    """
    words = _Words(draws, attempt)
    if task == "text_counting":
        return _counting(words, fakes)
    if task == "text_reasoning":
        return _race(words, fakes) if words.below(2) else _letter(words, fakes)
    return _retrieval(task, words, fakes)


def _retrieval(task: str, words: _Words, fakes: int) -> Needles:
    fact = _FACTS[words.below(len(_FACTS))]
    asked, others = fact(words), [fact(words).statement for _ in range(fakes)]
    return Needles(
        task,
        asked.question,
        asked.answer,
        statements=(asked.statement,),
        fakes=tuple(others),
        recorded=(asked.statement,),
        unique=tuple(words.used),
    )


def _counting(words: _Words, fakes: int) -> Needles:
    low, high = _COUNTED
    ferryman, others = words.name(), [words.name() for _ in range(fakes)]
    counts = [1 + words.below(99) for _ in range(low + words.below(high - low + 1))]

    def trip(name: str, barrels: int) -> str:
        return f"On this trip the ferryman {name} carried {barrels} barrels across the river."

    statements = tuple(trip(ferryman, count) for count in counts)
    return Needles(
        "text_counting",
        f"How many barrels did the ferryman {ferryman} carry across the river on each trip? Give the numbers in the "
        "order in which the document mentions them, as a JSON list such as [4, 17, 8].",
        counts,
        statements=statements,
        fakes=tuple(trip(name, 1 + words.below(99)) for name in others),
        recorded=statements,
        unique=tuple(words.used),
    )


def _letter(words: _Words, fakes: int) -> Needles:
    """Three links of a chain: who passed a letter on to whom, and where the last one put it."""
    writer, courier, keeper, place = (words.name() for _ in range(4))
    links = [
        f"The letter that {writer} wrote was handed to {courier}.",
        f"Every letter that reached {courier} was passed on to {keeper}.",
        f"All letters that came to {keeper} are kept in the cellar of {place}.",
    ]
    statements = tuple(words.shuffled(links))
    others = tuple(f"The letter that {words.name()} wrote was handed to {words.name()}." for _ in range(fakes))
    return Needles(
        "text_reasoning",
        f"In the cellar of which place is the letter that {writer} wrote kept?",
        place,
        statements=statements,
        fakes=others,
        recorded=statements,
        unique=tuple(words.used),
    )


def _race(words: _Words, fakes: int) -> Needles:
    """Neighbours of a ranking, from which its first or its last follows."""
    runners = [words.name() for _ in range(_RUNNERS)]
    pairs = zip(runners, runners[1:], strict=False)
    statements = tuple(words.shuffled([f"In the race {first} arrived before {second}." for first, second in pairs]))
    others = tuple(f"In the race {words.name()} arrived before {words.name()}." for _ in range(fakes))
    last = words.below(2)
    return Needles(
        "text_reasoning",
        f"Who of {', '.join(words.shuffled(runners))} arrived {'last' if last else 'first'} in the race?",
        runners[-last],
        statements=statements,
        fakes=others,
        recorded=statements,
        unique=tuple(words.used),
    )
